//! The files of a replica come back otherwise than they were written (catalog, inbox, its reason for doubt): the next session
//! refuses them or makes them anew, and never stops by a panic.
#![no_main]

use std::cell::RefCell;
use std::fs;
use std::path::Path;

use dtfs::applier::Adopt;
use dtfs::base::{AtimeMode, EpochId, Oid, Position, Space, Tid, VolumeUuid};
use dtfs::receiver::{ServeOptions, serve};
use dtfs::record::{Attrs, Draft, Name, Op, Shape, Slot};
use dtfs::sys::InodeFlags;
use dtfs::wire::{BANNER, Hello, Message, PROTOCOL_VERSION};
use dtfs_fuzz::Stored;
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

const RECORDS: u64 = 8;

struct Written {
    states: Vec<Stored>,
    scratch: TempDir,
}

thread_local! {
    static WRITTEN: RefCell<Written> = RefCell::new(write());
}

fuzz_target!(|data: &[u8]| {
    WRITTEN.with_borrow_mut(|written| {
        let states = written.scratch.path().join("states");
        let mut files = written.states.clone();
        dtfs_fuzz::damage(&mut files, data);
        dtfs_fuzz::store(&states, &files);
        let _ = converse(written.scratch.path(), &[Message::Flush, Message::Bye]);
        // The tree is marked anew by a session that makes a catalog: the next input meets a sound replica again.
        if converse(written.scratch.path(), &[Message::Bye]).is_ok() {
            written.states = dtfs_fuzz::load(&states);
        } else {
            *written = write();
        }
    });
});

fn write() -> Written {
    let scratch = dtfs_fuzz::scratch();
    let mut body = Vec::new();
    for tid in 1..=RECORDS {
        body.extend_from_slice(create(tid).bytes());
    }
    let (prev, first, last) = (Tid(0), Tid(1), Tid(RECORDS));
    let state = Op::StateDir {
        attrs: directory(),
        xattrs: vec![],
        flags: InodeFlags::default(),
        first: true,
        last: true,
        items: vec![],
    };
    let root = Draft::new(Oid::ROOT, &state, &[]).seal(Tid(0), 0).bytes().to_vec();
    let messages = [
        Message::Start { after: Position::START, jump: false },
        Message::State { batch: 1, body: root },
        Message::Records { batch: 2, prev, first, last, count: RECORDS as u32, body },
        Message::Flush,
        Message::Bye,
    ];
    converse(scratch.path(), &messages).expect("a sound session");
    let states = dtfs_fuzz::load(&scratch.path().join("states"));
    assert_eq!(fs::read_dir(scratch.path().join("target")).expect("a tree").count(), RECORDS as usize + 1);
    Written { states, scratch }
}

fn converse(scratch: &Path, messages: &[Message]) -> Result<(), dtfs::receiver::ServeError> {
    let hello = Message::Hello(Hello {
        version: PROTOCOL_VERSION,
        volume: VolumeUuid([1; 16]),
        spaces: Space(7).into(),
        epoch: EpochId([2; 16]),
        durable: Tid(RECORDS),
        access_times: AtimeMode::AtClose,
        label: "fuzz".into(),
        epochs: Vec::new(),
        delay_seconds: 0,
    });
    let mut input = BANNER.to_vec();
    for message in [&hello].into_iter().chain(messages) {
        input.extend(dtfs_fuzz::frame(message.kind(), &message.encode()));
    }
    let options = ServeOptions {
        dir: scratch.join("target"),
        states: scratch.join("states"),
        adopt: Adopt::No,
        guarding: dtfs::applier::Guarding::Off,
        trust: dtfs::applier::Trust::Full, own_volume: Box::new(|_| None),
        inbox_cap: Some(64 << 20),
        inbox_segment: None,
    };
    serve(std::io::Cursor::new(input), std::io::sink(), &options)
}

fn directory() -> Attrs {
    Attrs { mode: 0o040_755, ..Attrs::default() }
}

fn create(tid: u64) -> dtfs::record::Encoded {
    let name = Name::new(format!("file-{tid}").as_bytes()).expect("a name");
    let op = Op::Create {
        slot: Slot { parent: Oid::ROOT, name },
        shape: Shape::plain(0o100_000),
        attrs: Attrs { mode: 0o100_644, ..Attrs::default() },
        xattrs: vec![],
        flags: InodeFlags::default(),
        parent_after: directory(),
    };
    Draft::new(Oid { space: Space(7), generation: 0, ino: 100 + tid }, &op, &[]).seal(Tid(tid), 0)
}
