//! Two targets, one of them dead or hung for the whole test: the other is never late because of it, nor is a program that
//! writes, and in the end both have everything. And as many targets as a volume can have, each with a place of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::host::Host;
use support::scratch::{FileSystem, Scratch, utf8};
use support::trees;

const ROUNDS: u32 = 24;

struct Rig {
    host: Host,
    source: PathBuf,
    well: PathBuf,
    ill: PathBuf,
    _scratch: Scratch,
}

fn rig() -> Rig {
    let scratch = Scratch::new(FileSystem::Ext4);
    let (source, well, ill) = (scratch.dir("source"), scratch.dir("well"), scratch.dir("ill"));
    trees::fill(&source, 50);
    let mut host = Host::new();
    host.define_volume("data", &source);
    host.start_and_mount();
    host.define_target("data", &well);
    host.define_target("data", &ill);
    host.wait("data", 120);
    Rig { host, source, well, ill, _scratch: scratch }
}

impl Rig {
    /// The process that serves `ill`.
    fn ill_server(&self) -> Option<Pid> {
        let line = |pid: i32| support::process::command_line(pid);
        self.host.servers().into_iter().find(|pid| line(*pid).contains("/ill")).map(Pid::from_raw)
    }

    /// Writes and waits for the well target, again and again, while `disturb` sees to the other. In how many rounds the ill one
    /// was `still_ill` when the well one had everything: whoever waited for it would not have been served by then.
    fn live<T>(&self, mut disturb: impl FnMut(&Rig) -> T, still_ill: impl Fn(&Rig, &T) -> bool) -> u32 {
        let mut rounds = 0;
        for round in 0..ROUNDS {
            let ill = disturb(self);
            fs::write(self.source.join(format!("round-{round}")), vec![round as u8; 1 << 20]).unwrap();
            self.host.must(&["wait", "data", "well", "--timeout", "120"]);
            rounds += u32::from(still_ill(self, &ill));
        }
        rounds
    }

    fn end(mut self, rounds: u32) {
        println!("in {rounds} of {ROUNDS} rounds the well target had everything while the other was ill");
        assert!(rounds > 0, "the well target is served only when the other is well again");
        self.host.wait("data", 180);
        self.host.stop();
        trees::assert_equal(&self.source, &self.well, "the well target");
        trees::assert_equal(&self.source, &self.ill, "the ill target");
    }
}

/// A hung target is cut off after fifteen seconds: until then its process stands still.
#[test]
fn a_hung_target_makes_nobody_late() {
    let rig = rig();
    let stop = |rig: &Rig| {
        // It may end at any moment.
        rig.ill_server().inspect(|pid| {
            let _ = kill(*pid, Signal::SIGSTOP);
        })
    };
    let stands_still = |_: &Rig, ill: &Option<Pid>| ill.is_some_and(is_stopped);
    let rounds = rig.live(stop, stands_still);
    rig.end(rounds);
}

fn is_stopped(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with('T'))
}

#[test]
fn a_dead_target_makes_nobody_late() {
    let rig = rig();
    let kill = |rig: &Rig| {
        if let Some(pid) = rig.ill_server() {
            let _ = kill(pid, Signal::SIGKILL);
        }
    };
    let lacks_something = |rig: &Rig, _: &()| {
        let status = rig.host.status();
        let targets = status["volumes"][0]["targets"].as_array().unwrap();
        let received =
            |name: &str| targets.iter().find(|target| target["name"] == name).unwrap()["received_tid"].clone();
        received("ill") != received("well")
    };
    let rounds = rig.live(kill, lacks_something);
    rig.end(rounds);
}

const MANY: usize = 32;
const PAUSED: &str = "copy-05";
const DEAD: &str = "copy-11";

/// What `status` says of each target: its name, and up to where it is consistent.
fn places(host: &Host) -> BTreeMap<String, Option<String>> {
    let status = host.status();
    let targets = status["volumes"][0]["targets"].as_array().unwrap();
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
    targets.iter().map(|target| (text(&target["name"]).unwrap(), text(&target["consistent_at"]))).collect()
}

fn server_of(host: &Host, copy: &str) -> Option<Pid> {
    let end = format!("/{copy}");
    let is_its = |pid: &i32| support::process::command_line(*pid).trim_end_matches('\0').ends_with(&end);
    host.servers().into_iter().find(is_its).map(Pid::from_raw)
}

#[test]
fn thirty_two_targets_have_each_a_place_of_their_own() {
    let scratch = Scratch::with_size(FileSystem::Ext4, 1024);
    let source = scratch.dir("source");
    trees::fill(&source, 20);
    let mut host = Host::new();
    host.define_volume("data", &source);
    host.start_and_mount();
    let copies: Vec<PathBuf> = (0..MANY).map(|at| scratch.dir(&format!("copy-{at:02}"))).collect();
    copies.iter().for_each(|dir| host.define_target("data", dir));
    host.wait("data", 240);
    host.must(&["replication", "pause", "data", PAUSED]);
    let before = places(&host);
    assert_eq!(before.len(), MANY);
    for round in 0..6 {
        // Killed again as soon as it is back.
        if let Some(pid) = server_of(&host, DEAD) {
            let _ = kill(pid, Signal::SIGKILL);
        }
        fs::write(source.join(format!("round-{round}")), vec![round; 64 << 10]).unwrap();
        fs::remove_file(source.join(format!("file-{round:05}"))).unwrap();
        for well in ["copy-00", "copy-31"] {
            host.must(&["wait", "data", well, "--timeout", "120"]);
        }
    }
    let well: Vec<String> = before.keys().filter(|name| ![PAUSED, DEAD].contains(&name.as_str())).cloned().collect();
    for name in &well {
        host.must(&["wait", "data", name, "--timeout", "240"]);
    }
    let after = places(&host);
    let place = |name: &str| after[name].clone().unwrap_or_else(|| panic!("{name} is not consistent: {after:?}"));
    assert!(well.iter().all(|name| place(name) > before[PAUSED].clone().unwrap()), "{before:?} {after:?}");
    assert_eq!(after[PAUSED], before[PAUSED], "a paused target keeps its place");
    assert!(!copies[5].join("round-0").exists() && copies[5].join("file-00000").exists());
    host.must(&["replication", "resume", "data", PAUSED]);
    host.wait("data", 240);
    host.must(&["forget", "target", "data", DEAD]);
    fs::write(source.join("last"), b"last").unwrap();
    host.wait("data", 240);
    host.stop();
    for copy in copies.iter().filter(|copy| !copy.ends_with(DEAD)) {
        trees::assert_equal(&source, copy, utf8(copy));
    }
    assert!(copies[11].join("round-5").exists() && !copies[11].join("last").exists(), "forgotten, and left as it was");
}
