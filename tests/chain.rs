//! Chains: A to B to C. B is a copy on another host, behind a real ssh server, and the source of C.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

#[path = "chain/asked.rs"]
mod asked;
#[path = "chain/lost.rs"]
mod lost;
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dtfs::backing::compare::{CompareOptions, compare_trees};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use support::host::Host;
use support::length::number;
use support::loopback::Loopback;
use support::prng::Prng;
use support::process::wait_until;
use support::scratch::{FileSystem, Scratch, utf8};
use support::sshd::{Key, Sshd};
use support::trees;
use support::workload::{Workload, worker_was_asked};

const LIMIT: Duration = Duration::from_secs(120);
/// What A calls B: its host.
const B: &str = "127.0.0.1";

#[test]
fn workload_worker() {
    worker_was_asked();
}

/// How B reaches C.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Local,
    Ssh,
    /// A third host listens for it.
    Tls,
}

/// The fields are dropped in this order.
struct Chain {
    a: Host,
    sshd: Sshd,
    /// Writes B, by ssh, and C, unless that is reached over tls.
    b: Host,
    c: Option<Host>,
    source: PathBuf,
    middle: PathBuf,
    end: PathBuf,
    _network: Loopback,
    _scratch: Scratch,
}

impl Chain {
    fn new() -> Chain {
        Chain::with("", "")
    }

    /// With lines for A's file of the volume, and fault points for whoever performs records on B.
    fn with(settings: &str, faults_of_b: &str) -> Chain {
        let scratch = Scratch::with_size(FileSystem::Ext4, 3072);
        let (source, middle, end) = (scratch.dir("a"), scratch.path().join("b"), scratch.path().join("c"));
        trees::fill(&source.join("many"), 300);
        let network = Loopback::new();
        let (mut a, mut b) = (Host::new(), Host::new());
        a.put_on_network(network.keeper());
        let forced = format!("DTFS_FAULTS={faults_of_b} dtfs serve --stdio '{}'", utf8(&middle));
        let key = if faults_of_b.is_empty() { Key::Free } else { Key::Forced(&forced) };
        let sshd = Sshd::start(&network, "127.0.0.1", b.root(), &key);
        sshd.write_client_config(&a.root().join("etc/dtfs/ssh_config"));
        a.define_volume("data", &source);
        let file = a.root().join("etc/dtfs/mounts.d/data.toml");
        let text = fs::read_to_string(&file).unwrap_or_default();
        fs::write(&file, format!("{settings}{text}")).unwrap();
        a.start_and_mount();
        b.must(&["define", "source", "data", "alpha", utf8(&middle)]);
        b.start();
        a.must(&["define", "target", "data", &over_ssh(&middle)]);
        Chain { a, sshd, b, c: None, source, middle, end, _network: network, _scratch: scratch }
    }

    /// One with some content that everybody has, whose A is lost.
    fn without_a() -> Chain {
        let mut chain = Chain::new();
        fs::write(chain.source.join("large"), noise(3, 8 << 20)).unwrap();
        chain.link_c();
        chain.wait();
        chain.wait_settled();
        chain.a.kill9();
        kill9(&chain.sshd.connections());
        chain
    }

    /// One whose B reaches C by `way`; C is linked.
    fn over(way: Way) -> Chain {
        let mut chain = Chain::new();
        let keeper = chain._network.keeper();
        chain.b.stop();
        chain.b.put_on_network(keeper);
        chain.sshd.write_client_config(&chain.b.root().join("etc/dtfs/ssh_config"));
        chain.b.start();
        let url = match way {
            Way::Local => format!("local:{}", utf8(&chain.end)),
            Way::Ssh => over_ssh(&chain.end),
            Way::Tls => chain.begin_c(keeper),
        };
        chain.b.must(&["define", "target", "data", &url, "--as", "c"]);
        chain
    }

    /// The host of C, which knows B and is known by it; where C is then.
    fn begin_c(&mut self, network: i32) -> String {
        let mut c = Host::new();
        c.put_on_network(network);
        fs::create_dir_all(c.root().join("etc/dtfs")).unwrap();
        fs::write(c.root().join("etc/dtfs/dtfs.toml"), "listen = \"127.0.0.1:6320\"\n").unwrap();
        c.must(&["peer", "add", "beta", self.b.must(&["peer", "show"]).trim()]);
        self.b.must(&["peer", "add", "127.0.0.1", c.must(&["peer", "show"]).trim()]);
        c.must(&["define", "source", "copy", "beta", utf8(&self.end)]);
        c.start();
        self.c = Some(c);
        "tls://127.0.0.1/copy".to_owned()
    }

    fn link_c(&self) {
        self.b.must(&["define", "target", "data", &format!("local:{}", utf8(&self.end))]);
    }

    /// Waits until B, and then C, hold A's tree as it is now.
    fn wait(&self) {
        self.a.must(&["wait", "data", B, "--timeout", "180"]);
        let tid = format!("0x{:x}", self.a.tid("data"));
        self.b.must(&["wait", "data", "--tid", &tid, "--timeout", "180"]);
    }

    /// Waits until C knows that nothing which A knows to be in doubt is so there.
    fn wait_settled(&self) {
        wait_until("C to be told", LIMIT, || {
            let replicas = fs::read_dir(self.b.root().join("var/lib/dtfs/replicas")).ok()?;
            let marks: Vec<Vec<u8>> =
                replicas.filter_map(|replica| fs::read(replica.ok()?.path().join("mark")).ok()).collect();
            (marks.len() == 2 && marks[0] == marks[1]).then_some(())
        });
    }

    /// What B's host says of C.
    fn c(&self) -> Value {
        let status = self.b.status();
        let targets = status["copies"][0]["targets"].as_array().unwrap_or_else(|| panic!("{status:#}"));
        targets.first().cloned().unwrap_or_else(|| panic!("{status:#}"))
    }

    /// What A says of one of its targets.
    fn of_a(&self, name: &str) -> Value {
        let status = self.a.status();
        let targets = status["volumes"][0]["targets"].as_array().unwrap_or_else(|| panic!("{status:#}"));
        let found = targets.iter().find(|target| target["name"] == name);
        found.cloned().unwrap_or_else(|| panic!("{status:#}"))
    }

    fn stop(&mut self) {
        self.b.stop();
        if let Some(c) = &mut self.c {
            wait_until("C to be left", LIMIT, || c.servers().is_empty().then_some(()));
            c.stop();
        }
        self.a.stop();
        wait_until("the other end to stop", LIMIT, || self.sshd.servers().is_empty().then_some(()));
    }

    fn finish(mut self, context: &str) {
        self.wait();
        self.stop();
        trees::assert_equal(&self.source, &self.middle, &format!("{context}: B"));
        trees::assert_equal(&self.source, &self.end, &format!("{context}: C"));
    }
}

fn over_ssh(dir: &Path) -> String {
    format!("ssh://root@127.0.0.1:2222{}", utf8(dir))
}

/// Bytes that no compression makes smaller.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    Prng::new(seed).bytes(len)
}

fn kill9(pids: &[i32]) {
    for pid in pids {
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
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

/// B dies in the middle of a load. C goes to A, far behind, and later back to B, which is behind then: each time the records
/// behind its place are all that it gets.
#[test]
fn the_end_of_a_chain_is_pointed_elsewhere_without_a_mirror() {
    let mut chain = Chain::new();
    fs::write(chain.source.join("large"), noise(1, 24 << 20)).unwrap();
    chain.link_c();
    chain.wait();
    chain.wait_settled();
    chain.b.must(&["replication", "pause", "data", "c"]);
    let load = Workload::start(&chain.source, 21, 2, 1_000);
    for at in 0..40 {
        fs::write(chain.source.join(format!("own-{at}")), noise(at, 9_000)).unwrap();
    }
    kill9(&chain.sshd.servers());
    chain.b.kill9_and_wait();
    chain.a.must(&["replication", "pause", "data", B]);
    load.finish();
    fs::write(chain.source.join("what B does not get"), noise(9, 9_000)).unwrap();

    chain.b.must(&["forget", "target", "data", "c"]);
    chain.a.must(&["define", "target", "data", &over_ssh(&chain.end), "--as", "c"]);
    chain.a.must(&["wait", "data", "c", "--timeout", "120"]);
    let c = chain.of_a("c");
    assert!(c["mirror"].is_null() && c["work_left"] == 0, "nothing was compared: {c:#}");
    assert!(c["bytes_sent"].as_u64().unwrap() < 16 << 20, "{c:#}");
    let events = chain.a.must(&["events", "data"]);
    assert!(events.contains("another source brought it to"), "{events}");

    chain.a.must(&["forget", "target", "data", "c"]);
    chain.b.start();
    chain.link_c();
    wait_until("C to wait for B", LIMIT, || {
        let c = chain.c();
        c["reason"].as_str().is_some_and(|reason| reason.contains("until this copy has caught up")).then_some(())
    });
    chain.a.must(&["replication", "resume", "data", B]);
    fs::write(chain.source.join("last"), b"last").unwrap();
    chain.wait();
    let c = chain.c();
    assert!(c["mirror"].is_null() && c["work_left"] == 0, "nothing was compared: {c:#}");
    assert!(c["bytes_sent"].as_u64().unwrap() < 1 << 20, "{c:#}");
    chain.finish("pointed elsewhere and back");
}

/// B misses more than A keeps: it gets the state of what changed, and so must C.
fn what_comes_as_state(faults_of_b: &str) -> Chain {
    let chain = Chain::with("journal_cap = \"64M\"\n", faults_of_b);
    fs::write(chain.source.join("large"), noise(2, 4 << 20)).unwrap();
    chain.link_c();
    chain.wait();
    chain.a.must(&["replication", "pause", "data", B]);
    for round in 0..24 {
        fs::write(chain.source.join("large"), noise(100 + round, 4 << 20)).unwrap();
        let many = chain.source.join("many");
        fs::remove_file(many.join(format!("file-{round:05}"))).unwrap();
        fs::create_dir(many.join(format!("dir-{round}"))).unwrap();
        fs::rename(many.join(format!("file-{:05}", 100 + round)), many.join(format!("dir-{round}/moved"))).unwrap();
        fs::hard_link(many.join(format!("file-{:05}", 200 + round)), chain.source.join(format!("link-{round}")))
            .unwrap();
    }
    let events = chain.a.must(&["events", "data"]);
    assert!(events.contains("becomes work"), "the journal was to overflow: {events}");
    chain.a.must(&["replication", "resume", "data", B]);
    chain.wait();
    chain
}

#[test]
fn what_the_middle_gets_as_state_is_compared_at_the_end() {
    what_comes_as_state("").finish("overflow");
}

#[test]
fn control_state_is_not_passed_on() {
    let mut chain = what_comes_as_state("relay.rows=skip");
    chain.stop();
    trees::assert_equal(&chain.source, &chain.middle, "B");
    let report = compare_trees(&chain.source, &chain.end, &CompareOptions::default()).unwrap();
    assert!(!report.is_equal(), "the rig does not see that C misses what B got as state");
}

/// A stop of B waits until C has what had come to B by then.
#[test]
fn a_stop_of_the_middle_waits_for_the_end() {
    let disk = Scratch::new(FileSystem::Ext4);
    let mut chain = Chain::new();
    chain.end = disk.path().join("c");
    fs::create_dir_all(chain.b.root().join("etc/dtfs")).unwrap();
    fs::write(chain.b.root().join("etc/dtfs/dtfs.toml"), "drain = \"600s\"\nlog_level = \"info\"\n").unwrap();
    chain.b.stop();
    chain.b.start();
    chain.link_c();
    chain.wait();
    let frozen = disk.freeze();
    fs::write(chain.source.join("late"), noise(4, 1 << 20)).unwrap();
    chain.a.must(&["wait", "data", B, "--timeout", "180"]);
    chain.b.signal(Signal::SIGTERM);
    wait_until("B to wait for C", LIMIT, || chain.b.log().contains("targets may take what they lack").then_some(()));
    assert!(!chain.b.has_stopped());
    drop(frozen);
    chain.b.wait_stopped();
    assert!(!chain.b.log().contains("not applied"), "{}", chain.b.log());
    chain.a.stop();
    wait_until("the other end to stop", LIMIT, || chain.sshd.servers().is_empty().then_some(()));
    trees::assert_equal(&chain.source, &chain.end, "C after the stop of B");
}

/// A is lost. B goes on as a master, with C behind it, in an epoch of its own. What is in doubt of a tree that nobody watched
/// is in doubt for C too: it is compared, and never sent anew.
#[test]
fn a_chain_goes_on_behind_a_middle_that_is_promoted() {
    let mut chain = Chain::without_a();
    chain.b.must(&["promote", "data"]);
    chain.b.adopt_volume(&chain.middle);
    fs::write(chain.middle.join("after"), noise(4, 1 << 20)).unwrap();
    fs::remove_file(chain.middle.join("many/file-00000")).unwrap();
    chain.b.wait("data", 120);
    let c = chain.b.target("data");
    assert!(c["mirror"].is_null() || c["mirror"]["mirror"] != "full", "{c:#}");
    assert!(c["bytes_sent"].as_u64().unwrap() < 3 << 20, "{c:#}");
    chain.b.stop();
    trees::assert_equal(&chain.middle, &chain.end, "C behind a promoted B");
    assert!(chain.end.join("after").exists());
}

#[test]
fn a_chain_survives_kills_of_all_its_parts() {
    everybody_is_killed(Way::Local, 2);
}

#[test]
fn a_chain_over_ssh_survives_kills_of_all_its_parts() {
    everybody_is_killed(Way::Ssh, 2);
}

#[test]
fn a_chain_over_tls_survives_kills_of_all_its_parts() {
    everybody_is_killed(Way::Tls, 2);
}

/// Again and again.
fn everybody_is_killed(way: Way, rounds: u64) {
    let seed = number("DTFS_SEED", 7);
    println!("seed {seed} (DTFS_SEED)");
    let mut random = Prng::new(seed);
    let mut chain = Chain::over(way);
    for round in 0..rounds {
        let load = Workload::start(&chain.source, seed + round, 2, 400);
        for _ in 0..1 + random.below(3) {
            for at in 0..20 {
                fs::write(chain.source.join(format!("own-{}", random.below(40))), noise(round * 100 + at, 9_000))
                    .unwrap();
            }
            match random.below(4) {
                // Over ssh C's are among them.
                0 => kill9(&chain.sshd.servers()),
                1 => kill9(&chain.b.servers()),
                2 => chain.c.iter().for_each(|c| kill9(&c.servers())),
                _ => {
                    chain.b.kill9_and_wait();
                    chain.b.start();
                }
            }
        }
        load.finish();
        if random.chance(50) {
            chain.a.kill9();
            if random.chance(50) {
                // Then a new epoch begins, and what is in doubt is compared along the whole chain.
                chain.a.lose_memory();
            }
            chain.a.start_and_mount();
        }
    }
    fs::write(chain.source.join("last"), b"last").unwrap();
    chain.wait();
    chain.finish(&format!("{way:?}, kills, seed {seed}"));
}
