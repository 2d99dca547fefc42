//! Two networks joined by one cable, which can be cut, stopped in one direction, and made slow.

use super::loopback::Loopback;

/// The addresses at its ends.
pub(crate) const NEAR: &str = "10.63.20.1";
pub(crate) const FAR: &str = "10.63.20.2";
const DEVICE: &str = "cable";

/// Both networks and what joins them end with it.
pub(crate) struct Link {
    pub(crate) near: Loopback,
    pub(crate) far: Loopback,
}

impl Link {
    pub(crate) fn new() -> Link {
        let link = Link { near: Loopback::new(), far: Loopback::new() };
        let far = link.far.keeper().to_string();
        run(&link.near, &["ip", "link", "add", DEVICE, "type", "veth", "peer", "name", DEVICE, "netns", &far]);
        for (network, address) in [(&link.near, NEAR), (&link.far, FAR)] {
            run(network, &["ip", "address", "add", &format!("{address}/24"), "dev", DEVICE]);
            run(network, &["ip", "link", "set", DEVICE, "up"]);
        }
        link
    }

    /// Pulls the cable, and puts it back.
    pub(crate) fn cut(&self) {
        run(&self.far, &["ip", "link", "set", DEVICE, "down"]);
    }

    pub(crate) fn mend(&self) {
        run(&self.far, &["ip", "link", "set", DEVICE, "up"]);
    }

    /// What the near side sends is lost, without a word; the other way is open.
    pub(crate) fn lose_what_is_sent(&self) {
        let rules = "table inet lost { chain input { type filter hook input priority 0; policy drop; }; }";
        run(&self.far, &["nft", rules]);
    }

    pub(crate) fn lose_nothing(&self) {
        run(&self.far, &["nft", "delete table inet lost"]);
    }

    /// Whatever the near side sends to `port` ends its connection at once.
    pub(crate) fn reset_connections(&self, port: u16) {
        let hook = "type filter hook output priority 0;";
        let rule = format!("tcp dport {port} reject with tcp reset;");
        run(&self.near, &["nft", &format!("table inet broken {{ chain output {{ {hook} {rule} }}; }}")]);
    }

    pub(crate) fn reset_nothing(&self) {
        run(&self.near, &["nft", "delete table inet broken"]);
    }

    /// The near side sends one megabit a second.
    pub(crate) fn slow_down(&self) {
        let slow = ["root", "tbf", "rate", "1mbit", "burst", "16kb", "latency", "400ms"];
        run(&self.near, &[&["tc", "qdisc", "add", "dev", DEVICE][..], &slow].concat());
    }

    pub(crate) fn speed_up(&self) {
        run(&self.near, &["tc", "qdisc", "del", "dev", DEVICE, "root"]);
    }

    /// The longest packet, at both ends.
    pub(crate) fn set_mtu(&self, bytes: u32) {
        for network in [&self.near, &self.far] {
            run(network, &["ip", "link", "set", DEVICE, "mtu", &bytes.to_string()]);
        }
    }
}

fn run(network: &Loopback, line: &[&str]) {
    let output = network.command(line[0]).args(&line[1..]).output().expect("a tool runs");
    assert!(output.status.success(), "{line:?}: {}", String::from_utf8_lossy(&output.stderr));
}
