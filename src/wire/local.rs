//! The transport to a directory on the same host: `dtfs serve --stdio DIR` as a child process, spoken to over its pipes.
//! ssh carries the same bytes to the same command on another host.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Both directions of a connection and what keeps it alive.
pub struct Connection {
    /// From the target.
    pub reader: Box<dyn Read + Send>,
    /// To the target.
    pub writer: Box<dyn Write + Send>,
    /// Ends with the connection.
    pub peer: Peer,
}

/// The process at the other end.
pub struct Peer {
    child: Option<Child>,
    cut: Breaker,
    said: Option<Said>,
}

/// What a process says on its standard error.
struct Said {
    /// Its last line. Rank: a leaf, held for an assignment.
    last: Arc<Mutex<String>>,
    listener: JoinHandle<()>,
}

/// Ends a connection from another thread, also while a write to it or a read from it waits for ever. Of no use any more
/// when its [`Peer`] is dropped, and not to be used then: another process may have the number.
#[derive(Clone)]
pub struct Breaker(Arc<dyn Fn() + Send + Sync>);

impl Breaker {
    /// Calls `cut`.
    pub fn new(cut: impl Fn() + Send + Sync + 'static) -> Breaker {
        Breaker(Arc::new(cut))
    }

    /// Ends the connection.
    pub fn cut(&self) {
        (self.0)();
    }
}

impl Peer {
    /// Nothing to wait for; `cut` ends the connection.
    pub fn none(cut: Breaker) -> Peer {
        Peer { child: None, cut, said: None }
    }

    fn process(child: Child) -> Peer {
        let pid = nix::unistd::Pid::from_raw(child.id() as i32);
        let cut = Breaker::new(move || {
            // Both ends of its pipes go with it. One that is stopped is killed as well.
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        });
        Peer { child: Some(child), cut, said: None }
    }

    /// A process whose standard error tells people why it cannot go on.
    pub(super) fn process_that_speaks(mut child: Child) -> Peer {
        let said = child.stderr.take().map(|stderr| {
            let last = Arc::new(Mutex::new(String::new()));
            let heard = last.clone();
            Said { last, listener: std::thread::spawn(move || listen(stderr, &heard)) }
        });
        let mut peer = Peer::process(child);
        peer.said = said;
        peer
    }

    /// The last line that it said on its standard error, when it has ended; empty when it said nothing.
    pub fn last_words(&self) -> String {
        const PATIENCE: Duration = Duration::from_secs(2);
        let Some(said) = &self.said else { return String::new() };
        let deadline = Instant::now() + PATIENCE;
        while !said.listener.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        said.last.lock().clone()
    }

    /// Its process id.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// The process of a target on this host, which works behind the programs that it follows.
    pub fn follower(&self) -> Option<u32> {
        self.pid().filter(|_| self.said.is_none())
    }

    /// What ends the connection.
    pub fn breaker(&self) -> Breaker {
        self.cut.clone()
    }
}

impl Drop for Peer {
    /// Our ends of the pipes are closed first, which tells the child to stop; one that does not is killed, because a
    /// session that is over must not write.
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            match child.try_wait() {
                Ok(Some(_)) | Err(_) => return,
                Ok(None) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Starts `program serve --stdio DIR` with `arguments` before it and speaks to its standard input and output. Its
/// standard error is ours.
///
/// # Errors
/// When the process cannot be started.
pub fn connect_local(
    program: &Path,
    global: &[&std::ffi::OsStr],
    dir: &Path,
    extra: &[&str],
) -> io::Result<Connection> {
    let child = Command::new(program)
        .args(global)
        .args(["serve", "--stdio"])
        .arg(dir)
        .args(extra)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    // It works on the same processors as the programs whose changes it follows, and they come first.
    if let Err(errno) = crate::sys::put_behind(child.id()) {
        tracing::debug!(%errno, "the target's process runs at the common priority");
    }
    connection(child, Peer::process)
}

/// The connection over the pipes of `child`.
pub(super) fn connection(mut child: Child, peer: fn(Child) -> Peer) -> io::Result<Connection> {
    let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(io::Error::other("the child has no pipes"));
    };
    // A batch then goes in one write, and not in one for each 64 KiB with a switch between the two. Where a user's pipes
    // are at their limit it stays small (pipe(7)).
    let _ = nix::fcntl::fcntl(&stdin, nix::fcntl::FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
    Ok(Connection { reader: Box::new(stdout), writer: Box::new(stdin), peer: peer(child) })
}

/// What a pipe may hold without further rights (/proc/sys/fs/pipe-max-size).
const PIPE_BYTES: libc::c_int = 1 << 20;

/// Keeps the last line, and writes all of them to the log; what the other side wrote cannot reach a terminal raw.
fn listen(stderr: impl Read, last: &Mutex<String>) {
    const MOST_BYTES: u64 = 1024;
    let mut lines = BufReader::new(stderr);
    loop {
        let mut line = Vec::new();
        match lines.by_ref().take(MOST_BYTES).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line).trim_end().escape_debug().to_string();
        tracing::info!(%text, "the way to the target");
        if !text.is_empty() {
            *last.lock() = text;
        }
    }
}
