//! Bounded lines of JSON.

use std::io::{self, BufRead, Read, Write};

use serde::{Deserialize, Serialize};

use super::{Failure, Reply, Request, VERSION};

/// Longest line in bytes, with its newline.
pub(super) const MAX_LINE: u64 = 1 << 20;

/// The line of a caller.
#[derive(Serialize, Deserialize)]
pub(super) struct RequestLine {
    /// Version of the protocol.
    pub(super) v: u32,
    pub(super) request: Request,
}

/// A line of the daemon. Exactly one of `reply` and `failure` is there.
#[derive(Serialize, Deserialize)]
pub(super) struct ReplyLine {
    /// Version of the protocol.
    pub(super) v: u32,
    /// No more lines follow for this request.
    pub(super) last: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) reply: Option<Reply>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) failure: Option<Failure>,
}

impl ReplyLine {
    /// The last line of an answer.
    pub(super) fn last(outcome: Result<Reply, Failure>) -> ReplyLine {
        let (reply, failure) = match outcome {
            Ok(reply) => (Some(reply), None),
            Err(failure) => (None, Some(failure)),
        };
        ReplyLine { v: VERSION, last: true, reply, failure }
    }

    /// One part of a streamed answer.
    pub(super) fn part(reply: Reply) -> ReplyLine {
        ReplyLine { v: VERSION, last: false, reply: Some(reply), failure: None }
    }
}

/// Reads one line without its newline; `None` at the end of the stream.
///
/// # Errors
/// `InvalidData` when the line is longer than [`MAX_LINE`] or ends without a newline.
pub(super) fn read_line(from: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    from.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)?;
    match line.pop() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(line)),
        Some(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "the line is cut short or longer than 1 MiB")),
    }
}

/// Writes `value` as one line.
///
/// # Errors
/// `InvalidData` when it would be longer than [`MAX_LINE`]; otherwise what the stream says.
pub(super) fn write_line(to: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    if line.len() as u64 > MAX_LINE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is longer than 1 MiB"));
    }
    to.write_all(&line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_bounded() {
        let mut input = io::Cursor::new(b"one\ntwo".to_vec());
        assert_eq!(read_line(&mut input).unwrap(), Some(b"one".to_vec()));
        assert!(read_line(&mut input).is_err());
        assert_eq!(read_line(&mut input).unwrap(), None);
        let mut long = io::Cursor::new(vec![b'x'; MAX_LINE as usize + 5]);
        assert!(read_line(&mut long).is_err());
    }
}
