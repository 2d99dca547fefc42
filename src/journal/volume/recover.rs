//! What the last stop left, and what follows from it.
//!
//! - A clean stop: nothing. Should the system have gone down since, and something not have been durable then, that is a power
//!   loss all the same.
//! - A kill: the memory of that life is there. Its records are appended to the log; the objects of the changes that were
//!   under way are compared. TIDs, positions and epoch go on.
//! - A power loss (another boot, or the memory is gone or damaged): what was not certain in the tree since the last
//!   checkpoint is compared, the TIDs jump, and the history goes on in a new epoch: targets may hold what is lost here.
//! - Damage: records that were durable are gone. Everything is compared.
//!
//! Every step can be repeated: a crash in the middle ends in the same, or in a power loss.

use std::collections::HashSet;
use std::path::Path;

use super::checkpoint::Checkpoint;
use super::mark::{Mark, Stop};
use super::open::LastStop;
use super::shared::{Left, Shared, boot_id, life_from};
use super::slots::oids_of;
use super::{Identity, JournalOptions};
use crate::base::{EpochId, Oid, Tid, faults};
use crate::journal::changes::Changes;
use crate::journal::error::{JournalError, io};
use crate::journal::local::{Intent, Local};
use crate::journal::log::{ChainEnd, FrameKind, LogOptions, Position, SegmentLog};
use crate::journal::store::{
    Level, Store, TargetRow, all_targets, lose_place, put_epoch, put_event, put_meta, put_suspects, renew_mark,
};
use crate::record::{Fate, FieldWriter, Header, Op, RecordIter};

/// How far TIDs jump after a power loss: more than the changes that can have had a TID without a durable record.
pub(super) const JUMP: u64 = 1 << 32;
/// Key in `meta`: the life whose memory counts.
pub(super) const LIFE: &str = "life";
const ORPHANS: &str = "orphans";

/// What is there when a journal is opened.
pub(super) struct Found<'a> {
    pub(super) dir: &'a Path,
    pub(super) memory: &'a Path,
    pub(super) options: &'a JournalOptions,
    pub(super) store: &'a Store,
    pub(super) identity: Identity,
}

/// What is there when it is ready.
pub(super) struct Recovered {
    pub(super) log: SegmentLog,
    pub(super) identity: Identity,
    /// Last TID that counts as given.
    pub(super) last: Tid,
    pub(super) stop: LastStop,
}

/// What a recovery reads from the log.
#[derive(Default)]
struct Doubt {
    changes: Changes,
    /// Objects without a name that were held open.
    orphans: HashSet<Oid>,
    /// A checkpoint that came later than the one the reading began with.
    newer: Option<(Position, Vec<Intent>)>,
}

/// What of it is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    All,
    /// Only who may have ended without a record: the rest of a log that lost nothing is certain.
    Orphans,
}

/// How far the memory of the last life can be used.
enum Memory {
    Left(Left),
    Gone,
}

/// What is known of the last life before the log is looked at.
struct Known {
    mark: Option<(Mark, Stop)>,
    /// Targets that have a place in the log.
    targets: Vec<TargetRow>,
    /// End of the last full segment.
    sealed_end: Tid,
}

impl Found<'_> {
    /// Brings log and store to one state.
    pub(super) fn recover(mut self) -> Result<Recovered, JournalError> {
        let log_options = LogOptions { segment_bytes: self.options.segment_bytes, created_ns: None };
        let seg = self.dir.join("seg");
        let known = Known::load(self.store)?;
        let (volume, epoch) = (self.identity.volume, self.identity.epoch);
        let reason = match SegmentLog::open(&seg, volume, epoch, log_options) {
            Ok(log) => match self.settle(&known, log) {
                Ok(recovered) => return Ok(recovered),
                Err(Failure::Damage(reason, end)) => (reason, end),
                Err(Failure::Other(error)) => return Err(error),
            },
            Err(error @ JournalError::Damaged { .. }) => (error.to_string(), Tid::ZERO),
            Err(error) => return Err(error),
        };
        let (reason, end) = reason;
        let start = Tid(known.bound().max(end).0 + JUMP - 1);
        self.identity.epoch = EpochId::random();
        self.settle_damage(start, &reason)?;
        let log = SegmentLog::open_anew(&seg, volume, self.identity.epoch, log_options, ChainEnd::anew(start))?;
        Ok(Recovered { log, identity: self.identity, last: start, stop: LastStop::Damaged { reason } })
    }

    fn settle(&mut self, known: &Known, log: SegmentLog) -> Result<Recovered, Failure> {
        let end = log.last_tid();
        let damage = |reason| Failure::Damage(reason, end);
        let Some((mark, stop)) = &known.mark else {
            return match end == Tid::ZERO {
                true => Ok(self.recovered(log, Tid::ZERO, LastStop::New)),
                false => Err(damage("segments without the state database they belong to".to_owned())),
            };
        };
        if let Some(reason) = known.find_damage(&log, mark) {
            return Err(damage(reason));
        }
        let same_boot = self.same_boot()?;
        let memory = match self.memory()? {
            Some(left) if left.failed => {
                // What that life wrote last may be in the page cache only, which calls it clean.
                log.write_again(left.durable.end)?;
                Memory::Gone
            }
            Some(left) => Memory::Left(left),
            None => Memory::Gone,
        };
        // A crash behind the settling of a power loss leaves the gap's own frame behind the mark, and no record.
        let ends_right = log.last_tid() == mark.log_last && log.end() >= mark.end;
        let outcome = match (stop, memory) {
            (Stop::Clean, _) if !ends_right => {
                return Err(damage("the log does not end where the clean stop says".to_owned()));
            }
            (Stop::Clean, _) if same_boot => self.settle_clean(known, &log),
            (Stop::Clean, _) => {
                let doubt = self.doubt(&log, Wanted::All)?;
                match doubt.changes.len() {
                    0 => self.settle_clean(known, &log),
                    _ => self.settle_power_loss(known, &log, doubt),
                }
            }
            (Stop::Open, Memory::Left(left)) if left.durable.tid > end => {
                return Err(damage(ends_early(&log, "it was durable up to", left.durable.tid)));
            }
            (Stop::Open, Memory::Left(left)) => self.settle_kill(known, &log, &left),
            (Stop::Open, Memory::Gone) => {
                let doubt = self.doubt(&log, Wanted::All)?;
                self.settle_power_loss(known, &log, doubt)
            }
        };
        let (last, stop) = outcome?;
        Ok(self.recovered(log, last, stop))
    }

    fn recovered(&self, log: SegmentLog, last: Tid, stop: LastStop) -> Recovered {
        Recovered { log, identity: self.identity, last, stop }
    }

    fn same_boot(&self) -> Result<bool, JournalError> {
        let life = self.store.meta_get(LIFE)?.and_then(|bytes| life_from(self.identity.volume, &bytes));
        Ok(life.is_some_and(|life| boot_id().is_ok_and(|boot| boot == life.boot)))
    }

    /// What the last life left, if all of it is what a life can have left.
    fn memory(&self) -> Result<Option<Left>, JournalError> {
        let life = self.store.meta_get(LIFE)?.and_then(|bytes| life_from(self.identity.volume, &bytes));
        let usable = self.same_boot()? && !faults::skipped("rule.memory_survives");
        let left = life.filter(|_| usable).and_then(|life| Shared::left_by(self.memory, &life));
        Ok(left.filter(|left| left.slots.iter().all(|slot| oids_of(slot).is_some())))
    }

    /// Objects that a crash ended come to their end at the targets too.
    fn settle_clean(&self, known: &Known, log: &SegmentLog) -> Result<(Tid, LastStop), Failure> {
        let last = known.bound().max(log.last_tid());
        let mut changes = Changes::default();
        self.orphans()?.into_iter().for_each(|oid| changes.suspect(oid, last));
        self.write(log, last, |tx| {
            put_for_all(tx, &changes)?;
            put_meta(tx, &[(ORPHANS, &[])])
        })?;
        Ok((last, LastStop::Clean))
    }

    fn settle_kill(&self, known: &Known, log: &SegmentLog, left: &Left) -> Result<(Tid, LastStop), Failure> {
        self.point("recovery.ring")?;
        let records = append_left(log, &left.records)?;
        self.point("recovery.ring_durable")?;
        let last = known.bound().max(log.last_tid()).max(left.last);
        let mut changes = Changes::default();
        let under_way: HashSet<Oid> = left.slots.iter().filter_map(oids_of).flatten().collect();
        under_way.iter().for_each(|oid| changes.suspect(*oid, last));
        let doubt = self.doubt(log, Wanted::Orphans)?;
        doubt.orphans.iter().for_each(|oid| changes.suspect(*oid, last));
        let (objects, text) = (under_way.len(), kill_text(records, under_way.len()));
        self.write(log, last, |tx| {
            put_for_all(tx, &changes)?;
            put_meta(tx, &[(ORPHANS, &[])])?;
            put_event(tx, Level::Warning, None, &text)
        })?;
        Ok((last, LastStop::Killed { records, objects }))
    }

    fn settle_power_loss(
        &mut self,
        known: &Known,
        log: &SegmentLog,
        mut doubt: Doubt,
    ) -> Result<(Tid, LastStop), Failure> {
        let last = Tid(known.bound().max(log.last_tid()).0 + JUMP - 1);
        // A target may have been told of the end of an earlier jump, behind which nothing was recorded.
        let (epoch, fork) = (EpochId::random(), ChainEnd { tid: known.end(log), ..log.chain_end() });
        for oid in std::mem::take(&mut doubt.orphans) {
            doubt.changes.suspect(oid, last);
        }
        // A target may be ahead of the tree in any of this: it is consistent nowhere until that is settled.
        doubt.changes.count_from(log.last_tid());
        let suspects = doubt.changes.len();
        let checkpoint = Checkpoint { tid: last, from: log.end(), end: log.end() };
        let text = format!(
            "the system went down, or the memory of the last run is gone: {suspects} objects are compared, \
             epoch {epoch} begins behind {}",
            fork.tid
        );
        self.point("recovery.suspects")?;
        self.write(log, last, |tx| {
            put_for_all(tx, &doubt.changes)?;
            put_epoch(tx, epoch, fork)?;
            checkpoint.put(tx)?;
            put_meta(tx, &[(ORPHANS, &[])])?;
            put_event(tx, Level::Warning, None, &text)
        })?;
        self.point("recovery.suspects_durable")?;
        log.set_epoch(epoch);
        self.identity.epoch = epoch;
        let mut gap = FieldWriter::default();
        Local::Gap { epoch, next: last.next() }.encode(&mut gap);
        log.append_local(1, &gap.0)?;
        log.sync()?;
        Ok((last, LastStop::PowerLoss { suspects, epoch }))
    }

    /// Every target compares everything and goes on at `start`. The mark demands a log that begins there: should the
    /// process die before the log is begun anew, the next open does it.
    fn settle_damage(&self, start: Tid, reason: &str) -> Result<(), JournalError> {
        let mark = Mark { tid: start, log_last: start, end: Position::default() };
        let epoch = self.identity.epoch;
        self.store.write("damage", |tx| {
            renew_mark(tx)?;
            for target in all_targets(tx)? {
                lose_place(tx, &target, start)?;
            }
            put_epoch(tx, epoch, ChainEnd::anew(start))?;
            Checkpoint::default().put(tx)?;
            put_meta(tx, &[(ORPHANS, &[])])?;
            let text = format!("the journal is damaged: {reason}; all targets are compared");
            put_event(tx, Level::Error, None, &text)?;
            mark.put(tx, Stop::Open)
        })
    }

    /// Settles everything in one transaction; the mark says that nothing is open until the next life begins.
    fn write(
        &self,
        log: &SegmentLog,
        last: Tid,
        body: impl FnOnce(&rusqlite::Transaction<'_>) -> rusqlite::Result<()>,
    ) -> Result<(), JournalError> {
        let mark = Mark::of(log, last);
        self.store.write("recovery", |tx| {
            body(tx)?;
            mark.put(tx, Stop::Clean)
        })
    }

    fn point(&self, name: &'static str) -> Result<(), JournalError> {
        faults::point(name).map_err(io("recover", self.dir))
    }

    fn orphans(&self) -> Result<Vec<Oid>, JournalError> {
        let bytes = self.store.meta_get(ORPHANS)?.unwrap_or_default();
        Ok(bytes.as_chunks().0.iter().map(|bytes| Oid::from_bytes(*bytes)).collect())
    }

    /// What is not certain in the tree, going by the log from the last checkpoint on.
    fn doubt(&self, log: &SegmentLog, wanted: Wanted) -> Result<Doubt, Failure> {
        let known = Checkpoint::load(self.store)?.unwrap_or_default();
        let oldest = Position { segment: log.first_segment(), offset: 0 };
        let mut from = known.from.max(oldest);
        let mut since = Vec::new();
        loop {
            let mut doubt = Doubt { orphans: self.orphans()?.into_iter().collect(), ..Doubt::default() };
            let read = log.scan(from, |_, kind, body| doubt.read((from, wanted), kind, body));
            match read {
                Err(error @ (JournalError::Damaged { .. } | JournalError::Record { .. })) => {
                    return Err(Failure::Damage(error.to_string(), log.last_tid()));
                }
                other => other?,
            }
            // What the store's checkpoint touched meanwhile is known by the checkpoint's own record, behind its `from`.
            match doubt.newer.take() {
                Some((newer, touched)) if newer > from => (from, since) = (newer, touched),
                Some((_, touched)) => {
                    since.extend(touched);
                    return Ok(doubt.with(&since, log.last_tid()));
                }
                None => return Ok(doubt.with(&since, log.last_tid())),
            }
        }
    }
}

impl Doubt {
    fn read(&mut self, (from, wanted): (Position, Wanted), kind: FrameKind, body: &[u8]) -> Result<(), JournalError> {
        let record = |cause| JournalError::Record { path: Path::new("log").to_owned(), offset: from.offset, cause };
        if kind == FrameKind::Local {
            for local in Local::decode_all(body).map_err(record)? {
                match local {
                    Local::Intent(intent) => self.changes.suspect(intent.oid, Tid::ZERO),
                    Local::Checkpoint { from, since, .. } => self.newer = Some((from, since)),
                    Local::Gap { .. } => {}
                }
            }
            return Ok(());
        }
        let mut rest = body;
        while !rest.is_empty() {
            let header = Header::parse(rest).map_err(record)?;
            let (this, behind) = rest.split_at(header.len_bytes);
            rest = behind;
            if wanted == Wanted::Orphans && !header.may_end_an_object() {
                continue;
            }
            let Some(change) = RecordIter::new(this).next() else { break };
            let change = change.map_err(record)?;
            self.changes.note(&change);
            match &change.op {
                Op::Unlink { fate: Fate::Kept, .. } => drop(self.orphans.insert(change.oid)),
                Op::Rename { replaced: Some(replaced), .. } if replaced.fate == Fate::Kept => {
                    self.orphans.insert(replaced.oid);
                }
                Op::Gone => drop(self.orphans.remove(&change.oid)),
                _ => {}
            }
        }
        Ok(())
    }

    fn with(mut self, since: &[Intent], tid: Tid) -> Doubt {
        since.iter().for_each(|intent| self.changes.suspect(intent.oid, tid));
        self
    }
}

/// Why a log cannot be gone on with.
enum Failure {
    /// It lacks what was durable. With the last TID in it.
    Damage(String, Tid),
    Other(JournalError),
}

impl From<JournalError> for Failure {
    fn from(error: JournalError) -> Failure {
        Failure::Other(error)
    }
}

/// Appends the records that a kill left in memory and that are not in the log; returns how many.
fn append_left(log: &SegmentLog, records: &[Vec<u8>]) -> Result<usize, JournalError> {
    let mut appended = 0;
    let survive = !faults::skipped("rule.ring_survives");
    for record in records.iter().filter(|_| survive) {
        let header = Header::parse(record).map_err(|cause| JournalError::Record {
            path: Path::new("memory").to_owned(),
            offset: 0,
            cause,
        })?;
        let end = log.last_tid();
        if header.tid > end {
            log.append(end, header.tid, header.tid, 1, &[record])?;
            appended += 1;
        }
    }
    log.sync()?;
    Ok(appended)
}

fn kill_text(records: usize, objects: usize) -> String {
    format!("killed: {records} records were saved, {objects} objects that were being changed are compared")
}

fn put_for_all(tx: &rusqlite::Transaction<'_>, changes: &Changes) -> rusqlite::Result<()> {
    renew_mark(tx)?;
    for target in all_targets(tx)?.iter().filter(|target| target.mirrored) {
        put_suspects(tx, target.id, changes)?;
    }
    Ok(())
}

impl Known {
    fn load(store: &Store) -> Result<Known, JournalError> {
        let mut targets = store.targets()?;
        targets.retain(|target| target.mirrored);
        Ok(Known { mark: Mark::load(store)?, targets, sealed_end: store.sealed_end()? })
    }

    /// The highest TID that anything but the log itself tells of.
    fn bound(&self) -> Tid {
        let cursors = self.targets.iter().map(|t| t.received.max(t.applied));
        let marked = self.mark.map_or(Tid::ZERO, |(mark, _)| mark.tid.max(mark.log_last));
        cursors.fold(self.sealed_end.max(marked), Tid::max)
    }

    /// The last TID that a cursor may rightly hold.
    fn end(&self, log: &SegmentLog) -> Tid {
        let last = log.last_tid();
        self.mark.map_or(last, |(mark, _)| mark.known_end(last))
    }

    /// Compares the log with every lower bound that is known.
    fn find_damage(&self, log: &SegmentLog, mark: &Mark) -> Option<String> {
        let last = log.last_tid();
        if last < mark.log_last {
            return Some(ends_early(log, "it was known to reach", mark.log_last));
        }
        if last < self.sealed_end {
            return Some(ends_early(log, "a full segment reached", self.sealed_end));
        }
        let place = |target: &TargetRow| target.received.max(target.applied);
        let known = mark.known_end(last);
        if let Some(target) = self.targets.iter().find(|target| place(target) > known) {
            let what = format!("{} has received up to", target.name);
            return Some(ends_early(log, &what, place(target)));
        }
        let oldest = log.oldest_kept();
        let target = self.targets.iter().find(|t| t.received.max(t.applied).max(t.covered) < oldest)?;
        Some(format!(
            "{} at byte 0: the log begins after {oldest}, but {} has received only {}",
            log.path_of(log.first_segment()).display(),
            target.name,
            target.received.max(target.covered)
        ))
    }
}

fn ends_early(log: &SegmentLog, what: &str, bound: Tid) -> String {
    let (last, end) = (log.last_tid(), log.end());
    let file = log.path_of(end.segment);
    let (file, offset) = (file.display(), end.offset);
    format!("{file} at byte {offset}: the log ends at {last}, but {what} {bound}")
}
