//! Chains: A to B to C. B is a copy on another host, behind a real ssh server, and the source of C.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use support::host::Host;
use support::loopback::Loopback;
use support::process::wait_until;
use support::scratch::{FileSystem, Scratch, utf8};
use support::sshd::{Key, Sshd};
use support::trees;
use support::workload::{Workload, worker_was_asked};

const LIMIT: Duration = Duration::from_secs(120);
const TARGET_OF_A: &str = "127.0.0.1";

#[test]
fn workload_worker() {
    worker_was_asked();
}

/// The fields are dropped in this order.
struct Chain {
    a: Host,
    sshd: Sshd,
    /// Writes B, by ssh, and C.
    b: Host,
    source: PathBuf,
    middle: PathBuf,
    end: PathBuf,
    _network: Loopback,
    _scratch: Scratch,
}

impl Chain {
    fn new() -> Chain {
        let scratch = Scratch::with_size(FileSystem::Ext4, 3072);
        let (source, middle, end) = (scratch.dir("a"), scratch.path().join("b"), scratch.path().join("c"));
        trees::fill(&source.join("many"), 300);
        let network = Loopback::new();
        let (mut a, mut b) = (Host::new(), Host::new());
        a.put_on_network(network.keeper());
        let sshd = Sshd::start(&network, "127.0.0.1", b.root(), &Key::Free);
        sshd.write_client_config(&a.root().join("etc/dtfs/ssh_config"));
        a.define_volume("data", &source);
        a.start_and_mount();
        b.must(&["define", "source", "data", "alpha", utf8(&middle)]);
        b.start();
        a.must(&["define", "target", "data", &format!("ssh://root@127.0.0.1:2222{}", utf8(&middle))]);
        Chain { a, sshd, b, source, middle, end, _network: network, _scratch: scratch }
    }

    fn link_c(&self) {
        self.b.must(&["define", "target", "data", &format!("local:{}", utf8(&self.end))]);
    }

    /// Waits until B, and then C, hold A's tree as it is now.
    fn wait(&self) {
        self.a.must(&["wait", "data", TARGET_OF_A, "--timeout", "120"]);
        let tid = format!("0x{:x}", self.a.tid("data"));
        self.b.must(&["wait", "data", "--tid", &tid, "--timeout", "120"]);
    }

    /// What B's host says of C.
    fn c(&self) -> Value {
        let status = self.b.status();
        let targets = status["copies"][0]["targets"].as_array().unwrap_or_else(|| panic!("{status:#}"));
        targets.first().cloned().unwrap_or_else(|| panic!("{status:#}"))
    }

    fn finish(mut self, context: &str) {
        self.wait();
        self.b.stop();
        self.a.stop();
        wait_until("the other end to stop", LIMIT, || self.sshd.servers().is_empty().then_some(()));
        trees::assert_equal(&self.source, &self.middle, &format!("{context}: B"));
        trees::assert_equal(&self.source, &self.end, &format!("{context}: C"));
    }
}

#[test]
fn what_a_copy_gets_goes_on_to_its_own_targets() {
    let chain = Chain::new();
    chain.a.wait("data", 120);
    chain.link_c();
    chain.wait();
    Workload::start(&chain.source, 11, 2, 1_500).finish();
    fs::write(chain.source.join("last"), b"last").unwrap();
    chain.wait();
    let (of_a, of_b) = (chain.a.target("data"), chain.c());
    assert_eq!(of_a["applied_tid"], of_b["applied_tid"], "the same TIDs: {of_a:#} {of_b:#}");
    assert_eq!(of_b["state"], "replicating", "{of_b:#}");
    chain.finish("a chain");
}
