//! The journal: a volume's changes in one order, durable, and the state that decides what may be forgotten.
//!
//! Records lie in segment files (SEGMENTS.md), one frame per group commit; everything small and transactional lies in
//! SQLite (SCHEMA.md); what a kill must not take lies in memory that outlives the process (MEMORY.md).
//!
//! Invariants:
//! - A TID is given under the ring's lock, so the order of TIDs is the order of the log.
//! - Nothing is changed before its intent is durable, since the last checkpoint began; a change under way fills a slot.
//! - A change reserves room before the backing tree is touched; whoever holds a [`Reservation`] can record its change.
//! - Readers see durable records only: otherwise a crash would leave a target ahead of its source.
//! - A torn end is found, never guessed. A log that ends below what was known to be durable is damage.
//! - After a failed write or sync nothing is tried again: the volume is Failed until it is opened anew.
//! - Full rings and disks stop the writer who asks; a slow target does only where the operator asked for that: what it has
//!   not received becomes work, and it keeps its place behind that.

mod changes;
mod error;
mod local;
mod log;
mod relay;
mod replay;
mod store;
mod volume;

pub use error::JournalError;
pub use local::{Intent, REGION_BYTES, Region};
pub use log::{ChainEnd, Chunk, FollowedLog, FollowedReader, LogOptions, Position, SegmentLog, SegmentReader};
pub use relay::{become_work, downstream, keeps_from, make_room};
pub use replay::{Part, Replay, ReplayReader};
pub use store::{
    AWAITED, EpochRow, EventRow, Level, NewWork, Own, Rejoin, Said, Sent, Store, TargetId, TargetRow, WorkKind,
    WorkReason, WorkRow,
};
pub use volume::{
    Checkpointer, Founding, Identity, InFlight, Journal, JournalOptions, JournalReader, LastStop, OidMap, OwnChanges,
    Reservation, SyncTree, UnderWay, WhenFull, boot_id,
};
