//! Records: one change (an [`Op`]) of one object, with its TID, in the one encoding that disk and wire share.
//!
//! Invariants:
//! - A record says what the result was, not what was asked for: attributes are those the backing filesystem showed after
//!   the change.
//! - A record is encoded once, when the change is made, and travels as the same bytes to the journal, the wire, the inbox
//!   and the applier.
//! - Everything read from outside is checked before it is used: lengths against bounds, names by [`Name`], checksums.
//!
//! The format is in `FORMAT.md` beside this file; `golden/` holds one encoded record of every kind.

mod codec;
mod decode;
mod difference;
mod encode;
mod op;
mod orphan;

pub use codec::{DecodeError, FieldReader, FieldWriter};
pub use decode::{Header, Record, RecordIter, chain};
pub use difference::{Difference, DifferenceKind};
pub use encode::{Draft, Encoded};
pub use op::{
    Attrs, DirItem, FIRST_BLOCK_IS_DATA, Fate, Instead, LAST_BLOCK_IS_DATA, Op, Replaced, Shape, Slot, Xattr,
};
pub use orphan::{Orphan, OrphanAction, OrphanList, OrphanOrder};

pub use crate::base::Name;

/// Version of the record encoding; part of every segment and of the handshake.
pub const FORMAT_VERSION: u16 = 1;
/// Longest payload: one write request of the kernel.
pub const MAX_PAYLOAD_BYTES: usize = 1 << 20;
/// Longest encoded record: payload, fields (names, xattrs, a part of a directory) and header.
pub const MAX_RECORD_BYTES: usize = 4 << 20;
/// Reserved for dtfs itself: never recorded, mirrored, compared or settable through a mount.
pub const RESERVED_XATTR_PREFIX: &[u8] = b"trusted.dtfs.";
/// Asked of the root of a mounted volume it answers with the volume's history (`base::History`), to root only.
pub const HISTORY_XATTR: &[u8] = b"trusted.dtfs.history";
/// Reserved for dtfs itself in a volume's root.
pub const RESERVED_DIR: &[u8] = b".dtfs";
