//! A log with damaged segment files: it is refused, or what is read is a beginning of what was written. A changed record
//! is never handed out.
#![no_main]

use std::cell::RefCell;
use std::path::Path;

use dtfs::base::{EpochId, Oid, Tid, VolumeUuid};
use dtfs::journal::{LogOptions, SegmentLog};
use dtfs::record::{Attrs, Draft, Op};
use dtfs_fuzz::Stored;
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

const VOLUME: VolumeUuid = VolumeUuid([7; 16]);
const EPOCH: EpochId = EpochId([9; 16]);
const OPTIONS: LogOptions = LogOptions { segment_bytes: 16 << 10, created_ns: Some(1) };
const RECORDS: u64 = 12;

/// The log as it was written: its files, and all of its records.
struct Written {
    files: Vec<Stored>,
    body: Vec<u8>,
    scratch: TempDir,
}

thread_local! {
    static WRITTEN: RefCell<Written> = RefCell::new(write());
}

fn write() -> Written {
    let scratch = dtfs_fuzz::scratch();
    let dir = scratch.path().join("template");
    let log = SegmentLog::open(&dir, VOLUME, EPOCH, OPTIONS).expect("a new log");
    let mut body = Vec::new();
    for tid in (1..=RECORDS).map(Tid) {
        let op = Op::Truncate { attrs: Attrs { size: tid.0, ..Attrs::default() } };
        let record = Draft::new(Oid::ROOT, &op, &[]).seal(tid, 0);
        log.append(Tid(tid.0 - 1), tid, tid, 1, &[record.bytes()]).expect("room for a record");
        body.extend_from_slice(record.bytes());
    }
    log.sync().expect("a working disk");
    Written { files: dtfs_fuzz::load(&dir), body, scratch }
}

fn read(dir: &Path) -> Vec<u8> {
    let mut body = Vec::new();
    let Ok(log) = SegmentLog::open(dir, VOLUME, EPOCH, OPTIONS) else { return body };
    let Ok(mut reader) = log.reader(Tid::ZERO) else { return body };
    while let Ok(Some(chunk)) = reader.next_chunk(Tid(u64::MAX), 100) {
        body.extend_from_slice(&chunk.body);
    }
    body
}

fuzz_target!(|data: &[u8]| {
    WRITTEN.with_borrow(|written| {
        let mut files = written.files.clone();
        dtfs_fuzz::damage(&mut files, data);
        let dir = written.scratch.path().join("damaged");
        dtfs_fuzz::store(&dir, &files);
        let body = read(&dir);
        assert!(written.body.starts_with(&body), "records were handed out that nobody wrote");
        assert!(!data.is_empty() || body == written.body, "an undamaged log is read to its end");
    });
});
