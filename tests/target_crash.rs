//! The target's process dies between any two steps of receiving, applying and making durable, at each of the first hits of
//! each point, in the middle of random changes: both trees end equal, and nothing that was mirrored is sent again.
//! `DTFS_HITS` says how many hits of each point, `DTFS_SEED` repeats the changes, `DTFS_POINT` names one point.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::time::Duration;

use dtfs::journal::{NewWork, WorkReason};
use dtfs::stack::Errno;
use support::hand::Hand;
use support::length::number;
use support::pair::Pair;
use support::prng::Prng;
use support::process::wait_until;

/// Between every two steps: of a batch on its way in, of a record and of the end of its group, of making durable, of the
/// words that follow.
const POINTS: [&str; 21] = [
    "receiver.append",
    "journal.pwrite",
    "receiver.sync",
    "journal.fdatasync",
    "receiver.ack_received",
    "applier.record",
    "applier.parked",
    "applier.bind",
    "applier.put_out",
    "backing.pwrite",
    "applier.finish",
    "applier.mode",
    "applier.times",
    "applier.flags",
    "applier.before_mark",
    "applier.before_sync",
    "backing.syncfs",
    "applier.after_sync",
    "applier.catalog",
    "applier.after_catalog",
    "receiver.ack_applied",
];

/// Content that cannot be compressed, and that nobody changes: sent once, by the mirror.
const MIRROR_BYTES: usize = 6 << 20;
/// Far less than that, and far more than the changes of one round, their repetitions and what is said beside them.
const ROUND_BYTES: u64 = 2 << 20;

fn path(prng: &mut Prng) -> String {
    let dir = prng.pick(&["", "/d0", "/d1", "/d0/e", "/d1/e"]);
    format!("{dir}/{}", prng.pick(&["a", "b", "c", "e", "f"]))
}

fn change(hand: &Hand, prng: &mut Prng) {
    let (one, other) = (path(prng), path(prng));
    let done = match prng.below(12) {
        0 => hand.mkdir(&one).map(drop),
        1..=3 => hand.file(&one, &prng.bytes(3_000)),
        4 | 5 => hand.patch(&one, prng.below(5_000), &prng.bytes(100)),
        6 => hand.truncate(&one, prng.below(6_000)),
        7 => hand.rename(&one, &other),
        8 => hand.exchange(&one, &other),
        9 => hand.link(&one, &other),
        10 => hand.unlink(&one),
        _ => hand.chown(&one, prng.below(9) as u32, 7).and_then(|()| hand.chmod(&one, 0o4750)),
    };
    if let Err(errno) = done {
        let usual = [
            Errno::ENOENT,
            Errno::EEXIST,
            Errno::ENOTDIR,
            Errno::EISDIR,
            Errno::ENOTEMPTY,
            Errno::EINVAL,
            Errno::EPERM,
        ];
        assert!(usual.contains(&errno), "{one} {other}: {errno}");
    }
}

/// One round: the next target process dies at the `hit`th time it comes to `point`.
fn round(pair: &mut Pair, prng: &mut Prng, point: &str, hit: u64) -> bool {
    let hand = Hand::new(pair.stack());
    let (killed, sent) = (pair.killed(), pair.bytes_sent());
    pair.stop();
    let early = prng.below(25);
    (0..early).for_each(|_| change(&hand, prng));
    pair.arm(&format!("{point}=abort@{hit}"));
    pair.start();
    for _ in 0..1 + prng.below(3) {
        let count = 1 + prng.below(25);
        (0..count).for_each(|_| change(&hand, prng));
        pair.wait();
    }
    pair.wait_equal(&format!("{point}, hit {hit}"));
    let cost = pair.bytes_sent() - sent;
    assert!(cost < ROUND_BYTES, "{point}, hit {hit}: {cost} bytes were sent");
    pair.killed() > killed
}

#[test]
fn wherever_the_target_dies_both_trees_end_equal() {
    let seed = number("DTFS_SEED", 1);
    println!("seed {seed} (DTFS_SEED repeats it)");
    let mut prng = Prng::new(seed);
    let mut pair = Pair::in_memory().served_by_program();
    std::fs::write(pair.source().join("still"), prng.bytes(MIRROR_BYTES)).unwrap();
    for dir in ["d0", "d1"] {
        std::fs::create_dir(pair.source().join(dir)).unwrap();
    }
    pair.start();
    pair.wait_equal("mirror");
    let mut deaths = 0;
    let only = std::env::var("DTFS_POINT").ok();
    for point in POINTS.into_iter().filter(|point| only.as_ref().is_none_or(|only| only == point)) {
        let died = (1..=number("DTFS_HITS", 3)).filter(|hit| round(&mut pair, &mut prng, point, *hit)).count();
        println!("{point}: died {died} times");
        assert!(died > 0, "{point} was never come to");
        deaths += died;
    }
    println!("{deaths} deaths");
}

/// A jump of the position is cut off at each of its steps.
#[test]
fn wherever_a_jump_is_cut_off_both_trees_end_equal() {
    let mut prng = Prng::new(number("DTFS_SEED", 2));
    let mut pair = Pair::in_memory().served_by_program();
    std::fs::write(pair.source().join("still"), prng.bytes(MIRROR_BYTES)).unwrap();
    pair.start();
    pair.wait_equal("mirror");
    let hand = Hand::new(pair.stack());
    hand.mkdir("/d0").unwrap();
    for (point, hit) in [
        ("receiver.jump", 1),
        ("applier.before_sync", 2),
        ("applier.before_sync", 3),
        ("applier.after_sync", 2),
        ("applier.after_sync", 3),
        ("applier.after_catalog", 2),
        ("applier.after_catalog", 3),
    ] {
        pair.stop();
        // The target's place moves on without it: what lies between is work, as when its records are dropped.
        let hand = Hand::new(pair.stack());
        (0..5).for_each(|_| change(&hand, &mut prng));
        let journal = pair.stack().journal();
        let base = journal.last_tid();
        journal.commit(base).unwrap();
        let work = NewWork::whole_tree(WorkReason::Verify, base);
        journal.store().reset_target(pair.id(), base, &[work]).unwrap();
        let (killed, sent) = (pair.killed(), pair.bytes_sent());
        pair.arm(&format!("{point}=abort@{hit}"));
        pair.start();
        pair.wait();
        (0..20).for_each(|_| change(&hand, &mut prng));
        pair.wait_equal(&format!("{point}, hit {hit}, in a jump"));
        // Its next process may be there before the thread that waits for the dead one has counted it.
        wait_until(&format!("{point}, hit {hit} to be come to"), Duration::from_secs(60), || {
            (pair.killed() == killed + 1).then_some(())
        });
        let cost = pair.bytes_sent() - sent;
        assert!(cost < ROUND_BYTES, "{point}, hit {hit}: {cost} bytes were sent");
    }
}
