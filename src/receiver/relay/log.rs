//! The end in the daemon: what a copy has received, as something that a sender replays.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::board::{Board, Said};
use super::turns::TurnFiles;
use super::{DIR, io};
use crate::applier::{self, CopyView, Replica, ReplicaError, Turns, ViewError};
use crate::base::{ChainDigest, EpochId, Position, Space, Spaces, Tid, VolumeUuid};
use crate::journal::{
    ChainEnd, Chunk, EpochRow, FollowedLog, FollowedReader, Identity, JournalError, Part, Replay, ReplayReader, Store,
};
use crate::record::FORMAT_VERSION;

/// How long a sender waits for the tree, and how soon it asks again when it did not get it.
const PATIENCE: Duration = Duration::from_millis(300);
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// A copy that passes on what it gets.
pub struct Relay {
    shared: Arc<Shared>,
    view: Arc<CopyView>,
}

/// Why a copy cannot pass anything on.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// It is no copy, or nothing has filled it yet.
    #[error("no source has begun to fill it")]
    Empty,
    /// It cannot be looked at.
    #[error(transparent)]
    Replica(#[from] ReplicaError),
    /// Its tree or catalog cannot be opened.
    #[error(transparent)]
    View(#[from] ViewError),
    /// What is kept for its targets cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

struct Shared {
    copy: VolumeUuid,
    volume: VolumeUuid,
    state: PathBuf,
    store: Store,
    board: Board,
    turns: TurnFiles,
    /// The inbox, once it was looked at. Rank: a leaf; held while its directory is listed.
    log: Mutex<Option<Arc<FollowedLog>>>,
    /// Whether a sender has the tree, and when the last one did not get it. Rank: a leaf; held while it is waited for.
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    is_taken: bool,
    refused: Option<Instant>,
}

impl Relay {
    /// The copy in `dir`, whose state lies below `states`; from now on it keeps what its targets need.
    ///
    /// # Errors
    /// [`RelayError`].
    pub fn open(dir: &Path, states: &Path) -> Result<Arc<Relay>, RelayError> {
        let about = Replica::describe(dir, states)?.filter(|about| about.has_catalog).ok_or(RelayError::Empty)?;
        let state = states.join(about.id.to_string());
        let place = state.join(DIR);
        // It names objects of a tree that others may not see.
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&place);
        made.map_err(|error| io("create directory", &place, &error))?;
        let (board, turns) = (Board::open(&place)?, TurnFiles::open(&place)?);
        let store = Store::open(&place.join("state.db"))?;
        let (copy, volume) = (about.id, about.volume);
        let (log, taken) = (Mutex::default(), Mutex::default());
        let shared = Arc::new(Shared { copy, volume, state, store, board, turns, log, taken });
        let view = Arc::new(CopyView::open(dir, &shared.state, shared.clone())?);
        Ok(Arc::new(Relay { shared, view }))
    }

    /// Whether the copy in `dir` was ever given targets: what it keeps for them is to go when it has none any more.
    pub fn was_begun(dir: &Path, states: &Path) -> bool {
        let about = Replica::describe(dir, states).ok().flatten();
        about.is_some_and(|about| states.join(about.id.to_string()).join(DIR).join("state.db").exists())
    }

    /// Unique id of the copy.
    pub fn copy(&self) -> VolumeUuid {
        self.shared.copy
    }

    /// Whether its source has called since the system started: before that nothing can be said of the tree.
    pub fn has_heard(&self) -> bool {
        self.shared.board.read().is_some()
    }

    /// Its tree.
    pub fn view(&self) -> Arc<CopyView> {
        self.view.clone()
    }
}

impl Shared {
    fn said(&self) -> Result<Said, JournalError> {
        let reason = || "its own source has not called since the system started".to_owned();
        self.board.read().ok_or_else(|| JournalError::Failed { reason: reason() })
    }

    /// The inbox up to where the tree is.
    fn log(&self) -> Result<Arc<FollowedLog>, JournalError> {
        let at = self.said()?.at;
        let end = ChainEnd { tid: at.tid, digest: at.digest };
        let mut log = self.log.lock();
        if let Some(open) = &*log {
            if open.end() != end {
                open.refresh(end)?;
            }
            return Ok(open.clone());
        }
        let open = Arc::new(FollowedLog::open(&self.state.join("inbox"), self.volume, end)?);
        *log = Some(open.clone());
        Ok(open)
    }
}

impl Turns for Shared {
    fn take(&self) -> Option<Tid> {
        let mut taken = self.taken.lock();
        let soon = taken.refused.is_some_and(|at| at.elapsed() < ASK_AGAIN);
        // Not worth waiting for, when it could not be read then.
        let can = self.board.read().is_some_and(|said| said.is_settled);
        if taken.is_taken || soon || !can {
            return None;
        }
        let got = self.turns.wait_for(PATIENCE);
        let said = self.board.read().filter(|said| got && said.is_settled && !said.is_unsure);
        match said {
            Some(said) => {
                *taken = Taken { is_taken: true, refused: None };
                Some(said.at.tid)
            }
            None => {
                taken.refused = Some(Instant::now());
                if got {
                    let _ = self.turns.end();
                }
                None
            }
        }
    }

    fn end(&self) {
        let mut taken = self.taken.lock();
        if std::mem::take(&mut taken.is_taken) {
            let _ = self.turns.end();
        }
    }
}

impl Replay for Relay {
    fn part(&self) -> Part {
        Part::Relay
    }

    fn store(&self) -> &Store {
        &self.shared.store
    }

    fn identity(&self) -> Identity {
        let epoch = self.shared.board.read().map_or(EpochId([0; 16]), |said| said.at.epoch);
        let space = self.view.spaces().ok().and_then(|spaces| spaces.own()).unwrap_or(Space(0));
        Identity { volume: self.shared.volume, space, epoch, format: FORMAT_VERSION }
    }

    fn spaces(&self) -> Result<Spaces, JournalError> {
        self.shared.said()?;
        self.view.spaces().map_err(|error| JournalError::Failed { reason: error.to_string() })
    }

    fn epochs(&self) -> Result<Vec<EpochRow>, JournalError> {
        let at = self.shared.said()?.at;
        let told = applier::told_history(&self.shared.state).map(|history| history.epochs).unwrap_or_default();
        if !told.iter().any(|epoch| epoch.epoch == at.epoch) {
            return Err(JournalError::Failed { reason: "its source has not told where its epoch begins".to_owned() });
        }
        // What the source told of but has not sent is still to come.
        let upto = told.iter().position(|epoch| epoch.epoch == at.epoch).map_or(0, |at| at + 1);
        Ok(told[..upto].iter().enumerate().map(|(number, epoch)| epoch_row(number, epoch)).collect())
    }

    fn last_tid(&self) -> Tid {
        self.durable_tid()
    }

    fn durable_tid(&self) -> Tid {
        self.shared.board.read().map_or(Tid::ZERO, |said| said.at.tid)
    }

    fn oldest_kept(&self) -> Tid {
        // Of what cannot be read nothing is kept.
        self.shared.log().map_or(Tid(u64::MAX), |log| log.oldest_kept())
    }

    fn digest_at(&self, tid: Tid) -> Result<Option<ChainDigest>, JournalError> {
        self.shared.log()?.digest_at(tid)
    }

    fn read_after(&self, after: Tid) -> Result<Box<dyn ReplayReader>, JournalError> {
        let inner = self.shared.log()?.reader(after)?;
        Ok(Box::new(RelayReader { shared: self.shared.clone(), inner }))
    }

    fn wait_durable_past(&self, tid: Tid, timeout: Duration) -> Tid {
        let until = Instant::now() + timeout;
        loop {
            let seen = self.shared.board.seen();
            let durable = self.durable_tid();
            let left = until.saturating_duration_since(Instant::now());
            if durable > tid || left.is_zero() {
                return durable;
            }
            self.shared.board.wait(seen, left);
        }
    }

    fn commit(&self, _tid: Tid) -> Result<(), JournalError> {
        // What was performed is durable in the inbox.
        Ok(())
    }

    fn trim(&self) -> Result<(), JournalError> {
        // Who writes the inbox trims it.
        Ok(())
    }

    fn failed(&self) -> Option<String> {
        None
    }

    fn is_settled(&self) -> bool {
        self.shared.board.read().is_some_and(|said| said.is_settled) && self.view.is_whole()
    }

    fn mark(&self) -> Result<u64, JournalError> {
        Ok(if self.is_settled() { applier::told_mark(&self.shared.state) } else { 0 })
    }

    fn bytes_after(&self, tid: Tid) -> u64 {
        self.shared.log().map_or(0, |log| log.bytes_after(tid))
    }

    fn begin_epoch(&self, _seen: Tid, _why: &str) -> Result<EpochId, JournalError> {
        Err(JournalError::Failed { reason: "a copy has no epochs of its own".to_owned() })
    }

    fn supersede(&self, _fork: Position) -> Result<(), JournalError> {
        // The origin learns it from its own targets.
        Ok(())
    }
}

fn epoch_row(number: usize, epoch: &Position) -> EpochRow {
    let fork = ChainEnd { tid: epoch.tid, digest: epoch.digest };
    EpochRow { number: number as u64, id: epoch.epoch, parent: None, fork, created_ns: 0 }
}

struct RelayReader {
    shared: Arc<Shared>,
    inner: FollowedReader,
}

impl ReplayReader for RelayReader {
    fn next_chunk(&mut self, upto: Tid, max_bytes: usize) -> Result<Option<Chunk>, JournalError> {
        let log = self.shared.log()?;
        self.inner.next_chunk(&log, upto, max_bytes)
    }
}
