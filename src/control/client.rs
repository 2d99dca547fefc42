//! The caller's end of the socket.

use std::io::{self, BufReader};
use std::os::unix::net::UnixStream;

use super::line::{ReplyLine, RequestLine, read_line, write_line};
use super::server::GROUP;
use super::{ExitCode, Failure, Reply, Request, VERSION};
use crate::config::{Edits, Paths};

/// A connection to the daemon. Requests on it are answered one after the other.
pub struct Client {
    stream: BufReader<UnixStream>,
    edits: Edits,
}

/// Connects when a daemon runs.
///
/// # Errors
/// When there is a socket that cannot be used, for example because the caller is not root.
pub fn try_connect(paths: &Paths) -> Result<Option<Client>, Failure> {
    let socket = paths.socket();
    match UnixStream::connect(&socket) {
        Ok(stream) => Ok(Some(Client { stream: BufReader::new(stream), edits: paths.edits() })),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => Ok(None),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            let message = format!("the daemon's socket {} is only for root and the group {GROUP}", socket.display());
            Err(Failure::new(ExitCode::Failed, message).with_remedy("run the command as root"))
        }
        Err(e) => Err(Failure::new(ExitCode::Failed, format!("cannot connect to {}: {e}", socket.display()))),
    }
}

impl Client {
    /// Connects to the daemon of `paths`.
    ///
    /// # Errors
    /// Code 3 when none runs; otherwise as [`try_connect`].
    pub fn connect(paths: &Paths) -> Result<Client, Failure> {
        try_connect(paths)?.ok_or_else(|| {
            let message = format!("no daemon answers at {}", paths.socket().display());
            Failure::new(ExitCode::NoDaemon, message).with_remedy("start it with: dtfs daemon")
        })
    }

    /// Asks, and returns the answer.
    ///
    /// # Errors
    /// What the daemon answered, or code 3 when it went away before it answered.
    pub fn call(&mut self, request: &Request) -> Result<Reply, Failure> {
        self.stream(request, &mut |_| Ok(()))
    }

    /// Asks, hands every part of the answer but the last to `on_part`, and returns the last.
    ///
    /// # Errors
    /// As [`Client::call`], and what `on_part` returns. The connection is of no use afterwards.
    pub fn stream(
        &mut self,
        request: &Request,
        on_part: &mut dyn FnMut(Reply) -> Result<(), Failure>,
    ) -> Result<Reply, Failure> {
        let request = match self.edits {
            Edits::Written => request.clone(),
            Edits::Rehearsed => match request.rehearsed()? {
                Some(request) => request,
                None => return Ok(Reply::Done),
            },
        };
        let line = RequestLine { v: VERSION, request };
        // A daemon that refuses a caller says why and closes without reading, so a failed write may have its reason
        // waiting to be read.
        let written = write_line(self.stream.get_mut(), &line);
        loop {
            let line = self.next_line();
            if let (Err(e), Err(_)) = (&written, &line) {
                return Err(went_away(e));
            }
            match line? {
                ReplyLine { failure: Some(failure), .. } => return Err(failure),
                ReplyLine { reply: Some(reply), last: true, .. } => return Ok(reply),
                ReplyLine { reply: Some(reply), last: false, .. } => on_part(reply)?,
                ReplyLine { reply: None, failure: None, .. } => return Err(strange("an empty answer")),
            }
        }
    }

    fn next_line(&mut self) -> Result<ReplyLine, Failure> {
        let line = read_line(&mut self.stream).map_err(|e| went_away(&e))?;
        let line = line.ok_or_else(|| went_away(&"it closed the connection"))?;
        let reply: ReplyLine = serde_json::from_slice(&line).map_err(|e| strange(&e.to_string()))?;
        match reply.v {
            VERSION => Ok(reply),
            other => Err(strange(&format!("version {other} of the protocol"))),
        }
    }
}

fn went_away(why: &dyn std::fmt::Display) -> Failure {
    Failure::new(ExitCode::NoDaemon, format!("the daemon went away before it answered: {why}"))
        .with_remedy("see its log, then ask again")
}

fn strange(what: &str) -> Failure {
    Failure::new(ExitCode::Failed, format!("the daemon's answer is not understood: {what}"))
        .with_remedy("daemon and command may be of different versions: restart the daemon")
}
