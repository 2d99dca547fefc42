//! Places in our own history, and where a target's position lies in it.

use std::collections::VecDeque;

use super::plan::Standing;
use crate::base::{EpochId, Position, Tid};
use crate::journal::{EpochRow, JournalError, Part, Replay};

/// Judges a target's position.
pub(super) fn standing(journal: &dyn Replay, theirs: &Position) -> Result<Standing, JournalError> {
    if *theirs == Position::START {
        return Ok(Standing::Ours);
    }
    let epochs = journal.epochs()?;
    let Some(at) = epochs.iter().position(|epoch| epoch.id == theirs.epoch) else {
        return Ok(Standing::Elsewhere);
    };
    let end = epochs.get(at + 1).map_or(journal.durable_tid(), |next| next.fork.tid);
    if theirs.tid > end {
        return Ok(Standing::Ahead);
    }
    Ok(match journal.digest_at(theirs.tid)? {
        Some(digest) if digest == theirs.digest => Standing::Ours,
        Some(_) => Standing::Elsewhere,
        None => Standing::Forgotten,
    })
}

/// Our own position at `tid`, which is durable.
pub(super) fn position_at(journal: &dyn Replay, tid: Tid) -> Result<Position, JournalError> {
    debug_assert!(tid <= journal.durable_tid(), "{tid} is not durable");
    let epochs = journal.epochs()?;
    let epoch = epochs.iter().rev().find(|epoch| epoch.fork.tid <= tid).map_or(journal.identity().epoch, |row| row.id);
    let digest = match (journal.digest_at(tid)?, journal.part()) {
        (Some(digest), _) => digest,
        (None, Part::Origin) => Default::default(),
        // What it has received is being begun anew.
        (None, Part::Relay) => return Err(JournalError::Failed { reason: format!("{tid} is not known here yet") }),
    };
    Ok(Position { epoch, tid, digest })
}

/// Those of `all` that begin behind a place in `epoch`, oldest first.
pub(super) fn epochs_after(all: &[EpochRow], epoch: EpochId) -> VecDeque<EpochRow> {
    let here = all.iter().position(|row| row.id == epoch).map_or(all.len(), |at| at + 1);
    all[here..].iter().copied().collect()
}
