//! What an open finds after a stop: clean, unclean, damaged.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;

use super::super::{InFlight, Journal, JournalOptions, LastStop, Reservation, SyncTree, UnderWay};
use super::{change, checkpoint, compares_everything, damage, fill_to, open, said, target_at, tids, unhurried};
use crate::base::{Oid, Space, Tid};
use crate::journal::{Intent, JournalError, Region, TargetId};
use crate::record::{Draft, Op};

const JUMP: u64 = 1 << 32;

/// What a power loss leaves of a journal: no memory.
fn lose_power(dir: &TempDir) {
    fs::remove_file(dir.path().join("memory")).unwrap();
}

fn intent(ino: u64) -> Intent {
    Intent { oid: oid(ino), region: Region::Number(0) }
}

fn oid(ino: u64) -> Oid {
    Oid { space: Space(1), generation: 1, ino }
}

/// Announces and begins a change of these objects.
fn begin<'a>(journal: &'a Journal, objects: &[u64]) -> (Reservation<'a>, InFlight<'a>) {
    let intents: Vec<Intent> = objects.iter().map(|ino| intent(*ino)).collect();
    let oids: Vec<Oid> = objects.iter().map(|ino| oid(*ino)).collect();
    let mut reservation = journal.reserve(1000).unwrap();
    loop {
        match journal.begin_change(&intents, &UnderWay { unique: 1, oids: &oids, name: b"name" }) {
            Some(in_flight) => return (reservation, in_flight),
            None => reservation.announce(&intents).unwrap(),
        }
    }
}

/// A whole change of one object.
fn change_of(journal: &Journal, ino: u64) -> Tid {
    let (reservation, _in_flight) = begin(journal, &[ino]);
    reservation.commit(Draft::new(oid(ino), &Op::SetAttr { attrs: Default::default() }, &[]))
}

/// The objects that a target has to compare, by inode number.
fn compared(journal: &Journal, target: TargetId) -> Vec<u64> {
    let mut inos: Vec<u64> =
        journal.store().work_next(target, 0, 1000).unwrap().iter().map(|row| row.oid.ino).collect();
    inos.sort_unstable();
    inos
}

#[test]
fn a_kill_loses_nothing_and_compares_what_was_under_way() {
    let dir = TempDir::new().unwrap();
    let (journal, _) = Journal::open(dir.path(), unhurried()).unwrap();
    let target = target_at(&journal, "a", Tid::ZERO);
    journal.commit(change(&journal, 10)).unwrap();
    std::mem::forget(begin(&journal, &[7, 8]));
    for tid in 2..40 {
        assert_eq!(change(&journal, 100 * tid), Tid(tid as u64));
        // Some are in the log already when the kill comes, and in memory too.
        if tid % 10 == 0 {
            journal.start_commit(Tid(tid as u64));
        }
    }
    let identity = journal.identity();
    let position = journal.position();
    drop(journal);

    let (journal, stop) = open(&dir);
    assert!(matches!(stop, LastStop::Killed { records: 1.., objects: 2 }), "{stop:?}");
    assert_eq!(journal.identity(), identity);
    assert_eq!(journal.last_tid(), Tid(39));
    assert_eq!(tids(&journal, Tid::ZERO), (1..40).map(Tid).collect::<Vec<_>>());
    assert_eq!(journal.digest_at(position.tid).unwrap(), Some(position.digest));
    assert_eq!(compared(&journal, target), [7, 8]);
    assert_eq!(change(&journal, 10), Tid(40));
    drop(journal);
    assert_eq!(compared(&open(&dir).0, target), [7, 8]);
}

#[test]
fn a_power_loss_compares_what_was_announced_and_begins_an_epoch() {
    let dir = TempDir::new().unwrap();
    let (journal, _) = open(&dir);
    let target = target_at(&journal, "a", Tid::ZERO);
    let unplaced = journal.store().target_add("not mirrored", "local:/y").unwrap();
    change_of(&journal, 3);
    change_of(&journal, 4);
    checkpoint(&journal);
    checkpoint(&journal);
    change_of(&journal, 5);
    let last = change_of(&journal, 6);
    journal.commit(last).unwrap();
    // Announced, and perhaps made: no record.
    let (reservation, in_flight) = begin(&journal, &[7]);
    drop((reservation, in_flight));
    let (fork, old) = (journal.position(), journal.identity());
    drop(journal);
    lose_power(&dir);

    let (journal, stop) = open(&dir);
    let epoch = journal.identity().epoch;
    assert_eq!(stop, LastStop::PowerLoss { suspects: 3, epoch });
    assert_ne!(epoch, old.epoch);
    assert_eq!(compared(&journal, target), [5, 6, 7]);
    assert!(compared(&journal, unplaced).is_empty());
    assert_eq!(journal.last_tid(), Tid(last.0 + JUMP - 1));
    let epochs = journal.epochs().unwrap();
    assert_eq!((epochs.len(), epochs[1].parent, epochs[1].id), (2, Some(old.epoch), epoch));
    assert_eq!((epochs[1].fork.tid, epochs[1].fork.digest), (fork.tid, fork.digest));
    let tid = change_of(&journal, 9);
    assert_eq!(tid, Tid(last.0 + JUMP));
    journal.commit(tid).unwrap();
    assert_eq!(tids(&journal, Tid(2)), [Tid(3), last, tid]);
    assert!(journal.store().events(5).unwrap()[0].text.contains("3 objects are compared"));
    drop(journal);
    // A second one finds what came after the first; what that one found is still work.
    lose_power(&dir);
    let (journal, stop) = open(&dir);
    assert!(matches!(stop, LastStop::PowerLoss { suspects: 1, .. }), "{stop:?}");
    assert_eq!(compared(&journal, target), [5, 6, 7, 9]);
    journal.close_clean().unwrap();
    drop(journal);
    assert_eq!(open(&dir).1, LastStop::Clean);
}

/// What settled a power loss is durable, and the next life was not begun.
#[test]
fn a_crash_at_the_end_of_a_recovery_finds_nothing_damaged() {
    let dir = TempDir::new().unwrap();
    let (journal, _) = open(&dir);
    let target = target_at(&journal, "a", Tid::ZERO);
    journal.commit(change_of(&journal, 3)).unwrap();
    drop(journal);
    lose_power(&dir);
    // The memory cannot be made.
    let memory = dir.path().join("memory");
    fs::create_dir(&memory).unwrap();
    assert!(Journal::open(dir.path(), unhurried()).is_err());
    fs::remove_dir(&memory).unwrap();
    let (journal, stop) = open(&dir);
    assert_eq!(stop, LastStop::Clean);
    assert_eq!(journal.epochs().unwrap().len(), 2);
    assert_eq!(compared(&journal, target), [3]);
    assert_eq!(tids(&journal, Tid::ZERO), [Tid(1)]);
    assert!(change_of(&journal, 4).0 > JUMP);
}

#[test]
fn what_is_touched_while_a_checkpoint_runs_is_in_doubt_after_it() {
    let dir = TempDir::new().unwrap();
    let (journal, _) = open(&dir);
    let target = target_at(&journal, "a", Tid::ZERO);
    for ino in 3..6 {
        change_of(&journal, ino);
    }
    let writer = Arc::clone(&journal);
    let sync: SyncTree = Box::new(move || {
        // 4 is hot by its old intent, 8 is cold.
        drop(begin(&writer, &[4]));
        drop(begin(&writer, &[8]));
        Ok(())
    });
    journal.checkpoint(&sync).unwrap();
    drop(sync);
    // Still hot: no intent for it is written any more.
    let before = journal.hot_objects();
    drop(begin(&journal, &[4]));
    assert_eq!(journal.hot_objects(), before);
    drop(journal);
    lose_power(&dir);
    let (journal, stop) = open(&dir);
    assert!(matches!(stop, LastStop::PowerLoss { suspects: 2, .. }), "{stop:?}");
    assert_eq!(compared(&journal, target), [4, 8]);
}

#[test]
fn a_checkpoint_that_cannot_sync_fails_the_volume_and_what_it_holds_is_in_doubt() {
    let dir = TempDir::new().unwrap();
    let (journal, _) = open(&dir);
    let target = target_at(&journal, "a", Tid::ZERO);
    change_of(&journal, 3);
    let sync: SyncTree = Box::new(|| Err(nix::errno::Errno::EIO));
    assert!(journal.checkpoint(&sync).is_err());
    assert!(journal.failed().unwrap().contains("syncfs"));
    assert!(matches!(journal.reserve(10), Err(JournalError::Failed { .. })));
    assert!(journal.close_clean().is_err());
    drop(journal);
    let (journal, stop) = open(&dir);
    assert!(matches!(stop, LastStop::PowerLoss { suspects: 1, .. }), "{stop:?}");
    assert_eq!(compared(&journal, target), [3]);
    assert_eq!(journal.failed(), None);
}

#[test]
fn memory_that_is_damaged_or_another_lifes_counts_as_gone() {
    for (offset, bytes) in [(3, [0x5a; 4]), (40, [0x5a; 4]), (60, [1; 4]), (4096, [0xff; 4]), (8192, [0xff; 4])] {
        let dir = TempDir::new().unwrap();
        let (journal, _) = open(&dir);
        change(&journal, 10);
        drop(journal);
        fs::OpenOptions::new()
            .write(true)
            .open(dir.path().join("memory"))
            .unwrap()
            .write_all_at(&bytes, offset)
            .unwrap();
        let (_, stop) = open(&dir);
        assert!(matches!(stop, LastStop::PowerLoss { .. }), "byte {offset}: {stop:?}");
    }
    let dir = TempDir::new().unwrap();
    drop(open(&dir));
    fs::copy(dir.path().join("memory"), dir.path().join("kept")).unwrap();
    drop(open(&dir));
    fs::rename(dir.path().join("kept"), dir.path().join("memory")).unwrap();
    assert!(matches!(open(&dir).1, LastStop::PowerLoss { .. }));
}

#[test]
fn objects_without_a_name_end_with_the_life_that_held_them() {
    for crash in ["kill", "power", "clean"] {
        let dir = TempDir::new().unwrap();
        let (journal, _) = open(&dir);
        let target = target_at(&journal, "a", Tid::ZERO);
        journal.orphan(oid(11));
        journal.orphan(oid(12));
        journal.not_orphan(oid(12));
        change_of(&journal, 3);
        checkpoint(&journal);
        checkpoint(&journal);
        match crash {
            "clean" => journal.close_clean().unwrap(),
            _ => drop(change(&journal, 10)),
        }
        drop(journal);
        if crash == "power" {
            lose_power(&dir);
        }
        let (journal, _) = open(&dir);
        assert!(compared(&journal, target).contains(&11), "{crash}");
        assert!(!compared(&journal, target).contains(&12), "{crash}");
    }
}

/// What it costs is measured (`scripts/bench.sh recovery`); a recovery that read the whole log would show there.
#[test]
fn a_kill_is_recovered_from_however_long_the_log_is() {
    let records: u64 = 50_000;
    let dir = TempDir::new().unwrap();
    let (journal, _) = Journal::open(dir.path(), JournalOptions::default()).unwrap();
    target_at(&journal, "holds everything", Tid::ZERO);
    for _ in 0..records {
        change(&journal, 64);
    }
    drop(journal);
    let (journal, stop) = Journal::open(dir.path(), JournalOptions::default()).unwrap();
    assert!(matches!(stop, LastStop::Killed { .. }), "{stop:?}");
    assert_eq!(journal.last_tid(), Tid(records));
}

#[test]
fn a_cursor_inside_a_jump_is_no_damage() {
    let dir = TempDir::new().unwrap();
    let (journal, _) = open(&dir);
    change(&journal, 10);
    drop(journal);
    lose_power(&dir);
    let (journal, _) = open(&dir);
    target_at(&journal, "a", journal.last_tid());
    drop(journal);
    assert!(matches!(open(&dir).1, LastStop::Killed { .. }));
    lose_power(&dir);
    let (journal, stop) = open(&dir);
    assert!(matches!(stop, LastStop::PowerLoss { .. }), "{stop:?}");
    assert!(journal.last_tid() >= Tid(2 * JUMP - 2));
}

#[test]
fn a_log_that_ends_below_a_cursor_is_damage() {
    let dir = TempDir::new().unwrap();
    let (journal, _) = open(&dir);
    let target = target_at(&journal, "a", Tid::ZERO);
    let tid = change(&journal, 10);
    journal.commit(tid).unwrap();
    journal.store().ack(target, &said(tid, tid), &[], &[], &[]).unwrap();
    drop(journal);
    overwrite(dir.path(), "seg/00000001.seg", 4096);

    let (journal, stop) = open(&dir);
    let reason = damage(stop);
    assert!(reason.contains("00000001.seg at byte 4096"), "{reason}");
    assert!(journal.store().events(1).unwrap()[0].text.contains("at byte 4096"));
    damage_is_settled(&journal, target);
    drop(journal);
    assert!(matches!(open(&dir).1, LastStop::Killed { .. }));
}

#[test]
fn a_clean_stop_whose_log_is_shorter_or_gone_is_damage() {
    for lost in ["cut", "gone"] {
        let dir = TempDir::new().unwrap();
        let (journal, _) = open(&dir);
        let target = target_at(&journal, "a", Tid::ZERO);
        change(&journal, 10);
        journal.close_clean().unwrap();
        drop(journal);
        match lost {
            "cut" => overwrite(dir.path(), "seg/00000001.seg", 4096),
            _ => fs::remove_dir_all(dir.path().join("seg")).unwrap(),
        }
        let (journal, stop) = open(&dir);
        damage(stop);
        damage_is_settled(&journal, target);
    }
}

#[test]
fn a_damaged_header_of_a_sealed_segment_is_named_and_the_log_begins_anew() {
    let dir = TempDir::new().unwrap();
    let (journal, _) = open(&dir);
    let target = target_at(&journal, "a", Tid::ZERO);
    fill_to(&journal, 4);
    journal.close_clean().unwrap();
    drop(journal);
    overwrite(dir.path(), "seg/00000002.seg", 0);
    let (journal, stop) = open(&dir);
    let reason = damage(stop);
    assert!(reason.contains("00000002.seg at byte 0"), "{reason}");
    damage_is_settled(&journal, target);
}

/// The target stands at the new start and compares everything; the log goes on there.
fn damage_is_settled(journal: &Journal, target: TargetId) {
    let row = journal.store().target_by_id(target).unwrap().unwrap();
    assert_eq!((row.received, row.applied), (journal.last_tid(), journal.last_tid()));
    assert_eq!(journal.oldest_kept(), row.received);
    assert!(compares_everything(journal, target));
    let tid = change(journal, 10);
    assert!(tid.0 >= JUMP);
    journal.commit(tid).unwrap();
    assert_eq!(tids(journal, row.received), [tid]);
}

fn overwrite(dir: &Path, file: &str, offset: u64) {
    let file = fs::OpenOptions::new().write(true).open(dir.join(file)).unwrap();
    file.write_all_at(&[0x5a; 300], offset).unwrap();
}

#[test]
fn damage_that_a_reader_meets_moves_the_targets_behind_it() {
    let dir = TempDir::new().unwrap();
    let (journal, _) = open(&dir);
    let behind = target_at(&journal, "behind", Tid::ZERO);
    fill_to(&journal, 2);
    let ahead = target_at(&journal, "ahead", journal.last_tid());
    overwrite(dir.path(), "seg/00000001.seg", 4096);
    let error = journal.reader(Tid::ZERO).unwrap().next_chunk(Tid(u64::MAX), 1000).map(drop);
    assert!(matches!(error, Err(JournalError::Damaged { offset: 4096, .. })));
    assert!(compares_everything(&journal, behind));
    assert!(!compares_everything(&journal, ahead));
    let place = journal.store().target("behind").unwrap().unwrap().received;
    assert_eq!(place, journal.oldest_kept());
    assert!(tids(&journal, place).contains(&journal.last_tid()));

    // In the open segment too: it is sealed, and what comes after can be read.
    let open = journal.core.log.end();
    overwrite(dir.path(), &format!("seg/{:08}.seg", open.segment), 4096);
    let error = journal.reader(place).unwrap().next_chunk(Tid(u64::MAX), 1000).map(drop);
    assert!(error.is_err());
    let place = journal.store().target("behind").unwrap().unwrap().received;
    let tid = change(&journal, 10);
    journal.commit(tid).unwrap();
    assert_eq!(tids(&journal, place), [tid]);
}
