//! The journal of a volume: commits by many threads, retention, the store.

mod recovery;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::ring::{Gate, INTENTS_ROOM, Share};
use super::{Journal, JournalOptions, LastStop, SyncTree, WhenFull};
use crate::base::{Commit, Oid, Tid, VolumeUuid};
use crate::journal::{JournalError, NewWork, Said, TargetId, WorkKind, WorkReason};
use crate::record::{Draft, Op, RecordIter};

fn options() -> JournalOptions {
    JournalOptions {
        segment_bytes: 256 << 10,
        cap_bytes: 1 << 30,
        when_full: WhenFull::Degrade,
        ring_bytes: 64 << 10,
        commit_interval: Duration::from_millis(2),
    }
}

/// What a target with these positions says.
fn said(received: Tid, applied: Tid) -> Said {
    Said { copy: VolumeUuid([1; 16]), received, applied, commit: Commit::default() }
}

fn open(dir: &TempDir) -> (Arc<Journal>, LastStop) {
    Journal::open(dir.path(), options()).unwrap()
}

static PAYLOAD: [u8; 64 << 10] = [1; 64 << 10];

fn draft(payload: usize) -> Draft<'static> {
    let op = Op::Write { offset: 0, attrs: Default::default() };
    Draft::new(Oid::ROOT, &op, &PAYLOAD[..payload])
}

fn change(journal: &Journal, payload: usize) -> Tid {
    let draft = draft(payload);
    journal.reserve(draft.len_bytes()).unwrap().commit(draft)
}

/// Changes until the log is in segment `no`.
fn fill_to(journal: &Journal, no: u64) {
    while journal.core.log.end().segment < no {
        change(journal, 20_000);
        journal.commit(journal.last_tid()).unwrap();
    }
    checkpoint(journal);
}

fn checkpoint(journal: &Journal) {
    let sync: SyncTree = Box::new(|| Ok(()));
    journal.checkpoint(&sync).unwrap();
}

fn target_at(journal: &Journal, name: &str, base: Tid) -> TargetId {
    journal.store().target_add_at(name, "local:/x", base, &[]).unwrap()
}

fn tids(journal: &Journal, after: Tid) -> Vec<Tid> {
    let mut reader = journal.reader(after).unwrap();
    let mut tids = Vec::new();
    while let Some(chunk) = reader.next_chunk(Tid(u64::MAX), 1 << 20).unwrap() {
        tids.extend(RecordIter::new(&chunk.body).map(|record| record.unwrap().tid));
    }
    tids
}

/// Waits until `done` says so; the committer's housekeeping runs beside the test.
fn eventually(mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(120);
    while !done() {
        assert!(Instant::now() < until, "it did not happen in 120 seconds");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn damage(stop: LastStop) -> String {
    match stop {
        LastStop::Damaged { reason } => reason,
        other => panic!("{other:?}"),
    }
}

fn compares_everything(journal: &Journal, target: TargetId) -> bool {
    let work = journal.store().work_next(target, 0, 10).unwrap();
    work.iter().any(|row| (row.oid, row.kind, row.reason) == (Oid::ROOT, WorkKind::Tree, WorkReason::Verify))
}

#[test]
fn many_threads_lose_nothing_and_tids_are_in_order() {
    let dir = TempDir::new().unwrap();
    let (journal, stop) = open(&dir);
    assert_eq!(stop, LastStop::New);
    target_at(&journal, "keeps-all", Tid::ZERO);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let journal = &journal;
            scope.spawn(move || {
                for change_no in 0..400 {
                    let tid = change(journal, 100 + thread * 300);
                    if change_no % 16 == thread {
                        journal.commit(tid).unwrap();
                        assert!(journal.durable_tid() >= tid);
                    }
                }
            });
        }
    });
    journal.commit(journal.last_tid()).unwrap();
    let wanted: Vec<Tid> = (1..=3200).map(Tid).collect();
    assert_eq!(tids(&journal, Tid::ZERO), wanted);
    assert!(!journal.core.ring.lock().in_use());
    journal.close_clean().unwrap();
    drop(journal);
    let (journal, stop) = open(&dir);
    assert_eq!(stop, LastStop::Clean);
    assert_eq!(tids(&journal, Tid::ZERO), wanted);
    assert_eq!(change(&journal, 10), Tid(3201));
}

/// Without a committer that comes between.
fn unhurried() -> JournalOptions {
    JournalOptions { commit_interval: Duration::from_secs(600), ..options() }
}

#[test]
fn a_commit_that_was_started_is_in_the_log_and_durable_only_at_its_end() {
    let dir = TempDir::new().unwrap();
    let (journal, _) = Journal::open(dir.path(), unhurried()).unwrap();
    // The first record of an idle journal wakes the committer; from here on it waits for its interval.
    journal.commit(change(&journal, 10)).unwrap();
    let calls = journal.log_calls();
    let first = change(&journal, 10);
    journal.start_commit(first);
    assert_eq!((journal.log_calls() - calls, journal.durable_tid()), (1, Tid(1)), "written, and not synced");
    journal.start_commit(first);
    let second = change(&journal, 10);
    journal.start_commit(second);
    let third = change(&journal, 10);
    assert_eq!(journal.log_calls() - calls, 2, "what is in the log is not written again");
    assert_eq!(tids(&journal, Tid::ZERO), [Tid(1)], "nothing is read before it is durable");
    journal.commit(first).unwrap();
    assert_eq!((journal.log_calls() - calls, journal.durable_tid()), (4, third), "one frame more, and one sync");
    assert!(!journal.core.ring.lock().in_use());
    assert_eq!(tids(&journal, Tid::ZERO), (1..=4).map(Tid).collect::<Vec<_>>());
}

#[test]
fn the_committer_makes_records_durable_without_being_asked() {
    let dir = TempDir::new().unwrap();
    let (journal, _) = open(&dir);
    for _ in 0..5 {
        let tid = change(&journal, 10);
        let durable = journal.wait_durable_past(Tid(tid.0 - 1), Duration::from_secs(10));
        assert!(durable >= tid);
    }
    let start = Instant::now();
    assert_eq!(journal.wait_durable_past(Tid(5), Duration::from_millis(20)), Tid(5));
    assert!(start.elapsed() >= Duration::from_millis(20));
}

#[test]
fn a_reservation_that_is_not_used_gives_its_room_back() {
    let dir = TempDir::new().unwrap();
    let (journal, _) = open(&dir);
    for _ in 0..100 {
        drop(journal.reserve(60_000).unwrap());
    }
    assert!(matches!(journal.reserve(options().ring_bytes + 1), Err(JournalError::TooLarge { .. })));
    let held = journal.reserve(60_000).unwrap();
    let share = Share::of(draft(30_000).len_bytes()).with(INTENTS_ROOM);
    assert!(journal.core.ring.lock().take_room(share).is_err(), "room is taken twice");
    let waiter = {
        let journal = Arc::clone(&journal);
        std::thread::spawn(move || change(&journal, 30_000))
    };
    drop(held);
    assert_eq!(waiter.join().unwrap(), Tid(1));
}

/// Behind it a target that says it has more, and of which no digest is left, followed somebody else.
#[test]
fn what_a_target_can_have_been_sent_ends_with_the_life_of_its_session() {
    let dir = TempDir::new().unwrap();
    let (mut journal, _) = open(&dir);
    let target = target_at(&journal, "a", Tid(0));
    let sent = |journal: &Journal| journal.store().target_by_id(target).unwrap().unwrap().sent;
    assert_eq!(sent(&journal), None);
    for is_clean in [true, false] {
        journal.store().session_begins(target, &said(Tid(0), Tid(0))).unwrap();
        let last = change(&journal, 10);
        let open_end = sent(&journal).unwrap();
        assert!(open_end.copy == said(Tid(0), Tid(0)).copy && open_end.upto > Tid(1 << 62), "{open_end:?}");
        if is_clean {
            journal.close_clean().unwrap();
        }
        drop(journal);
        journal = open(&dir).0;
        assert_eq!(sent(&journal).unwrap().upto, last, "clean: {is_clean}");
        change(&journal, 10);
        assert_eq!(sent(&journal).unwrap().upto, last, "no session began");
    }
}

#[test]
fn only_one_opener_and_nobody_else_can_read_it() {
    let dir = TempDir::new().unwrap();
    let (journal, _) = open(&dir);
    assert!(matches!(Journal::open(dir.path(), options()), Err(JournalError::Busy { .. })));
    let mode = |name: &str| {
        let path = dir.path().join(name);
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    };
    assert_eq!(mode("seg"), 0o700);
    for name in ["state.db", "state.db-wal", "lock", "seg/00000001.seg"] {
        assert_eq!(mode(name), 0o600, "{name}");
    }
    drop(journal);
    open(&dir);
}

#[test]
fn trimming_waits_for_the_slowest_target() {
    let dir = TempDir::new().unwrap();
    let (journal, _) = open(&dir);
    let store = journal.store();
    let (fast, slow) = (target_at(&journal, "fast", Tid::ZERO), target_at(&journal, "slow", Tid::ZERO));
    fill_to(&journal, 5);
    let last = journal.last_tid();
    store.ack(fast, &said(last, last), &[], &[], &[]).unwrap();
    store.ack(slow, &said(last, Tid(1)), &[], &[], &[]).unwrap();
    journal.trim().unwrap();
    assert_eq!(journal.oldest_kept(), Tid::ZERO);
    let end = journal.core.log.oldest_sealed_end().unwrap();
    store.ack(slow, &said(last, end), &[], &[], &[]).unwrap();
    store.target_downstream(slow, Tid(1)).unwrap();
    journal.trim().unwrap();
    assert_eq!(journal.oldest_kept(), Tid::ZERO, "for whoever is behind the slow one");
    store.target_downstream(slow, end).unwrap();
    journal.trim().unwrap();
    assert_eq!(journal.oldest_kept(), end);
    store.target_remove(slow).unwrap();
    journal.trim().unwrap();
    assert_eq!(journal.bytes_used(), options().segment_bytes);
    drop(journal);
    assert_eq!(open(&dir).1, LastStop::Killed { records: 0, objects: 0 });
}

/// A target's place is where a segment begins when the records before it became work.
#[test]
fn what_led_to_the_oldest_place_is_known_while_the_log_is_trimmed() {
    let dir = TempDir::new().unwrap();
    let (journal, _) = open(&dir);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| (1..150).for_each(|no| fill_to(&journal, no)));
        while !writer.is_finished() {
            let place = journal.oldest_kept();
            assert!(journal.digest_at(place).unwrap().is_some(), "nothing led to {place}");
        }
    });
}

#[test]
fn above_the_cap_the_slowest_target_gets_work_keeps_its_place_and_nobody_waits() {
    let dir = TempDir::new().unwrap();
    let options = JournalOptions { cap_bytes: 4 * options().segment_bytes, ..options() };
    let (journal, _) = Journal::open(dir.path(), options).unwrap();
    let (fast, slow) = (target_at(&journal, "fast", Tid::ZERO), target_at(&journal, "slow", Tid::ZERO));
    for no in 2..9 {
        fill_to(&journal, no);
        let last = journal.durable_tid();
        journal.store().ack(fast, &said(last, last), &[], &[], &[]).unwrap();
        eventually(|| journal.bytes_used() <= options.cap_bytes);
    }
    assert_eq!(journal.store().work_count(fast).unwrap(), 0);
    let work = journal.store().work_next(slow, 0, 10).unwrap();
    assert_eq!(work.len(), 1, "every record wrote to the same place: {work:?}");
    assert_eq!((work[0].kind, work[0].reason, work[0].offset), (WorkKind::Range, WorkReason::Verify, 0));
    let slow_row = || journal.store().target("slow").unwrap().unwrap();
    // Rows first, then the segment goes.
    eventually(|| slow_row().covered == journal.oldest_kept());
    let row = slow_row();
    assert_eq!((row.received, row.applied), (Tid::ZERO, Tid::ZERO));
    assert_eq!(tids(&journal, row.covered).last(), Some(&journal.last_tid()));
    // Its tree cannot be called consistent at any TID that it had not applied before.
    assert_eq!(journal.store().work_count_upto(slow, Tid(1)).unwrap(), 1);
    let events: Vec<String> = journal.store().events(9).unwrap().into_iter().map(|row| row.text).collect();
    let said = |what: &str| events.iter().filter(|text| text.contains(what)).count();
    assert_eq!(
        (said("slow has received only"), said("what slow has not received becomes work")),
        (1, 1),
        "{events:#?}"
    );
    // Files are recycled: those of the cap and a few free ones.
    assert!(fs::read_dir(dir.path().join("seg")).unwrap().count() <= 9);
    drop(journal);
    let (journal, stop) = Journal::open(dir.path(), options).unwrap();
    assert_eq!(stop, LastStop::Killed { records: 0, objects: 0 });
    assert!(journal.store().target("slow").unwrap().unwrap().covered >= row.covered);
}

#[test]
fn what_a_target_has_received_does_not_hold_a_log_that_fills() {
    let dir = TempDir::new().unwrap();
    let options = JournalOptions { cap_bytes: 8 * options().segment_bytes, ..options() };
    let (journal, _) = Journal::open(dir.path(), options).unwrap();
    let slow = target_at(&journal, "slow", Tid::ZERO);
    fill_to(&journal, 3);
    let received = journal.durable_tid();
    journal.store().ack(slow, &said(received, Tid::ZERO), &[], &[], &[]).unwrap();
    journal.trim().unwrap();
    assert_eq!(journal.oldest_kept(), Tid::ZERO, "there is room: it is kept until it is applied");
    fill_to(&journal, 7);
    eventually(|| journal.oldest_kept() > Tid::ZERO);
    assert!(journal.oldest_kept() <= received, "{} {received}", journal.oldest_kept());
    assert_eq!(journal.store().work_count(slow).unwrap(), 0);
}

#[test]
fn changes_wait_at_the_cap_where_that_is_asked_for() {
    let dir = TempDir::new().unwrap();
    let cap_bytes = 4 * options().segment_bytes;
    let options = JournalOptions { cap_bytes, when_full: WhenFull::Block, ..options() };
    let (journal, _) = Journal::open(dir.path(), options).unwrap();
    let _checkpoints = journal.start_checkpoints(Box::new(|| Ok(()))).unwrap();
    let slow = target_at(&journal, "slow", Tid::ZERO);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| fill_to(&journal, 9));
        let mut waits = 0;
        eventually(|| {
            if journal.core.ring.lock().gate == Gate::Blocked {
                waits += 1;
                assert!(journal.bytes_used() <= cap_bytes + options.segment_bytes);
                let durable = journal.durable_tid();
                journal.store().ack(slow, &said(durable, durable), &[], &[], &[]).unwrap();
                journal.trim().unwrap();
            }
            writer.is_finished()
        });
        assert!(waits > 0);
    });
    assert_eq!(journal.store().work_count(slow).unwrap(), 0, "nothing became work");
}

#[test]
fn work_rows_live_by_their_rules() {
    let dir = TempDir::new().unwrap();
    let (journal, _) = open(&dir);
    let store = journal.store();
    let target = target_at(&journal, "a", Tid::ZERO);
    let range = |offset, len, created| NewWork {
        oid: Oid::ROOT,
        kind: WorkKind::Range,
        reason: WorkReason::Need,
        offset,
        len,
        created_tid: Tid(created),
    };
    assert_eq!(store.work_insert(target, &[range(0, 10, 1), range(50, 10, 2)]).unwrap(), 2);
    assert_eq!(store.work_insert(target, &[range(0, 10, 3)]).unwrap(), 0);
    let rows = store.work_next(target, 0, 10).unwrap();
    assert_eq!(rows.iter().map(|r| r.offset).collect::<Vec<_>>(), [0, 50]);
    assert_eq!(store.work_next(target, rows[0].id, 10).unwrap(), rows[1..]);

    // Progress shrinks a row; what the target asks for at the same place is a new row.
    store.ack(target, &said(Tid(4), Tid(3)), &[rows[1].id], &[(rows[0].id, 4)], &[range(4, 20, 5)]).unwrap();
    let now = store.work_next(target, 0, 10).unwrap();
    assert_eq!((now.len(), now[0].offset, now[0].len), (1, 4, 20));
    assert!(now[0].id > rows[1].id);
    assert_eq!(store.work_count_upto(target, Tid(4)).unwrap(), 0);
    assert_eq!(store.work_count_upto(target, Tid(5)).unwrap(), 1);
    assert!(!store.work_stands_against(target, Tid(4)).unwrap());
    assert!(store.work_stands_against(target, Tid(5)).unwrap());

    let whole = NewWork::whole_tree(WorkReason::Mirror, Tid(9));
    store.reset_target(target, Tid(9), &[whole]).unwrap();
    let row = store.target("a").unwrap().unwrap();
    assert_eq!((row.received, row.applied, row.mirrored), (Tid(9), Tid(9), true));
    // An ack that was under way does not move the cursor back.
    store.ack(target, &said(Tid(4), Tid(4)), &[], &[], &[]).unwrap();
    assert_eq!(store.target("a").unwrap().unwrap().received, Tid(9));
    // An object that is partly done is not begun again because the target repeats what it lacks.
    store.work_insert_absent(target, &[range(7, 1, 9)]).unwrap();
    assert_eq!(store.work_count(target).unwrap(), 1);
    store.target_remove(target).unwrap();
    assert_eq!(store.targets().unwrap(), []);
}
