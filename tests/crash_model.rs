//! Crashes of a source, by the thousand: the real stack, journal, sender, receiver and applier in one process, which is
//! killed at a fault point between any two of their steps, recovery among them, or at its end. A power loss takes more: the
//! memory, of the log what was not durable, and of the tree what no sync followed. Life goes on, and in the end both trees
//! are equal.
//!
//! `DTFS_HISTORIES` sets how many histories are lived through, `DTFS_SEED` the first. Rules of the protocol are also left out,
//! one at a time, and must be missed; that only what is durable is sent is missed in `power.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::Duration;

use dtfs::backing::compare::{CompareOptions, compare_trees};
use dtfs::base::faults::{self, Fault};
use dtfs::journal::SyncTree;
use support::forked;
use support::hand::Hand;
use support::pair::Pair;
use support::prng::Prng;
use support::unsynced::{DIRS, World, reboot, tear_log};
use support::workers::{Seeds, Workers, asked};

/// How many histories CI lives through; `replay_model.rs` makes it ten thousand.
const HISTORIES: u64 = 6_000;
/// A rule that so many histories do not miss is not seen.
const MOST: u64 = 4_000;

/// Where a life is killed, and how often it comes by there at most before that.
const POINTS: [(&str, u64); 41] = [
    // A change: announced, its slot filled, made, recorded, its slot cleared.
    ("journal.reserve", 30),
    ("journal.intent", 10),
    ("journal.slot_filled", 30),
    ("backing.pwrite", 15),
    ("stack.record", 30),
    ("journal.slot_clearing", 30),
    // A group commit, a checkpoint, a transaction.
    ("journal.pwrite", 15),
    (WRITTEN, 15),
    ("journal.fdatasync", 15),
    ("journal.sqlite", 12),
    ("journal.allocate", 2),
    ("journal.checkpoint.begin", 2),
    ("journal.checkpoint.sync", 2),
    ("journal.checkpoint.append", 2),
    ("journal.checkpoint.durable", 2),
    // What the next life does first.
    ("shared.allocate", 1),
    ("recovery.ring", 1),
    ("recovery.ring_durable", 1),
    ("recovery.suspects", 1),
    ("recovery.suspects_durable", 1),
    // A batch on its way, and what the target does with it.
    ("sender.batch", 6),
    ("receiver.append", 4),
    ("receiver.sync", 4),
    ("receiver.ack_received", 4),
    ("receiver.jump", 1),
    ("receiver.ack_applied", 4),
    ("applier.record", 20),
    ("applier.parked", 4),
    ("applier.bind", 6),
    ("applier.put_out", 4),
    ("applier.displaced", 2),
    ("applier.back", 2),
    ("applier.finish", 10),
    ("applier.mode", 6),
    ("applier.times", 10),
    ("applier.before_mark", 4),
    ("applier.before_sync", 4),
    ("backing.syncfs", 4),
    ("applier.after_sync", 4),
    ("applier.catalog", 4),
    ("applier.after_catalog", 4),
];

/// Here everything that was noted as durable is, and nothing behind that.
const WRITTEN: &str = "journal.written";

/// Points that a history comes by too seldom for CI to insist on them.
const SELDOM: [&str; 3] = ["receiver.jump", "applier.displaced", "applier.back"];

/// How a source ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Crash {
    /// By kill -9.
    Kill,
    /// With the whole system.
    PowerLoss,
}

/// One history.
struct History {
    pair: Pair,
    world: World,
    beside: PathBuf,
    prng: Prng,
    /// Where lives were killed, and at their ends.
    killed_at: BTreeMap<&'static str, u64>,
}

impl History {
    fn new(seed: u64) -> History {
        let pair = Pair::small();
        let beside = pair.root().join("beside");
        let world = World::new(&pair.source(), &beside);
        History { pair, world, beside, prng: Prng::new(seed.wrapping_mul(7_777_777)), killed_at: BTreeMap::new() }
    }

    /// Lives through it; how the trees differ in the end, if they do.
    fn run(&mut self) -> Option<String> {
        for dir in DIRS {
            Hand::new(self.pair.stack()).mkdir(dir).unwrap();
        }
        self.pair.start();
        self.pair.wait();
        self.pair.close(self.prng.chance(50));
        for _ in 0..1 + self.prng.below(3) {
            self.live_until_crash();
        }
        self.pair.open();
        for _ in 0..self.prng.below(8) {
            self.world.change(&Hand::new(self.pair.stack()), &mut self.prng);
        }
        self.pair.start();
        self.pair.wait();
        // tmpfs says of holes what no disk would.
        let options = CompareOptions { holes: false, ..CompareOptions::default() };
        let report = compare_trees(&self.pair.source(), &self.pair.target(), &options).unwrap();
        (!report.is_equal()).then(|| format!("{report}\n{}", self.pair.explain()))
    }

    /// A target may be refused for good then, by another rule: that is a difference, too.
    fn run_without_a_rule(&mut self) -> Option<String> {
        self.pair.patience = Duration::from_secs(30);
        catch_unwind(AssertUnwindSafe(|| self.run())).unwrap_or_else(|_| Some("it does not get there".to_owned()))
    }

    fn live_until_crash(&mut self) {
        let crash = if self.prng.chance(40) { Crash::Kill } else { Crash::PowerLoss };
        let (point, most) = self.prng.pick(&POINTS);
        let nth = 1 + self.prng.below(most);
        let mut life = Life {
            stage: self.beside.join("stage"),
            pair: &mut self.pair,
            world: &self.world,
            prng: Prng::new(self.prng.next()),
        };
        life.note("opening");
        let stage = life.stage.clone();
        forked::live(&self.beside.join("report"), || {
            faults::arm(point, Fault::Abort, nth);
            life.run();
            life.note("ended");
        });
        let stage = std::fs::read_to_string(stage).unwrap();
        *self.killed_at.entry(if stage == "ended" { "its end" } else { point }).or_default() += 1;
        if crash == Crash::PowerLoss {
            let journal = self.pair.root().join("journal");
            if point == WRITTEN && stage == "open" {
                tear_log(&journal, &mut self.prng);
            }
            reboot(&journal);
            self.world.lose_power(&mut self.prng);
        }
    }
}

/// What one process does.
struct Life<'a> {
    pair: &'a mut Pair,
    world: &'a World,
    prng: Prng,
    /// Holds how far it came.
    stage: PathBuf,
}

impl Life<'_> {
    fn note(&self, stage: &str) {
        std::fs::write(&self.stage, stage).unwrap();
    }

    fn run(&mut self) {
        self.pair.open();
        self.note("open");
        let steps = 5 + self.prng.below(60);
        // A target is there for a part of it.
        let (from, upto) = (self.prng.below(2 * steps), self.prng.below(2 * steps));
        let mut is_there = false;
        for step in 0..steps {
            if step == from {
                self.pair.start();
                is_there = true;
            }
            if step == upto && is_there {
                self.pair.wait_for_durable();
                self.pair.stop();
                is_there = false;
            }
            self.step();
        }
        if is_there {
            self.pair.wait_for_durable();
        }
    }

    fn step(&mut self) {
        let hand = Hand::new(self.pair.stack());
        match self.prng.below(20) {
            0 => self.world.write_back(&mut self.prng),
            1 => hand.stack.journal().commit(hand.stack.journal().last_tid()).unwrap(),
            2 => self.checkpoint(&hand),
            _ => self.world.change(&hand, &mut self.prng),
        }
    }

    /// A checkpoint in whose middle changes are made: what syncfs finds is durable, what comes behind it is not.
    fn checkpoint(&mut self, hand: &Hand) {
        let (begun, go) = crossbeam_channel::bounded::<()>(0);
        let (done, synced) = crossbeam_channel::bounded::<()>(0);
        let journal = hand.stack.journal().clone();
        std::thread::scope(|scope| {
            let checkpoint = scope.spawn(move || {
                let sync: SyncTree = Box::new(move || {
                    let _ = begun.send(());
                    let _ = synced.recv();
                    Ok(())
                });
                journal.checkpoint(&sync).unwrap();
            });
            if go.recv().is_ok() {
                self.world.sync();
                for _ in 0..self.prng.below(6) {
                    self.world.change(hand, &mut self.prng);
                }
                done.send(()).unwrap();
            }
            checkpoint.join().unwrap();
        });
    }
}

/// A worker's part: `FIRST COUNT [RULE]`. With a rule that is left out it ends at the first difference; without one a
/// difference is a failure.
#[test]
fn worker() {
    let Some(task) = asked() else { return };
    // The test runner has begun a line.
    println!();
    let words: Vec<&str> = task.split(' ').collect();
    let (first, count): (u64, u64) = (words[0].parse().unwrap(), words[1].parse().unwrap());
    let rule = words.get(2);
    rule.iter().for_each(|rule| faults::arm_always(rule, Fault::Skip));
    let mut killed_at: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in first..first + count {
        let mut history = History::new(seed);
        let difference = match rule {
            None => history.run(),
            Some(_) => history.run_without_a_rule(),
        };
        history.killed_at.iter().for_each(|(point, count)| *killed_at.entry(point).or_default() += count);
        match (difference, rule) {
            (None, _) => {}
            (Some(_), Some(_)) => return println!("differs {seed}"),
            (Some(difference), None) => panic!("DTFS_SEED={seed} DTFS_HISTORIES=1: {difference}"),
        }
    }
    killed_at.iter().for_each(|(point, count)| println!("killed {count} {point}"));
}

fn deal(seeds: Seeds, rule: &str) -> Workers {
    let task = |part: Seeds| format!("{} {} {rule}", part.first, part.count).trim_end().to_owned();
    Workers::start("worker", seeds.dealt().into_iter().map(task))
}

#[test]
fn no_crash_makes_a_target_differ() {
    let seeds = Seeds::from_env("DTFS_HISTORIES", HISTORIES);
    println!("{} histories from seed {} on (DTFS_HISTORIES, DTFS_SEED)", seeds.count, seeds.first);
    let mut killed_at: BTreeMap<String, u64> = BTreeMap::new();
    for line in deal(seeds, "").finish().iter().flat_map(|text| text.lines()) {
        if let Some((count, point)) = line.strip_prefix("killed ").and_then(|rest| rest.split_once(' ')) {
            *killed_at.entry(point.to_owned()).or_default() += count.parse::<u64>().unwrap();
        }
    }
    println!("{} lives were killed at {killed_at:?}", killed_at.values().sum::<u64>());
    let missed: Vec<_> = POINTS.iter().filter(|(point, _)| !killed_at.contains_key(*point)).collect();
    let seldom = |point: &str| SELDOM.contains(&point) || seeds.count < HISTORIES;
    assert!(missed.iter().all(|(point, _)| seldom(point)), "no life was killed at {missed:?}");
}

/// Between two power losses a target hears of the first one's new epoch, and nothing is recorded.
#[test]
fn power_losses_with_nothing_between_them() {
    let mut pair = Pair::in_memory();
    Hand::new(pair.stack()).file("/file", b"content").unwrap();
    for round in 0..4 {
        pair.start();
        pair.wait_equal(&format!("power loss {round}"));
        pair.close(false);
        reboot(&pair.root().join("journal"));
        pair.open();
    }
    Hand::new(pair.stack()).file("/other", b"content").unwrap();
    pair.start();
    pair.wait_equal("afterwards");
}

/// Leaves `rule` out until a target differs.
fn must_be_missed(rule: &str) {
    let seeds = Seeds::from_env("DTFS_CONTROLS", MOST);
    let missed = deal(seeds, rule).first("differs ");
    println!("without {rule}: seed {missed:?} differs");
    assert!(missed.is_some(), "{seeds:?} without {rule} ended equal: this test proves nothing");
}

#[test]
fn without_intents_targets_differ() {
    must_be_missed("rule.intents");
}

#[test]
fn without_slots_targets_differ() {
    must_be_missed("rule.slots");
}

#[test]
fn with_the_ring_lost_by_a_kill_and_no_epoch_targets_differ() {
    must_be_missed("rule.ring_survives");
}

#[test]
fn with_a_scan_from_the_checkpoint_itself_targets_differ() {
    must_be_missed("rule.scan_from_begin");
}

#[test]
fn with_birth_cover_for_ever_targets_differ() {
    must_be_missed("rule.birth_cover_ends");
}
