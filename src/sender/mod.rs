//! The source's side of a session: one thread per target replays the journal to it, and merges readings of work objects
//! into the stream at the place of their stamp.
//!
//! Invariants:
//! - Only durable records are sent, in order and without a gap.
//! - A reading stamped s is sent behind every record up to s and before every later one.
//! - A cursor moves, and a work row ends, only in the transaction that follows the target's durable ack.
//! - What is under way is bounded by a window of bytes; a slow target slows its own thread and nothing else.

mod edge;
mod greeting;
mod guarded;
mod limit;
mod mailbox;
mod mirror;
mod moved;
mod orphans;
mod pace;
mod plan;
mod scope;
mod session;
mod standing;
mod status;
mod stream;
mod thread;
mod turn;
mod verify;
mod verify_desk;
mod watcher;
mod window;
mod work;

pub use limit::limit_mirror;
pub use mirror::{Hold, MirrorKind, MirrorProgress, begin_mirror, last_mirror};
pub use orphans::OrphanPolicy;
pub use pace::Rate;
pub use plan::{Cause, Fork, Forked, Ours, Plan, Standing, plan};
pub use status::{SenderState, SenderStatus};
pub use thread::{Connect, SenderHandle, SenderOptions, SenderThread};
pub use verify_desk::{Found, Repair, VerifyProgress, VerifyRequest, last_verified};

use crate::base::{Oid, Position, Tid, VolumeUuid};
use crate::journal::JournalError;
use crate::sys::Errno;
use crate::wire::{RefuseCode, WireError};

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The target could not be reached.
    #[error("cannot connect: {0}")]
    Connect(#[source] std::io::Error),
    /// The connection failed.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The journal failed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The target refused.
    #[error("refused by the target: {text}")]
    Refused {
        /// Its reason in short.
        code: RefuseCode,
        /// Its reason in words.
        text: String,
    },
    /// The target holds what this source does not know.
    #[error(
        "{fork}. Nothing is sent, for what it holds may be the only copy (it has received {received}, this source ends at \
         {durable}). To make it equal to this source, and keep there what only it has: dtfs rejoin"
    )]
    Fork {
        /// The copy.
        copy: VolumeUuid,
        /// Where the target is.
        received: Position,
        /// Where this source is.
        durable: Tid,
        /// How that came.
        fork: Fork,
    },
    /// The target was promoted, and its history went on without this source.
    #[error(
        "the target was promoted: it went on in epoch {epoch} with everything up to {shared}; what came later is only here, \
         up to {own}. No change is taken here any more; dtfs demote makes this copy its target", epoch = .fork.epoch,
        shared = .fork.tid
    )]
    Superseded {
        /// The epoch that it went on in, and the last place that both share.
        fork: Position,
        /// Last TID here.
        own: Tid,
    },
    /// The source's own tree could not be read.
    #[error("the tree cannot be read, at object {oid}: {errno}")]
    Tree {
        /// Which object.
        oid: Oid,
        /// Why.
        errno: Errno,
    },
    /// The target said something it may not.
    #[error("the target broke the protocol: {0}")]
    Protocol(&'static str),
    /// The target has more than the copy that would pass records on to it.
    #[error("it has received {received}, and this copy has only {here} so far: it waits until this copy has caught up")]
    Ahead {
        /// Where the target is.
        received: Tid,
        /// Where this copy is.
        here: Tid,
    },
    /// Nothing was heard for too long.
    #[error("nothing was heard from the target for {0} seconds")]
    Silent(u64),
}
