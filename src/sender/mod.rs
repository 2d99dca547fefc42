//! The source's side of a session: one thread per target replays the journal to it, and merges readings of work objects
//! into the stream at the place of their stamp.
//!
//! Invariants:
//! - Only durable records are sent, in order and without a gap.
//! - A reading stamped s is sent behind every record up to s and before every later one.
//! - A cursor moves, and a work row ends, only in the transaction that follows the target's durable ack.
//! - What is under way is bounded by a window of bytes; a slow target slows its own thread and nothing else.

mod plan;
mod session;
mod status;
mod stream;
mod thread;
mod work;

pub use plan::{Ours, Plan, plan};
pub use status::{SenderState, SenderStatus};
pub use thread::{Connect, SenderNudge, SenderOptions, SenderThread, SenderWaiter};

use crate::base::Tid;
use crate::journal::JournalError;
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
    /// The target is ahead of this source: it followed another history.
    #[error("the target has received {received}, this source ends at {durable}: it followed another history")]
    Fork {
        /// Where the target is.
        received: Tid,
        /// Where this source is.
        durable: Tid,
    },
    /// The target said something it may not.
    #[error("the target broke the protocol: {0}")]
    Protocol(&'static str),
    /// Nothing was heard for too long.
    #[error("nothing was heard from the target for {0} seconds")]
    Silent(u64),
}
