//! The whole pipeline in one process without a mount: stack, journal, sender, wire, receiver, applier.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::time::Duration;

use dtfs::base::faults;
use support::hand::{Hand, IMMUTABLE, acl};
use support::history::History;
use support::length::{asked_for, number};
use support::pair::{Pair, TIGHT_CAP};
use support::process::wait_until;
use support::scratch::{FileSystem, Scratch};
use support::trees;

/// For what travels when nothing changed: handshakes, heartbeats, positions.
const QUIET_BYTES: u64 = 4 << 10;

/// One change of each kind, below `at`.
fn every_kind(hand: &Hand, at: &str) {
    let p = |name: &str| format!("{at}/{name}");
    hand.mkdir(at).unwrap();
    hand.file(&p("file"), b"first content").unwrap();
    hand.patch(&p("file"), 6, b"CONTENT AND MORE").unwrap();
    hand.truncate(&p("file"), 9).unwrap();
    hand.truncate(&p("file"), 100_000).unwrap();
    hand.allocate(&p("file"), 0, 0, 200_000).unwrap();
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    hand.patch(&p("file"), 0, &[7; 50_000]).unwrap();
    hand.allocate(&p("file"), punch, 8192, 8192).unwrap();
    hand.allocate(&p("file"), libc::FALLOC_FL_KEEP_SIZE, 0, 1 << 20).unwrap();
    hand.link(&p("file"), &p("second")).unwrap();
    hand.link(&p("file"), &p("third")).unwrap();
    hand.unlink(&p("second")).unwrap();
    hand.symlink(&p("symlink"), b"some/where").unwrap();
    hand.mknod(&p("fifo"), libc::S_IFIFO | 0o640, 0).unwrap();
    hand.mknod(&p("socket"), libc::S_IFSOCK | 0o600, 0).unwrap();
    hand.mknod(&p("char"), libc::S_IFCHR | 0o666, libc::makedev(1, 3)).unwrap();
    hand.mknod(&p("block"), libc::S_IFBLK | 0o660, libc::makedev(240, 300)).unwrap();
    for name in ["symlink", "fifo", "socket", "char", "block"] {
        hand.chown(&p(name), 1000, 1001).unwrap();
    }
    hand.chmod(&p("char"), 0o600).unwrap();
    hand.set_xattr(&p("file"), "user.one", b"value").unwrap();
    hand.set_xattr(&p("file"), "user.two", b"gone soon").unwrap();
    hand.remove_xattr(&p("file"), "user.two").unwrap();
    hand.set_xattr(&p("file"), "system.posix_acl_access", &acl(1234)).unwrap();
    hand.mkdir(&p("dir")).unwrap();
    hand.set_xattr(&p("dir"), "system.posix_acl_default", &acl(4321)).unwrap();
    hand.file(&p("dir/inherits"), b"an ACL").unwrap();
    hand.mkdir(&p("dir/inherits-too")).unwrap();
    hand.file(&p("suid"), b"#!").unwrap();
    hand.chown(&p("suid"), 77, 88).unwrap();
    hand.chmod(&p("suid"), 0o6755).unwrap();
    hand.chmod(&p("dir"), 0o2770).unwrap();
    hand.file(&p("locked"), b"nobody changes this").unwrap();
    hand.set_flags(&p("locked"), IMMUTABLE).unwrap();
    hand.mkdir(&p("sealed")).unwrap();
    hand.file(&p("sealed/in"), b"inside").unwrap();
    hand.set_flags(&p("sealed"), IMMUTABLE).unwrap();
    hand.mkdir(&p("empty")).unwrap();
    hand.rmdir(&p("empty")).unwrap();
    moves(hand, &p("moves"));
}

fn moves(hand: &Hand, at: &str) {
    let p = |name: &str| format!("{at}/{name}");
    hand.mkdir(at).unwrap();
    for dir in ["a", "a/b", "a/b/c", "x", "x/y", "over", "free"] {
        hand.mkdir(&p(dir)).unwrap();
    }
    hand.file(&p("a/b/c/deep"), b"deep").unwrap();
    hand.file(&p("x/y/other"), b"other").unwrap();
    hand.exchange(&p("a/b"), &p("x/y")).unwrap();
    hand.rename(&p("free"), &p("over")).unwrap();
    hand.file(&p("new"), b"replaces").unwrap();
    hand.file(&p("old"), b"is replaced").unwrap();
    hand.rename(&p("new"), &p("old")).unwrap();
    hand.rename(&p("old"), &p("x/moved")).unwrap();
    // A directory below what was below it.
    hand.rename(&p("x/y/c"), &p("c")).unwrap();
    hand.rename(&p("x"), &p("c/x")).unwrap();
    hand.exchange(&p("a"), &p("c/x/moved")).unwrap();
    nameless(hand, at);
}

/// A file that lives on without a name until its last holder closes it.
fn nameless(hand: &Hand, at: &str) {
    let path = format!("{at}/nameless");
    let open = hand.create(&path).unwrap();
    hand.write_at(open, 0, b"before").unwrap();
    hand.unlink(&path).unwrap();
    hand.write_at(open, 3, b"after").unwrap();
    hand.file(&path, b"another of the same name").unwrap();
    hand.close(open);
}

#[test]
fn every_kind_of_change_before_during_and_after_the_mirror() {
    let mut pair = Pair::new();
    let hand = Hand::new(pair.stack());
    every_kind(&hand, "before");
    pair.start();
    every_kind(&hand, "during");
    pair.wait_equal("during");
    every_kind(&hand, "after");
    pair.wait_equal("after");
    hand.set_flags("before/locked", 0).unwrap();
    hand.patch("before/locked", 3, b"changed").unwrap();
    hand.set_flags("before/locked", IMMUTABLE).unwrap();
    hand.set_flags("during/sealed", 0).unwrap();
    hand.unlink("during/sealed/in").unwrap();
    hand.rmdir("during/sealed").unwrap();
    pair.wait_equal("immutable objects were changed");
    assert_eq!(pair.target_errors(), Vec::<String>::new());
}

#[test]
fn what_was_there_before_the_journal_is_mirrored() {
    let mut pair = Pair::new();
    trees::fill(&pair.source().join("some"), 1_500);
    std::fs::write(pair.source().join("some/large"), vec![42; 5 << 20]).unwrap();
    pair.start();
    pair.wait_equal("mirror");
    assert_eq!(pair.target_errors(), Vec::<String>::new());
    let mirror = pair.bytes_sent();
    pair.stop();
    pair.start();
    pair.wait_equal("a quiet stop and start");
    let again = pair.bytes_sent() - mirror;
    assert!(again < QUIET_BYTES, "{again} bytes were sent after a quiet stop, the mirror took {mirror}");
    pair.reopen(true);
    pair.wait_equal("the source was stopped and started");
    let again = pair.bytes_sent() - mirror;
    assert!(again < 2 * QUIET_BYTES, "{again} bytes were sent after two quiet stops");
}

/// Runs the history of one seed; says what is wrong afterwards.
fn history(seed: u64) -> Result<(), String> {
    let outcome = std::panic::catch_unwind(|| {
        // Most in memory, where they are quick; some on a disk filesystem, where holes are compared as well.
        let (pair, tight) = match seed % 8 {
            0 => (Pair::new(), false),
            1..=4 => (Pair::tight(), true),
            _ => (Pair::in_memory(), false),
        };
        let mut history = History::new(pair, seed, tight);
        let lived = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            history.run();
            history.pair.wait_equal(&format!("seed {seed}"));
        }));
        if lived.is_err() {
            eprintln!("seed {seed}: {:?}\n{}", history.story, history.pair.explain());
        }
        lived.map_err(|_| ())
    });
    match outcome {
        Ok(Ok(())) => Ok(()),
        _ => Err(format!("DTFS_SEED={seed} repeats it")),
    }
}

/// `DTFS_HISTORIES` says how many, `DTFS_SEED` names one.
#[test]
fn random_histories_end_equal() {
    let seeds = match asked_for("DTFS_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("DTFS_HISTORIES", 200),
    };
    let next = std::sync::atomic::AtomicU64::new(seeds.start);
    let failed = parking_lot::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    failed.lock().extend(history(seed).err());
                }
            });
        }
    });
    assert_eq!(*failed.lock(), Vec::<String>::new());
}

/// Bytes and TIDs that `change` costs until the target has it.
fn cost(pair: &Pair, change: impl FnOnce()) -> (u64, u64) {
    pair.wait();
    let before = (pair.bytes_sent(), pair.stack().journal().last_tid().0);
    change();
    pair.wait();
    (pair.bytes_sent() - before.0, pair.stack().journal().last_tid().0 - before.1)
}

#[test]
fn an_append_to_a_gigabyte_sends_little() {
    let mut pair = Pair::new();
    let hand = Hand::new(pair.stack());
    hand.file("big", b"begins").unwrap();
    hand.patch("big", 500 << 20, &[7; 4096]).unwrap();
    hand.truncate("big", 1 << 30).unwrap();
    pair.start();
    pair.wait_equal("mirror");
    assert!(pair.bytes_sent() < 64 << 10, "holes were sent: {} bytes", pair.bytes_sent());
    let (bytes, _) = cost(&pair, || hand.patch("big", 1 << 30, &[9; 1024]).unwrap());
    assert!((1..8 << 10).contains(&bytes), "{bytes} bytes were sent for 1 KiB");
    pair.wait_equal("append");
}

#[test]
fn renaming_a_directory_of_ten_thousand_files_is_one_record() {
    let mut pair = Pair::new();
    trees::fill(&pair.source().join("before"), 10_000);
    let hand = Hand::new(pair.stack());
    pair.start();
    pair.wait();
    let (bytes, tids) = cost(&pair, || hand.rename("before", "after").unwrap());
    assert_eq!(tids, 1);
    assert!(bytes < QUIET_BYTES, "{bytes} bytes were sent for one rename");
    pair.wait_equal("rename");
}

#[test]
fn large_files_that_change_while_they_are_mirrored_end_equal() {
    let mut pair = Pair::new();
    for i in 0..4 {
        std::fs::write(pair.source().join(format!("large-{i}")), vec![i; 6 << 20]).unwrap();
    }
    let hand = Hand::new(pair.stack());
    pair.start();
    for round in 0..60u64 {
        let path = format!("large-{}", round % 4);
        hand.patch(&path, round * 97_001, &[round as u8; 70_000]).unwrap();
        if round % 9 == 0 {
            hand.truncate(&path, (5 << 20) + round).unwrap();
        }
        if round % 25 == 10 {
            pair.cut();
        }
    }
    pair.wait_equal("changes during the mirror");
}

#[test]
fn a_listing_longer_than_a_frame_arrives_in_parts() {
    let mut pair = Pair::in_memory();
    let dir = pair.source().join("many");
    std::fs::create_dir(&dir).unwrap();
    for i in 0..6_000 {
        std::os::unix::fs::symlink("x".repeat(3_000), dir.join(format!("{i:0200}"))).unwrap();
    }
    pair.start();
    pair.wait_equal("a directory of 19 MB");
    assert_eq!(pair.target_errors(), Vec::<String>::new());
}

#[test]
fn a_capability_follows_its_file() {
    let mut pair = Pair::new();
    let hand = Hand::new(pair.stack());
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    pair.start();
    for (name, act) in [("kept", 0), ("written", 1), ("owned", 2)] {
        hand.file(name, b"#!").unwrap();
        hand.set_xattr(name, "security.capability", &capability).unwrap();
        pair.wait_equal(name);
        match act {
            0 => hand.chmod(name, 0o755).unwrap(),
            1 => hand.patch(name, 0, b"changed").unwrap(),
            _ => hand.chown(name, 1000, 1000).unwrap(),
        }
        pair.wait_equal(name);
    }
}

#[test]
fn a_target_that_was_wiped_during_its_greeting_is_filled_again() {
    let mut pair = Pair::new();
    trees::fill(&pair.source().join("some"), 50);
    pair.start();
    pair.wait_equal("mirror");
    pair.wipe_target();
    // As if the connection had ended right behind the target's answer: it is a replica, and has nothing.
    let identity = pair.stack().journal().identity();
    let open = || {
        dtfs::applier::Replica::open(
            &pair.target(),
            &pair.states(),
            (identity.volume, &identity.space.into()),
            dtfs::applier::Adopt::No,
        )
    };
    drop(open().unwrap());
    pair.start();
    pair.wait_equal("filled again");
}

/// A target is away while ten times the journal's cap is written: what it lacks becomes work, and only that is sent.
#[test]
fn a_target_that_was_away_too_long_is_sent_what_changed_and_nothing_else() {
    let mut pair = Pair::tight();
    let hand = Hand::new(pair.stack());
    for dir in ["/kept", "/used"] {
        hand.mkdir(dir).unwrap();
        for no in 0..200 {
            hand.file(&format!("{dir}/{no}"), &[no as u8; 20_000]).unwrap();
        }
    }
    hand.file("/big", b"").unwrap();
    for at in 0..128 {
        hand.patch("/big", at * (128 << 10), &[1; 128 << 10]).unwrap();
    }
    hand.file("/small", b"as it was").unwrap();
    pair.start();
    pair.wait_equal("the mirror");
    let (mirror, read) = (pair.bytes_sent(), pair.objects_read());
    pair.stop();
    for round in 0..10 {
        for _ in 0..TIGHT_CAP / (64 << 10) {
            hand.patch("/big", u64::from(round) << 20, &[round + 2; 64 << 10]).unwrap();
        }
        hand.file(&format!("/used/new-{round}"), &[round; 5_000]).unwrap();
        hand.unlink(&format!("/used/{round}")).unwrap();
        hand.rename(&format!("/used/{}", 100 + round), &format!("/kept/moved-{round}")).unwrap();
        hand.chmod("/small", 0o600 + u32::from(round)).unwrap();
    }
    let journal = pair.stack().journal().clone();
    wait_until("the journal to be below its cap", Duration::from_secs(60), || {
        (journal.bytes_used() <= TIGHT_CAP).then_some(())
    });
    drop(journal);
    pair.start();
    pair.wait_equal("the target is back");
    let events = pair.explain();
    assert!(events.contains("becomes work"), "{events}");
    assert!(!events.contains("whole tree is compared"), "{events}");
    let (bytes, objects) = (pair.bytes_sent() - mirror, pair.objects_read() - read);
    // Half a mebibyte of the big file, ten new files, two listings; what is still in the journal comes as records.
    // How much that is depends on where segments begin.
    assert!(bytes < TIGHT_CAP + (2 << 20), "{bytes} bytes were sent, the mirror took {mirror}");
    assert!(objects < 80, "{objects} objects were read again");
}

/// Files of a size that no block ends at, without data there, which grow in all the ways there are.
fn grow(hand: &Hand, at: &str) {
    const END: u64 = 50_000;
    let zero = libc::FALLOC_FL_ZERO_RANGE;
    type Grow<'a> = &'a dyn Fn(&str);
    let ways: [(&str, Grow<'_>); 8] = [
        ("truncate", &|path| hand.truncate(path, 100_000).unwrap()),
        ("truncate-a-little", &|path| hand.truncate(path, END + 100).unwrap()),
        ("write-behind", &|path| hand.patch(path, 90_000, b"behind").unwrap()),
        ("write-at-the-end", &|path| hand.patch(path, END, b"at the end").unwrap()),
        ("allocate-behind", &|path| hand.allocate(path, 0, 70_000, 30_000).unwrap()),
        ("allocate-across", &|path| hand.allocate(path, 0, 40_000, 30_000).unwrap()),
        ("zero-behind", &|path| hand.allocate(path, zero, 70_000, 30_000).unwrap()),
        ("twice", &|path| (1..3).for_each(|times| hand.truncate(path, END + times * 30_001).unwrap())),
    ];
    hand.mkdir(at).unwrap();
    for (name, way) in ways {
        for head in [&b""[..], b"data in the first block"] {
            let path = format!("{at}/{name}-{}", head.len());
            hand.file(&path, head).unwrap();
            hand.truncate(&path, END).unwrap();
            way(&path);
        }
    }
}

const GROWTH: &str = "a_hole_that_a_file_ends_in_is_the_same_on_both_sides_when_it_grows";

/// btrfs makes data of it, ext4 does not (`backing/tail.rs`).
#[test]
fn a_hole_that_a_file_ends_in_is_the_same_on_both_sides_when_it_grows() {
    faults::arm_from_env().unwrap();
    for (from, to) in [(FileSystem::Btrfs, FileSystem::Ext4), (FileSystem::Ext4, FileSystem::Btrfs)] {
        let (source, target) = (Scratch::new(from), Scratch::new(to));
        let mut pair = Pair::on(source.path());
        pair.move_target(&target.dir("target"), &target.dir("states"));
        let hand = Hand::new(pair.stack());
        grow(&hand, "/before");
        pair.start();
        pair.wait_equal(&format!("{from:?} to {to:?}, mirrored"));
        grow(&hand, "/live");
        pair.wait_equal(&format!("{from:?} to {to:?}, live"));
        pair.close(true);
    }
}

/// Negative control: what a growth did is not recorded, or not kept from happening.
#[test]
fn control_a_growth_fills_what_it_fills() {
    for (rule, seen) in [("stack.growth", "Btrfs to Ext4, live"), ("applier.hole_at_end", "Ext4 to Btrfs, live")] {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", GROWTH]).env("DTFS_FAULTS", format!("{rule}=skip"));
        let output = child.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success() && text.contains(seen), "without {rule} the test sees nothing: {text}");
    }
}
