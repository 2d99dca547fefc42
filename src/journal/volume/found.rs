//! A journal that continues another one's history: what a copy begins when it becomes a master. And the end of a history:
//! what a master does that learns that another copy went on without it.

use std::path::Path;
use std::sync::atomic::Ordering;

use super::checkpoint::Checkpoint;
use super::mark::{Mark, Stop};
use super::oids::OidMap;
use super::open::lock_dir;
use super::recover::JUMP;
use super::{Journal, JournalOptions};
use crate::base::{EpochId, History, ObjectKey, Oid, Position, Space, Spaces, Tid, VolumeUuid, faults};
use crate::journal::changes::{Changes, What};
use crate::journal::error::{JournalError, io, std_io};
use crate::journal::local::Local;
use crate::journal::log::{ChainEnd, LogOptions, SegmentLog};
use crate::journal::store::{Level, Store, WorkKind, put_awaited, put_epoch, put_event, put_meta};
use crate::record::{FORMAT_VERSION, FieldWriter, RecordIter};

/// Key in `meta`: spaces of the instances before this one whose objects are still there.
const SPACES: &str = "spaces";
/// Key in `meta`: the epoch that went on elsewhere, and the last place that it shares with this history.
const SUPERSEDED: &str = "superseded";
/// Records read at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// What a copy was when it became a master.
pub struct Founding<'a> {
    /// The volume and the epochs up to the fork.
    pub history: &'a History,
    /// The last place that is shared with the history before.
    pub fork: Position,
    /// Whose objects the tree has.
    pub spaces: &'a Spaces,
    /// The objects of the tree by oid, without the root.
    pub objects: &'a [(Oid, ObjectKey)],
}

/// What only a history has that another one left.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct OwnChanges {
    /// Objects that are not directories, and may differ.
    pub objects: Vec<Oid>,
    /// Directories whose entries may differ.
    pub directories: Vec<Oid>,
}

impl Journal {
    /// Makes the journal of a promoted copy in `dir`: its history goes on behind the fork in a new epoch, with a jump of
    /// TIDs, so that a TID names one change wherever it was made. A place is kept at the fork for whoever returns. Returns
    /// the new epoch; that of an attempt before, when this was done already.
    ///
    /// # Errors
    /// `Foreign` when another volume's journal lies there; else as [`Journal::open`].
    pub fn found(dir: &Path, options: &JournalOptions, founding: &Founding<'_>) -> Result<EpochId, JournalError> {
        let _lock = lock_dir(dir)?;
        let store = Store::open(&dir.join("state.db"))?;
        let volume = founding.history.volume;
        if let Some(found) = store.meta_get("volume")?.and_then(|bytes| bytes.try_into().ok()).map(VolumeUuid) {
            return match store.epochs()?.last() {
                Some(epoch) if found == volume && epoch.fork.tid == founding.fork.tid => Ok(epoch.id),
                _ => Err(JournalError::Foreign { path: dir.to_owned(), found }),
            };
        }
        OidMap::write(dir, founding.objects).map_err(std_io("write", &dir.join(super::oids::FILE)))?;
        faults::point("found.oids").map_err(io("found", dir))?;
        let epoch = EpochId::random();
        let fork = ChainEnd { tid: founding.fork.tid, digest: founding.fork.digest };
        let log_options = LogOptions { segment_bytes: options.segment_bytes, created_ns: None };
        let log = SegmentLog::open_anew(&dir.join("seg"), volume, epoch, log_options, fork)?;
        let last = Tid(fork.tid.0 + JUMP - 1);
        let mut gap = FieldWriter::default();
        Local::Gap { epoch, next: last.next() }.encode(&mut gap);
        log.append_local(1, &gap.0)?;
        log.sync()?;
        faults::point("found.log").map_err(io("found", dir))?;
        let (mark, space) = (Mark::of(&log, last), Space::random());
        let checkpoint = Checkpoint { tid: last, from: log.end(), end: log.end() };
        let before = Spaces::new(space, founding.spaces.iter());
        store.write("found", |tx| {
            for before in &founding.history.epochs {
                put_epoch(tx, before.epoch, ChainEnd { tid: before.tid, digest: before.digest })?;
            }
            put_epoch(tx, epoch, fork)?;
            checkpoint.put(tx)?;
            mark.put(tx, Stop::Clean)?;
            put_awaited(tx, fork.tid)?;
            let text = format!("promoted: epoch {epoch} begins behind {}", fork.tid);
            put_event(tx, Level::Warning, None, &text)?;
            put_meta(
                tx,
                &[
                    ("volume", &volume.0),
                    ("space", &space.0.to_le_bytes()),
                    (SPACES, &before.to_bytes()),
                    ("format", &FORMAT_VERSION.to_le_bytes()),
                ],
            )
        })?;
        faults::point("found.done").map_err(io("found", dir))?;
        Ok(epoch)
    }

    /// Whose objects the tree may have.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn spaces(&self) -> Result<Spaces, JournalError> {
        let before = self.core.store.meta_get(SPACES)?.and_then(|bytes| Spaces::from_bytes(&bytes)).unwrap_or_default();
        Ok(Spaces::new(self.identity().space, before.iter()))
    }

    /// The volume's epochs, as they are told to others.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn history(&self) -> Result<History, JournalError> {
        let position = |row: &super::EpochRow| Position { epoch: row.id, tid: row.fork.tid, digest: row.fork.digest };
        Ok(History::new(self.identity().volume, self.epochs()?.iter().map(position).collect()))
    }

    /// Another copy went on in the epoch that `fork` names, behind the place that it names: no change is taken any more,
    /// from now on and after every restart.
    ///
    /// # Errors
    /// `Sqlite`; the changes of this life are refused all the same.
    pub fn supersede(&self, fork: Position) -> Result<(), JournalError> {
        if self.core.superseded.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        let own = self.last_tid();
        let text = format!(
            "another copy went on without this one in epoch {}: it has everything up to {}; what came later is only here, \
             up to {own}. No change is taken any more",
            fork.epoch, fork.tid
        );
        self.core.store.write("superseded", |tx| {
            put_meta(tx, &[(SUPERSEDED, &fork.to_bytes())])?;
            put_event(tx, Level::Error, None, &text)
        })
    }

    /// The epoch that went on without this copy, and the last place that both share.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn superseded(&self) -> Result<Option<Position>, JournalError> {
        stored(&self.core.store)
    }

    /// What was changed here behind `tid`, or is in doubt: what this copy may have that a history does not which left it
    /// there. `None` when that is not known any more: anything may differ.
    ///
    /// # Errors
    /// As [`Journal::reader`].
    pub fn own_changes(&self, tid: Tid) -> Result<Option<OwnChanges>, JournalError> {
        if tid < self.oldest_kept() {
            return Ok(None);
        }
        let mut changes = Changes::default();
        let mut reader = self.reader(tid)?;
        while let Some(chunk) = reader.next_chunk(Tid(u64::MAX), CHUNK_BYTES)? {
            for record in RecordIter::new(&chunk.body) {
                let record = record.map_err(|cause| JournalError::Record { path: "log".into(), offset: 0, cause })?;
                changes.note(&record);
            }
        }
        let mut own = OwnChanges::default();
        for (oid, change) in changes.in_order() {
            match change.what {
                What::Entries => own.directories.push(oid),
                _ => own.objects.push(oid),
            }
        }
        self.add_work(own)
    }

    /// What a target lacked, or what a crash left in doubt, counts as well.
    fn add_work(&self, mut own: OwnChanges) -> Result<Option<OwnChanges>, JournalError> {
        const PAGE: usize = 1024;
        let store = &self.core.store;
        for target in store.targets()?.iter().filter(|target| target.mirrored) {
            let mut after = 0;
            loop {
                let rows = store.work_next(target.id, after, PAGE)?;
                let Some(last) = rows.last() else { break };
                after = last.id;
                for row in rows {
                    match row.kind {
                        WorkKind::Tree => return Ok(None),
                        WorkKind::Dir => own.directories.push(row.oid),
                        WorkKind::Object | WorkKind::Range => own.objects.push(row.oid),
                    }
                }
            }
        }
        Ok(Some(own))
    }
}

/// As [`Journal::superseded`], before there is a journal.
pub(super) fn stored(store: &Store) -> Result<Option<Position>, JournalError> {
    let bytes = store.meta_get(SUPERSEDED)?.and_then(|bytes| bytes.try_into().ok());
    Ok(bytes.map(Position::from_bytes))
}

/// Whether objects of other instances may be there.
pub(super) fn is_promoted(store: &Store) -> Result<bool, JournalError> {
    Ok(store.meta_get(SPACES)?.is_some_and(|spaces| !spaces.is_empty()))
}

/// The tree lies on another filesystem than before: no object of another instance is in it.
pub(super) fn forget_spaces(tx: &rusqlite::Transaction<'_>) -> rusqlite::Result<()> {
    put_meta(tx, &[(SPACES, &[])])
}
