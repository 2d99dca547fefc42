//! What a target lost, or had put back from an older copy, in whole or in part, is noticed: its tree is compared, with an
//! event that says why, and nothing that is there is sent again. A source that was put back is not followed.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use dtfs::sender::{Forked, SenderState};
use support::hand::Hand;
use support::pair::Pair;
use support::prng::Prng;
use support::process::tool;
use support::trees;

const MIRROR_BYTES: usize = 6 << 20;
/// What comparing the small tree below may cost.
const COMPARE_BYTES: u64 = 1 << 20;

/// A mirrored pair: a large file that is never to be sent again, a few directories with small files.
fn mirrored() -> (Pair, Hand) {
    let mut pair = Pair::new();
    fs::write(pair.source().join("still"), Prng::new(7).bytes(MIRROR_BYTES)).unwrap();
    trees::fill(&pair.source().join("some"), 40);
    pair.start();
    pair.wait_equal("mirror");
    let hand = Hand::new(pair.stack());
    hand.mkdir("/moves").unwrap();
    hand.file("/moves/in", b"one").unwrap();
    pair.wait_equal("before");
    (pair, hand)
}

/// The state directory of the target's one replica.
fn state(pair: &Pair) -> PathBuf {
    let replicas = fs::read_dir(pair.states()).unwrap().next().unwrap().unwrap().path();
    assert!(replicas.join("catalog.db").exists(), "{}", replicas.display());
    replicas
}

/// Copies `from` to `to` with everything, as a restore from an image does, but for the inode numbers.
fn copy(from: &Path, to: &Path) {
    tool("cp", &["-a", "--preserve=all", "--", from.to_str().unwrap(), to.to_str().unwrap()]);
}

fn replace(old: &Path, kept: &Path) {
    fs::remove_dir_all(old).unwrap();
    copy(kept, old);
}

/// Changes at the source that a target must not lose: names move, content changes, attributes change.
fn later(hand: &Hand) {
    hand.rename("/moves", "/moved").unwrap();
    hand.file("/moved/more", b"two").unwrap();
    hand.patch("/moved/in", 0, b"TWO").unwrap();
    hand.rename("/some", "/else").unwrap();
}

/// The sender is started again on a target that something happened to.
fn is_compared(mut pair: Pair, reason: &str) {
    let sent = pair.bytes_sent();
    pair.start();
    pair.wait_equal(reason);
    let events = pair.events();
    let told = events.iter().any(|text| text.contains("the whole tree is compared") && text.contains(reason));
    assert!(told, "no event says \"{reason}\": {events:#?}");
    let cost = pair.bytes_sent() - sent;
    assert!(cost < COMPARE_BYTES, "{reason}: {cost} bytes were sent");
    // Once.
    let count = events.len();
    pair.stop();
    pair.start();
    pair.wait_equal("and again");
    assert_eq!(pair.events().len(), count, "{:#?}", pair.events());
}

#[test]
fn a_lost_catalog_is_made_anew_from_the_objects() {
    let (mut pair, hand) = mirrored();
    pair.stop();
    later(&hand);
    let state = state(&pair);
    for name in ["catalog.db", "catalog.db-wal", "catalog.db-shm"] {
        let _ = fs::remove_file(state.join(name));
    }
    is_compared(pair, "its catalog is missing");
}

#[test]
fn a_damaged_catalog_is_made_anew() {
    let (mut pair, hand) = mirrored();
    pair.stop();
    later(&hand);
    fs::write(state(&pair).join("catalog.db"), vec![0x5a; 40_000]).unwrap();
    is_compared(pair, "not a database");
}

#[test]
fn a_catalog_with_damaged_pages_is_made_anew() {
    let (mut pair, hand) = mirrored();
    pair.stop();
    later(&hand);
    let path = state(&pair).join("catalog.db");
    let mut bytes = fs::read(&path).unwrap();
    bytes[4096..].fill(0xff);
    fs::write(&path, bytes).unwrap();
    is_compared(pair, "catalog");
}

#[test]
fn a_lost_inbox_leaves_the_target_in_doubt() {
    let (mut pair, hand) = mirrored();
    pair.stop();
    later(&hand);
    fs::remove_dir_all(state(&pair).join("inbox")).unwrap();
    is_compared(pair, "its inbox does not continue its tree");
}

#[test]
fn a_damaged_inbox_leaves_the_target_in_doubt() {
    let (mut pair, hand) = mirrored();
    pair.stop();
    later(&hand);
    let inbox = state(&pair).join("inbox");
    for entry in fs::read_dir(inbox).unwrap().map(|entry| entry.unwrap().path()) {
        let mut bytes = fs::read(&entry).unwrap();
        bytes[..64].fill(0xee);
        fs::write(&entry, bytes).unwrap();
    }
    is_compared(pair, "its inbox does not continue its tree");
}

#[test]
fn a_lost_state_directory_is_made_anew() {
    let (mut pair, hand) = mirrored();
    pair.stop();
    later(&hand);
    fs::remove_dir_all(state(&pair)).unwrap();
    is_compared(pair, "its catalog is missing");
}

#[test]
fn an_older_tree_under_a_newer_state_is_noticed() {
    let (mut pair, hand) = mirrored();
    pair.stop();
    let kept = pair.root().join("kept");
    copy(&pair.target(), &kept);
    pair.start();
    later(&hand);
    pair.wait_equal("later");
    pair.stop();
    replace(&pair.target(), &kept);
    is_compared(pair, "its tree and its catalog are from different times");
}

#[test]
fn an_older_state_beside_a_newer_tree_is_noticed() {
    let (mut pair, hand) = mirrored();
    pair.stop();
    let kept = pair.root().join("kept");
    copy(&pair.states(), &kept);
    pair.start();
    later(&hand);
    pair.wait_equal("later");
    hand.file("/again", b"so that more than one commit lies between").unwrap();
    pair.wait_equal("later still");
    pair.stop();
    replace(&pair.states(), &kept);
    is_compared(pair, "its tree and its catalog are from different times");
}

/// Copied, as by rsync: the inode numbers are others.
#[test]
fn a_whole_target_that_was_copied_back_is_noticed() {
    let (mut pair, hand) = mirrored();
    pair.stop();
    let (tree, states) = (pair.root().join("kept-tree"), pair.root().join("kept-states"));
    copy(&pair.target(), &tree);
    copy(&pair.states(), &states);
    pair.start();
    later(&hand);
    pair.wait_equal("later");
    pair.stop();
    replace(&pair.target(), &tree);
    replace(&pair.states(), &states);
    is_compared(pair, "its tree was copied");
}

/// Names the state that the tree was made durable in.
const COMMIT: &str = "trusted.dtfs.commit";

/// As from an image of its disk: everything is as it was, inode numbers too. Nothing was recorded between the copy and its
/// return, only readings of state were applied: the TID is the same.
#[test]
fn a_whole_target_that_was_put_back_at_the_same_tid_is_noticed() {
    let (mut pair, hand) = mirrored();
    drop(hand);
    pair.stop();
    let states = pair.root().join("kept-states");
    copy(&pair.states(), &states);
    let value = tool("getfattr", &["-e", "hex", "-n", COMMIT, pair.target().join(".dtfs").to_str().unwrap()]);
    let commit = value.split("=").nth(1).unwrap().trim();
    let tid = pair.stack().journal().last_tid();
    let store = pair.stack().journal().store();
    let work = dtfs::journal::NewWork::whole_tree(dtfs::journal::WorkReason::Verify, tid);
    store.work_insert(pair.id(), &[work]).unwrap();
    pair.start();
    pair.wait_equal("compared");
    assert_eq!(pair.stack().journal().last_tid(), tid);
    pair.stop();
    replace(&pair.states(), &states);
    tool("setfattr", &["-n", COMMIT, "-v", commit, pair.target().join(".dtfs").to_str().unwrap()]);
    is_compared(pair, "it was put back to an older state");
}

/// The volume is restored to another filesystem: inode numbers say nothing any more.
#[test]
fn a_source_on_another_filesystem_gets_new_ids_and_sends_nothing_again() {
    let (mut pair, hand) = mirrored();
    hand.link("/moves/in", "/moves/linked").unwrap();
    pair.wait_equal("linked");
    drop(hand);
    pair.close(true);
    let kept = pair.root().join("kept");
    copy(&pair.source(), &kept);
    replace(&pair.source(), &kept);
    pair.open();
    let hand = Hand::new(pair.stack());
    hand.patch("/moves/in", 0, b"TWO").unwrap();
    is_compared(pair, "the source's volume lies on another filesystem");
}

/// The source's journal and tree are put back to an older copy: what the target has is not thrown away unasked.
#[test]
fn a_source_that_was_put_back_is_not_followed() {
    for (goes_on, elsewhere) in [(false, false), (true, false), (false, true)] {
        let (mut pair, hand) = mirrored();
        pair.stop();
        drop(hand);
        let kept = pair.root().join("kept");
        pair.close(true);
        fs::create_dir(&kept).unwrap();
        for name in ["source", "journal"] {
            copy(&pair.root().join(name), &kept.join(name));
        }
        pair.open();
        pair.start();
        let hand = Hand::new(pair.stack());
        hand.file("/newer", b"only here and on the target").unwrap();
        hand.unlink("/newer").unwrap();
        hand.file("/newest", b"only here and on the target").unwrap();
        pair.wait_equal("newest");
        pair.stop();
        drop(hand);
        pair.close(true);
        replace(&pair.root().join("journal"), &kept.join("journal"));
        match elsewhere {
            true => replace(&pair.source(), &kept.join("source")),
            false => {
                // In the same directory, as from an image of the disk.
                tool("find", &[pair.source().to_str().unwrap(), "-mindepth", "1", "-delete"]);
                copy(&kept.join("source").join("."), &pair.source());
            }
        }
        pair.open();
        let hand = Hand::new(pair.stack());
        if goes_on {
            // As many changes as were lost, and more: the TID alone would not show it.
            for i in 0..20 {
                hand.file(&format!("/other{i}"), b"another history").unwrap();
            }
        }
        pair.start();
        let refused = support::process::wait_until("the refusal", std::time::Duration::from_secs(20), || {
            match pair.status().state {
                SenderState::Refused(reason) => Some(reason),
                _ => None,
            }
        });
        assert!(refused.contains("Nothing is sent") && refused.contains("dtfs rejoin"), "{refused}");
        assert!(pair.target().join("newest").exists(), "what the target had is gone");
        pair.stop();
        pair.forget_target();
        pair.forked = Forked::Compare;
        pair.start();
        pair.wait_equal("the operator has decided");
        assert!(!pair.target().join("newest").exists());
    }
}
