//! A local user who may write in a target's tree swaps a directory for a symlink that leads out of it, as fast as the kernel
//! can, while records of every kind are performed there as root: nothing outside is ever touched. A control with a resolver
//! that goes by paths shows that the rig sees an escape.
//!
//! `DTFS_ATTEMPTS` sets how many records of each kind are performed.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dtfs::applier::{Adopt, Applier, Replica};
use dtfs::base::faults::{self, Fault};
use dtfs::base::{EpochId, Oid, Position, Space, Tid, VolumeUuid};
use dtfs::record::{Attrs, DirItem, Draft, Fate, Name, Op, Record, Replaced, Shape, Slot, Xattr};
use dtfs::sys::InodeFlags;
use support::length::number;
use support::user::SOMEONE;
use tempfile::TempDir;

/// More than the applier keeps open: each is resolved anew when its turn comes.
const OBJECTS: u64 = 600;
const DIR: u64 = 10;
const FILES: u64 = 1_000;
const DIRS: u64 = 2_000;
const NEWBORNS: u64 = 10_000;
/// So often is looked whether something got out.
const LOOK_EVERY: u64 = 2_000;
const GROUP: u64 = 128;

fn attempts() -> u64 {
    number("DTFS_ATTEMPTS", 100_000)
}

fn oid(ino: u64) -> Oid {
    Oid { space: Space(7), generation: 0, ino }
}

fn attrs(mode: u32) -> Attrs {
    Attrs { mode, uid: SOMEONE.uid, gid: SOMEONE.gid, size: 100, ..Attrs::default() }
}

fn file() -> Attrs {
    attrs(0o100_644)
}

fn open_dir() -> Attrs {
    attrs(0o040_777)
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

fn slot(text: &str) -> Slot {
    Slot { parent: oid(DIR), name: name(text) }
}

fn regular() -> Shape {
    Shape::plain(libc::S_IFREG)
}

fn listing(items: Vec<DirItem>) -> Op {
    Op::StateDir { attrs: open_dir(), xattrs: vec![], flags: InodeFlags::default(), first: true, last: true, items }
}

fn object() -> Op {
    Op::StateObject { shape: regular(), attrs: file(), xattrs: vec![], flags: InodeFlags::default() }
}

type Change = (Oid, Op, &'static [u8]);

/// What is performed at attempt `no`.
type Kind = (&'static str, fn(u64) -> Vec<Change>);

fn f(no: u64) -> Oid {
    oid(FILES + no % OBJECTS)
}

fn f_name(no: u64) -> String {
    format!("f{}", no % OBJECTS)
}

fn on_file(no: u64, op: Op, payload: &'static [u8]) -> Vec<Change> {
    vec![(f(no), op, payload)]
}

fn create(no: u64) -> Change {
    let op = Op::Create {
        slot: slot(&format!("n{}", no % 64)),
        shape: regular(),
        attrs: file(),
        xattrs: vec![],
        flags: InodeFlags::default(),
        parent_after: open_dir(),
    };
    (oid(NEWBORNS + no), op, b"")
}

fn born_and(no: u64, end: Op) -> Vec<Change> {
    vec![create(no), (oid(NEWBORNS + no), end, b"")]
}

fn rename(no: u64, from: &str, to: &str) -> Change {
    let op = Op::Rename {
        from: slot(from),
        to: slot(to),
        shape: regular(),
        attrs: file(),
        replaced: None::<Replaced>,
        from_after: open_dir(),
        to_after: open_dir(),
    };
    (f(no), op, b"")
}

fn exchange(no: u64, (from, to): (&str, &str)) -> Change {
    let op = Op::Exchange {
        from: slot(from),
        to: slot(to),
        shape: regular(),
        attrs: file(),
        other: f(no + 1),
        other_shape: regular(),
        other_attrs: file(),
        from_after: open_dir(),
        to_after: open_dir(),
    };
    (f(no), op, b"")
}

fn unlink(no: u64, oid: Oid, fate: Fate) -> Change {
    (oid, Op::Unlink { slot: slot(&format!("n{}", no % 64)), fate, parent_after: open_dir() }, b"")
}

fn xattr() -> Xattr {
    Xattr { name: b"trusted.racer".to_vec(), value: b"x".to_vec() }
}

const KINDS: [Kind; 20] = [
    ("write", |no| on_file(no, Op::Write { offset: 0, attrs: file() }, b"written")),
    ("truncate", |no| on_file(no, Op::Truncate { attrs: file() }, b"")),
    ("allocate", |no| on_file(no, Op::Allocate { mode: 0, offset: 0, len: 100, attrs: file() }, b"")),
    ("setattr", |no| on_file(no, Op::SetAttr { attrs: attrs(0o100_600) }, b"")),
    ("setxattr", |no| on_file(no, Op::SetXattr { xattr: xattr(), attrs: file() }, b"")),
    ("removexattr", |no| on_file(no, Op::RemoveXattr { name: xattr().name, attrs: file() }, b"")),
    ("setflags", |no| on_file(no, Op::SetFlags { flags: InodeFlags::default(), attrs: file() }, b"")),
    ("create and unlink", |no| vec![create(no), unlink(no, oid(NEWBORNS + no), Fate::Gone)]),
    ("create and gone", |no| born_and(no, Op::Gone)),
    ("link and unlink", |no| {
        let link = Op::Link {
            slot: slot(&format!("n{}", no % 64)),
            shape: regular(),
            attrs: file(),
            parent_after: open_dir(),
        };
        vec![(f(no), link, b""), unlink(no, f(no), Fate::Kept)]
    }),
    ("rename", |no| vec![rename(no, &f_name(no), "moved"), rename(no, "moved", &f_name(no))]),
    ("exchange", |no| {
        let (a, b) = (f_name(no), f_name(no + 1));
        vec![exchange(no, (&a, &b)), exchange(no, (&b, &a))]
    }),
    ("state of a directory", |no| vec![(oid(DIRS + no % OBJECTS), listing(vec![]), b"")]),
    ("state of an object", |no| on_file(no, object(), b"")),
    ("state of data", |no| on_file(no, Op::StateData { offset: 0, attrs: file() }, b"data")),
    ("state of a hole", |no| on_file(no, Op::StateHole { offset: 0, len: 100, attrs: file() }, b"")),
    ("state by digest", |no| {
        on_file(no, Op::StateHash { offset: 0, len: 100, digests: vec![[9; 16]], attrs: file() }, b"")
    }),
    ("end of state", |no| on_file(no, Op::StateEnd { attrs: file() }, b"")),
    ("state of attributes", |no| {
        on_file(no, Op::StateAttrs { attrs: file(), xattrs: vec![], flags: InodeFlags::default() }, b"")
    }),
    ("state of what is gone", |no| born_and(no, Op::StateGone)),
];

/// A replica, and beside it what nobody may touch.
struct Rig {
    applier: Applier,
    tid: u64,
    failed: u64,
    target: PathBuf,
    outside: PathBuf,
    before: Vec<(PathBuf, i64, i64, u32)>,
    _root: TempDir,
}

impl Rig {
    fn new() -> Rig {
        let root = tempfile::Builder::new().prefix("dtfs-races-").tempdir_in("/dev/shm").unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let (target, outside) = (root.path().join("target"), root.path().join("outside"));
        fs::create_dir(&outside).unwrap();
        for no in 0..OBJECTS {
            fs::write(outside.join(f_name(no)), b"sings").unwrap();
            fs::create_dir(outside.join(format!("s{no}"))).unwrap();
        }
        let ids = (VolumeUuid([1; 16]), Space(7));
        let replica = Replica::open(&target, &root.path().join("states"), (ids.0, &ids.1.into()), Adopt::No).unwrap();
        let applier = Applier::new(replica, Tid::ZERO).unwrap();
        let before = look(&outside);
        let mut rig = Rig { applier, tid: 0, failed: 0, target, outside, before, _root: root };
        rig.fill();
        rig
    }

    fn fill(&mut self) {
        let item = |text: &str, no: u64, kind| DirItem { name: name(text), oid: oid(no), shape: Shape::plain(kind) };
        let files = (0..OBJECTS).map(|no| item(&f_name(no), FILES + no, libc::S_IFREG));
        let dirs = (0..OBJECTS).map(|no| item(&format!("s{no}"), DIRS + no, libc::S_IFDIR));
        self.perform((Oid::ROOT, listing(vec![item("d", DIR, libc::S_IFDIR)]), b""));
        self.perform((oid(DIR), listing(files.chain(dirs).collect()), b""));
        for no in 0..OBJECTS {
            self.perform((f(no), object(), b""));
            self.perform((f(no), Op::StateEnd { attrs: file() }, b""));
            self.perform((oid(DIRS + no), listing(vec![]), b""));
        }
        self.settle();
        assert_eq!(self.failed, 0, "nobody is in the way yet");
    }

    fn perform(&mut self, (oid, op, payload): Change) {
        self.tid += 1;
        let encoded = Draft::new(oid, &op, payload).seal(Tid(self.tid), 0);
        let (record, _) = Record::parse(encoded.bytes()).unwrap();
        // What is not where it was a moment ago stops the stream, and is tried again by the next session.
        self.failed += u64::from(self.applier.apply(&record).is_err());
    }

    fn settle(&mut self) {
        self.failed += u64::from(self.applier.finish_group().is_err());
        let position = Position { epoch: EpochId([2; 16]), tid: Tid(self.tid), ..Position::START };
        self.failed += u64::from(self.applier.make_durable(position).is_err());
        while !self.applier.take_missing(1000).is_empty() {}
    }

    /// Performs `count` attempts of `kind`; the number of the one after which something was seen outside.
    fn escape_of(&mut self, (_, changes): Kind, count: u64) -> Option<u64> {
        for no in 0..count {
            changes(no).into_iter().for_each(|change| self.perform(change));
            if no % GROUP == GROUP - 1 {
                self.failed += u64::from(self.applier.finish_group().is_err());
            }
            if no % LOOK_EVERY == LOOK_EVERY - 1 && look(&self.outside) != self.before {
                return Some(no);
            }
        }
        self.settle();
        (look(&self.outside) != self.before).then_some(count)
    }
}

/// Everything outside with what changes when it is touched.
fn look(dir: &Path) -> Vec<(PathBuf, i64, i64, u32)> {
    let mut all: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.push(dir.to_owned());
    all.sort();
    let of = |path: PathBuf| {
        let meta = fs::symlink_metadata(&path).unwrap();
        (path, meta.ctime(), meta.ctime_nsec(), meta.mode())
    };
    all.into_iter().map(of).collect()
}

/// Swaps the directory for a symlink and back, and plants symlinks under the names that are used in it, until told to stop.
fn attack(target: &Path, outside: &Path, (stop, swaps): (&AtomicBool, &AtomicU64)) {
    let (dir, evil) = (target.join("d"), target.join("evil"));
    symlink(outside, &evil).expect("he may write in the tree");
    let mut no = 0u64;
    while !stop.load(Ordering::Relaxed) {
        exchange_names(&dir, &evil);
        if no.is_multiple_of(512) {
            let _ = symlink(outside.join("f0"), dir.join(format!("n{}", no / 512 % 64)));
        }
        no += 1;
        swaps.store(no, Ordering::Relaxed);
    }
    // Nobody may have put the two right in between: what matters is only that the next one finds a directory.
    if fs::symlink_metadata(&dir).is_ok_and(|meta| meta.is_symlink()) {
        exchange_names(&dir, &evil);
    }
    let _ = fs::remove_file(&evil);
}

fn exchange_names(one: &Path, other: &Path) {
    let text = |path: &Path| std::ffi::CString::new(path.as_os_str().as_bytes()).expect("no NUL");
    let cwd = nix::fcntl::AT_FDCWD;
    let _ = dtfs::sys::renameat2(cwd, &text(one), cwd, &text(other), libc::RENAME_EXCHANGE);
}

/// `during` runs while the attacker is at work; returns what it returned and how often he swapped.
fn attacked<T>(rig: &mut Rig, during: impl FnOnce(&mut Rig) -> T) -> (T, u64) {
    let (stop, swaps) = (AtomicBool::new(false), AtomicU64::new(0));
    let (target, outside) = (rig.target.clone(), rig.outside.clone());
    std::thread::scope(|scope| {
        let attacker = scope.spawn(|| SOMEONE.does(|| attack(&target, &outside, (&stop, &swaps))));
        support::process::wait_until("the attacker", std::time::Duration::from_secs(60), || {
            (swaps.load(Ordering::Relaxed) > 0 || attacker.is_finished()).then_some(())
        });
        let outcome = during(rig);
        stop.store(true, Ordering::Relaxed);
        attacker.join().expect("the attacker does not panic");
        (outcome, swaps.load(Ordering::Relaxed))
    })
}

#[test]
fn whoever_swaps_directories_leads_no_record_out_of_the_tree() {
    let count = attempts();
    for kind in KINDS {
        let mut rig = Rig::new();
        let (escape, swaps) = attacked(&mut rig, |rig| rig.escape_of(kind, count));
        println!("{}: {count} attempts, {swaps} swaps, {} that failed", kind.0, rig.failed);
        assert_eq!(escape, None, "{}: something outside was touched", kind.0);
        assert!(swaps > count / 100, "{}: the attacker did little", kind.0);
    }
    a_resolver_by_paths_is_led_out(count);
}

/// The negative control, in the same process after the rest: the fault point is the process's.
fn a_resolver_by_paths_is_led_out(count: u64) {
    let mut rig = Rig::new();
    faults::arm_always("backing.resolver", Fault::Skip);
    let (escape, swaps) = attacked(&mut rig, |rig| rig.escape_of(KINDS[0], 10 * count));
    faults::disarm("backing.resolver");
    println!("control: out after {escape:?} attempts, {swaps} swaps");
    assert!(escape.is_some(), "the rig does not see an escape");
}
