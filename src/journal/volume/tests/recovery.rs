//! What an open finds after a stop: clean, unclean, damaged.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use tempfile::TempDir;

use super::super::{Journal, LastStop};
use super::{change, compares_everything, fill_to, open, said, target_at, tids, unclean_reason};
use crate::base::Tid;
use crate::journal::{JournalError, TargetId};

const JUMP: u64 = 1 << 32;

#[test]
fn an_unclean_stop_jumps_and_compares_every_target() {
    let dir = TempDir::new().unwrap();
    let (journal, _) = open(&dir);
    let target = target_at(&journal, "a", Tid::ZERO);
    (1..4).for_each(|tid| assert_eq!(change(&journal, 10), Tid(tid)));
    journal.commit(Tid(3)).unwrap();
    let identity = journal.identity();
    drop(journal);

    let (journal, stop) = open(&dir);
    unclean_reason(stop);
    assert_eq!(journal.identity(), identity);
    assert!(compares_everything(&journal, target));
    assert_eq!(journal.last_tid(), Tid(3 + JUMP - 1));
    assert_eq!(journal.durable_tid(), journal.last_tid());
    assert_eq!(change(&journal, 10), Tid(3 + JUMP));
    journal.commit(journal.last_tid()).unwrap();
    assert_eq!(tids(&journal, Tid(2)), [Tid(3), Tid(3 + JUMP)]);
    journal.close_clean().unwrap();
    assert!(matches!(journal.reserve(10), Err(JournalError::Failed { .. })));
    drop(journal);
    assert_eq!(open(&dir).1, LastStop::Clean);
}

#[test]
fn a_cursor_inside_a_jump_is_no_damage() {
    let dir = TempDir::new().unwrap();
    let (journal, _) = open(&dir);
    change(&journal, 10);
    drop(journal);
    let (journal, _) = open(&dir);
    target_at(&journal, "a", journal.last_tid());
    drop(journal);
    let (journal, stop) = open(&dir);
    assert_eq!(unclean_reason(stop), "the last stop was not clean");
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
    let reason = unclean_reason(stop);
    assert!(reason.contains("00000001.seg at byte 4096"), "{reason}");
    assert!(journal.store().events(1).unwrap()[0].text.contains("at byte 4096"));
    damage_is_settled(&journal, target);
    drop(journal);
    assert_eq!(unclean_reason(open(&dir).1), "the last stop was not clean");
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
        unclean_reason(stop);
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
    let reason = unclean_reason(stop);
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
