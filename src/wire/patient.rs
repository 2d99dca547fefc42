//! Reading with an end to waiting: a connection over which nothing comes any more looks like one that is quiet.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A reader that gives up when nothing has come for a while. Only time spent waiting counts.
pub struct PatientReader<R> {
    input: R,
    patience: PollTimeout,
}

impl<R: Read + AsFd> PatientReader<R> {
    /// Waits for at most `patience` at a time. `input` must not hold back what it has read already.
    pub fn new(input: R, patience: Duration) -> PatientReader<R> {
        PatientReader { input, patience: PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX) }
    }
}

impl<R: Read + AsFd> Read for PatientReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let ready = loop {
            match poll(&mut [PollFd::new(self.input.as_fd(), PollFlags::POLLIN)], self.patience) {
                Err(Errno::EINTR) => {}
                done => break done?,
            }
        };
        match ready {
            0 => Err(io::Error::new(io::ErrorKind::TimedOut, "nothing was heard for too long")),
            _ => self.input.read(buffer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn silence_ends_and_what_comes_is_read() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut reader = PatientReader::new(near, Duration::from_millis(20));
        far.write_all(b"x").unwrap();
        let mut byte = [0];
        assert_eq!(reader.read(&mut byte).unwrap(), 1);
        assert_eq!(reader.read(&mut byte).unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(far);
        assert_eq!(reader.read(&mut byte).unwrap(), 0);
    }
}
