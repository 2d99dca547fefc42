//! What becomes durable together.

use std::io::Cursor;

use crossbeam_channel::bounded;

use super::*;
use crate::base::{ChainDigest, Commit, EpochId, Oid, Space, VolumeUuid};
use crate::journal::LogOptions;
use crate::receiver::outbox::outbox;
use crate::record::{Attrs, Draft, Op};
use crate::wire::{Ack, Compression, Convergence, FrameReader, FrameWriter};

const BATCHES: u64 = 5;

/// One record in a batch of its own.
fn batch(tid: u64) -> Message {
    let oid = Oid { space: Space(7), generation: 1, ino: 99 };
    let op = Op::Truncate { attrs: Attrs::default() };
    let body = Draft::new(oid, &op, &[]).seal(Tid(tid), 0).bytes().to_vec();
    Message::Records { batch: tid, prev: Tid(tid - 1), first: Tid(tid), last: Tid(tid), count: 1, body }
}

/// What a source says, already there.
fn said(messages: &[Message]) -> FrameReader<Cursor<Vec<u8>>> {
    let mut bytes = Vec::new();
    let mut writer = FrameWriter::start(&mut bytes, Compression::Off).unwrap();
    for message in messages {
        writer.send(message).unwrap();
    }
    let mut reader = FrameReader::start(Cursor::new(bytes)).unwrap();
    reader.trust();
    reader
}

#[test]
fn what_has_come_is_synced_once_and_acknowledged_behind_that() {
    let dir = tempfile::tempdir().unwrap();
    let options = LogOptions::default();
    let log = Arc::new(SegmentLog::open(dir.path(), VolumeUuid([1; 16]), EpochId([2; 16]), options).unwrap());
    let start = Position { epoch: EpochId([2; 16]), tid: Tid::ZERO, digest: ChainDigest::START };
    let commit = Commit { number: 1, nonce: 1 };
    let positions = Arc::new(Positions::new(start, Tid::ZERO, commit, Convergence::Consistent));
    let ((out, outgoing), (jobs, queue)) = (outbox(), bounded(16));
    let mut intake = Intake::new((log.clone(), u64::MAX), jobs, out, positions);
    let mut messages = vec![Message::Start { after: start, jump: false }];
    messages.extend((1..=BATCHES).map(batch));
    messages.push(Message::Bye);
    let arrivals = Arrivals::of(said(&messages));
    while arrivals.waiting() < messages.len() {
        std::thread::yield_now();
    }
    intake.run(&arrivals).unwrap();

    assert_eq!(log.durable_tid(), Tid(BATCHES));
    let acks: Vec<Tid> = std::iter::from_fn(|| outgoing.next(Duration::ZERO).ok())
        .filter_map(|message| if let Message::Ack(Ack { received, .. }) = message { Some(received) } else { None })
        .collect();
    assert_eq!(acks, [Tid(BATCHES)], "one sync, one word of it");
    let handed: Vec<Tid> = queue
        .try_iter()
        .filter_map(|job| if let Job::Records { last, .. } = job { Some(last.tid) } else { None })
        .collect();
    assert_eq!(handed, (1..=BATCHES).map(Tid).collect::<Vec<_>>());
}
