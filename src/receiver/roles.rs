//! Where a target's side ends and begins: its inbox is performed to the end before it becomes a master, and a master gets an
//! inbox at the place that it shares with its source.

use std::path::{Path, PathBuf};

use super::inbox::{self, continues};
use super::relay::RelayEnd;
use super::session::ServeError;
use crate::applier::{self, Applier, ApplyError, Guarding, Joined, Joining, Leftovers, Replica, ReplicaError};
use crate::base::{History, ObjectKey, Oid, Position, Spaces, Tid, VolumeUuid};
use crate::journal::{ChainEnd, JournalError, SegmentLog};
use crate::record::{DecodeError, RecordIter, chain};

/// Records read from the inbox at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// Whether a copy is promoted that is no past state of its source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Force {
    /// It is refused.
    No,
    /// It is promoted as it is.
    Yes,
}

/// Why a copy cannot become a master.
#[derive(Debug, thiserror::Error)]
pub enum RaiseError {
    /// It is no copy.
    #[error("{} is no copy of a volume", path.display())]
    NoReplica {
        /// The directory.
        path: PathBuf,
    },
    /// Its tree is no past state of the source.
    #[error("it is converging: {reason}")]
    Converging {
        /// What is missing.
        reason: String,
    },
    /// It is to end where its tree is not any more.
    #[error("its tree is at {reach} already, or may be: it does not go back to {at}")]
    Performed {
        /// Where it was to end.
        at: Tid,
        /// The first place where it can.
        reach: Tid,
    },
    /// It cannot be opened.
    #[error(transparent)]
    Replica(#[from] ReplicaError),
    /// A record cannot be performed.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// Its inbox cannot be read.
    #[error("inbox: {0}")]
    Inbox(#[from] JournalError),
    /// A record of its inbox cannot be read.
    #[error("inbox: {0}")]
    Record(#[from] DecodeError),
    /// Its inbox cannot be measured.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

/// A copy that is all but a master: nobody performs anything on its tree any more.
pub struct Raised {
    /// The volume, and its epochs up to the fork.
    pub history: History,
    /// The last place that it shares with its source.
    pub fork: Position,
    /// Whose objects the tree has.
    pub spaces: Spaces,
    /// The objects of the tree.
    pub objects: Vec<(Oid, ObjectKey)>,
    /// The end of what was received: changes behind the fork are given up.
    pub received: Tid,
    dir: PathBuf,
    state: PathBuf,
    _lock: applier::ReplicaLock,
    /// Nobody reads the tree for the next in the chain any more.
    _relay: RelayEnd,
}

impl Raised {
    /// The directory is no copy any more: a journal speaks of its tree.
    ///
    /// # Errors
    /// As unlink(2) and fsync(2).
    pub fn leave(&self) -> std::io::Result<()> {
        applier::leave(&self.dir, &self.state)
    }
}

/// Performs what the inbox of the copy in `dir` holds, to its end or to `at`.
///
/// # Errors
/// [`RaiseError`]; what was performed is what a session would have performed, so the copy can go on as one.
pub fn raise(dir: &Path, states: &Path, at: Option<Tid>, force: Force) -> Result<Raised, RaiseError> {
    let none = || RaiseError::NoReplica { path: dir.to_owned() };
    let about = Replica::describe(dir, states)?.ok_or_else(none)?;
    if !about.has_catalog {
        let reason = "no source has filled it, or its catalog is lost".to_owned();
        return Err(RaiseError::Converging { reason });
    }
    let replica = Replica::open_as_it_is(dir, states)?.ok_or_else(none)?;
    let (lock, state, spaces) = (replica.lock(), replica.state_dir().to_owned(), replica.spaces().clone());
    let told = replica.history(about.volume);
    check(&replica, force)?;
    let applied = replica.applied();
    let mut relay = RelayEnd::new(&state);
    relay.take_turn()?;
    relay.before_change(applied)?;
    let epoch = applied.epoch;
    let options = inbox::log_options(inbox::default_cap(&replica.inbox)?, None);
    let inbox = SegmentLog::open(&replica.inbox, about.volume, epoch, options).and_then(|log| {
        let received = continues(&log, applied)?;
        Ok((log, received))
    });
    let (log, received) = match inbox {
        Ok(inbox) => inbox,
        // What it held is lost; the tree alone counts.
        Err(_) if force == Force::Yes => return raise_tree(replica, (told, spaces), (dir, state, lock), relay),
        Err(error) => return Err(error.into()),
    };
    let noted = replica.reach()?;
    let reach = noted.map_or(received.tid, |reach| reach.clamp(applied.tid, received.tid));
    let end = at.map_or(received.tid, |at| at.min(received.tid));
    if let Some(at) = at.filter(|_| end < reach) {
        return Err(RaiseError::Performed { at, reach });
    }
    let mut applier = Applier::new(replica, end)?;
    if noted.is_some() {
        applier.raise_reach(end)?;
    }
    let fork = replay(&mut applier, &log, applied, end)?;
    let incomplete = applier.count_incomplete()?;
    if incomplete > 0 && force == Force::No {
        return Err(RaiseError::Converging { reason: format!("{incomplete} objects are not all here") });
    }
    let leftovers = if force == Force::Yes { Leftovers::Keep } else { Leftovers::End };
    let objects = applier.into_objects(leftovers)?;
    let history = History { volume: about.volume, epochs: told.up_to(fork.epoch) };
    let dir = dir.to_owned();
    Ok(Raised { history, fork, spaces, objects, received: received.tid, dir, state, _lock: lock, _relay: relay })
}

fn raise_tree(
    replica: Replica,
    (told, spaces): (History, Spaces),
    (dir, state, lock): (&Path, PathBuf, applier::ReplicaLock),
    relay: RelayEnd,
) -> Result<Raised, RaiseError> {
    let fork = replica.reached().unwrap_or(replica.applied());
    let objects = Applier::new(replica, fork.tid)?.into_objects(Leftovers::Keep)?;
    let history = History { volume: told.volume, epochs: told.up_to(fork.epoch) };
    let (dir, received) = (dir.to_owned(), fork.tid);
    Ok(Raised { history, fork, spaces, objects, received, dir, state, _lock: lock, _relay: relay })
}

fn check(replica: &Replica, force: Force) -> Result<(), RaiseError> {
    let reason = match replica.doubt() {
        _ if force == Force::Yes => return Ok(()),
        Some(doubt) => doubt.to_owned(),
        None if replica.jump().is_some() => "what it missed was to come as objects".to_owned(),
        None if replica.is_converging() => "its source had objects to send or to compare".to_owned(),
        None => return Ok(()),
    };
    Err(RaiseError::Converging { reason })
}

fn replay(applier: &mut Applier, log: &SegmentLog, from: Position, end: Tid) -> Result<Position, RaiseError> {
    let mut at = from;
    let mut reader = log.reader(at.tid)?;
    while let Some(chunk) = reader.next_chunk(end, CHUNK_BYTES)? {
        for record in RecordIter::new(&chunk.body) {
            applier.apply(&record?)?;
        }
        applier.finish_group()?;
        at = Position { tid: chunk.last, digest: chain(at.digest, &chunk.body)?, ..at };
    }
    applier.make_durable(at)?;
    Ok(at)
}

/// Makes the master `dir` a copy that asks for what it changed behind the place that it shares with its source. Returns the
/// copy's id, and what was done.
///
/// # Errors
/// [`ServeError`]; the directory is no copy then.
pub fn join(
    (dir, states): (&Path, &Path),
    joining: &Joining<'_>,
    guarding: Guarding,
) -> Result<(VolumeUuid, u64, u64), ServeError> {
    let joined: Joined = applier::join(dir, states, joining)?;
    let (volume, at) = (joining.history.volume, joining.at);
    let options = inbox::log_options(inbox::default_cap(&joined.inbox)?, None);
    let base = ChainEnd { tid: at.tid, digest: at.digest };
    drop(SegmentLog::open_anew(&joined.inbox, volume, at.epoch, options, base)?);
    let (objects, kept) = (joined.objects, joined.kept);
    Ok((joined.seal(guarding)?, objects, kept))
}
