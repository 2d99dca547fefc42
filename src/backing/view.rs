//! How the state of a tree is read while it changes.

use super::tree::Tree;
use crate::base::{ObjectGuard, ObjectKey, Oid, Tid};

/// A tree with the locks and the clock of its changes. The stack is one on a source.
///
/// Whoever reads an object's state takes its lock, then the stamp, then reads: the state read is exactly that after all
/// changes with TID up to the stamp.
pub trait TreeView: Send + Sync {
    /// The tree.
    fn tree(&self) -> &Tree;

    /// The local object that `oid` names, or `None` when it cannot be one of this tree.
    fn key_of(&self, oid: Oid) -> Option<ObjectKey>;

    /// The name of the local object `key` on every host.
    fn oid_of(&self, key: ObjectKey) -> Oid;

    /// Keeps everyone from changing `key` until the guard is dropped.
    fn lock(&self, key: ObjectKey) -> ObjectGuard<'_>;

    /// TID of the last change made so far. Exact for an object whose lock the caller holds.
    fn stamp(&self) -> Tid;
}
