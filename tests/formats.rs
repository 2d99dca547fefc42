//! The bytes on disk and wire: golden files, damage, and random round trips.
//!
//! `DTFS_WRITE_GOLDEN=1` writes the golden files anew; a change of one that was released needs a new version of its
//! format.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use dtfs::base::{
    AtimeMode, ChainDigest, Commit, EpochId, Guarded, History, Name, Oid, Position, Space, Spaces, StoredTimes, Tid,
    Timespec, VolumeUuid,
};
use dtfs::record::{
    Attrs, Difference, DifferenceKind, DirItem, Draft, Fate, Instead, Op, Orphan, OrphanAction, OrphanList,
    OrphanOrder, Record, RecordIter, Replaced, Shape, Slot, Xattr,
};
use dtfs::sys::InodeFlags;
use dtfs::wire::{
    Ack, Compression, Convergence, FrameReader, FrameWriter, Hello, HelloReply, Message, Need, RefuseCode,
    ReplicaState, Stall,
};
use proptest::prelude::*;
use support::prng::Prng;

fn golden(path: &str, bytes: &[u8]) -> Vec<u8> {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(path);
    if std::env::var_os("DTFS_WRITE_GOLDEN").is_some() {
        fs::write(&path, bytes).unwrap();
    }
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn oid(ino: u64) -> Oid {
    Oid { space: Space(0x5eed), generation: 7, ino }
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

fn slot(ino: u64, text: &str) -> Slot {
    Slot { parent: oid(ino), name: name(text) }
}

fn attrs() -> Attrs {
    let (atime, mtime) = (Timespec { sec: 1_700_000_000, nsec: 1 }, Timespec { sec: -2, nsec: 999_999_999 });
    Attrs { mode: 0o100_644, uid: 1000, gid: 1001, size: 12_345, atime, mtime }
}

fn xattr(text: &str) -> Xattr {
    Xattr { name: text.as_bytes().to_vec(), value: vec![1, 2, 3] }
}

fn link() -> Shape {
    Shape { link_text: b"../there".to_vec(), ..Shape::plain(libc::S_IFLNK) }
}

fn device() -> Shape {
    Shape { rdev: 0x0103, ..Shape::plain(libc::S_IFCHR) }
}

fn every_flag() -> InodeFlags {
    InodeFlags { flags: 0x10, xflags: 0x200, project: u32::MAX, extent_size: 65_536, cow_extent_size: 4_096 }
}

/// One op of each kind with its payload.
fn every_op() -> Vec<(Op, &'static [u8])> {
    let (file, dir, attrs) = (Shape::plain(libc::S_IFREG), Shape::plain(libc::S_IFDIR), attrs());
    let (after, size, alike) = (attrs, 4096, file.clone());
    let item = |text, ino, shape: &Shape| DirItem { name: name(text), oid: oid(ino), shape: shape.clone() };
    let replaced = Some(Replaced { oid: oid(9), fate: Fate::Gone });
    let plain: &[u8] = b"";
    let kept = Op::Unlink { slot: slot(1, "kept"), fate: Fate::Kept, parent_after: after };
    vec![
        (
            Op::Create {
                slot: slot(1, "new"),
                shape: file.clone(),
                attrs,
                xattrs: vec![xattr("user.a")],
                flags: InodeFlags { flags: 0x80, project: 42, ..InodeFlags::default() },
                parent_after: after,
            },
            plain,
        ),
        (Op::Link { slot: slot(1, "further"), shape: link(), attrs, parent_after: after }, plain),
        (Op::Unlink { slot: slot(1, "less"), fate: Fate::Kept, parent_after: after }, plain),
        (
            Op::Rename {
                from: slot(1, "from"),
                to: slot(2, "to"),
                shape: device(),
                attrs,
                replaced,
                from_after: after,
                to_after: after,
            },
            plain,
        ),
        (
            Op::Exchange {
                from: slot(1, "from"),
                to: slot(2, "to"),
                shape: dir.clone(),
                other: oid(8),
                other_shape: file.clone(),
                attrs,
                other_attrs: attrs,
                from_after: after,
                to_after: after,
            },
            plain,
        ),
        (Op::Write { offset: 512, attrs }, b"written"),
        (Op::Truncate { attrs }, plain),
        (Op::Allocate { mode: 3, offset: size, len: size, attrs }, plain),
        (Op::SetAttr { attrs }, plain),
        (Op::SetXattr { xattr: xattr("user.b"), attrs }, plain),
        (Op::RemoveXattr { name: b"user.b".to_vec(), attrs }, plain),
        (Op::SetFlags { flags: every_flag(), attrs }, plain),
        (Op::Gone, plain),
        (
            Op::StateDir {
                attrs,
                xattrs: vec![xattr("user.c")],
                flags: InodeFlags { flags: 0x40, ..InodeFlags::default() },
                first: true,
                last: false,
                items: vec![item("a", 3, &file), item("b", 4, &link()), item("c", 5, &device())],
            },
            plain,
        ),
        (Op::StateObject { shape: file, attrs, xattrs: vec![], flags: InodeFlags::default() }, plain),
        (Op::StateData { offset: size, attrs }, b"data"),
        (Op::StateHole { offset: size, len: size, attrs }, plain),
        (Op::StateHash { offset: 0, len: 12_345, digests: vec![[9; 16]], attrs }, plain),
        (Op::StateEnd { attrs }, plain),
        (Op::StateGone, plain),
        (Op::StateAttrs { attrs, xattrs: vec![xattr("user.d")], flags: every_flag() }, plain),
        (Op::StateAlike { shape: alike, attrs, xattrs: vec![xattr("user.e")], flags: every_flag() }, plain),
        (Op::Filtered { original: [7; 56], instead: None }, plain),
        (Op::Filtered { original: [8; 56], instead: Some(Instead { oid: oid(3), op: Box::new(kept) }) }, plain),
        (Op::StateOutside, plain),
    ]
}

fn encode(ops: &[(Op, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (at, (op, payload)) in ops.iter().enumerate() {
        let tid = Tid(at as u64 + 1);
        bytes.extend_from_slice(Draft::new(oid(100 + tid.0), op, payload).seal(tid, 1_000 + at as i64).bytes());
    }
    bytes
}

#[test]
fn records_are_what_the_golden_file_holds() {
    let ops = every_op();
    let bytes = golden("record/golden/v1.bin", &encode(&ops));
    assert!(encode(&ops) == bytes, "the encoding has changed");
    let decoded: Vec<_> = RecordIter::new(&bytes).map(|record| record.unwrap()).collect();
    assert_eq!(decoded.len(), ops.len());
    for (at, (record, (op, payload))) in decoded.iter().zip(&ops).enumerate() {
        assert_eq!((&record.op, record.payload), (op, *payload), "record {at}");
        assert_eq!((record.tid.0, record.time_ns), (at as u64 + 1, 1_000 + at as i64));
        assert_eq!(record.oid, oid(100 + record.tid.0));
    }
}

#[test]
fn a_damaged_record_is_never_accepted() {
    for (op, payload) in every_op() {
        let bytes = encode(&[(op.clone(), payload)]);
        for at in 0..bytes.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] ^= flip;
                assert!(Record::parse(&damaged).is_err(), "{}: flip at byte {at} went unnoticed", op.word());
            }
            assert!(Record::parse(&bytes[..at]).is_err(), "{}: a cut at byte {at} went unnoticed", op.word());
        }
    }
}

fn every_message() -> Vec<(&'static str, Message)> {
    let (version, label) = (1, "data".to_owned());
    let (volume, epoch, replica) = (VolumeUuid([1; 16]), EpochId([2; 16]), VolumeUuid([3; 16]));
    let (access_times, stored_times) = (AtimeMode::EachRead, StoredTimes::Moving);
    let position = Position { epoch, tid: Tid(5), digest: ChainDigest([6; 8]) };
    let reply = HelloReply {
        version,
        replica,
        state: ReplicaState::Doubtful,
        received: position,
        applied: Position::START,
        commit: Commit { number: 7, nonce: 8 },
        high_water: Tid(9),
        doubt: "its catalog is missing".into(),
        stored_times,
        guarded: Guarded::Restored,
        settled: 13,
    };
    let needs = vec![Need { oid: oid(7), offset: 4096, len: 131_072 }];
    let body = encode(&[(Op::Write { offset: 3, attrs: attrs() }, b"abc")]);
    let state = encode(&[(Op::StateGone, b"")]);
    let differences = vec![
        Difference::range(oid(7), DifferenceKind::Content, 131_072, 4096),
        Difference::named(oid(8), DifferenceKind::Extra, b"name"),
    ];
    let ack = Ack {
        batch_taken: 2,
        batch_durable: 1,
        received: Tid(9),
        applied: Tid(7),
        commit: Commit { number: 3, nonce: 4 },
        convergence: Convergence::Consistent,
        downstream: Tid(6),
        blocked: 1,
        blocked_oid: oid(8),
        blocked_errno: 27,
        left_out: 3,
        stalled_errno: 28,
        stalled_at: Stall::Tree,
        needs,
    };
    vec![
        (
            "hello",
            Message::Hello(Hello {
                version,
                volume,
                spaces: Spaces::new(Space(5), [Space(4)]),
                epoch,
                durable: Tid(77),
                access_times,
                label,
                epochs: vec![position],
                delay_seconds: 3600,
            }),
        ),
        ("hello-reply", Message::HelloReply(reply)),
        ("refuse", Message::Refuse { code: RefuseCode::Wrong, text: "no".into() }),
        ("keep", Message::Keep { epoch }),
        ("start", Message::Start { after: position, jump: true }),
        ("records", Message::Records { batch: 1, prev: Tid(0), first: Tid(1), last: Tid(1), count: 1, body }),
        ("state", Message::State { batch: 2, body: state }),
        ("ack", Message::Ack(ack)),
        ("flush", Message::Flush),
        ("ping", Message::Ping),
        ("pong", Message::Pong { clock_micros: 1_700_000_000_000_000 }),
        ("bye", Message::Bye),
        ("convergence", Message::Convergence(Convergence::Converging)),
        ("settled", Message::Settled { mark: 14 }),
        ("superseded", Message::Superseded(History { volume, epochs: vec![position] })),
        ("check", Message::Check { batch: 3, body: encode(&[(Op::StateGone, b"")]) }),
        (
            "orphans",
            Message::Orphans(OrphanOrder { number: 3, action: OrphanAction::Move(name("found")), older_than_sec: 60 }),
        ),
        (
            "orphans-done",
            Message::OrphansDone(OrphanList {
                number: 3,
                count: 2,
                bytes: 9,
                failed: 1,
                left: 4,
                errno: 16,
                orphans: vec![Orphan { path: b"a/b".to_vec(), is_dir: true, size: 9, since_sec: 1_700_000_000 }],
            }),
        ),
        ("checked", Message::Checked { batch: 3, more: 5, found: differences }),
    ]
}

fn on_the_wire(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    FrameWriter::start(&mut bytes, Compression::Off).unwrap().send(message).unwrap();
    bytes
}

#[test]
fn messages_are_what_the_golden_files_hold() {
    for (word, message) in every_message() {
        let bytes = golden(&format!("wire/golden/{word}.bin"), &on_the_wire(&message));
        assert_eq!(on_the_wire(&message), bytes, "{word}: the encoding has changed");
        let mut reader = FrameReader::start(bytes.as_slice()).unwrap();
        assert_eq!(reader.receive().unwrap(), message, "{word}");
    }
}

#[test]
fn a_damaged_message_is_never_accepted() {
    for (word, message) in every_message() {
        let bytes = on_the_wire(&message);
        for at in 0..bytes.len() {
            let receive = |bytes: &[u8]| FrameReader::start(bytes).and_then(|mut reader| reader.receive());
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x55;
            assert!(receive(&damaged).is_err(), "{word}: flip at byte {at} went unnoticed");
            assert!(receive(&bytes[..at]).is_err(), "{word}: a cut at byte {at} went unnoticed");
        }
    }
}

fn random_name(prng: &mut Prng) -> Name {
    loop {
        let len = 1 + prng.below(255) as usize;
        let bytes: Vec<u8> =
            prng.bytes(len).into_iter().map(|byte| if byte == 0 || byte == b'/' { b'x' } else { byte }).collect();
        if let Ok(name) = Name::new(&bytes) {
            return name;
        }
    }
}

fn random_attrs(prng: &mut Prng) -> Attrs {
    let mut time = || Timespec { sec: prng.next() as i32 as i64, nsec: prng.below(1_000_000_000) as u32 };
    let (atime, mtime) = (time(), time());
    let (mode, uid, gid) = (prng.below(0o200_000) as u32, prng.next() as u32, prng.next() as u32);
    Attrs { mode, uid, gid, size: prng.below(1 << 50), atime, mtime }
}

/// One of the golden ops with its names, attributes and payload replaced by random ones.
fn random_op(prng: &mut Prng) -> (Op, Vec<u8>) {
    let ops = every_op();
    let (mut op, _) = ops[prng.below(ops.len() as u64) as usize].clone();
    let (one, two) = (random_attrs(prng), random_attrs(prng));
    let mut payload = Vec::new();
    match &mut op {
        Op::Create { slot, attrs, parent_after, .. } | Op::Link { slot, attrs, parent_after, .. } => {
            (slot.name, *attrs, *parent_after) = (random_name(prng), one, two);
        }
        Op::Unlink { slot, parent_after, .. } => (slot.name, *parent_after) = (random_name(prng), one),
        Op::Rename { from, to, from_after, to_after, .. } | Op::Exchange { from, to, from_after, to_after, .. } => {
            (from.name, to.name) = (random_name(prng), random_name(prng));
            (*from_after, *to_after) = (one, two);
        }
        Op::Write { offset, attrs } | Op::StateData { offset, attrs } => {
            (*offset, *attrs) = (prng.below(1 << 40), one);
            let len = 1 + prng.below(10_000) as usize;
            payload = prng.bytes(len);
        }
        Op::StateDir { attrs, items, .. } => {
            *attrs = one;
            items.iter_mut().for_each(|item| item.name = random_name(prng));
        }
        Op::SetXattr { xattr, attrs } => {
            let len = prng.below(3_000) as usize;
            (xattr.value, *attrs) = (prng.bytes(len), one);
        }
        Op::SetAttr { attrs } | Op::Truncate { attrs } | Op::StateEnd { attrs } | Op::StateAttrs { attrs, .. } => {
            *attrs = one;
        }
        _ => {}
    }
    (op, payload)
}

proptest! {
    #[test]
    fn random_records_round_trip(seed in any::<u64>()) {
        let mut prng = Prng::new(seed);
        let (op, payload) = random_op(&mut prng);
        let (tid, time, about) = (Tid(prng.next()), prng.next() as i64, oid(prng.next()));
        let bytes = Draft::new(about, &op, &payload).seal(tid, time).bytes().to_vec();
        let (record, len) = Record::parse(&bytes).map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!(len, bytes.len());
        prop_assert_eq!((record.tid, record.time_ns, record.oid), (tid, time, about));
        prop_assert_eq!((record.op, record.payload), (op, &payload[..]));
    }
}
