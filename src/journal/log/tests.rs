//! The log on its own: exactness, torn ends, recycled files, trimming.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::{ChainEnd, Chunk, FrameKind, LogOptions, SegmentLog};
use crate::base::{ChainDigest, EpochId, Oid, Space, Tid, VolumeUuid};
use crate::journal::JournalError;
use crate::record::{Draft, Encoded, Op, Record, RecordIter};

const VOLUME: VolumeUuid = VolumeUuid(*b"volume-volume-00");
const EPOCH: EpochId = EpochId(*b"epoch-epoch-0000");
const SMALL: LogOptions = LogOptions { segment_bytes: 64 << 10, created_ns: Some(1_700_000_000_000_000_000) };
const ALL: Tid = Tid(u64::MAX);

fn open(dir: &Path) -> Result<SegmentLog, JournalError> {
    SegmentLog::open(dir, VOLUME, EPOCH, SMALL)
}

fn oid(tid: u64) -> Oid {
    Oid { space: Space(7), generation: 1, ino: 100 + tid }
}

fn record(tid: u64, payload: usize) -> Encoded {
    let op = match payload {
        0 => Op::Gone,
        _ => Op::Write { offset: tid, attrs: Default::default() },
    };
    Draft::new(oid(tid), &op, &vec![tid as u8; payload]).seal(Tid(tid), 1_000 + tid as i64)
}

/// One frame of `count` records after the log's end, whose TIDs begin `jump` after it.
fn append(log: &SegmentLog, jump: u64, count: u64, payload: usize) -> Result<(), JournalError> {
    let prev = log.last_tid();
    let first = prev.0 + jump;
    let records: Vec<Encoded> = (first..first + count).map(|t| record(t, payload)).collect();
    let parts: Vec<&[u8]> = records.iter().map(Encoded::bytes).collect();
    let last = Tid(first + count - 1);
    log.append(prev, Tid(first), last, count as u32, &parts)?;
    log.sync().map(drop)
}

fn read_all(log: &SegmentLog, after: Tid, upto: Tid, most: usize) -> Vec<Tid> {
    let mut reader = log.reader(after).unwrap();
    let (mut tids, mut at) = (Vec::new(), after);
    while let Some(chunk) = reader.next_chunk(upto, most).unwrap() {
        assert_eq!(chunk.prev_tid, at);
        at = chunk.last;
        tids.extend(check_chunk(&chunk, most));
    }
    tids
}

fn check_chunk(chunk: &Chunk, most: usize) -> Vec<Tid> {
    let records: Vec<Record<'_>> = RecordIter::new(&chunk.body).map(Result::unwrap).collect();
    for record in &records {
        assert_eq!(record.oid, oid(record.tid.0));
        assert!(record.payload.iter().all(|b| *b == record.tid.0 as u8));
    }
    assert!(chunk.body.len() <= most || records.len() == 1);
    assert_eq!(records.len(), chunk.count as usize);
    assert_eq!(records.first().unwrap().tid, chunk.first);
    assert_eq!(records.last().unwrap().tid, chunk.last);
    records.iter().map(|record| record.tid).collect()
}

#[test]
fn a_reader_gives_exactly_the_asked_records() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path()).unwrap();
    for (jump, count) in [(1, 3), (1, 1), (10, 5), (1, 2), (1 << 32, 4), (1, 1)] {
        append(&log, jump, count, 200).unwrap();
    }
    let all = read_all(&log, Tid::ZERO, ALL, 1 << 20);
    assert_eq!(all.len(), 16);
    let mut places: Vec<Tid> = all.clone();
    places.extend([Tid::ZERO, Tid(10), Tid(1 << 20), Tid(1 << 40)]);
    for after in &places {
        for upto in &places {
            let wanted: Vec<Tid> = all.iter().filter(|t| *t > after && *t <= upto).copied().collect();
            for most in [1, 700, 1 << 20] {
                assert_eq!(read_all(&log, *after, *upto, most), wanted);
            }
        }
    }
}

#[test]
fn a_reader_follows_from_segment_to_segment_and_continues_after_an_append() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path()).unwrap();
    let mut reader = log.reader(Tid::ZERO).unwrap();
    let mut seen = Vec::new();
    for _ in 0..60 {
        append(&log, 1, 2, 3000).unwrap();
        while let Some(chunk) = reader.next_chunk(ALL, 1 << 20).unwrap() {
            seen.extend(check_chunk(&chunk, 1 << 20));
        }
    }
    assert!(log.end().segment > 5);
    assert_eq!(seen, (1..=120).map(Tid).collect::<Vec<_>>());
    assert_eq!(read_all(&log, Tid(60), ALL, 1 << 20).len(), 60);
}

#[test]
fn records_that_are_not_synced_are_not_read() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path()).unwrap();
    let one = record(1, 0);
    log.append(Tid::ZERO, Tid(1), Tid(1), 1, &[one.bytes()]).unwrap();
    assert_eq!(read_all(&log, Tid::ZERO, ALL, 1000), []);
    assert_eq!(log.sync().unwrap(), Tid(1));
    assert_eq!(read_all(&log, Tid::ZERO, ALL, 1000), [Tid(1)]);
}

#[test]
fn a_frame_that_does_not_continue_the_log_or_fit_is_refused() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path()).unwrap();
    append(&log, 1, 1, 0).unwrap();
    let one = record(3, 0);
    let wrong = log.append(Tid(2), Tid(3), Tid(3), 1, &[one.bytes()]);
    assert!(matches!(wrong, Err(JournalError::Order { .. })));
    let large = vec![0; log.max_body() + 1];
    let wrong = log.append(Tid(1), Tid(2), Tid(2), 1, &[&large]);
    assert!(matches!(wrong, Err(JournalError::TooLarge { .. })));
    append(&log, 1, 1, 0).unwrap();
}

/// Copies a log, changes one file of it and opens it. Whatever the change, only true records come out.
struct Mutant {
    source: TempDir,
    scratch: TempDir,
}

impl Mutant {
    fn new() -> Mutant {
        let (source, scratch) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let log = open(source.path()).unwrap();
        for count in [2, 1, 3] {
            append(&log, 1, count, 40).unwrap();
        }
        Mutant { source, scratch }
    }

    fn try_change(&self, change: impl FnOnce(&mut Vec<u8>)) -> Result<u64, JournalError> {
        let name = "00000001.seg";
        let mut bytes = fs::read(self.source.path().join(name)).unwrap();
        change(&mut bytes);
        fs::write(self.scratch.path().join(name), &bytes).unwrap();
        let log = open(self.scratch.path())?;
        let read = read_all(&log, Tid::ZERO, ALL, 1 << 20);
        assert_eq!(read, (1..=read.len() as u64).map(Tid).collect::<Vec<_>>());
        assert_eq!(log.last_tid(), Tid(read.len() as u64));
        Ok(read.len() as u64)
    }
}

#[test]
fn an_end_torn_at_any_length_is_a_clean_end() {
    let mutant = Mutant::new();
    let last_frame = 4096 * 3;
    for len in (0..600).chain([4095, 4096]) {
        let left = mutant.try_change(|bytes| bytes.truncate(last_frame + len)).unwrap();
        assert!(left == 3 || (left == 6 && len > 400), "{len}: {left}");
    }
    for len in (1..100).chain([4095]) {
        assert!(matches!(mutant.try_change(|bytes| bytes.truncate(len)), Ok(0) | Err(JournalError::Damaged { .. })));
    }
}

#[test]
fn a_flipped_bit_anywhere_never_gives_a_wrong_record() {
    let mutant = Mutant::new();
    for frame in 0..4usize {
        for at in 0..300 {
            let at = frame * 4096 + at;
            let left = mutant.try_change(|bytes| bytes[at] ^= 1 << (at % 8));
            match (frame, left) {
                (_, Ok(6)) => {}
                (0, Err(JournalError::Damaged { .. } | JournalError::Format { .. })) => {}
                (1, Ok(0)) | (2, Ok(2)) | (3, Ok(3)) => {}
                (frame, other) => panic!("frame {frame}, byte {at}: {other:?}"),
            }
        }
    }
}

#[test]
fn stale_frames_of_a_recycled_file_are_not_read() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path()).unwrap();
    while log.end().segment < 3 {
        append(&log, 1, 1, 1000).unwrap();
    }
    log.trim_upto(log.last_tid()).unwrap();
    let recycled = fs::read_dir(dir.path()).unwrap().count();
    while log.end().segment < 5 {
        append(&log, 1, 1, 1000).unwrap();
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), recycled);
    let (last, end) = (log.last_tid(), log.end());
    assert_eq!(end.offset, 2 * 4096);
    drop(log);
    let log = open(dir.path()).unwrap();
    assert_eq!((log.last_tid(), log.end()), (last, end));
    append(&log, 1, 1, 1000).unwrap();
    assert_eq!(log.last_tid(), last.next());
}

#[test]
fn a_frame_behind_a_torn_one_stays_dead_after_the_log_goes_on() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path()).unwrap();
    (0..3).for_each(|_| append(&log, 1, 1, 40).unwrap());
    drop(log);
    let path = dir.path().join("00000001.seg");
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&[0; 64], 2 * 4096).unwrap();
    let log = open(dir.path()).unwrap();
    assert_eq!(log.last_tid(), Tid(1));
    append(&log, 1 << 32, 1, 40).unwrap();
    drop(log);
    let log = open(dir.path()).unwrap();
    assert_eq!(log.last_tid(), Tid(1 + (1 << 32)));
    assert_eq!(log.end().offset, 3 * 4096);
}

#[test]
fn trimming_frees_whole_sealed_segments_and_readers_are_told() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path()).unwrap();
    let mut early = log.reader(Tid::ZERO).unwrap();
    append(&log, 1, 1, 1000).unwrap();
    assert!(early.next_chunk(ALL, 1).unwrap().is_some());
    while log.end().segment < 4 {
        append(&log, 1, 1, 1000).unwrap();
    }
    let before = log.bytes_used();
    let end = log.oldest_sealed_end().unwrap();
    log.trim_upto(Tid(end.0 - 1)).unwrap();
    assert_eq!(log.bytes_used(), before);
    log.trim_upto(end).unwrap();
    assert_eq!(log.bytes_used(), before - SMALL.segment_bytes);
    assert_eq!(log.oldest_kept(), end);
    assert!(matches!(log.reader(Tid(end.0 - 1)), Err(JournalError::Trimmed { oldest }) if oldest == end));
    assert!(matches!(early.next_chunk(ALL, 1), Err(JournalError::Trimmed { .. })));
    assert_eq!(read_all(&log, end, ALL, 1 << 20).len() as u64, log.last_tid().0 - end.0);
    log.trim_upto(ALL).unwrap();
    assert_eq!(log.bytes_used(), SMALL.segment_bytes);
    drop(log);
    assert_eq!(open(dir.path()).unwrap().bytes_used(), SMALL.segment_bytes);
}

#[test]
fn what_cannot_be_freed_stays_and_leaves_no_gap() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path()).unwrap();
    while log.end().segment < 6 {
        append(&log, 1, 1, 4000).unwrap();
    }
    let end = |count: usize| log.index.lock().segments[count - 1].last;
    // No file can be renamed to a directory's name.
    let blocked: Vec<PathBuf> = (0..4).map(|no| dir.path().join(format!("{no:08}.free"))).collect();
    let taken = blocked.iter().filter(|path| fs::create_dir(path).is_ok()).count();
    assert!(taken > 0);
    let (first, second) = (end(1), end(2));
    assert!(log.trim_upto(first).is_err());
    assert!(log.reset(ChainEnd::anew(Tid(1000))).is_err());
    assert_eq!(log.oldest_kept(), Tid::ZERO);
    assert_eq!(read_all(&log, Tid::ZERO, ALL, 1 << 20).len() as u64, log.last_tid().0);
    blocked.iter().for_each(|path| drop(fs::remove_dir(path)));
    log.trim_upto(second).unwrap();
    assert_eq!(log.oldest_kept(), second);
    append(&log, 1, 1, 10).unwrap();
    let last = log.last_tid();
    drop(log);
    let log = open(dir.path()).unwrap();
    assert_eq!((log.oldest_kept(), log.last_tid()), (second, last));
}

#[test]
fn a_reset_log_begins_at_its_base() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path()).unwrap();
    (0..40).for_each(|_| append(&log, 1, 1, 4000).unwrap());
    log.reset(ChainEnd::anew(Tid(1000))).unwrap();
    assert_eq!((log.last_tid(), log.oldest_kept(), log.durable_tid()), (Tid(1000), Tid(1000), Tid(1000)));
    append(&log, 1, 2, 10).unwrap();
    drop(log);
    let log = open(dir.path()).unwrap();
    assert_eq!(read_all(&log, Tid(1000), ALL, 1 << 20), [Tid(1001), Tid(1002)]);
    assert_eq!(log.oldest_kept(), Tid(1000));
}

#[test]
fn a_missing_or_foreign_segment_is_an_error() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path()).unwrap();
    while log.end().segment < 4 {
        append(&log, 1, 1, 4000).unwrap();
    }
    drop(log);
    let other = SegmentLog::open(dir.path(), VolumeUuid([9; 16]), EPOCH, SMALL);
    assert!(matches!(other, Err(JournalError::Foreign { found, .. }) if found == VOLUME));
    fs::remove_file(dir.path().join("00000002.seg")).unwrap();
    assert!(matches!(open(dir.path()), Err(JournalError::Damaged { path, .. }) if path.ends_with("00000002.seg")));
    let log = SegmentLog::open_anew(dir.path(), VOLUME, EPOCH, SMALL, ChainEnd::anew(Tid(77))).unwrap();
    assert_eq!(log.end().segment, 5);
    append(&log, 1, 1, 0).unwrap();
    assert_eq!(read_all(&log, Tid(77), ALL, 100), [Tid(78)]);
}

#[test]
fn damage_in_a_durable_frame_is_named() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path()).unwrap();
    (0..3).for_each(|_| append(&log, 1, 1, 40).unwrap());
    let file = fs::OpenOptions::new().write(true).open(dir.path().join("00000001.seg")).unwrap();
    file.write_all_at(b"xx", 2 * 4096 + 100).unwrap();
    let mut reader = log.reader(Tid::ZERO).unwrap();
    let error = reader.next_chunk(ALL, 1 << 20).unwrap_err();
    assert!(matches!(error, JournalError::Damaged { offset: 8192, .. }), "{error}");
    assert_eq!(reader.at(), Tid::ZERO);
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/journal/golden/segment-v2.bin")
}

/// The format on disk. `DTFS_BLESS=1` writes the file anew; a difference means that old journals cannot be read.
#[test]
fn the_bytes_of_a_segment_are_those_of_the_golden_file() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path()).unwrap();
    append(&log, 1, 2, 0).unwrap();
    log.append_local(1, b"local record").unwrap();
    append(&log, 5, 1, 40).unwrap();
    let bytes = fs::read(dir.path().join("00000001.seg")).unwrap();
    let bytes = &bytes[..log.end().offset as usize];
    if std::env::var_os("DTFS_BLESS").is_some() {
        fs::write(golden(), bytes).unwrap();
    }
    assert!(fs::read(golden()).unwrap() == bytes, "the segment format has changed");
}

#[test]
fn free_files_never_share_a_name() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path()).unwrap();
    // One file waits while another is freed: the one that waits was made first, and is used last.
    for _ in 0..20 {
        append(&log, 1, 1, 40 << 10).unwrap();
        log.prepare().unwrap();
        log.trim_upto(log.last_tid()).unwrap();
    }
    let count = |extension: &str| {
        let names = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
        names.filter(|path| path.extension().is_some_and(|found| found == extension)).count()
    };
    assert_eq!((count("seg"), count("free")), (1, log.writer.lock().free.len()));
    assert_eq!(read_all(&log, Tid(19), ALL, 1 << 20), [Tid(20)]);
}

#[test]
fn every_place_has_the_digest_of_the_records_up_to_it() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path()).unwrap();
    for (jump, count) in [(1, 3), (1, 1), (10, 5), (1, 120), (1 << 32, 4), (1, 1)] {
        append(&log, jump, count, 300).unwrap();
        log.append_local(1, b"only for this journal").unwrap();
    }
    let mut reader = log.reader(Tid::ZERO).unwrap();
    let (mut digest, mut places) = (ChainDigest::START, vec![(Tid::ZERO, ChainDigest::START)]);
    while let Some(chunk) = reader.next_chunk(ALL, 1).unwrap() {
        digest = crate::record::chain(digest, &chunk.body).unwrap();
        places.push((chunk.last, digest));
    }
    assert_eq!(places.len(), 135);
    for (tid, digest) in &places {
        assert_eq!(log.digest_at(*tid).unwrap(), Some(*digest), "{tid}");
    }
    // Inside a jump nothing happened.
    assert_eq!(log.digest_at(Tid(9)).unwrap(), Some(places[4].1));
    assert_eq!(log.digest_at(Tid(1 << 40)).unwrap(), None);
    assert_eq!(log.chain_end(), ChainEnd { tid: log.last_tid(), digest });
    let end = log.chain_end();
    drop(log);
    let log = open(dir.path()).unwrap();
    assert_eq!((log.chain_end(), log.durable_end()), (end, end));
    log.trim_upto(places[100].0).unwrap();
    assert_eq!(log.digest_at(Tid(2)).unwrap(), None);
}

#[test]
fn a_scan_meets_every_frame_from_its_place_on() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path()).unwrap();
    let mut frames = Vec::new();
    for no in 0..80_u64 {
        let at = log.end();
        match no % 3 {
            0 => log.append_local(1, &no.to_le_bytes()).map(drop).unwrap(),
            _ => append(&log, 1, 2, 900).unwrap(),
        }
        frames.push((at, no % 3 == 0));
    }
    assert!(log.end().segment > 3);
    for from in [0, 17, 60, 79] {
        let mut met = Vec::new();
        log.scan(frames[from].0, |_, kind, _| {
            met.push(kind == FrameKind::Local);
            Ok(())
        })
        .unwrap();
        let wanted: Vec<bool> = frames[from..].iter().map(|(_, local)| *local).collect();
        assert_eq!(met, wanted, "from frame {from}");
    }
}
