//! Opening a journal: what the last stop left, and what follows from it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::thread;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use parking_lot::{Condvar, Mutex};

use super::mark::{Mark, Stop};
use super::ring::Ring;
use super::{Core, Identity, Journal, JournalOptions};
use crate::base::{EpochId, Space, Tid, VolumeUuid};
use crate::journal::error::{JournalError, std_io};
use crate::journal::log::{LogOptions, SegmentLog};
use crate::journal::store::{Level, Store, TargetRow, all_targets, lose_place, put_event};
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
    /// `Database`. Damage is no error: it is in [`LastStop::Unclean`] and in the events.
    pub fn open(dir: &Path, options: JournalOptions) -> Result<(Arc<Journal>, LastStop), JournalError> {
        let lock = lock_dir(dir)?;
        let store = Store::open(&dir.join("state.db"))?;
        let identity = load_identity(&store)?;
        let mark = Mark::load(&store)?;
        let (log, last, stop) = recover(dir, &options, &store, &identity, mark)?;
        log.prepare().or_else(unless_full)?;
        store.segments_set(&log.rows())?;
        let ring_bytes = options.ring_bytes.min(options.segment_bytes as usize / 2);
        let ring = Ring::new(last, ring_bytes, log.room());
        let core = Arc::new(Core {
            identity,
            options,
            log,
            store,
            ring: Mutex::new(ring),
            space: Condvar::new(),
            done: Condvar::new(),
            work: Condvar::new(),
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
    if let (Some(volume), Some(epoch), Some(space)) = (fixed("volume")?, fixed("epoch")?, space) {
        return Ok(Identity {
            volume: VolumeUuid(volume),
            space: Space(u32::from_le_bytes(space)),
            epoch: EpochId(epoch),
            format: FORMAT_VERSION,
        });
    }
    let identity = Identity {
        volume: VolumeUuid::random(),
        space: Space::random(),
        epoch: EpochId::random(),
        format: FORMAT_VERSION,
    };
    store.meta_set_all(&[
        ("volume", &identity.volume.0),
        ("space", &identity.space.0.to_le_bytes()),
        ("epoch", &identity.epoch.0),
        ("format", &identity.format.to_le_bytes()),
    ])?;
    Ok(identity)
}

/// Brings log and store to one state. Returns the log, the last TID that counts as given, and what was found.
fn recover(
    dir: &Path,
    options: &JournalOptions,
    store: &Store,
    identity: &Identity,
    mark: Option<(Mark, Stop)>,
) -> Result<(SegmentLog, Tid, LastStop), JournalError> {
    let log_options = LogOptions { segment_bytes: options.segment_bytes, created_ns: None };
    let (volume, epoch, seg) = (identity.volume, identity.epoch, dir.join("seg"));
    let targets = store.targets()?;
    let sealed_end = store.sealed_end()?;
    let bound = known_bound(&targets, sealed_end, mark.as_ref());
    let (log, verdict) = match SegmentLog::open(&seg, volume, epoch, log_options) {
        Ok(log) => {
            // A target whose mirror was never queued has no place in the log yet.
            let placed: Vec<_> = targets.into_iter().filter(|t| t.mirrored).collect();
            let verdict = judge(&log, &placed, sealed_end, mark.as_ref());
            (Some(log), verdict)
        }
        Err(error @ JournalError::Damaged { .. }) => (None, Verdict::Damage(error.to_string())),
        Err(error) => return Err(error),
    };
    let bound = bound.max(log.as_ref().map_or(Tid::ZERO, SegmentLog::last_tid));
    let jumped = Tid(bound.0 + JUMP - 1);
    match (verdict, log) {
        (Verdict::Stop(stop @ LastStop::Unclean { .. }), Some(log)) => {
            settle_unclean(store, &Mark::of(&log, jumped), &stop)?;
            Ok((log, jumped, stop))
        }
        (Verdict::Stop(stop), Some(log)) => {
            let mark = Mark::of(&log, bound);
            store.write("open", |tx| mark.put(tx, Stop::Open))?;
            Ok((log, bound, stop))
        }
        (Verdict::Damage(reason) | Verdict::Stop(LastStop::Unclean { reason }), _) => {
            settle_damage(store, jumped, &reason)?;
            let log = SegmentLog::open_anew(&seg, volume, epoch, log_options, jumped)?;
            Ok((log, jumped, LastStop::Unclean { reason }))
        }
        (Verdict::Stop(stop), None) => {
            let log = SegmentLog::open_anew(&seg, volume, epoch, log_options, jumped)?;
            Ok((log, jumped, stop))
        }
    }
}

/// The highest TID that anything but the log's own end tells of.
fn known_bound(targets: &[TargetRow], sealed_end: Tid, mark: Option<&(Mark, Stop)>) -> Tid {
    let cursors = targets.iter().map(|target| target.received.max(target.applied));
    let marked = mark.map_or(Tid::ZERO, |(mark, _)| mark.tid.max(mark.log_last));
    cursors.fold(sealed_end.max(marked), Tid::max)
}

fn judge(log: &SegmentLog, targets: &[TargetRow], sealed_end: Tid, mark: Option<&(Mark, Stop)>) -> Verdict {
    let last = log.last_tid();
    let Some((mark, stop)) = mark else {
        return match last == Tid::ZERO {
            true => Verdict::Stop(LastStop::New),
            false => Verdict::Damage("segments without the state database they belong to".to_owned()),
        };
    };
    if let Some(reason) = find_damage(log, targets, sealed_end, mark) {
        return Verdict::Damage(reason);
    }
    Verdict::Stop(match (stop, *mark == Mark::of(log, mark.tid)) {
        (Stop::Clean, true) => LastStop::Clean,
        (Stop::Clean, false) => LastStop::Unclean { reason: "the log goes on behind the clean stop".to_owned() },
        (Stop::Open, _) => LastStop::Unclean { reason: "the last stop was not clean".to_owned() },
    })
}

/// Compares the log with every lower bound that is known.
fn find_damage(log: &SegmentLog, targets: &[TargetRow], sealed_end: Tid, mark: &Mark) -> Option<String> {
    let (last, end) = (log.last_tid(), log.end());
    let ends = |what: &str, bound: Tid| {
        let file = log.path_of(end.segment);
        let (file, offset) = (file.display(), end.offset);
        Some(format!("{file} at byte {offset}: the log ends at {last}, {what} {bound}"))
    };
    if last < mark.log_last {
        return ends("but it was known to reach", mark.log_last);
    }
    if last < sealed_end {
        return ends("but a full segment reached", sealed_end);
    }
    let known = mark.known_end(last);
    if let Some(target) = targets.iter().find(|t| t.received.max(t.applied) > known) {
        let what = format!("but {} has received up to", target.name);
        return ends(&what, target.received.max(target.applied));
    }
    let oldest = log.oldest_kept();
    let target = targets.iter().find(|target| target.applied < oldest)?;
    Some(format!(
        "{} at byte 0: the log begins after {oldest}, but {} has applied only {}",
        log.path_of(log.first_segment()).display(),
        target.name,
        target.applied
    ))
}

/// Every target compares everything; the log and the cursors stay.
fn settle_unclean(store: &Store, mark: &Mark, stop: &LastStop) -> Result<(), JournalError> {
    store.write("unclean stop", |tx| {
        for target in all_targets(tx)? {
            lose_place(tx, &target, Tid::ZERO)?;
        }
        if let LastStop::Unclean { reason } = stop {
            put_event(tx, Level::Warning, None, &format!("{reason}; all targets are compared"))?;
        }
        mark.put(tx, Stop::Open)
    })
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
