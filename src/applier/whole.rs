//! Whether a replica that is told that nothing is left for it has everything.

use std::collections::HashSet;

use super::{Applier, ApplyError, Outcome};
use crate::base::{Oid, Tid, faults};

/// Objects that were asked for although the source had nothing left to send.
#[derive(Default)]
pub(super) struct Lacking(HashSet<Oid>);

impl Applier {
    /// The source has nothing left to send, and everything is durable: whether all of every object is here, but of those
    /// that are blocked. What is lacking is asked for, each object once: a source that leaves it out again keeps this
    /// replica from being called consistent, and keeps nobody busy.
    ///
    /// # Errors
    /// [`ApplyError::Catalog`].
    pub fn has_everything(&mut self) -> Result<bool, ApplyError> {
        self.ask_for_lacking().map_err(|cause| self.explain("look for what is lacking", Oid::ROOT, Tid::ZERO, cause))
    }

    fn ask_for_lacking(&mut self) -> Outcome<bool> {
        let lacking = self.catalog.lacking()?;
        if lacking.is_empty() || faults::skipped("applier.has_everything") {
            self.lacking = Lacking::default();
            return Ok(true);
        }
        for oid in lacking {
            if self.lacking.0.insert(oid) {
                tracing::warn!(%oid, "its source has nothing left to send, but this object is not whole: it is asked for");
                self.ask_for(oid)?;
            }
        }
        Ok(false)
    }
}
