//! Bytes that a disk gives back otherwise than they were written: every byte of a small journal flipped, and its last
//! segment cut at every length. Whatever is read afterwards is what was written; what is missing is known to be missing.
//!
//! `DTFS_STRIDE` says how far apart the flipped bytes lie (1: every byte), `DTFS_SEED` where they begin.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dtfs::base::{Oid, Tid};
use dtfs::journal::{Intent, Journal, JournalError, JournalOptions, LastStop, Region};
use dtfs::record::{Draft, Op, RecordIter};
use tempfile::TempDir;

/// Bytes between two flips when nothing is said: CI has seconds, the soak takes every byte.
const STRIDE: u64 = 31;
/// Small enough to flip all of it, large enough for a few frames.
const SEGMENT_BYTES: u64 = 16 << 10;
/// What outlives the process lies beside the log here.
const MEMORY: &str = "memory";

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

fn open(dir: &Path) -> Result<(Arc<Journal>, LastStop), JournalError> {
    let options = JournalOptions {
        segment_bytes: SEGMENT_BYTES,
        ring_bytes: SEGMENT_BYTES as usize / 2,
        commit_interval: Duration::from_secs(600),
        ..JournalOptions::default()
    };
    Journal::open(dir, options)
}

/// TIDs and bytes of what was recorded.
type Records = Vec<(Tid, Vec<u8>)>;

/// All records, or `None` where the log was begun anew.
fn read(journal: &Journal) -> Result<Option<Records>, JournalError> {
    let mut reader = match journal.reader(Tid::ZERO) {
        Err(JournalError::Trimmed { .. }) => return Ok(None),
        other => other?,
    };
    let mut records = Records::new();
    while let Some(chunk) = reader.next_chunk(Tid(u64::MAX), 1 << 20)? {
        let decoded = RecordIter::new(&chunk.body).map(|record| record.map(|r| (r.tid, r.payload.to_vec())));
        records.extend(decoded.map(|record| record.expect("a chunk was checked")));
    }
    Ok(Some(records))
}

/// How the journal was left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Clean,
    /// The memory that outlives the process is there.
    Killed,
    /// It is not.
    PowerLoss,
}

/// The files of a journal with one target, as they lie on the disk.
struct Image {
    end: End,
    files: BTreeMap<PathBuf, Vec<u8>>,
    records: Records,
    dir: TempDir,
}

impl Image {
    fn new(end: End) -> Image {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let (journal, _) = open(dir.path()).unwrap();
        journal.store().target_add_at("a", "local:/x", Tid::ZERO, &[]).unwrap();
        for change in 0..14u8 {
            let op = Op::Write { offset: 0, attrs: Default::default() };
            let payload = vec![change; 300 * usize::from(change)];
            let draft = Draft::new(Oid::ROOT, &op, &payload);
            let mut reservation = journal.reserve(draft.len_bytes()).unwrap();
            reservation.announce(&[Intent { oid: Oid::ROOT, region: Region::Whole }]).unwrap();
            let tid = reservation.commit(draft);
            journal.commit(tid).unwrap();
        }
        let records = read(&journal).unwrap().unwrap();
        if end == End::Clean {
            journal.close_clean().unwrap();
        }
        // Of a living journal: what a kill would leave.
        let mut files = files_below(dir.path());
        drop(journal);
        if end == End::PowerLoss {
            files.retain(|path, _| path != Path::new(MEMORY));
        }
        let image = Image { end, files, records, dir: tempfile::tempdir_in("/dev/shm").unwrap() };
        image.restore();
        let stop = open(image.dir.path()).unwrap().1;
        assert!(image.fits(&stop, false), "{end:?}: {stop:?}");
        image
    }

    /// Segments that hold records, oldest first.
    fn segments(&self) -> Vec<PathBuf> {
        self.files.keys().filter(|path| path.extension().is_some_and(|kind| kind == "seg")).cloned().collect()
    }

    /// Puts every file back as it was.
    fn restore(&self) {
        fs::remove_dir_all(self.dir.path()).unwrap();
        for (path, bytes) in &self.files {
            let path = self.dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path).unwrap();
            file.write_all_at(bytes, 0).unwrap();
        }
    }

    /// Whether the journal may say `stop`, with records missing at its end or without.
    fn fits(&self, stop: &LastStop, missing: bool) -> bool {
        match (self.end, missing) {
            (End::Clean, false) => *stop == LastStop::Clean,
            (End::Killed, false) => matches!(stop, LastStop::Killed { .. }),
            // A lost end cannot be told from one that was never durable. Intents name what it held.
            (End::PowerLoss, _) => matches!(stop, LastStop::PowerLoss { .. } | LastStop::Damaged { .. }),
            (_, true) => matches!(stop, LastStop::Damaged { .. }),
        }
    }

    /// After `harm`, a journal that opens gives back what was written; what is missing every target compares.
    fn must_stay_true(&self, context: &str, harm: impl FnOnce(&File)) -> Outcome {
        let (file, what) = context.split_once(' ').unwrap();
        self.restore();
        harm(&File::options().read(true).write(true).open(self.dir.path().join(file)).unwrap());
        let context = format!("{file}, {what}");
        let (journal, stop) = match open(self.dir.path()) {
            Ok(opened) => opened,
            Err(error) => return refused(&error, &context),
        };
        let found = match read(&journal) {
            Ok(found) => found.unwrap_or_default(),
            Err(error) => return refused(&error, &context),
        };
        assert!(self.records.starts_with(&found), "{context}: other records are read");
        if found.len() == self.records.len() {
            return Outcome::Whole;
        }
        assert!(self.fits(&stop, true), "{context}: {} records are read, {stop:?}", found.len());
        if matches!(stop, LastStop::Damaged { .. }) {
            let store = journal.store();
            let target = store.target("a").unwrap().unwrap();
            assert!(store.work_count(target.id).unwrap() > 0, "{context}: records are missing, nothing is compared");
        }
        Outcome::Short
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Outcome {
    /// Everything was read.
    Whole,
    /// The journal goes on without some records, and says so.
    Short,
    /// It does not go on.
    Refused,
}

fn refused(error: &JournalError, context: &str) -> Outcome {
    assert!(error.to_string().len() > 10, "{context}: {error:?} says nothing");
    Outcome::Refused
}

fn files_below(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(next) = todo.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => todo.push(path),
                false => drop(files.insert(path.strip_prefix(dir).unwrap().to_owned(), fs::read(&path).unwrap())),
            }
        }
    }
    files
}

/// Bytes to harm in a file of `len` bytes.
fn places(len: usize) -> impl Iterator<Item = u64> {
    let stride = number("DTFS_STRIDE", STRIDE);
    let begin = number("DTFS_SEED", 1) % stride;
    (begin..len as u64).step_by(stride as usize)
}

/// Outcomes by how often; every kind that must come up has.
fn count(outcomes: impl Iterator<Item = Outcome>, wanted: &[Outcome]) {
    let mut counts = BTreeMap::new();
    outcomes.for_each(|outcome| *counts.entry(outcome).or_insert(0) += 1);
    println!("{counts:?}");
    assert!(wanted.iter().all(|outcome| counts.contains_key(outcome)), "{counts:?}: the harm reaches nothing");
}

fn flip_all(end: End) {
    let image = Image::new(end);
    let segments = image.segments();
    assert!(segments.len() > 1, "more than one segment");
    let flips = segments.iter().flat_map(|path| places(image.files[path].len()).map(move |at| (path, at)));
    let outcomes = flips.map(|(path, at)| {
        let byte = image.files[path][at as usize];
        // Another bit each time, so that all of them are tried.
        let flipped = byte ^ (1 << ((at / 3) % 8));
        let context = format!("{} byte {at} flipped", path.display());
        image.must_stay_true(&context, |file| file.write_all_at(&[flipped], at).unwrap())
    });
    count(outcomes, &[Outcome::Whole, Outcome::Short]);
}

#[test]
fn any_byte_flipped_after_a_clean_stop() {
    flip_all(End::Clean);
}

#[test]
fn any_byte_flipped_after_a_kill() {
    flip_all(End::Killed);
}

#[test]
fn any_byte_flipped_after_a_power_loss() {
    flip_all(End::PowerLoss);
}

#[test]
fn the_last_segment_cut_at_any_length() {
    for end in [End::Clean, End::Killed, End::PowerLoss] {
        let image = Image::new(end);
        let last = image.segments().pop().unwrap();
        let cuts = places(image.files[&last].len());
        let outcomes = cuts.map(|len| {
            let context = format!("{} cut to {len} bytes", last.display());
            image.must_stay_true(&context, |file| file.set_len(len).unwrap())
        });
        count(outcomes, &[Outcome::Short]);
    }
}
