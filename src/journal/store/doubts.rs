//! The mark of what a volume knows to be in doubt: a number that changes whenever something comes into doubt for a target
//! otherwise than by that target's own doing.
//!
//! A target that has no work left is told the mark, and tells it to its own targets when they have none either. A copy that
//! comes from elsewhere with the present mark was so brought to where it is, and has everything that it should: the records
//! behind its place are all it needs. Any other copy is compared.

use rusqlite::Transaction;

use super::{Store, put_meta};
use crate::base::random_bytes;
use crate::journal::error::JournalError;

const MARK: &str = "doubts";

impl Store {
    /// The mark, which is never 0.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn mark(&self) -> Result<u64, JournalError> {
        match self.meta_get(MARK)?.and_then(|bytes| bytes.try_into().ok()) {
            Some(bytes) => Ok(u64::from_le_bytes(bytes)),
            None => {
                let fresh = random_mark();
                self.meta_set(MARK, &fresh.to_le_bytes())?;
                Ok(fresh)
            }
        }
    }
}

/// Something came into doubt, as part of a larger transaction.
pub(in crate::journal) fn renew_mark(tx: &Transaction<'_>) -> rusqlite::Result<()> {
    put_meta(tx, &[(MARK, &random_mark().to_le_bytes())])
}

fn random_mark() -> u64 {
    u64::from_le_bytes(random_bytes()) | 1
}
