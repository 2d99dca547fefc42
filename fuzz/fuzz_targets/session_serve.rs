//! A source that says anything, in any order, past all checksums: the target refuses it or performs it, never stops by a
//! panic, and touches nothing but its tree and its state.
//!
//! The input is a list of orders: kind of the message, length in two bytes, body. The body of records and state is a list
//! of records: kind, object, length of the fields and of the payload in two bytes each, and these.
#![no_main]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use dtfs::base::{EpochId, Position, Tid};
use dtfs::receiver::{ServeOptions, serve};
use dtfs::wire::{BANNER, Message};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let scratch = dtfs_fuzz::scratch();
    let (dir, states) = (scratch.path().join("target"), scratch.path().join("states"));
    let outside = scratch.path().join("outside");
    fs::create_dir(&outside).expect("a directory");
    fs::write(outside.join("canary"), b"sings").expect("a file");
    let before = look(&outside);
    let adopt = dtfs::applier::Adopt::No;
    let (guarding, inbox_cap) = (dtfs::applier::Guarding::Off, Some(64 << 20));
    let options = ServeOptions { dir, states, adopt, guarding, trust: dtfs::applier::Trust::Full, own_volume: Box::new(|_| None), inbox_cap, inbox_segment: None };
    let _ = serve(std::io::Cursor::new(conversation(data)), std::io::sink(), &options);
    assert_eq!(look(&outside), before, "something outside of the tree was changed");
    clear(scratch);
});

/// Everything about every object.
fn look(dir: &Path) -> Vec<(PathBuf, u64, i64, i64, u32, Option<Vec<u8>>)> {
    let paths = fs::read_dir(dir).expect("readable").map(|entry| entry.expect("an entry").path());
    let mut all: Vec<PathBuf> = paths.chain([dir.to_owned()]).collect();
    all.sort();
    let of = |path: PathBuf| {
        let meta = fs::symlink_metadata(&path).expect("it is there");
        let content = fs::read(&path).ok();
        (path, meta.ino(), meta.ctime(), meta.ctime_nsec(), meta.mode(), content)
    };
    all.into_iter().map(of).collect()
}

/// What a source made immutable is in the way.
fn clear(scratch: tempfile::TempDir) {
    let path = scratch.keep();
    if fs::remove_dir_all(&path).is_err() {
        let _ = Command::new("chattr").args(["-R", "-f", "-i", "-a"]).arg(&path).status();
        fs::remove_dir_all(&path).expect("the tree can be removed");
    }
}

fn conversation(data: &[u8]) -> Vec<u8> {
    let hello = Message::Hello(dtfs::wire::Hello {
        version: dtfs::wire::PROTOCOL_VERSION,
        volume: dtfs::base::VolumeUuid([1; 16]),
        spaces: dtfs::base::Space(7).into(),
        epoch: EpochId([2; 16]),
        durable: Tid(1000),
        access_times: dtfs::base::AtimeMode::AtClose,
        label: "fuzz".into(),
        epochs: Vec::new(),
        delay_seconds: 0,
    });
    let mut out = [BANNER, &dtfs_fuzz::frame(hello.kind(), &hello.encode())].concat();
    let mut source = Source::default();
    let mut rest = data;
    while let Some((head, after)) = rest.split_first_chunk::<3>() {
        let len = usize::from(u16::from_le_bytes([head[1], head[2]])).min(after.len());
        out.extend_from_slice(&source.say(head[0] % 40, &after[..len]));
        rest = &after[len..];
    }
    out
}

#[derive(Default)]
struct Source {
    batch: u64,
    tid: u64,
}

impl Source {
    fn say(&mut self, kind: u8, body: &[u8]) -> Vec<u8> {
        match kind {
            4 => {
                let jump = body.first().is_some_and(|byte| byte & 1 == 1);
                self.tid += u64::from(jump);
                let after = Position { epoch: EpochId([2; 16]), tid: Tid(self.tid), ..Position::START };
                let after = if self.tid == 0 { Position::START } else { after };
                encoded(&Message::Start { after, jump })
            }
            5 => {
                let (prev, batch) = (self.tid, self.next_batch());
                let (count, body) = self.records(body, 1);
                if count == 0 {
                    return encoded(&Message::Ping);
                }
                let (prev, first, last) = (Tid(prev), Tid(prev + 1), Tid(self.tid));
                encoded(&Message::Records { batch, prev, first, last, count, body })
            }
            6 => {
                let batch = self.next_batch();
                encoded(&Message::State { batch, body: self.records(body, 0).1 })
            }
            _ => dtfs_fuzz::frame(kind, body),
        }
    }

    fn next_batch(&mut self) -> u64 {
        self.batch += 1;
        self.batch
    }

    /// Records of consecutive TIDs, or of one stamp.
    fn records(&mut self, mut orders: &[u8], step: u64) -> (u32, Vec<u8>) {
        let (mut count, mut body) = (0, Vec::new());
        while let Some((head, after)) = orders.split_first_chunk::<6>() {
            let word = |at: usize| usize::from(u16::from_le_bytes([head[at], head[at + 1]]));
            let fields = word(2).min(after.len());
            let payload = word(4).min(after.len() - fields);
            self.tid += step;
            let mut oid = [0; 16];
            oid[8] = head[1];
            // 1 is the root (base::Oid).
            oid[0] = if head[1] == 1 { 0 } else { 7 };
            body.extend(dtfs_fuzz::seal(head[0], self.tid, oid, &after[..fields + payload], payload));
            count += 1;
            orders = &after[fields + payload..];
        }
        (count, body)
    }
}

fn encoded(message: &Message) -> Vec<u8> {
    dtfs_fuzz::frame(message.kind(), &message.encode())
}
