//! The journal when its disk fails. A program of its own: armed fault points hit every journal in the process.

#![allow(clippy::unwrap_used)] // the lints' exception for tests does not reach helpers of a test program

use std::sync::Arc;
use std::time::Duration;

use dtfs::base::faults::{self, Fault};
use dtfs::base::{Oid, Tid};
use dtfs::journal::{Journal, JournalError, JournalOptions, LastStop, WhenFull};
use dtfs::record::{Draft, Op, RecordIter};
use nix::errno::Errno;
use parking_lot::{Mutex, MutexGuard};
use tempfile::TempDir;

/// One test at a time: fault points are the process's.
static ALONE: Mutex<()> = Mutex::new(());

/// Disarms everything when the test ends, also by a panic.
struct Alone(#[allow(dead_code)] MutexGuard<'static, ()>);

impl Drop for Alone {
    fn drop(&mut self) {
        faults::disarm_all();
    }
}

fn alone() -> Alone {
    Alone(ALONE.lock())
}

fn open(dir: &TempDir) -> (Arc<Journal>, LastStop) {
    let options = JournalOptions {
        segment_bytes: 128 << 10,
        cap_bytes: 1 << 30,
        when_full: WhenFull::Degrade,
        ring_bytes: 64 << 10,
        // So long that only the test itself commits after the first record.
        commit_interval: Duration::from_secs(600),
    };
    Journal::open(dir.path(), options).unwrap()
}

fn try_change(journal: &Journal, payload: usize) -> Result<Tid, JournalError> {
    let op = Op::Write { offset: 0, attrs: Default::default() };
    let payload = vec![1; payload];
    let draft = Draft::new(Oid::ROOT, &op, &payload);
    Ok(journal.reserve(draft.len_bytes())?.commit(draft))
}

/// A journal with one durable record; its committer now rests.
fn with_one_record(dir: &TempDir) -> Arc<Journal> {
    let (journal, _) = open(dir);
    let tid = try_change(&journal, 10).unwrap();
    journal.commit(tid).unwrap();
    journal
}

#[test]
fn a_reservation_passes_the_errno_on_and_changes_nothing() {
    let _alone = alone();
    let dir = TempDir::new().unwrap();
    let journal = with_one_record(&dir);
    faults::arm("journal.reserve", Fault::Fail(Errno::ENOSPC), 1);
    let error = try_change(&journal, 10).unwrap_err();
    assert_eq!(error.errno(), Errno::ENOSPC);
    assert_eq!(journal.failed(), None);
    assert_eq!(try_change(&journal, 10).unwrap(), Tid(2));
}

#[test]
fn a_full_disk_refuses_changes_before_they_are_made_and_lets_them_in_again() {
    let _alone = alone();
    let dir = TempDir::new().unwrap();
    let journal = with_one_record(&dir);
    // Holds the log, so that no file can be recycled.
    let held = journal.store().target_add_at("a", "local:/x", Tid::ZERO, &[]);
    assert!(held.is_ok());
    // Fails every allocation for a while: armed anew whenever it may have fired.
    let mut refused = 0;
    let mut made = 1;
    for _ in 0..60 {
        faults::arm("journal.allocate", Fault::Fail(Errno::ENOSPC), 1);
        match try_change(&journal, 20_000) {
            Ok(tid) => {
                made += 1;
                assert_eq!(tid, Tid(made));
                journal.commit(tid).unwrap();
            }
            Err(error) => {
                assert_eq!(error.errno(), Errno::ENOSPC);
                refused += 1;
            }
        }
    }
    assert!(refused > 10 && made > 5, "{refused} refused, {made} made");
    assert_eq!(journal.failed(), None);
    faults::disarm_all();
    assert_eq!(try_change(&journal, 20_000).unwrap(), Tid(made + 1));
    journal.close_clean().unwrap();
    drop(journal);
    assert_eq!(open(&dir).1, LastStop::Clean);
}

#[test]
fn a_failed_write_or_sync_latches_the_volume_until_it_is_opened_anew() {
    let _alone = alone();
    for point in ["journal.pwrite", "journal.fdatasync"] {
        let dir = TempDir::new().unwrap();
        let journal = with_one_record(&dir);
        let target = journal.store().target_add_at("a", "local:/x", Tid(1), &[]);
        let tid = try_change(&journal, 10).unwrap();
        faults::arm(point, Fault::Fail(Errno::EIO), 1);
        let error = journal.commit(tid).unwrap_err();
        assert!(matches!(error, JournalError::Failed { .. }), "{error}");
        assert_eq!(error.errno(), Errno::EIO);
        assert!(journal.failed().is_some());
        // It fired once; nothing is tried again all the same.
        assert!(journal.commit(tid).is_err());
        assert_eq!(journal.durable_tid(), Tid(1));
        assert_eq!(try_change(&journal, 10).unwrap_err().errno(), Errno::EIO);
        assert!(journal.close_clean().is_err());
        assert!(journal.trim().is_err());
        assert_eq!(journal.wait_durable_past(Tid(1), Duration::from_secs(60)), Tid(1));
        drop(journal);

        let (journal, stop) = open(&dir);
        // What the failed life wrote last may be nowhere but in the page cache.
        assert!(matches!(stop, LastStop::PowerLoss { .. }), "{stop:?}");
        assert_eq!(journal.failed(), None);
        assert_eq!(journal.store().work_count(target.unwrap()).unwrap(), 1);
        let tid = try_change(&journal, 10).unwrap();
        assert!(tid > Tid(1 << 32));
        journal.commit(tid).unwrap();
    }
}

#[test]
fn a_transaction_that_fails_changes_nothing() {
    let _alone = alone();
    let dir = TempDir::new().unwrap();
    let journal = with_one_record(&dir);
    let target = journal.store().target_add_at("a", "local:/x", Tid::ZERO, &[]).unwrap();
    faults::arm("journal.sqlite", Fault::Fail(Errno::ENOSPC), 1);
    let error = journal.store().ack(target, Tid(1), Tid(1), &[], &[], &[]).unwrap_err();
    assert_eq!(error.errno(), Errno::ENOSPC);
    let row = journal.store().target("a").unwrap().unwrap();
    assert_eq!(row.received, Tid::ZERO);
    journal.store().ack(target, Tid(1), Tid(1), &[], &[], &[]).unwrap();
    // A clean stop that cannot be written down is none.
    faults::arm("journal.sqlite", Fault::Fail(Errno::EIO), 1);
    assert!(journal.close_clean().is_err());
    drop(journal);
    assert!(matches!(open(&dir).1, LastStop::Killed { .. }));
}

/// The child of the next test: changes and commits until it is killed, printing every TID that is durable.
#[test]
#[ignore = "runs only as a child process"]
fn child_that_writes_until_it_is_killed() {
    let Some(dir) = std::env::var_os("DTFS_TEST_JOURNAL") else {
        return;
    };
    let options = JournalOptions { segment_bytes: 128 << 10, ring_bytes: 64 << 10, ..JournalOptions::default() };
    let (journal, _) = Journal::open(dir.as_ref(), options).unwrap();
    loop {
        let tid = try_change(&journal, 3000).unwrap();
        journal.commit(tid).unwrap();
        println!("durable {}", tid.0);
    }
}

/// Runs the child and kills it after `lines` lines; returns the last TID that it called durable.
fn write_and_kill(dir: &TempDir, lines: usize) -> Tid {
    use std::io::{BufRead, BufReader};
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture"])
        .arg("child_that_writes_until_it_is_killed")
        .env("DTFS_TEST_JOURNAL", dir.path())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut durable = output.filter_map(|line| {
        let line = line.ok()?;
        line.split_once("durable ")?.1.parse().ok().map(Tid)
    });
    let seen = durable.by_ref().take(lines).last();
    child.kill().unwrap();
    // What it printed before it died counts too; a line may be cut short.
    let rest: Vec<Tid> = durable.collect();
    child.wait().unwrap();
    let complete = rest.len().saturating_sub(1);
    rest[..complete].last().copied().or(seen).unwrap()
}

#[test]
fn what_was_durable_is_there_after_a_kill() {
    let _alone = alone();
    let dir = TempDir::new().unwrap();
    {
        let (journal, _) = open(&dir);
        // Holds the log, so that every record can be counted.
        journal.store().target_add_at("a", "local:/x", Tid::ZERO, &[]).unwrap();
        journal.close_clean().unwrap();
    }
    let mut durable = Vec::new();
    for lines in [1, 40, 150] {
        durable.push(write_and_kill(&dir, lines));
    }
    let (journal, stop) = open(&dir);
    assert!(matches!(stop, LastStop::Killed { .. }), "{stop:?}");
    let mut reader = journal.reader(Tid::ZERO).unwrap();
    let mut tids = Vec::new();
    while let Some(chunk) = reader.next_chunk(Tid(u64::MAX), 1 << 20).unwrap() {
        tids.extend(RecordIter::new(&chunk.body).map(|record| record.unwrap().tid));
    }
    assert!(tids.is_sorted());
    for life in durable {
        // Every record up to the last durable one: a kill makes no gap.
        for tid in 1..=life.0 {
            assert!(tids.binary_search(&Tid(tid)).is_ok(), "{tid} is lost");
        }
    }
}
