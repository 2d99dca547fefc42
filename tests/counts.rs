//! What operations cost, as exact counts: requests of the kernel, records, system calls of the journal. Counts hold on any
//! machine, however busy. Needs root and /dev/fuse.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dtfs::backing::Tree;
use dtfs::base::Tid;
use dtfs::fuse::{MountedVolume, Unmount};
use dtfs::journal::{Journal, JournalOptions};
use dtfs::stack::TimeChange::Keep;
use dtfs::stack::{AttrChange, Caller, NodeId, Privileges, Stack, StackOptions, WriteMode, Writer};

const FILES: u64 = 50;

/// A volume mounted over a directory of its own.
struct Mounted {
    volume: MountedVolume,
    stack: Arc<Stack>,
    at: PathBuf,
    dir: Option<tempfile::TempDir>,
}

impl Mounted {
    fn new() -> Mounted {
        let dir = tempfile::tempdir().unwrap();
        let (behind, at) = (dir.path().join("tree"), dir.path().join("mnt"));
        fs::create_dir(&behind).unwrap();
        fs::create_dir(&at).unwrap();
        let (journal, _) = Journal::open(&dir.path().join("j"), JournalOptions::default()).unwrap();
        let stack = Stack::new(Tree::open(&behind).unwrap(), journal, StackOptions::default()).unwrap();
        let volume = MountedVolume::mount(stack.clone(), &at, "counts").unwrap();
        Mounted { volume, stack, at, dir: Some(dir) }
    }

    /// One directory per test case, so that its parents are known to the kernel before anything is counted.
    fn files(&self) -> impl Iterator<Item = PathBuf> + use<> {
        let at = self.at.clone();
        (0..FILES).map(move |i| at.join(format!("file{i}")))
    }

    /// What `act` costs: requests of each kind that are answered, and records. RELEASE comes after close(2) has returned,
    /// so `releases` of them are waited for.
    fn count(&self, releases: u64, act: impl FnOnce()) -> (BTreeMap<&'static str, u64>, u64) {
        let before = (self.volume.requests(), self.last());
        let released = |counts: &BTreeMap<_, u64>| counts.get("release").copied().unwrap_or(0);
        act();
        let deadline = Instant::now() + Duration::from_secs(60);
        while released(&self.volume.requests()) < released(&before.0) + releases {
            assert!(Instant::now() < deadline, "a RELEASE is missing");
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut counts = self.volume.requests();
        counts.retain(|kind, count| {
            *count -= before.0.get(kind).copied().unwrap_or(0);
            // FORGET has no reply and comes when the kernel likes.
            *count > 0 && *kind != "forget"
        });
        (counts, self.last().0 - before.1.0)
    }

    fn last(&self) -> Tid {
        self.stack.journal().last_tid()
    }
}

impl Drop for Mounted {
    /// Also when the test panicked. What is still mounted must not be deleted through.
    fn drop(&mut self) {
        if self.volume.unmount(Unmount::Plain).is_err() {
            let _ = self.volume.unmount(Unmount::Lazy);
        }
        if self.volume.is_serving() {
            std::mem::forget(self.dir.take());
        }
    }
}

/// At most `most` requests for each of the files, and a few by which the kernel gets to know the directory again.
fn assert_at_most(counts: &BTreeMap<&'static str, u64>, most: u64) {
    const ONCE: u64 = 4;
    let all: u64 = counts.values().sum();
    assert!(all <= most * FILES + ONCE, "{all} requests for {FILES} files: {counts:?}");
}

#[test]
fn a_new_file_with_one_block_takes_five_requests() {
    let m = Mounted::new();
    let (counts, records) = m.count(FILES, || {
        for path in m.files() {
            File::create(path).unwrap().write_all(&[7; 4096]).unwrap();
        }
    });
    assert_at_most(&counts, 5);
    assert_eq!(records, 2 * FILES, "a birth and a write each");
}

#[test]
fn opening_again_takes_two_requests_and_reading_none() {
    let m = Mounted::new();
    m.count(FILES, || m.files().for_each(|path| fs::write(path, [7; 4096]).unwrap()));
    let read_all = || {
        for path in m.files() {
            let mut bytes = [0; 8192];
            assert_eq!(File::open(path).unwrap().read(&mut bytes).unwrap(), 4096);
        }
    };
    m.count(FILES, read_all);
    let (counts, records) = m.count(FILES, read_all);
    assert_at_most(&counts, 2);
    assert_eq!(counts.get("flush"), None, "{counts:?}");
    assert_eq!(records, 0);
}

#[test]
fn a_write_is_one_request_and_one_record() {
    let m = Mounted::new();
    let path = m.at.join("file");
    fs::write(&path, [0; 4096]).unwrap();
    for options in [OpenOptions::new().write(true), OpenOptions::new().read(true).write(true)] {
        let file = options.open(&path).unwrap();
        // The kernel asks once whether a file has a capability to lose, when it does not know its attributes.
        file.write_all_at(&[1; 4096], 0).unwrap();
        let (counts, records) = m.count(0, || {
            for i in 0..500 {
                file.write_all_at(&[1; 4096], (i * 7 % 100) * 4096).unwrap();
            }
        });
        assert_eq!(counts, BTreeMap::from([("write", 500)]), "and no look at privileges");
        assert_eq!(records, 500);
    }
}

#[test]
fn a_worker_that_serves_a_change_does_so_itself() {
    let m = Mounted::new();
    let file = File::create(m.at.join("f")).unwrap();
    // All workers are called, and parked again behind a change.
    std::thread::scope(|scope| {
        for number in 0..16 {
            let file = File::create(m.at.join(format!("f{number}"))).unwrap();
            scope.spawn(move || {
                for _ in 0..20 {
                    file.write_all_at(&[1; 4096], 0).unwrap();
                    file.sync_all().unwrap();
                }
            });
        }
    });
    (0..200).for_each(|_| file.write_all_at(&[1; 4096], 0).unwrap());
    let before = m.volume.handed_over();
    (0..1000).for_each(|_| file.write_all_at(&[2; 4096], 0).unwrap());
    assert_eq!(m.volume.handed_over() - before, 0, "writes were handed over, though nobody waits for a disk");
}

#[test]
fn taking_a_name_away_takes_two_requests_at_most() {
    let m = Mounted::new();
    m.count(FILES, || m.files().for_each(|path| fs::write(path, b"x").unwrap()));
    let (counts, records) = m.count(0, || m.files().for_each(|path| fs::remove_file(path).unwrap()));
    assert_at_most(&counts, 2);
    assert_eq!(records, FILES);
}

#[test]
fn a_rename_takes_three_requests_at_most() {
    let m = Mounted::new();
    m.count(FILES, || m.files().for_each(|path| fs::write(path, b"x").unwrap()));
    let (counts, records) = m.count(0, || {
        m.files().for_each(|path| fs::rename(&path, path.with_extension("new")).unwrap());
    });
    assert_at_most(&counts, 3);
    assert_eq!(records, FILES);
}

#[test]
fn the_journal_costs_few_system_calls_under_load() {
    let m = Mounted::new();
    let journal = m.stack.journal();
    let (before, first) = (journal.log_calls(), m.last());
    // Below FUSE, so that operations come as fast as the machine makes them: this is a share, not a rate.
    for mode in 0..20_000 {
        let mode = Some(0o700 | mode & 0o77);
        let change = AttrChange { mode, uid: None, gid: None, size: None, atime: Keep, mtime: Keep };
        m.stack.setattr(&Caller::daemon(), NodeId::ROOT, None, &change).unwrap();
    }
    journal.commit(m.last()).unwrap();
    let (calls, records) = (journal.log_calls() - before, m.last().0 - first.0);
    assert_eq!(records, 20_000);
    assert!(calls * 20 <= records, "{calls} calls for {records} records");
}

/// Safety costs a change of a hot object no system call: intents, slots and the ring are memory.
#[test]
fn a_change_of_a_hot_object_makes_no_system_call_for_the_journal() {
    let dir = tempfile::tempdir().unwrap();
    let behind = dir.path().join("tree");
    fs::create_dir(&behind).unwrap();
    // So long that nothing is committed unless somebody waits.
    let options = JournalOptions { commit_interval: Duration::from_secs(600), ..JournalOptions::default() };
    let (journal, _) = Journal::open(&dir.path().join("j"), options).unwrap();
    let stack = Stack::new(Tree::open(&behind).unwrap(), journal.clone(), StackOptions::default()).unwrap();
    let caller = Caller::daemon();
    let (entry, opened) = stack.create(&caller, NodeId::ROOT, b"file", 0o600, libc::O_RDWR).unwrap();
    journal.commit(journal.last_tid()).unwrap();
    let mode = WriteMode { flags: libc::O_RDWR, privileges: Privileges::Keep, writer: Writer::Caller };
    let write = |at: u64| stack.write(&caller, entry.node, opened.file, at * 4096, &[7; 4096], mode).unwrap();
    write(0);
    let (before, calls) = (journal.log_calls(), thread_calls());
    for at in 0..1000 {
        write(at);
    }
    let made = thread_calls().zip(calls).map(|(now, then)| now - then);
    assert_eq!(journal.log_calls(), before);
    assert_eq!(journal.last_tid(), Tid(1002));
    // One pwrite and one fstat each, by the kernel's own count of what this thread wrote.
    assert_eq!(made, Some(1000), "writes by this thread");
}

/// A stack over a tree with `file`, which nobody has changed since the journal began, and a journal that commits only when it is
/// asked to.
fn stack_over_a_cold_file() -> (Arc<Journal>, Arc<Stack>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let behind = dir.path().join("tree");
    fs::create_dir(&behind).unwrap();
    fs::write(behind.join("file"), [0; 8192]).unwrap();
    let options = JournalOptions { commit_interval: Duration::from_secs(600), ..JournalOptions::default() };
    let (journal, _) = Journal::open(&dir.path().join("j"), options).unwrap();
    let stack = Stack::new(Tree::open(&behind).unwrap(), journal.clone(), StackOptions::default()).unwrap();
    (journal, stack, dir)
}

#[test]
fn the_first_change_of_a_cold_object_waits_for_one_commit_and_the_next_for_none() {
    let (journal, stack, _dir) = stack_over_a_cold_file();
    let entry = stack.lookup(NodeId::ROOT, b"file").unwrap();
    let chmod = |mode| {
        let before = journal.log_calls();
        let change = AttrChange { mode: Some(mode), uid: None, gid: None, size: None, atime: Keep, mtime: Keep };
        stack.setattr(&Caller::daemon(), entry.node, None, &change).unwrap();
        journal.log_calls() - before
    };
    // One frame and its sync.
    assert_eq!([chmod(0o600), chmod(0o640), chmod(0o644)], [2, 0, 0]);
}

/// The file is announced when it is opened for writing, and the first write waits for no more than that.
#[test]
fn open_and_first_write_of_a_cold_file_wait_for_one_commit_together() {
    let (journal, stack, _dir) = stack_over_a_cold_file();
    let (caller, node) = (Caller::daemon(), stack.lookup(NodeId::ROOT, b"file").unwrap().node);
    let mode = WriteMode { flags: libc::O_RDWR, privileges: Privileges::Keep, writer: Writer::Caller };
    let before = journal.log_calls();
    let opened = stack.open(&caller, node, libc::O_RDWR).unwrap();
    stack.write(&caller, node, opened.file, 0, &[7; 4096], mode).unwrap();
    assert_eq!(journal.log_calls() - before, 2, "one frame and its sync");
    stack.write(&caller, node, opened.file, 4096, &[7; 4096], mode).unwrap();
    assert_eq!(journal.log_calls() - before, 2, "the file is hot");
}

/// Calls of write(2) and its kin that this thread has made (proc(5), /proc/PID/task/TID/io, syscw).
fn thread_calls() -> Option<u64> {
    let io = fs::read_to_string("/proc/thread-self/io").ok()?;
    io.lines().find_map(|line| line.strip_prefix("syscw: ")?.parse().ok())
}
