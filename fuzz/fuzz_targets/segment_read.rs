//! A log with damaged segment files: it is refused, or what is read is a beginning of what was written. A changed record
//! is never handed out.
#![no_main]

use std::cell::RefCell;
use std::fs;
use std::path::Path;

use dtfs::base::{EpochId, Oid, Tid, VolumeUuid};
use dtfs::journal::{LogOptions, SegmentLog};
use dtfs::record::{Attrs, Draft, Op};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

const VOLUME: VolumeUuid = VolumeUuid([7; 16]);
const EPOCH: EpochId = EpochId([9; 16]);
const OPTIONS: LogOptions = LogOptions { segment_bytes: 16 << 10, created_ns: Some(1) };
const RECORDS: u64 = 12;

/// The log as it was written: its files by name, and all of its records.
struct Written {
    files: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
    scratch: TempDir,
}

thread_local! {
    static WRITTEN: RefCell<Written> = RefCell::new(write());
}

fn write() -> Written {
    let scratch = tempfile::tempdir().expect("a temporary directory");
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
    let names = fs::read_dir(&dir).expect("the log's directory").map(|e| e.expect("an entry").file_name());
    let names = names.map(|name| name.into_string().expect("names of segments are ASCII"));
    let files = names.map(|name| (name.clone(), fs::read(dir.join(name)).expect("a readable file"))).collect();
    Written { files, body, scratch }
}

/// Five bytes are one damage: which file, where, and what the byte is XORed with; 0 cuts the file there.
fn damage(files: &mut [(String, Vec<u8>)], orders: &[u8]) {
    for order in orders.chunks_exact(5) {
        let count = files.len();
        let content = &mut files[usize::from(order[0]) % count].1;
        let at = u32::from_le_bytes([order[1], order[2], order[3], 0]) as usize % content.len().max(1);
        match order[4] {
            0 => content.truncate(at),
            mask => content.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= mask),
        }
    }
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
        damage(&mut files, data);
        let dir = written.scratch.path().join("damaged");
        fs::create_dir_all(&dir).expect("a directory");
        for (name, content) in &files {
            fs::write(dir.join(name), content).expect("a file of the log");
        }
        let body = read(&dir);
        fs::remove_dir_all(&dir).expect("the directory is there");
        assert!(written.body.starts_with(&body), "records were handed out that nobody wrote");
        assert!(!data.is_empty() || body == written.body, "an undamaged log is read to its end");
    });
});
