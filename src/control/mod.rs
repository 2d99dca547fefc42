//! The daemon's socket: what may be asked, what is answered, and both ends of the line.
//!
//! A request is one line of JSON on a Unix socket, an answer is one or more lines; every line carries the version of
//! the protocol. Invariants: root is answered, and members of the group `dtfs`, who may only look; a line is bounded; at most one daemon serves a root directory; a
//! TID is text (`0x%016x`), because JSON numbers lose the upper bits of a u64. The daemon implements [`Handler`]; the
//! command line and the menu call [`ops`], which edits the files and then tells the daemon when one runs.

mod client;
mod exit;
mod holders;
mod line;
mod message;
mod mirror;
pub mod ops;
mod orphans;
mod pfs;
mod roles;
mod server;
mod sink;
mod status;
mod tid_text;
mod verify;

use message::not_an_entry;

pub use crate::base::printable;
pub use client::{Client, try_connect};
pub use exit::{ExitCode, Failure};
pub use holders::{Hold, Holders, Look, Objects, Opener, Unseen, look_below};
pub use message::{
    Access, EventEntry, LogEntry, MountReply, MountRow, MountVerdict, MountsReply, Problem, Reply, Request, Selection,
    Verdict,
};
pub use mirror::{MirrorAction, MirrorReply};
pub use orphans::{OrphanRow, OrphanVerb, OrphansReply};
pub use pfs::{MirrorMode, MirrorProgress, MirrorRun, PfsRole, PfsStatus, PfsVerb};
pub use roles::{Demoted, OwnVersions, Promotion};
pub use server::{Handler, ReplySink, Server, Stopper, parse_request};
pub use status::{
    CopyStatus, DaemonStatus, LastError, StatusReply, TargetState, TargetStatus, VolumeState, VolumeStatus, rfc3339,
};
pub use verify::{DifferenceRow, VerifyReply};

/// Version of the protocol and of every `--json` output. Fields may be added within a version, never change meaning.
pub const VERSION: u32 = 1;
