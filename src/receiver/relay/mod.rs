//! A copy that is the source of the next one.
//!
//! Two processes meet in `relay/` in the copy's state directory: `dtfs serve` performs what the copy's source sends, the
//! daemon's sender replays it to the copy's own targets, with the origin's TIDs.
//!
//! Invariants:
//! - A record is sent on only when it is durable in the inbox and was performed here. So a reading of this tree never has a
//!   stamp before what was sent.
//! - State is read only from a tree that is a past state of the origin, and only while nobody changes it.
//! - Whatever state is performed here becomes a row of work for every target before its end is acknowledged: the origin's row
//!   ends then.
//! - What targets have not applied stays in the inbox; where it cannot, it becomes work before it is dropped.

mod board;
mod end;
mod log;
mod turns;

use std::path::Path;

pub use log::{Relay, RelayError};

pub(super) use end::RelayEnd;

use crate::journal::JournalError;
use crate::sys::Errno;

/// In the state directory of a copy; there since it was first given targets.
const DIR: &str = "relay";

fn io(what: &'static str, path: &Path, error: &std::io::Error) -> JournalError {
    let errno = Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
    JournalError::Io { what, path: path.to_owned(), errno }
}
