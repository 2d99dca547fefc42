//! The only way to touch a real tree: the backing directory of a volume, or the tree of a target.
//!
//! Invariants:
//! - Nothing is reached by path. An object is opened by its file handle, an entry by (directory descriptor, one
//!   [`Name`](crate::base::Name)); so a user who swaps directories and symlinks cannot lead an operation out of the tree.
//! - A [`Tree`] reads; what changes a tree is on [`TreeMut`], which the stack hands out only inside a mutation and the
//!   applier uses on its own tree.
//! - Errnos of the backing filesystem are passed on unchanged.

pub mod compare;
mod digest;
mod extents;
pub mod guard;
mod handle;
mod mutate;
mod tail;
mod tree;
mod view;

pub use digest::{BLOCK_BYTES, DataMap, block_digest, forget_cached};
pub use extents::{Extent, HOLE_UNIT, block_is_data, extents_of_read, next_extent};
pub use mutate::TreeMut;
pub use tail::{Growth, HoleAtEnd};
pub use tree::{BackingError, Found, Syncer, Tree};
pub use view::TreeView;

pub use crate::sys::{Errno, Result, Stat};
