//! Whether a replica that is told that nothing is left for it has everything.

use std::collections::HashSet;
use std::os::fd::AsFd;

use super::objects::entry_names;
use super::{Applier, ApplyError, Outcome, park};
use crate::base::{Oid, Tid, faults};
use crate::sys::{self, Errno};

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

    /// A directory that waits for a name and has something in it, when the source has nothing left to send: no listing that is
    /// still to come will name it. One that was removed while a program has it open waits, too, but it is empty (rmdir(2)).
    /// While an object is blocked, its directory may be what could not be named; and before the replay, which is at `at`, has
    /// passed what the tree may hold from before a crash, records may name it yet.
    ///
    /// # Errors
    /// [`ApplyError`] when the park cannot be read.
    pub fn nameless_dir(&self, at: Tid) -> Result<Option<Oid>, ApplyError> {
        let may_be_named =
            !self.is_settled(at) || !self.displaced.is_empty() || !self.catalog.blocked_oids().is_empty();
        if may_be_named || faults::skipped("applier.nameless_dir") {
            return Ok(None);
        }
        self.find_nameless_dir().map_err(|cause| self.explain("look for what has no name", Oid::ROOT, Tid::ZERO, cause))
    }

    fn find_nameless_dir(&self) -> Outcome<Option<Oid>> {
        for oid in self.park.oids()? {
            match self.tree.open_child(self.park.fd(), &park::entry(oid)?, libc::O_RDONLY | libc::O_DIRECTORY) {
                Ok(dir) if !entry_names(sys::reopen(dir.as_fd(), libc::O_RDONLY | libc::O_DIRECTORY)?)?.is_empty() => {
                    return Ok(Some(oid));
                }
                Ok(_) | Err(Errno::ENOTDIR | Errno::ELOOP) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(None)
    }
}
