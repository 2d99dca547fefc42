//! What happens when the target's disk has no room, a call of its fails, an object cannot be what it should, or the target
//! hangs: each has its outcome and its event, and in the end both trees are equal.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dtfs::sender::SenderState;
use support::hand::Hand;
use support::host::Host;
use support::pair::Pair;
use support::prng::Prng;
use support::process::{tool, wait_until};
use support::scratch::{FileSystem, Scratch, utf8};
use support::trees;

const LIMIT: Duration = Duration::from_secs(60);

/// Fills the filesystem of `path` but for `rest` bytes.
fn fill_disk(path: &Path, rest: u64) {
    let free = || {
        let stat = nix::sys::statvfs::statvfs(path.parent().unwrap()).unwrap();
        stat.blocks_free() * stat.fragment_size()
    };
    let file = fs::File::create(path).unwrap();
    let mut len = 0;
    while free() > rest {
        let step = (free() - rest).min(1 << 20).next_multiple_of(4096);
        if nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), len, step as i64).is_err() {
            break;
        }
        len += step as i64;
    }
}

fn told(pair: &Pair, part: &str) -> bool {
    pair.events().iter().any(|text| text.contains(part))
}

fn wait_told(pair: &Pair, part: &str) {
    wait_until(&format!("an event \"{part}\""), LIMIT, || told(pair, part).then_some(()));
}

#[test]
fn a_full_target_waits_and_goes_on_when_there_is_room() {
    let scratch = Scratch::with_size(FileSystem::Ext4, 64);
    let mut pair = Pair::new();
    pair.move_target(&scratch.dir("target"), &pair.states());
    let hand = Hand::new(pair.stack());
    hand.file("/before", b"before").unwrap();
    pair.start();
    pair.wait_equal("before");
    fill_disk(&scratch.path().join("filler"), 2 << 20);
    let sent = pair.bytes_sent();
    for i in 0..8 {
        hand.file(&format!("/large{i}"), &Prng::new(i).bytes(1 << 20)).unwrap();
    }
    wait_told(&pair, "waits for room on the disk of its tree: ENOSPC");
    assert_eq!(pair.status().state, SenderState::Connected);
    assert!(pair.status().stalled.is_some());
    // The source goes on.
    hand.file("/meanwhile", b"while the target is full").unwrap();
    fs::remove_file(scratch.path().join("filler")).unwrap();
    pair.wait_equal("there is room");
    assert!(told(&pair, "there is room again"), "{:#?}", pair.events());
    assert_eq!(pair.status().stalled, None);
    let cost = pair.bytes_sent() - sent;
    assert!(cost < 10 << 20, "{cost} bytes were sent");
    assert_eq!(pair.target_errors(), Vec::<String>::new());
}

#[test]
fn a_full_disk_of_the_inbox_is_survived() {
    let scratch = Scratch::with_size(FileSystem::Ext4, 160);
    let mut pair = Pair::new();
    pair.move_target(&pair.target(), &scratch.dir("states"));
    let hand = Hand::new(pair.stack());
    hand.file("/before", b"before").unwrap();
    pair.start();
    pair.wait_equal("before");
    fill_disk(&scratch.path().join("filler"), 1 << 20);
    for i in 0..40 {
        hand.file(&format!("/large{i}"), &Prng::new(i).bytes(1 << 20)).unwrap();
    }
    let full = || told(&pair, "waits for room on the disk of its inbox") || told(&pair, "full");
    wait_until("an event that tells of the full disk", LIMIT, || full().then_some(()));
    fs::remove_file(scratch.path().join("filler")).unwrap();
    pair.wait_equal("there is room");
}

#[test]
fn an_inbox_stays_below_its_cap() {
    let mut pair = Pair::new();
    pair.set_inbox_cap(24 << 20);
    let hand = Hand::new(pair.stack());
    hand.file("/before", b"before").unwrap();
    pair.start();
    pair.wait_equal("before");
    let inbox = fs::read_dir(pair.states()).unwrap().next().unwrap().unwrap().path().join("inbox");
    let mut most = 0;
    for i in 0..80 {
        hand.file(&format!("/large{i}"), &Prng::new(i).bytes(1 << 20)).unwrap();
        let used: u64 = fs::read_dir(&inbox).unwrap().flatten().filter_map(|e| Some(e.metadata().ok()?.len())).sum();
        most = most.max(used);
    }
    pair.wait_equal("all of it");
    // The cap, one segment on its way out, and free files.
    assert!(most <= (24 << 20) + 6 * (16 << 20), "the inbox had {most} bytes");
}

/// Most bytes of the inbox of a [`Capped`], and what lies beyond it: a batch, and files for the next ones.
const CAP: u64 = 32 << 20;
const SLACK: u64 = 16 << 20;

/// A host whose target has a small disk of its own, and an inbox elsewhere that takes little, as an operator sets it.
struct Capped {
    host: Host,
    source: PathBuf,
    target: PathBuf,
    disk: Scratch,
    _dir: tempfile::TempDir,
}

impl Capped {
    /// What the target gets waits.
    fn holding(delay: &str) -> Capped {
        let disk = Scratch::with_size(FileSystem::Ext4, 256);
        let dir = tempfile::tempdir().unwrap();
        let (source, target) = (dir.path().join("source"), disk.path().join("target"));
        fs::create_dir(&source).unwrap();
        let mut host = Host::new();
        host.define_volume("data", &source);
        let file = host.root().join("etc/dtfs/dtfs.toml");
        let text = fs::read_to_string(&file).unwrap_or_default();
        fs::write(&file, format!("inbox_cap = \"32M\"\n{text}")).unwrap();
        host.start_and_mount();
        host.define_target("data", &target);
        host.wait("data", 120);
        host.hold(delay, &source.join("probe"));
        Capped { host, source, target, disk, _dir: dir }
    }

    fn write(&self, files: std::ops::Range<u64>) {
        for i in files {
            fs::write(self.source.join(format!("large{i}")), Prng::new(i).bytes(1 << 20)).unwrap();
        }
    }

    fn inbox_bytes(&self) -> u64 {
        let replicas = self.host.root().join("var/lib/dtfs/replicas");
        let sizes = tool("find", &[utf8(&replicas), "-path", "*/inbox/*", "-printf", "%s\n"]);
        sizes.lines().map(|size| size.parse::<u64>().unwrap()).sum()
    }

    /// How many events say so.
    fn told(&self, part: &str) -> usize {
        self.host.must(&["events", "data"]).lines().filter(|line| line.contains(part)).count()
    }

    fn end(mut self) {
        self.host.set_delay(&["target"], None);
        self.host.wait("data", 120);
        self.host.stop();
        trees::assert_equal(&self.source, &self.target, "there is room");
    }
}

/// On a target that stays behind on purpose, so that its inbox fills. At the cap the older half is performed, but the disk of
/// the tree does not answer: the inbox stops there, the source goes on, and the operator is told why although the source is
/// in the middle of a write to the target.
#[test]
fn an_inbox_at_its_cap_takes_nothing_until_the_tree_has_caught_up() {
    let rig = Capped::holding("1h");
    let frozen = rig.disk.freeze();
    rig.write(0..60);
    wait_until("the target to stall", LIMIT, || {
        let status = rig.host.target("data");
        let reason = status["reason"].as_str().unwrap_or_default();
        (status["state"] == "stalled" && reason.contains("its inbox is as large as it may be")).then_some(())
    });
    let used = rig.inbox_bytes();
    assert!((CAP - SLACK..=CAP + SLACK).contains(&used), "the inbox has {used} bytes");
    drop(frozen);
    let events = rig.host.must(&["events", "data"]);
    assert!((1..=4).contains(&rig.told("as large as it may be")), "{events}");
    rig.end();
}

/// The inbox is at its cap, what waits in it cannot be performed before its time because the tree's disk is full, and its
/// process is killed in that. The source goes on; when there is room the inbox empties as far as it must, and the rest waits
/// on.
#[test]
fn a_target_that_waits_and_has_room_neither_for_its_tree_nor_in_its_inbox_goes_on_when_there_is() {
    const FULL: &str = "waits for room on the disk of its tree: ENOSPC";
    let rig = Capped::holding("6h");
    let filler = rig.disk.path().join("filler");
    fill_disk(&filler, 4 << 20);
    rig.write(0..60);
    wait_until("the target to stall", LIMIT, || (rig.told(FULL) > 0).then_some(()));
    assert!(!rig.host.servers().is_empty(), "nobody serves the target");
    rig.host.kill9_servers();
    rig.write(60..70);
    wait_until("its next process to stall", LIMIT, || (rig.told(FULL) > 1).then_some(()));
    let used = rig.inbox_bytes();
    assert!((CAP - SLACK..=CAP + SLACK).contains(&used), "the inbox has {used} bytes");
    let last = dtfs::base::Tid(rig.host.tid("data")).to_string();
    assert_ne!(rig.host.target("data")["received_tid"], last.as_str(), "everything fits: nothing is at its cap");
    fs::remove_file(filler).unwrap();
    wait_until("all of it to be received", LIMIT, || {
        (rig.host.target("data")["received_tid"] == last.as_str()).then_some(())
    });
    assert_ne!(rig.host.target("data")["applied_tid"], last.as_str(), "what came last does not wait");
    let used = rig.inbox_bytes();
    assert!(used <= CAP + SLACK, "the inbox has {used} bytes");
    rig.end();
}

/// A system that gives the target no thread costs it time: the tree is synced in between, and nothing is in doubt.
#[test]
fn a_target_that_gets_no_thread_for_its_syncs_takes_a_mirror() {
    let mut pair = Pair::new().served_by_program();
    pair.arm("applier.background=errno:11@1+");
    let hand = Hand::new(pair.stack());
    for i in 0..24 {
        hand.file(&format!("/large{i}"), &Prng::new(i).bytes(1 << 20)).unwrap();
    }
    pair.start();
    pair.wait_equal("without a thread");
    assert_eq!(pair.status().errors, 0, "{}", pair.explain());
}

/// A call that fails at one point, with an errno that has a meaning and with one that nobody knows.
#[test]
fn a_failed_call_never_passes_as_success() {
    const EIO: i32 = 5;
    const ENOSPC: i32 = 28;
    const UNKNOWN: i32 = 131;
    let points = [
        "receiver.append",
        "journal.pwrite",
        "receiver.sync",
        "journal.fdatasync",
        "applier.record",
        "applier.parked",
        "applier.bind",
        "backing.pwrite",
        "applier.finish",
        "applier.times",
        "backing.syncfs",
        "applier.catalog",
    ];
    let mut pair = Pair::in_memory().served_by_program();
    let mut prng = Prng::new(11);
    fs::write(pair.source().join("still"), prng.bytes(6 << 20)).unwrap();
    pair.start();
    pair.wait_equal("mirror");
    for point in points {
        for errno in [EIO, ENOSPC, UNKNOWN] {
            let (sent, doubts) = (pair.bytes_sent(), count(&pair, "cannot vouch"));
            let hand = Hand::new(pair.stack());
            pair.stop();
            pair.arm(&format!("{point}=errno:{errno}@2"));
            pair.start();
            for i in 0..6 {
                hand.file(&format!("/{point}{errno}{i}"), &prng.bytes(9_000)).unwrap();
                pair.wait();
            }
            pair.wait_equal(&format!("{point} failed with {errno}"));
            let cost = pair.bytes_sent() - sent;
            // A comparison sends small files whole; the large one is not sent again.
            assert!(cost < 5 << 20, "{point}, {errno}: {cost} bytes were sent");
            let syncs = ["receiver.sync", "journal.fdatasync", "backing.syncfs"].contains(&point);
            let doubted = count(&pair, "cannot vouch") > doubts;
            let catalog = point == "applier.catalog" && errno != ENOSPC;
            assert_eq!(doubted, syncs || catalog, "{point}, {errno}: {:#?}", pair.events());
        }
    }
}

fn count(pair: &Pair, part: &str) -> usize {
    pair.events().iter().filter(|text| text.contains(part)).count()
}

/// ext4 keeps the xattrs of an inode in one block; tmpfs takes more.
#[test]
fn what_an_object_cannot_have_is_named_and_tried_again() {
    let scratch = Scratch::with_size(FileSystem::Ext4, 64);
    let mut pair = Pair::in_memory();
    pair.move_target(&scratch.dir("target"), &pair.states());
    let hand = Hand::new(pair.stack());
    hand.file("/large-xattr", b"content").unwrap();
    pair.start();
    pair.wait_equal("before");
    hand.set_xattr("/large-xattr", "trusted.large", &[7; 20_000]).unwrap();
    hand.file("/other", b"goes on").unwrap();
    wait_told(&pair, "cannot be brought to their state there");
    wait_until("the next change", LIMIT, || pair.target().join("other").exists().then_some(()));
    let status = pair.status();
    assert_eq!((status.blocked, &status.state), (1, &SenderState::Connected));
    assert!(status.blocked_errno == libc::ENOSPC || status.blocked_errno == libc::E2BIG, "{status:?}");
    hand.remove_xattr("/large-xattr", "trusted.large").unwrap();
    pair.stop();
    pair.start();
    wait_until("the object to be tried again", LIMIT, || (pair.status().blocked == 0).then_some(()));
    pair.wait_equal("nothing stands against it any more");
}

/// More xattrs than a record of state can hold.
#[test]
fn an_object_with_too_many_xattrs_stops_nothing_else() {
    let mut pair = Pair::in_memory();
    let path = pair.source().join("loaded");
    fs::write(&path, b"content").unwrap();
    let hand = Hand::new(pair.stack());
    for i in 0..45 {
        hand.set_xattr("/loaded", &format!("trusted.x{i}"), &[i; 60_000]).unwrap();
    }
    fs::write(pair.source().join("plain"), b"content").unwrap();
    pair.start();
    wait_told(&pair, "cannot be read");
    wait_until("the other file", LIMIT, || pair.target().join("plain").exists().then_some(()));
    hand.file("/later", b"live").unwrap();
    wait_until("a later file", LIMIT, || pair.target().join("later").exists().then_some(()));
    assert_eq!(pair.status().state, SenderState::Connected);
    for i in 10..45 {
        hand.remove_xattr("/loaded", &format!("trusted.x{i}")).unwrap();
    }
    pair.stop();
    pair.start();
    pair.wait_equal("it can be read again");
}

#[test]
fn a_target_that_hangs_is_cut_off_although_a_write_to_it_waits() {
    let mut pair = Pair::in_memory().served_by_program();
    let hand = Hand::new(pair.stack());
    hand.file("/before", b"before").unwrap();
    pair.start();
    pair.wait_equal("before");
    let [pid] = pair.programs()[..] else { panic!("one program expected") };
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGSTOP).unwrap();
    // More than pipe and window take.
    for i in 0..24 {
        hand.file(&format!("/large{i}"), &Prng::new(i).bytes(1 << 20)).unwrap();
    }
    wait_told(&pair, "nothing was heard from the target");
    pair.wait_equal("a new session");
}
