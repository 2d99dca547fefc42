//! The files of a journal come back otherwise than they were written (database, segments, the memory that outlives the
//! process): it is refused or recovered, and never stops by a panic.
#![no_main]

use std::cell::RefCell;
use std::path::Path;

use dtfs::base::{Oid, Tid};
use dtfs::journal::{Journal, JournalOptions};
use dtfs::record::{Attrs, Draft, Op, RecordIter};
use dtfs_fuzz::Stored;
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

struct Written {
    files: Vec<Stored>,
    scratch: TempDir,
}

thread_local! {
    static WRITTEN: RefCell<Written> = RefCell::new(write());
}

fuzz_target!(|data: &[u8]| {
    WRITTEN.with_borrow(|written| {
        let mut files = written.files.clone();
        dtfs_fuzz::damage(&mut files, data);
        let dir = written.scratch.path().join("damaged");
        dtfs_fuzz::store(&dir, &files);
        read(&dir);
    });
});

fn options() -> JournalOptions {
    JournalOptions { segment_bytes: 64 << 10, cap_bytes: 1 << 20, ring_bytes: 32 << 10, ..JournalOptions::default() }
}

/// A journal whose process was killed: some records are in the log, the last in memory only.
fn write() -> Written {
    let scratch = dtfs_fuzz::scratch();
    let dir = scratch.path().join("journal");
    let (journal, _) = Journal::open(&dir, options()).expect("a new journal");
    for size in 0..40 {
        let draft = Draft::new(Oid::ROOT, &Op::Truncate { attrs: Attrs { size, ..Attrs::default() } }, &[]);
        journal.reserve(draft.len_bytes()).expect("room").commit(draft);
        if size % 8 == 0 {
            journal.commit(journal.last_tid()).expect("a working disk");
        }
    }
    let files = dtfs_fuzz::load(&dir);
    Written { files, scratch }
}

fn read(dir: &Path) {
    let Ok((journal, _)) = Journal::open(dir, options()) else { return };
    let Ok(mut reader) = journal.reader(Tid::ZERO) else { return };
    while let Ok(Some(chunk)) = reader.next_chunk(journal.durable_tid(), 4096) {
        for record in RecordIter::new(&chunk.body) {
            record.expect("a record that is handed out can be read");
        }
    }
}
