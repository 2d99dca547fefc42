//! A byte of the source's state database, of a target's catalog or of its inbox comes back otherwise than it was written:
//! either somebody says so by name, or both trees end equal.
//!
//! `DTFS_SEED` repeats a seed, `DTFS_FLIPS` sets how many bytes are flipped in each kind of file.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dtfs::journal::{NewWork, WorkReason};
use support::hand::Hand;
use support::length::number;
use support::pair::{Pair, copy_dir};
use support::prng::Prng;

/// How long a target may take that is not refused.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most of an inbox is room for what comes.
const USED_BYTES: u64 = 64 << 10;

/// What a flipped byte led to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Outcome {
    /// Nobody minded, and the trees ended equal.
    Equal,
    /// The source did not open, and said why.
    SourceRefused,
    /// The target did not go on, and said why.
    TargetRefused,
}

struct Rig {
    pair: Pair,
    prng: Prng,
    changes: u64,
}

impl Rig {
    fn new(seed: u64) -> Rig {
        let mut rig = Rig { pair: Pair::in_memory(), prng: Prng::new(seed), changes: 0 };
        let hand = rig.hand();
        for no in 0..60 {
            hand.file(&format!("/file-{no}"), &vec![no as u8; 100 * no]).unwrap();
        }
        hand.mkdir("/dir").unwrap();
        rig.pair.start();
        rig.pair.wait_equal("the mirror");
        rig
    }

    fn hand(&self) -> Hand {
        Hand::new(self.pair.stack())
    }

    /// A few changes of objects that are known on both sides.
    fn change(&mut self) {
        let hand = self.hand();
        for _ in 0..6 {
            self.changes += 1;
            let (one, number) = (format!("/file-{}", self.prng.below(60)), self.changes);
            hand.patch(&one, self.prng.below(4000), &number.to_le_bytes()).unwrap();
            hand.file(&format!("/dir/new-{number}"), &vec![number as u8; 500]).unwrap();
            hand.chmod(&one, 0o600 + self.prng.below(0o100) as u32).unwrap();
        }
    }

    /// One flip in one of the files that `wanted` names, with changes on the way when it happens.
    fn flip(&mut self, wanted: fn(&Path) -> bool) -> Outcome {
        self.pair.stop();
        self.change();
        let kept = tempfile::tempdir_in("/dev/shm").unwrap();
        let (prng, mut context) = (&mut self.prng, String::new());
        let opened = self.pair.try_reopen(|root| {
            copy_dir(&root.join("journal"), &kept.path().join("journal"));
            context = flip_one(root, wanted, prng);
        });
        let mut outcome = Outcome::Equal;
        if let Err(reason) = opened {
            assert!(reason.len() > 10, "{context}: \"{reason}\" says nothing");
            self.pair.try_reopen(|root| put_back(&kept.path().join("journal"), &root.join("journal"))).unwrap();
            outcome = Outcome::SourceRefused;
        }
        let said = self.pair.target_errors().len();
        let states = self.pair.keep_states();
        self.change();
        self.pair.start();
        if !self.pair.try_wait(PATIENCE) {
            let errors = self.pair.target_errors();
            assert!(errors.len() > said, "{context}: the target does not get there, and nobody says why");
            assert!(context.starts_with("states"), "{context}: {errors:?}");
            // As an operator would: a copy from before. The one that was kept is harmed, so the replica begins anew.
            drop(states);
            self.pair.wipe_target();
            self.pair.start();
            outcome = Outcome::TargetRefused;
        }
        self.pair.wait_equal(&context);
        outcome
    }
}

fn put_back(from: &Path, to: &Path) {
    fs::remove_dir_all(to).unwrap();
    copy_dir(from, to);
}

/// Flips one bit of one file below `root`; says which.
fn flip_one(root: &Path, wanted: fn(&Path) -> bool, prng: &mut Prng) -> String {
    let mut files = Vec::new();
    for dir in ["journal", "states"] {
        list(&root.join(dir), &mut files);
    }
    files.retain(|path| wanted(path) && fs::metadata(path).unwrap().len() > 0);
    files.sort();
    assert!(!files.is_empty(), "nothing to flip below {}", root.display());
    let path = &files[prng.below(files.len() as u64) as usize];
    let file = File::options().read(true).write(true).open(path).unwrap();
    let at = prng.below(file.metadata().unwrap().len().min(USED_BYTES));
    let (mut byte, bit) = ([0], prng.below(8));
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ (1 << bit)], at).unwrap();
    format!("{}: bit {bit} of byte {at} flipped", path.strip_prefix(root).unwrap().display())
}

fn list(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { list(&path, files) } else { files.push(path) }
    }
}

fn flip_many(wanted: fn(&Path) -> bool) {
    let seed = number("DTFS_SEED", 1);
    println!("seed {seed} (DTFS_SEED repeats it)");
    let mut rig = Rig::new(seed);
    let mut counts = BTreeMap::new();
    for _ in 0..number("DTFS_FLIPS", 40) {
        *counts.entry(rig.flip(wanted)).or_insert(0) += 1;
    }
    println!("{counts:?}");
}

fn is_named(path: &Path, name: &str) -> bool {
    path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name))
}

#[test]
fn a_flipped_byte_of_the_state_database() {
    flip_many(|path| is_named(path, "state.db"));
}

#[test]
fn a_flipped_byte_of_a_catalog() {
    flip_many(|path| is_named(path, "catalog.db"));
}

#[test]
fn a_flipped_byte_of_an_inbox() {
    flip_many(|path| path.parent().is_some_and(|dir| dir.ends_with("inbox")));
}

/// A row that asks for less than it did would let a difference stay for ever.
#[test]
fn a_flipped_bit_in_a_row_of_work() {
    let mut rig = Rig::new(number("DTFS_SEED", 1));
    rig.pair.stop();
    fs::write(rig.pair.target().join("file-7"), b"not what the source has").unwrap();
    let journal = rig.pair.stack().journal().clone();
    let row = NewWork::whole_tree(WorkReason::Verify, journal.last_tid());
    journal.store().work_insert(rig.pair.id(), &[row]).unwrap();
    drop(journal);
    let flip = |root: &Path| {
        let store = rusqlite::Connection::open(root.join("journal/state.db")).unwrap();
        // A directory without what lies in it, in the place of a tree.
        assert_eq!(store.execute("UPDATE work SET kind = 4", []).unwrap(), 1);
    };
    rig.pair.try_reopen(flip).unwrap();
    rig.pair.start();
    rig.pair.wait_equal("a row of work was flipped");
    let events = rig.pair.events();
    assert!(events.iter().any(|text| text.contains("1 rows of work are damaged")), "{events:?}");
}
