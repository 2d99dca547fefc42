//! Where a handler sends the parts of a streamed answer.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

use super::line::{ReplyLine, write_line};
use super::server::{ReplySink, StopState};
use super::{ExitCode, Failure, Reply};

/// The sink of one connection.
pub(super) struct StreamSink<'a> {
    pub(super) stream: &'a UnixStream,
    pub(super) stop: &'a Arc<StopState>,
}

impl ReplySink for StreamSink<'_> {
    fn send(&mut self, reply: Reply) -> Result<(), Failure> {
        write_line(&mut &*self.stream, &ReplyLine::part(reply))
            .map_err(|e| Failure::new(ExitCode::Failed, format!("the caller cannot be answered: {e}")))
    }

    fn is_wanted(&self) -> bool {
        !self.stop.is_stopping() && !hung_up(self.stream)
    }
}

/// Whether the other end is closed. Bytes that wait to be read stay.
fn hung_up(stream: &UnixStream) -> bool {
    let mut byte = [0];
    match recv(stream.as_raw_fd(), &mut byte, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT) {
        Ok(read) => read == 0,
        Err(errno) => !matches!(errno, Errno::EAGAIN | Errno::EINTR),
    }
}
