//! The target's side of a session: takes frames in the order of their TIDs, makes records durable in the inbox, hands
//! everything to the applier, and says how far it is.
//!
//! Invariants:
//! - A record is checked whole before it reaches the inbox; a gap in the TIDs ends the session.
//! - `received` is acknowledged after the inbox's fdatasync, `applied` after the tree's syncfs and the catalog's commit.
//! - State records are applied where they stand in the stream and never kept: they are read again if they are lost.
//! - A failed sync ends the process without a further ack, and leaves the replica in doubt: the source compares all of it.
//! - A disk without room stops this side, and so the source, until there is room; the source is told.
//! - Nothing is made durable before the source has said how it begins: it knows what it last heard of this copy.

mod apply;
mod arrivals;
mod inbox;
mod intake;
mod outbox;
mod positions;
mod relay;
mod roles;
mod session;

pub use relay::{Relay, RelayError};
pub use roles::{Force, RaiseError, Raised, join, raise};
pub use session::{OwnVolume, ServeError, ServeOptions, serve};
