//! kill -9 of the daemon, of the target, or of both, in the middle of a storm of changes, again and again: after each, what
//! fsync promised holds, both trees become equal, and what was there before is not sent again. `DTFS_SEED` repeats a seed,
//! `DTFS_KILLS` sets how many kills are lived through.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::fs;
use std::path::PathBuf;

use dtfs::backing::compare::compare_trees;
use support::host::Host;
use support::length::number;
use support::prng::Prng;
use support::scratch::{FileSystem, Scratch};
use support::storm::{Books, Storm, worker_was_asked};
use support::trees;

const WAIT_SECONDS: u32 = 120;
const KEEPERS: u64 = 2;
const CHAOS: u64 = 2;
/// Lies in the tree from the beginning and does not compress: whoever mirrors again sends it again.
const BALLAST_BYTES: usize = 48 << 20;
/// How many kills are lived through when nothing is said.
const KILLS: u64 = 50;
/// A broken rule that so many kills do not show is not seen.
const CONTROL_KILLS: u64 = 40;

#[test]
fn storm_worker() {
    worker_was_asked();
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Source,
    Target,
    Both,
}

/// A volume and its target, and programs that work on it. The fields are dropped in this order: host first.
struct Rig {
    host: Host,
    source: PathBuf,
    target: PathBuf,
    books: Books,
    prng: Prng,
    context: String,
    /// A rule is left out.
    is_control: bool,
    _scratch: Scratch,
}

impl Rig {
    fn new(kind: FileSystem, faults: &str) -> Rig {
        let seed = number("DTFS_SEED", 1);
        let context = format!("{kind:?}, seed {seed} (DTFS_SEED repeats it)");
        println!("{context}");
        let scratch = Scratch::with_size(kind, 2048);
        let (source, target) = (scratch.dir("source"), scratch.dir("target"));
        let mut prng = Prng::new(seed);
        fs::write(source.join("ballast"), prng.bytes(BALLAST_BYTES)).unwrap();
        trees::fill(&source.join("quiet"), 200);
        let mut host = Host::new();
        host.arm_faults(faults);
        host.define_volume("data", &source);
        host.start_and_mount();
        host.define_target("data", &target);
        host.wait("data", WAIT_SECONDS);
        let is_control = !faults.is_empty();
        Rig { host, source, target, books: Books::new(KEEPERS), prng, context, is_control, _scratch: scratch }
    }

    /// Work, a kill, recovery; the promises that do not hold, and the bytes that recovery took.
    fn round(&mut self, victims: &[Victim]) -> (Vec<String>, u64) {
        let victim = self.prng.pick(victims);
        let mut storm = Storm::start(&self.source, &self.books, CHAOS, self.prng.next());
        storm.reach(5 + self.prng.below(60));
        let before = match victim {
            Victim::Target => self.host.bytes_sent("data"),
            Victim::Source | Victim::Both => 0,
        };
        if victim != Victim::Source {
            // There may be none: a session that was cut is tried again after a moment.
            self.host.kill9_servers();
        }
        match victim {
            Victim::Target => storm.kill(),
            Victim::Source | Victim::Both => {
                self.host.kill9();
                storm.end_with_mount();
                self.host.start_and_mount();
            }
        }
        let mut broken = self.books.broken(&self.source);
        // With a rule left out the target may be refused for good, by another rule: that is found, too.
        match self.is_control {
            false => self.host.wait("data", WAIT_SECONDS),
            true if self.host.run(&["wait", "data", "--timeout", "20"]).code == 0 => {}
            true => broken.push("the target never gets consistent".to_owned()),
        }
        (broken, self.host.bytes_sent("data") - before)
    }
}

fn live_through(kind: FileSystem, kills: u64) {
    let mut rig = Rig::new(kind, "");
    let mut most = 0;
    for kill in 0..kills {
        let (broken, sent) = rig.round(&[Victim::Source, Victim::Target, Victim::Both]);
        let context = format!("{}, kill {kill}", rig.context);
        assert!(broken.is_empty(), "{context}: promises are broken:\n{}", broken.join("\n"));
        trees::assert_equal_but_holes(&rig.source, &rig.target, &context);
        assert!(sent < BALLAST_BYTES as u64, "{context}: {sent} bytes were sent, as if for a new mirror");
        most = most.max(sent);
    }
    // A restart after a kill needs no comparison of everything.
    let log = rig.host.log();
    for word in ["power loss", "is damaged", "whole tree is compared"] {
        assert!(!log.contains(word), "a kill was taken for something else: {word}\n{log}");
    }
    assert!(kills < 10 || log.contains("killed: what was under way"), "no kill of the source was noticed");
    println!("{kills} kills, {} promises, at most {most} bytes sent after one", rig.books.count());
    rig.host.stop();
}

#[test]
fn whoever_is_killed_both_trees_end_equal() {
    live_through(FileSystem::Ext4, number("DTFS_KILLS", KILLS));
}

/// Negative control: with `faults` in daemon and target, the same rig must find something wrong.
fn must_fail(faults: &str, victims: &[Victim]) {
    let mut rig = Rig::new(FileSystem::Ext4, faults);
    for kill in 0..CONTROL_KILLS {
        let (broken, _) = rig.round(victims);
        let report = compare_trees(&rig.source, &rig.target, &trees::BUT_HOLES).unwrap();
        if !broken.is_empty() || !report.is_equal() {
            println!("{faults}: found after {} kills: {} promises, {report}", kill + 1, broken.len());
            return;
        }
    }
    panic!("{faults}: {CONTROL_KILLS} kills, and nothing was found: the rig is blind");
}

/// A batch is lost on the way, and nobody looks for gaps.
#[test]
fn control_a_gap_is_not_seen() {
    must_fail("sender.batch=skip@3,receiver.gap=skip", &[Victim::Target]);
}

/// A target that hangs in the middle of a batch takes no more bytes; the daemon stops all the same, and what was not
/// taken is there after the next start.
#[test]
fn a_target_that_hangs_does_not_keep_the_daemon_from_stopping() {
    let scratch = Scratch::new(FileSystem::Ext4);
    let (source, target) = (scratch.dir("source"), scratch.dir("target"));
    let mut host = Host::new();
    host.define_volume("data", &source);
    host.start_and_mount();
    host.define_target("data", &target);
    host.wait("data", WAIT_SECONDS);
    let [server] = host.servers()[..] else { panic!("one target process expected") };
    let server = nix::unistd::Pid::from_raw(server);
    nix::sys::signal::kill(server, nix::sys::signal::Signal::SIGSTOP).unwrap();
    // More than the pipe takes.
    fs::write(source.join("large"), vec![7; 8 << 20]).unwrap();
    host.stop();
    host.start_and_mount();
    host.wait("data", WAIT_SECONDS);
    host.stop();
    trees::assert_equal(&source, &target, "after a target that hung");
}
