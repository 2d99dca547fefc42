//! Where a target's position lies, seen from our own history.

use super::plan::Standing;
use crate::base::{ChainDigest, Position, Tid};
use crate::journal::{Journal, JournalError};

/// Judges a target's position.
pub(super) fn standing(journal: &Journal, theirs: &Position) -> Result<Standing, JournalError> {
    if *theirs == Position::START {
        return Ok(Standing::Ours);
    }
    if theirs.epoch != journal.identity().epoch {
        return Ok(Standing::Elsewhere);
    }
    Ok(match theirs.tid <= journal.durable_tid() {
        true => Standing::Ours,
        false => Standing::Ahead,
    })
}

/// Our own position at `tid`.
pub(super) fn position_at(journal: &Journal, tid: Tid) -> Result<Position, JournalError> {
    Ok(Position { epoch: journal.identity().epoch, tid, digest: ChainDigest::START })
}
