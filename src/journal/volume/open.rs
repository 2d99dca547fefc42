//! Opening a journal: the parts are put together; what the last stop left is recover.rs's.

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

use super::checkpoint::{Checkpoint, Checkpoints};
use super::hot::HotSet;
use super::mark::{Mark, Stop};
use super::oids::OidMap;
use super::recover::{Found, LIFE, Recovered};
use super::ring::Ring;
use super::shared::{Durable, Life, Shared};
use super::slots::Slots;
use super::{Core, Identity, Journal, JournalOptions};
use crate::base::{EpochId, Space, Tid, VolumeUuid};
use crate::journal::error::{JournalError, std_io};
use crate::journal::log::{ChainEnd, SegmentLog, sync_parent};
use crate::journal::store::{Store, bound_sent, put_epoch, put_meta};
use crate::record::FORMAT_VERSION;

/// How the journal was left.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LastStop {
    /// It did not exist.
    New,
    /// In order, and the log ends where it should.
    Clean,
    /// By a kill: everything that was done is known, and what was under way is compared.
    Killed {
        /// Records that were not in the log yet.
        records: usize,
        /// Objects that were being changed.
        objects: usize,
    },
    /// The system went down, or what a kill leaves behind is gone: what the disk may have lost is compared, and the history
    /// goes on in a new epoch.
    PowerLoss {
        /// Objects that are compared.
        suspects: usize,
        /// The new epoch.
        epoch: EpochId,
    },
    /// Something that was durable is missing. Every target has the whole tree as compare work.
    Damaged {
        /// What was found, with file and offset.
        reason: String,
    },
}

impl Journal {
    /// Opens the journal in `dir`, or makes a new one (directories 0700, files 0600), with the memory that outlives the
    /// process beside it. From here on the stop counts as unclean until [`Journal::close_clean`].
    ///
    /// # Errors
    /// As [`Journal::open_with`].
    pub fn open(dir: &Path, options: JournalOptions) -> Result<(Arc<Journal>, LastStop), JournalError> {
        Journal::open_with(dir, &dir.join("memory"), options)
    }

    /// As [`Journal::open`], with the file `memory` for what must outlive the process: best on a filesystem in memory, for
    /// it is written all the time and of no use after a restart of the system.
    ///
    /// # Errors
    /// `Busy` when somebody has it open; `Format` or `Foreign` for files that are not ours to use; `Io`, `Sqlite`,
    /// `Pragma`. Damage is no error: it is in [`LastStop::Damaged`] and in the events.
    pub fn open_with(
        dir: &Path,
        memory: &Path,
        options: JournalOptions,
    ) -> Result<(Arc<Journal>, LastStop), JournalError> {
        let lock = lock_dir(dir)?;
        let store = Store::open(&dir.join("state.db"))?;
        let found = Found { dir, memory, options: &options, store: &store, identity: load_identity(&store)? };
        let Recovered { log, identity, last, stop } = found.recover()?;
        log.prepare().or_else(unless_full)?;
        store.segments_set(&log.rows())?;
        let ring_bytes = options.ring_bytes.min(options.segment_bytes as usize / 2);
        let checkpoint = Checkpoint::load(&store)?.unwrap_or_default();
        log.keep_from(checkpoint.from.segment);
        let oids = match super::found::is_promoted(&store)? {
            true => OidMap::load(dir).map_err(std_io("read", &dir.join(super::oids::FILE)))?,
            false => OidMap::default(),
        };
        let superseded = AtomicBool::new(super::found::stored(&store)?.is_some());
        let shared = begin_life(memory, &store, &log, identity.volume, (last, ring_bytes))?;
        let ring = Ring::new(last, ring_bytes, log.room());
        let core = Arc::new(Core {
            identity,
            epoch: Mutex::new(identity.epoch),
            object_space: AtomicU32::new(identity.space.0),
            options,
            log,
            store,
            ring: Mutex::new(ring),
            space: Condvar::new(),
            done: Condvar::new(),
            work: Condvar::new(),
            checkpoint_due: Condvar::new(),
            shared,
            slots: Slots::new(),
            hot: HotSet::new(),
            checkpoints: Checkpoints { last: Mutex::new(checkpoint) },
            orphans: Mutex::default(),
            oids: Mutex::new(Arc::new(oids)),
            superseded,
            warned: AtomicBool::new(false),
            _lock: lock,
        });
        let thread = start_committer(&core, dir)?;
        let journal = Journal { core, thread: Some(thread) };
        Ok((Arc::new(journal), stop))
    }
}

/// Everything before is settled. From here on a kill leaves what this life's memory holds.
fn begin_life(
    memory: &Path,
    store: &Store,
    log: &SegmentLog,
    volume: VolumeUuid,
    (last, ring_bytes): (Tid, usize),
) -> Result<Shared, JournalError> {
    let life = Life::begin(volume)?;
    let shared = Shared::create(memory, &life, ring_bytes, log.max_body().min(ring_bytes))?;
    shared.set_last(last);
    shared.set_durable(Durable { tid: log.durable_tid(), end: log.end() });
    let mark = Mark::of(log, last);
    store.write("open", |tx| {
        put_meta(tx, &[(LIFE, &life.to_bytes())])?;
        bound_sent(tx, last)?;
        mark.put(tx, Stop::Open)
    })?;
    Ok(shared)
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

pub(super) fn lock_dir(dir: &Path) -> Result<Flock<File>, JournalError> {
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
