//! What happens when the target's disk has no room, a call of its fails, an object cannot be what it should, or the target
//! hangs: each has its outcome and its event, and in the end both trees are equal.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::fs;
use std::path::Path;
use std::time::Duration;

use dtfs::sender::SenderState;
use support::hand::Hand;
use support::pair::Pair;
use support::prng::Prng;
use support::process::wait_until;
use support::scratch::{FileSystem, Scratch};

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
