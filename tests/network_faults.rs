//! A target on another network, over ssh and over tls, while the cable is cut, slow, or open in one direction only, and while either end is
//! killed. Afterwards the trees are equal, and what was mirrored once is not mirrored again. `DTFS_CUTS` and `DTFS_LONGEST_MS` say how
//! many faults of which length come under load; `DTFS_SEED` repeats a run.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use serde_json::Value;
use support::host::Host;
use support::length::number;
use support::link::{FAR, Link};
use support::prng::Prng;
use support::process::{peak_memory_kib, wait_until};
use support::scratch::{FileSystem, Scratch, utf8};
use support::sshd::{Key, Sshd};
use support::trees;
use support::workload::{Workload, worker_was_asked};

const LIMIT: Duration = Duration::from_secs(180);
/// Lies in the tree before the mirror and never changes: whoever mirrors again sends it again.
const BALLAST_BYTES: usize = 24 << 20;
/// More than either end may ever need, however much waits.
const MOST_MEMORY_KIB: u64 = 256 << 10;
const SHORTEST_MS: u64 = 1_000;
/// Programs write in bursts of 200 changes during a fault, and so many of them.
const MOST_LOADS: usize = 15;

#[test]
fn workload_worker() {
    worker_was_asked();
}

/// The fields are dropped in this order.
struct Rig {
    host: Host,
    far: Far,
    source: PathBuf,
    target: PathBuf,
    link: Link,
    _scratch: Scratch,
    mirrored: u64,
    seed: u64,
}

/// The other host: who starts its `dtfs serve` processes.
enum Far {
    /// The fields are dropped in this order.
    Ssh {
        sshd: Sshd,
        _host: Host,
    },
    Tls(Host),
}

#[derive(Clone, Copy)]
enum Way {
    Ssh,
    Tls,
}

impl Far {
    /// Runs on the far network and lets `near` write `target`; returns where that is.
    fn start(way: Way, link: &Link, near: &Host, target: &Path) -> (Far, String) {
        let mut host = Host::new();
        match way {
            Way::Ssh => {
                let sshd = Sshd::start(&link.far, FAR, host.root(), &Key::Free);
                sshd.write_client_config(&near.root().join("etc/dtfs/ssh_config"));
                (Far::Ssh { sshd, _host: host }, format!("ssh://root@{FAR}:2222{}", utf8(target)))
            }
            Way::Tls => {
                host.put_on_network(link.far.keeper());
                fs::create_dir_all(host.root().join("etc/dtfs")).unwrap();
                fs::write(host.root().join("etc/dtfs/dtfs.toml"), format!("listen = \"{FAR}:6320\"\n")).unwrap();
                host.must(&["peer", "add", "near", near.must(&["peer", "show"]).trim()]);
                near.must(&["peer", "add", FAR, host.must(&["peer", "show"]).trim()]);
                host.must(&["define", "source", "copy", "near", utf8(target)]);
                host.start();
                (Far::Tls(host), format!("tls://{FAR}/copy"))
            }
        }
    }

    fn servers(&self) -> Vec<i32> {
        match self {
            Far::Ssh { sshd, .. } => sshd.servers(),
            Far::Tls(host) => host.servers(),
        }
    }
}

impl Rig {
    fn new(way: Way) -> Rig {
        let scratch = Scratch::with_size(FileSystem::Ext4, 2048);
        let (source, target) = (scratch.dir("source"), scratch.path().join("target"));
        let mut ballast = vec![0; BALLAST_BYTES];
        blake3::Hasher::new().finalize_xof().fill(&mut ballast);
        fs::write(source.join("ballast"), &ballast).unwrap();
        let link = Link::new();
        let mut host = Host::new();
        host.put_on_network(link.near.keeper());
        let (far, url) = Far::start(way, &link, &host, &target);
        host.define_volume("data", &source);
        host.start_and_mount();
        host.must(&["define", "target", "data", &url, "--as", "far"]);
        host.wait("data", 300);
        let mirrored = host.bytes_sent("data");
        assert!(mirrored > BALLAST_BYTES as u64, "noise does not shrink: a second mirror would show");
        Rig { host, far, source, target, link, _scratch: scratch, mirrored, seed: 100 }
    }

    fn work(&mut self, ops: u64) -> Workload {
        self.seed += 1;
        Workload::start(&self.source, self.seed, 2, ops)
    }

    fn is_offline(&self) -> bool {
        self.host.target("data")["state"] == "offline"
    }

    /// The session has ended because nobody answers.
    fn wait_until_noticed(&self) {
        wait_until("the dead connection to be noticed", LIMIT, || self.is_offline().then_some(()));
    }

    fn kill_servers(&self) {
        for pid in self.far.servers() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }

    /// When the mirror began, and the bytes of content that it read.
    fn mirror(&self) -> (Value, Value) {
        let mirror = &self.host.target("data")["mirror"];
        (mirror["began"].clone(), mirror["bytes"].clone())
    }

    /// Those of both ends that run at the moment.
    fn processes(&self) -> Vec<i32> {
        let mut all = self.far.servers();
        all.push(self.host.daemon_pid());
        all
    }

    /// The target has everything, and nothing was mirrored twice since `before`.
    fn settle(&mut self, before: u64, context: &str) {
        self.host.wait("data", 300);
        let sent = self.host.bytes_sent("data") - before;
        assert!(sent < BALLAST_BYTES as u64, "{context}: {sent} bytes were sent, the mirror took {}", self.mirrored);
    }

    fn finish(mut self, context: &str) {
        self.host.stop();
        wait_until("the other end to stop", LIMIT, || self.far.servers().is_empty().then_some(()));
        trees::assert_equal(&self.source, &self.target, context);
    }
}

#[test]
fn a_cable_that_is_cut_under_load() {
    cut(Way::Ssh);
}

#[test]
fn a_cable_that_is_cut_under_load_over_tls() {
    cut(Way::Tls);
}

fn cut(way: Way) {
    let mut rig = Rig::new(way);
    for round in 0..3 {
        let before = rig.host.bytes_sent("data");
        let load = rig.work(500);
        rig.link.cut();
        load.finish();
        // The second one is longer than anybody waits.
        if round == 1 {
            rig.wait_until_noticed();
        }
        rig.link.mend();
        rig.settle(before, "cut");
    }
    rig.finish("a cut cable");
}

#[test]
fn a_way_that_is_open_in_one_direction_only() {
    one_way(Way::Ssh);
}

#[test]
fn a_way_that_is_open_in_one_direction_only_over_tls() {
    one_way(Way::Tls);
}

fn one_way(way: Way) {
    let mut rig = Rig::new(way);
    let before = rig.host.bytes_sent("data");
    rig.link.lose_what_is_sent();
    rig.work(500).finish();
    rig.wait_until_noticed();
    rig.link.lose_nothing();
    rig.settle(before, "one way");
    rig.finish("one way only");
}

/// How far the source's clock is from the true one, by the newest change in its journal, in hours.
fn hours_ahead(host: &Host) -> i64 {
    let log = host.must(&["log", "data", "--json"]);
    let newest: serde_json::Value = serde_json::from_str(log.lines().last().expect("a change")).unwrap();
    let time: jiff::Timestamp = newest["time"].as_str().expect("a time").parse().unwrap();
    (time.as_second() - jiff::Timestamp::now().as_second() + 1800).div_euclid(3600)
}

/// Both clocks jump by a day in mid-stream, forwards and backwards, and go back to the truth over a restart, while what was
/// changed behind the mount's back has a time before the stop.
#[test]
fn clocks_that_jump_by_a_day() {
    let mut rig = Rig::new(Way::Tls);
    for (round, (near, far, hours)) in [
        ("clock.ahead=skip@100+", "clock.behind=skip@2+", 24),
        ("", "", 0),
        ("clock.behind=skip@100+", "clock.ahead=skip@2+", -24),
        ("", "clock.ahead=skip@2+", 0),
    ]
    .into_iter()
    .enumerate()
    {
        rig.host.stop();
        fs::write(rig.source.join(format!("unwatched-{round}")), b"when nobody looked").unwrap();
        if let Far::Tls(host) = &mut rig.far {
            host.stop();
            host.start_with_faults(far);
        }
        rig.host.start_with_faults(near);
        rig.host.must(&["mounts", "mount", "--all"]);
        rig.work(400).finish();
        // The counter begins at 0 with each daemon.
        rig.settle(0, &format!("round {round}"));
        rig.host.must(&["verify", "data", "far"]);
        fs::write(rig.source.join("newest"), near).unwrap();
        rig.host.tid("data");
        assert_eq!(hours_ahead(&rig.host), hours, "round {round}: the clock did what it should");
    }
    rig.host.wait("data", 300);
    for round in 0..4 {
        assert!(rig.target.join(format!("unwatched-{round}")).exists(), "round {round}");
    }
    rig.finish("clocks");
}

#[test]
fn a_slow_link_another_mtu_and_kills_of_both_ends() {
    slow_and_killed(Way::Ssh);
}

#[test]
fn a_slow_link_another_mtu_and_kills_of_both_ends_over_tls() {
    slow_and_killed(Way::Tls);
}

fn slow_and_killed(way: Way) {
    let mut rig = Rig::new(way);
    let before = rig.host.bytes_sent("data");
    rig.link.slow_down();
    let load = rig.work(300);
    rig.kill_servers();
    rig.link.set_mtu(600);
    load.finish();
    rig.link.speed_up();
    rig.settle(before, "slow, and the target killed");
    rig.link.set_mtu(1500);
    let load = rig.work(500);
    rig.kill_servers();
    load.finish();
    rig.host.kill9();
    rig.host.start_and_mount();
    // The counter begins at 0 with each daemon.
    rig.settle(0, "the source killed");
    rig.finish("slow link, MTU and kills");
}

/// What goes wrong with a link, or with who is at the other end of it.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Cut,
    OneWay,
    Slow,
    SmallFrames,
    Killed,
}

const FAULTS: [Fault; 5] = [Fault::Cut, Fault::OneWay, Fault::Slow, Fault::SmallFrames, Fault::Killed];

impl Fault {
    fn begin(self, rig: &Rig) {
        match self {
            Fault::Cut => rig.link.cut(),
            Fault::OneWay => rig.link.lose_what_is_sent(),
            Fault::Slow => rig.link.slow_down(),
            Fault::SmallFrames => rig.link.set_mtu(600),
            Fault::Killed => rig.kill_servers(),
        }
    }

    fn end(self, rig: &Rig) {
        match self {
            Fault::Cut => rig.link.mend(),
            Fault::OneWay => rig.link.lose_nothing(),
            Fault::Slow => rig.link.speed_up(),
            Fault::SmallFrames => rig.link.set_mtu(1500),
            Fault::Killed => {}
        }
    }
}

#[test]
fn faults_of_all_kinds_under_load() {
    faults_under_load(Way::Ssh);
}

#[test]
fn faults_of_all_kinds_under_load_over_tls() {
    faults_under_load(Way::Tls);
}

/// Programs write through one fault after another. In the end both trees are equal, neither end has needed more memory than it
/// may, and the mirror was not done again.
fn faults_under_load(way: Way) {
    let seed = number("DTFS_SEED", 1);
    let (faults, longest) = (number("DTFS_CUTS", 5), number("DTFS_LONGEST_MS", 2_000));
    println!("{faults} faults of {SHORTEST_MS} to {longest} ms, seed {seed}");
    let mut prng = Prng::new(seed);
    let mut rig = Rig::new(way);
    rig.seed = prng.next() >> 1;
    let mirror = rig.mirror();
    for round in 0..faults {
        // The first ones are one of each kind.
        let fault = FAULTS.get(round as usize).copied().unwrap_or_else(|| prng.pick(&FAULTS));
        let length = Duration::from_millis(SHORTEST_MS + prng.below(longest - SHORTEST_MS + 1));
        let context = format!("{fault:?} for {length:?}, round {round}, seed {seed}");
        let load = rig.work(200);
        fault.begin(&rig);
        let begun = Instant::now();
        load.finish();
        for _ in 0..MOST_LOADS {
            if begun.elapsed() < length {
                rig.work(200).finish();
            }
        }
        // The disk is not to fill meanwhile; the fault is as long as was drawn.
        std::thread::sleep(length.saturating_sub(begun.elapsed()));
        fault.end(&rig);
        rig.host.wait("data", 300);
        let memory = rig.processes().into_iter().filter_map(peak_memory_kib).max().expect("the daemon runs");
        assert!(memory < MOST_MEMORY_KIB, "{context}: {memory} KiB");
        assert_eq!(rig.mirror(), mirror, "{context}: mirrored again");
        println!("{context}: {memory} KiB at most");
    }
    rig.host.must(&["verify", "data", "far"]);
    rig.finish(&format!("faults of all kinds, seed {seed}"));
}
