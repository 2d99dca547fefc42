//! Carries bytes between a TLS connection and a local socket, on one thread and with bounded memory.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustls::Connection as Tls;

/// Both sides say something every two seconds; after so long a session is dead whatever the kernel thinks.
const SILENCE: Duration = Duration::from_secs(45);
/// How often a session asks whether it may go on.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// Bytes that wait in one direction, and that one read takes.
const BUFFER_BYTES: usize = 256 << 10;
/// Bytes that one read of the local socket takes; with what TLS adds to them they are fewer than `BUFFER_BYTES`.
const PLAIN_BYTES: usize = 128 << 10;

/// Carries bytes until both directions have ended, the connection fails, nothing was heard for too long, or `may` says no.
pub(super) fn pump(tls: Tls, tcp: &TcpStream, plain: &UnixStream, may: &dyn Fn() -> bool) {
    let mut pump = Pump {
        tls,
        tcp,
        plain,
        inward: Waiting::default(),
        buffer: vec![0; BUFFER_BYTES],
        heard: Instant::now(),
        tcp_ended: false,
        plain_ended: false,
    };
    if let Err(error) = pump.run(may) {
        tracing::info!(%error, "the connection ends");
    }
    let _ = tcp.shutdown(Shutdown::Both);
    let _ = plain.shutdown(Shutdown::Both);
}

struct Pump<'a> {
    tls: Tls,
    tcp: &'a TcpStream,
    plain: &'a UnixStream,
    /// What came and was not passed on yet.
    inward: Waiting,
    /// For what is being read.
    buffer: Vec<u8>,
    heard: Instant,
    /// Nothing more comes from the other host.
    tcp_ended: bool,
    /// Nothing more goes there.
    plain_ended: bool,
}

/// Bytes on their way, of which the first `passed` were passed on.
#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    passed: usize,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.passed == self.bytes.len()
    }

    fn pass(&mut self, count: usize) {
        self.passed += count;
        if self.is_empty() {
            self.bytes.clear();
            self.passed = 0;
        }
    }
}

impl Pump<'_> {
    fn run(&mut self, may: &dyn Fn() -> bool) -> io::Result<()> {
        self.plain.set_nonblocking(true)?;
        self.tls.set_buffer_limit(Some(BUFFER_BYTES));
        // What came together with the end of the handshake, or with the request, lies in there already.
        self.take_plaintext()?;
        self.write_plain()?;
        let mut asked = Instant::now();
        while !self.is_done() {
            if asked.elapsed() >= ASK_EVERY {
                asked = Instant::now();
                if !may() {
                    return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the key is not let in any more"));
                }
            }
            if !self.tcp_ended && self.inward.is_empty() && self.heard.elapsed() > SILENCE {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "nothing was heard for too long"));
            }
            let (tcp, plain) = self.wait()?;
            if tcp.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
                self.read_tcp()?;
            }
            if plain.intersects(PollFlags::POLLIN | PollFlags::POLLHUP) {
                self.read_plain()?;
            }
            self.write_plain()?;
            self.write_tcp()?;
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.tcp_ended && self.inward.is_empty() && self.plain_ended && !self.tls.wants_write()
    }

    /// Waits for what can be gone on with. Nothing is read while what was read before waits to be passed on.
    fn wait(&self) -> io::Result<(PollFlags, PollFlags)> {
        let when = |wanted: bool, flag: PollFlags| if wanted { flag } else { PollFlags::empty() };
        let tcp = when(!self.tcp_ended && self.inward.is_empty(), PollFlags::POLLIN)
            | when(self.tls.wants_write(), PollFlags::POLLOUT);
        let plain = when(!self.plain_ended && !self.tls.wants_write(), PollFlags::POLLIN)
            | when(!self.inward.is_empty(), PollFlags::POLLOUT);
        let mut fds = [PollFd::new(self.tcp.as_fd(), tcp), PollFd::new(self.plain.as_fd(), plain)];
        // A socket that has ended is always ready, also for those who ask for nothing: it is left out.
        let timeout = PollTimeout::try_from(ASK_EVERY).unwrap_or(PollTimeout::MAX);
        let ready = match (tcp.is_empty(), plain.is_empty()) {
            (false, false) => poll(&mut fds, timeout),
            (false, true) => poll(&mut fds[..1], timeout),
            (true, false) => poll(&mut fds[1..], timeout),
            (true, true) => Ok(0),
        };
        match ready {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let events = |fd: &PollFd<'_>, asked: PollFlags| match asked.is_empty() {
            true => PollFlags::empty(),
            false => fd.revents().unwrap_or(PollFlags::empty()),
        };
        Ok((events(&fds[0], tcp), events(&fds[1], plain)))
    }

    fn read_tcp(&mut self) -> io::Result<()> {
        if self.tcp_ended || !self.inward.is_empty() {
            return Ok(());
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let came = match (&mut &*self.tcp).read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            outcome => outcome.map(Some),
        };
        let taken = came.and_then(|came| came.map_or(Ok(()), |count| self.decrypt(&buffer[..count])));
        self.buffer = buffer;
        taken
    }

    /// Takes what the other host sent; nothing is its end.
    fn decrypt(&mut self, mut sealed: &[u8]) -> io::Result<()> {
        self.heard = Instant::now();
        self.tcp_ended = sealed.is_empty();
        // What follows a goodbye is not read.
        while !sealed.is_empty() && self.tls.read_tls(&mut sealed)? > 0 {
            self.take_plaintext()?;
        }
        Ok(())
    }

    fn take_plaintext(&mut self) -> io::Result<()> {
        let state = self.tls.process_new_packets().map_err(io::Error::other)?;
        let before = self.inward.bytes.len();
        self.inward.bytes.resize(before + state.plaintext_bytes_to_read(), 0);
        self.tls.reader().read_exact(&mut self.inward.bytes[before..])?;
        self.tcp_ended |= state.peer_has_closed();
        Ok(())
    }

    fn read_plain(&mut self) -> io::Result<()> {
        if self.plain_ended || self.tls.wants_write() {
            return Ok(());
        }
        match (&mut &*self.plain).read(&mut self.buffer[..PLAIN_BYTES]) {
            Ok(0) => {
                self.plain_ended = true;
                self.tls.send_close_notify();
                Ok(())
            }
            Ok(count) => self.tls.writer().write_all(&self.buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn write_plain(&mut self) -> io::Result<()> {
        while !self.inward.is_empty() {
            match (&mut &*self.plain).write(&self.inward.bytes[self.inward.passed..]) {
                Ok(count) => {
                    self.inward.pass(count);
                    // While it waited, nobody listened.
                    self.heard = Instant::now();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        if self.tcp_ended {
            let _ = self.plain.shutdown(Shutdown::Write);
        }
        Ok(())
    }

    fn write_tcp(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut &*self.tcp) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        if self.plain_ended {
            let _ = self.tcp.shutdown(Shutdown::Write);
        }
        Ok(())
    }
}
