//! What a source and a target say to each other: frames, messages and the transports that carry them.
//!
//! Invariants:
//! - Nothing is allocated from a length that a peer sent before it was checked against a bound; before the handshake is
//!   over the bound is a few KiB.
//! - Every frame carries its own checksum; a damaged one ends the session.
//! - This room knows no files and no SQL: records pass through it as bytes.
//!
//! The format is in `PROTOCOL.md` beside this file.

mod frame;
mod local;
mod message;
mod patient;
mod pump;
mod squeeze;
mod ssh;
mod tls;

pub use frame::{Compression, FrameReader, FrameWriter, WireError, refuse};
pub use local::{Breaker, Connection, Peer, connect_local};
pub use message::{Ack, Convergence, Hello, HelloReply, Message, Need, RefuseCode, ReplicaState, Stall};
pub use patient::PatientReader;
pub use ssh::{SshWay, connect_ssh, remote_command};
pub use tls::{Guest, Identity, connect_tls, welcome};

/// First line each side sends, so that a person who connects by hand sees what answers.
pub const BANNER: &[u8] = b"dtfs replication protocol 1\n";
/// Version of the protocol that this program speaks.
pub const PROTOCOL_VERSION: u16 = 1;
/// Longest body of a frame before compression.
pub const MAX_BODY_BYTES: usize = 12 << 20;
/// Longest body before both sides have said who they are.
pub const MAX_HELLO_BYTES: usize = 4 << 10;
