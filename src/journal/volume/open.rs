//! Opening a journal: what the last stop left, and what follows from it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU32;
use std::thread;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use parking_lot::{Condvar, Mutex};

use super::mark::{Mark, Stop};
use super::ring::Ring;
use super::{Core, Identity, Journal, JournalOptions};
use crate::base::{EpochId, Space, Tid, VolumeUuid};
use crate::journal::error::{JournalError, std_io};
use crate::journal::log::{ChainEnd, LogOptions, SegmentLog, sync_parent};
use crate::journal::store::{Level, Store, TargetRow, all_targets, lose_place, put_epoch, put_event, put_meta};
use crate::record::FORMAT_VERSION;

/// How far TIDs jump after an unclean stop: more than the changes that can have had a TID without a durable record.
const JUMP: u64 = 1 << 32;

/// How the journal was left.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LastStop {
    /// It did not exist.
    New,
    /// In order, and the log ends where it should.
    Clean,
    /// Not in order, or something is missing. Every target has the whole tree as compare work.
    Unclean {
        /// What was found, with file and offset where something is damaged.
        reason: String,
    },
}

/// What the journal's parts say about the last stop.
enum Verdict {
    Stop(LastStop),
    /// Records that were durable are gone: the log is begun anew.
    Damage(String),
}

impl Journal {
    /// Opens the journal in `dir`, or makes a new one (directories 0700, files 0600). From here on the stop counts as
    /// unclean until [`Journal::close_clean`].
    ///
    /// # Errors
    /// `Busy` when somebody has it open; `Format` or `Foreign` for files that are not ours to use; `Io`, `Sqlite`,
    /// `Pragma`. Damage is no error: it is in [`LastStop::Unclean`] and in the events.
    pub fn open(dir: &Path, options: JournalOptions) -> Result<(Arc<Journal>, LastStop), JournalError> {
        let lock = lock_dir(dir)?;
        let store = Store::open(&dir.join("state.db"))?;
        let identity = load_identity(&store)?;
        let (log, last, stop) = recover(dir, &options, &store, &identity)?;
        log.prepare().or_else(unless_full)?;
        store.segments_set(&log.rows())?;
        let ring_bytes = options.ring_bytes.min(options.segment_bytes as usize / 2);
        let ring = Ring::new(last, ring_bytes, log.room());
        let core = Arc::new(Core {
            identity,
            object_space: AtomicU32::new(identity.space.0),
            options,
            log,
            store,
            ring: Mutex::new(ring),
            space: Condvar::new(),
            done: Condvar::new(),
            work: Condvar::new(),
            warned: AtomicBool::new(false),
            _lock: lock,
        });
        let thread = start_committer(&core, dir)?;
        let journal = Journal { core, thread: Some(thread) };
        Ok((Arc::new(journal), stop))
    }
}

fn start_committer(core: &Arc<Core>, dir: &Path) -> Result<thread::JoinHandle<()>, JournalError> {
    let core = Arc::clone(core);
    thread::Builder::new()
        .name("journal".to_owned())
        .spawn(move || core.run_committer())
        .map_err(std_io("start committer", dir))
}

/// A full disk does not keep a volume from being read.
fn unless_full(error: JournalError) -> Result<(), JournalError> {
    match error.errno() {
        Errno::ENOSPC | Errno::EDQUOT => Ok(()),
        _ => Err(error),
    }
}

fn lock_dir(dir: &Path) -> Result<Flock<File>, JournalError> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(std_io("create directory", dir))?;
    sync_parent(dir)?;
    let path = dir.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(std_io("open", &path))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EAGAIN => JournalError::Busy { path },
        errno => JournalError::Io { what: "lock", path, errno },
    })
}

fn load_identity(store: &Store) -> Result<Identity, JournalError> {
    let fixed = |key| -> Result<Option<[u8; 16]>, JournalError> {
        Ok(store.meta_get(key)?.and_then(|bytes| bytes.try_into().ok()))
    };
    let space = store.meta_get("space")?.and_then(|b| b.try_into().ok());
    let epoch = store.epochs()?.last().map(|epoch| epoch.id);
    if let (Some(volume), Some(epoch), Some(space)) = (fixed("volume")?, epoch, space) {
        return Ok(Identity {
            volume: VolumeUuid(volume),
            space: Space(u32::from_le_bytes(space)),
            epoch,
            format: FORMAT_VERSION,
        });
    }
    let identity = Identity {
        volume: VolumeUuid::random(),
        space: Space::random(),
        epoch: EpochId::random(),
        format: FORMAT_VERSION,
    };
    store.write("identity", |tx| {
        put_epoch(tx, identity.epoch, ChainEnd::default())?;
        let space = identity.space.0.to_le_bytes();
        put_meta(tx, &[("volume", &identity.volume.0), ("space", &space), ("format", &identity.format.to_le_bytes())])
    })?;
    Ok(identity)
}

/// What is known of the last life before the log is looked at.
struct Known {
    mark: Option<(Mark, Stop)>,
    /// Targets that have a place in the log.
    targets: Vec<TargetRow>,
    /// End of the last full segment.
    sealed_end: Tid,
}

/// Brings log and store to one state. Returns the log, the last TID that counts as given, and what was found.
fn recover(
    dir: &Path,
    options: &JournalOptions,
    store: &Store,
    identity: &Identity,
) -> Result<(SegmentLog, Tid, LastStop), JournalError> {
    let log_options = LogOptions { segment_bytes: options.segment_bytes, created_ns: None };
    let (volume, epoch, seg) = (identity.volume, identity.epoch, dir.join("seg"));
    let known = Known::load(store)?;
    let found = SegmentLog::open(&seg, volume, epoch, log_options);
    let end = found.as_ref().map_or(Tid::ZERO, SegmentLog::last_tid);
    let bound = known.bound().max(end);
    let jumped = Tid(bound.0 + JUMP - 1);
    let reason = match found {
        Ok(log) => match known.judge(&log) {
            Verdict::Stop(stop) => return settle(store, log, stop, bound, jumped),
            Verdict::Damage(reason) => reason,
        },
        Err(error @ JournalError::Damaged { .. }) => error.to_string(),
        Err(error) => return Err(error),
    };
    settle_damage(store, jumped, &reason)?;
    let log = SegmentLog::open_anew(&seg, volume, epoch, log_options, ChainEnd::anew(jumped))?;
    Ok((log, jumped, LastStop::Unclean { reason }))
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

    fn judge(&self, log: &SegmentLog) -> Verdict {
        let Some((mark, stop)) = &self.mark else {
            return match log.last_tid() == Tid::ZERO {
                true => Verdict::Stop(LastStop::New),
                false => Verdict::Damage("segments without the state database they belong to".to_owned()),
            };
        };
        if let Some(reason) = self.find_damage(log, mark) {
            return Verdict::Damage(reason);
        }
        Verdict::Stop(match (stop, *mark == Mark::of(log, mark.tid)) {
            (Stop::Clean, true) => LastStop::Clean,
            (Stop::Clean, false) => {
                LastStop::Unclean { reason: "the log does not end where the clean stop says".to_owned() }
            }
            (Stop::Open, _) => LastStop::Unclean { reason: "the last stop was not clean".to_owned() },
        })
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

/// The log is whole. After an unclean stop every target compares everything, for what was changed last may have no
/// record; log and cursors stay.
fn settle(
    store: &Store,
    log: SegmentLog,
    stop: LastStop,
    bound: Tid,
    jumped: Tid,
) -> Result<(SegmentLog, Tid, LastStop), JournalError> {
    let last = match &stop {
        LastStop::New | LastStop::Clean => bound,
        LastStop::Unclean { .. } => jumped,
    };
    let mark = Mark::of(&log, last);
    store.write("open", |tx| {
        if let LastStop::Unclean { reason } = &stop {
            for target in all_targets(tx)? {
                lose_place(tx, &target, Tid::ZERO)?;
            }
            let text = format!("{reason}; all targets are compared");
            put_event(tx, Level::Warning, None, &text)?;
        }
        mark.put(tx, Stop::Open)
    })?;
    Ok((log, last, stop))
}

/// Every target compares everything and goes on at `start`. The mark demands a log that begins there: should the process
/// die before the log is begun anew, the next open does it.
fn settle_damage(store: &Store, start: Tid, reason: &str) -> Result<(), JournalError> {
    let mark = Mark { tid: start, log_last: start, end: Default::default() };
    store.write("damage", |tx| {
        for target in all_targets(tx)? {
            lose_place(tx, &target, start)?;
        }
        let text = format!("the journal is damaged: {reason}; all targets are compared");
        put_event(tx, Level::Error, None, &text)?;
        mark.put(tx, Stop::Open)
    })
}
