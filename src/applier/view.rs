//! A copy's tree as something to read from: a relay sends its state on, under the origin's oids.
//!
//! Another process performs records on the tree. It pauses, at a place where tree, catalog and cursor agree, while this one
//! has its turn; so whatever is read in one turn is the origin's tree as it was at one TID.

use std::ffi::CString;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use super::catalog::{CatalogError, Look};
use super::park::OID_XATTR;
use crate::backing::{BackingError, Tree, TreeView};
use crate::base::{ObjectGuard, ObjectKey, ObjectLocks, Oid, Spaces, Tid};
use crate::sys::{self, Errno};

/// Who lets the tree be read, and at which place it is then.
pub trait Turns: Send + Sync {
    /// Takes a turn: from now on until [`Turns::end`] nobody changes the tree, which is at the TID. `None` when that cannot
    /// be now.
    fn take(&self) -> Option<Tid>;

    /// The turn is over.
    fn end(&self);
}

/// The tree of a copy.
pub struct CopyView {
    tree: Tree,
    /// Protects the connection. Rank: a leaf; held for one query.
    look: Mutex<Look>,
    locks: ObjectLocks,
    turns: Arc<dyn Turns>,
    /// Where the tree is in this turn. Rank: a leaf.
    at: Mutex<Tid>,
}

impl CopyView {
    /// The copy in `dir`, whose state lies in `state`.
    ///
    /// # Errors
    /// When tree or catalog cannot be opened.
    pub fn open(dir: &Path, state: &Path, turns: Arc<dyn Turns>) -> Result<CopyView, ViewError> {
        let (tree, look) =
            (Tree::open_covered(&super::replica::resolved(dir))?, Look::open(&state.join("catalog.db"))?);
        let (look, locks, at) = (Mutex::new(look), ObjectLocks::default(), Mutex::new(Tid::ZERO));
        Ok(CopyView { tree, look, locks, turns, at })
    }

    /// Whose objects it may have.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn spaces(&self) -> Result<Spaces, ViewError> {
        Ok(self.look.lock().spaces()?)
    }

    /// Whether no object lacks anything, as far as its catalog says that is durable.
    pub fn is_whole(&self) -> bool {
        self.look.lock().is_whole().unwrap_or(false)
    }
}

/// A copy cannot be read from.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// Its tree.
    #[error(transparent)]
    Backing(#[from] BackingError),
    /// Its catalog.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

impl TreeView for CopyView {
    fn tree(&self) -> &Tree {
        &self.tree
    }

    fn key_of(&self, oid: Oid) -> sys::Result<Option<ObjectKey>> {
        if oid == Oid::ROOT {
            return Ok(Some(self.tree.root_key()));
        }
        self.look.lock().key_of(oid).map_err(|error| {
            tracing::warn!(%error, "an object of a copy is not found");
            Errno::EIO
        })
    }

    fn oid_of(&self, key: ObjectKey) -> sys::Result<Oid> {
        if key == self.tree.root_key() {
            return Ok(Oid::ROOT);
        }
        let fd = self.tree.open_key(key, libc::O_PATH)?;
        let name = CString::from(OID_XATTR);
        let bytes = self.tree.xattr(fd.as_fd(), &name)?;
        // Every object of a whole copy bears its oid: what bears none was put there by somebody else.
        bytes.and_then(|bytes| bytes.try_into().ok()).map(Oid::from_bytes).ok_or(Errno::ENOENT)
    }

    fn lock(&self, key: ObjectKey) -> ObjectGuard<'_> {
        self.locks.lock(&[key])
    }

    fn stamp(&self) -> Tid {
        *self.at.lock()
    }

    fn take_turn(&self) -> bool {
        let Some(at) = self.turns.take() else { return false };
        if !self.is_whole() {
            self.turns.end();
            return false;
        }
        *self.at.lock() = at;
        true
    }

    fn end_turn(&self) {
        self.turns.end();
    }
}
