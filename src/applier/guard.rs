//! Who else may look into a target's tree, and change it: nobody changes it, and nobody looks into it before it was a past
//! state of its source for the first time. Half a tree is worse than none: programs take it for the whole one, and a file that
//! came before its directory's rights is open to those whom the source keeps out.
//!
//! The mounts that do this (`backing::guard`) stay when a session ends. They do not stay when the system goes down, or when an
//! operator takes them away. Then others may have changed the tree, and nobody saw it: that is written down before the mounts
//! are put back, and stays there until the source has written it down too, and is to verify the tree.

use std::path::{Path, PathBuf};

use super::replica::{self, Replica, ReplicaError};
use super::roles::set_marker;
use super::{Applier, ApplyError, Origin};
use crate::backing::Tree;
use crate::backing::guard::{self, Cover};
use crate::base::{Guarded, faults};
use crate::sys::Errno;

/// While it is there the tree has never been a past state of its source.
const CLOSED: &str = "closed";
/// While it is there others could change the tree, and the source does not know.
const UNGUARDED: &str = "unguarded";

/// Whether others are kept out of the trees of this host's copies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Guarding {
    /// They are.
    #[default]
    On,
    /// They are not: the operator's rights alone count.
    Off,
}

/// The place of a tree, and what is remembered about who else could change it.
pub(super) struct Guard {
    /// Where the tree is.
    dir: PathBuf,
    /// Where the state of the copy lies.
    state: PathBuf,
}

impl Guard {
    pub(super) fn of(dir: &Path, state: &Path) -> Guard {
        Guard { dir: dir.to_owned(), state: state.to_owned() }
    }

    /// From now on the tree is kept from others, if it is to be. `origin` says whether it was before.
    fn keep(&self, tree: &Tree, guarding: Guarding, origin: Origin) -> Result<Guarded, ReplicaError> {
        let io = |errno: Errno| ReplicaError::Io { path: self.dir.clone(), cause: errno.into() };
        if guarding == Guarding::Off {
            guard::remove_cover(&self.dir).map_err(io)?;
            return Ok(Guarded::Off);
        }
        let wanted = if self.is_closed() { Cover::Closed } else { Cover::ReadOnly };
        let found = guard::cover_at(&self.dir).map_err(io)?;
        if found == Cover::Bare && origin == Origin::Existing {
            set_marker(&self.state, UNGUARDED, true)?;
        }
        let covered = faults::point("guard.cover").and_then(|()| guard::set_cover(&self.dir, tree, wanted));
        if let Err(errno) = covered {
            tracing::error!(dir = %self.dir.display(), %errno, "others can change this tree: nothing can be mounted over it");
            return Ok(Guarded::Refused);
        }
        Ok(if self.state.join(UNGUARDED).exists() { Guarded::Restored } else { Guarded::Kept })
    }

    fn is_closed(&self) -> bool {
        self.state.join(CLOSED).exists()
    }

    /// The tree is a past state of its source. One that was closed until now is seen from now on.
    fn open(&self, tree: &Tree) -> Result<(), ReplicaError> {
        if !self.is_closed() {
            return Ok(());
        }
        set_marker(&self.state, CLOSED, false)?;
        let opened = match guard::cover_at(&self.dir) {
            Ok(Cover::Closed) => guard::set_cover(&self.dir, tree, Cover::ReadOnly).map(drop),
            other => other.map(drop),
        };
        opened.map_err(|errno| ReplicaError::Io { path: self.dir.clone(), cause: errno.into() })
    }
}

impl Replica {
    /// Keeps others from changing the tree, and from looking into it before it was a past state of its source.
    ///
    /// # Errors
    /// When what was found cannot be written down. A system that does not let this process mount is no error, but
    /// [`Guarded::Refused`].
    pub fn guard(&self, guarding: Guarding) -> Result<Guarded, ReplicaError> {
        self.guard.keep(&self.tree, guarding, self.origin)
    }

    /// As [`Replica::guard`] for the copy in `dir`, when no session is working on it, which would do it itself.
    ///
    /// # Errors
    /// [`ReplicaError`] when it cannot be opened.
    pub fn guard_idle(dir: &Path, states: &Path, guarding: Guarding) -> Result<Option<Guarded>, ReplicaError> {
        let dir = replica::resolved(dir);
        let Some((id, _)) = replica::read_id(&dir)? else { return Ok(None) };
        let tree = Tree::open_covered(&dir)?;
        let _lock = match replica::lock(&dir, &tree) {
            Err(ReplicaError::Busy { .. }) => return Ok(None),
            lock => lock?,
        };
        let state = states.join(id.to_string());
        Guard::of(&dir, &state).keep(&tree, guarding, Origin::Existing).map(Some)
    }
}

impl Applier {
    /// The tree is a past state of its source.
    ///
    /// # Errors
    /// When that cannot be written down, or the tree not be shown.
    pub fn open_to_others(&self) -> Result<(), ApplyError> {
        Ok(self.guard.open(&self.tree)?)
    }

    /// The source has written down that others could change the tree.
    ///
    /// # Errors
    /// When that cannot be written down.
    pub fn settle_unguarded(&self) -> Result<(), ApplyError> {
        Ok(set_marker(&self.guard.state, UNGUARDED, false)?)
    }
}

/// A copy that was just begun is for nobody to see.
pub(super) fn begin_closed(state: &Path) -> Result<(), ReplicaError> {
    set_marker(state, CLOSED, true)
}

/// A tree that was a master's until now, and is a copy's.
pub(super) fn guard_joined(dir: &Path, tree: &Tree, state: &Path, guarding: Guarding) -> Result<Guarded, ReplicaError> {
    Guard::of(dir, state).keep(tree, guarding, Origin::Adopted)
}
