//! How the state of a tree is read while it changes.

use super::tree::Tree;
use crate::base::{ObjectGuard, ObjectKey, Oid, Tid};
use crate::sys;

/// A tree with the locks and the clock of its changes. The stack is one on a source.
///
/// Whoever reads an object's state takes its lock, then the stamp, then reads: the state read is exactly that after all
/// changes with TID up to the stamp.
pub trait TreeView: Send + Sync {
    /// The tree.
    fn tree(&self) -> &Tree;

    /// The local object that `oid` names, or `None` when it cannot be one of this tree.
    ///
    /// # Errors
    /// When it cannot be found out: that says nothing of the object.
    fn key_of(&self, oid: Oid) -> sys::Result<Option<ObjectKey>>;

    /// The name of the local object `key` on every host.
    ///
    /// # Errors
    /// When it cannot be found out; ENOENT for what is no part of the volume.
    fn oid_of(&self, key: ObjectKey) -> sys::Result<Oid>;

    /// Keeps everyone from changing `key` until the guard is dropped.
    fn lock(&self, key: ObjectKey) -> ObjectGuard<'_>;

    /// TID of the last change made so far. Exact for an object whose lock the caller holds.
    fn stamp(&self) -> Tid;

    /// Asks that the tree be readable from now on until [`TreeView::end_turn`]. False when it is not now: it is no past state
    /// of the origin, or whoever changes it does not pause. A tree whose changes are all made under its own locks always is.
    fn take_turn(&self) -> bool {
        true
    }

    /// The tree may change in any way again.
    fn end_turn(&self) {}
}
