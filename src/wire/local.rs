//! The transport to a directory on the same host: `dtfs serve --stdio DIR` as a child process, spoken to over its pipes.
//! ssh will carry the same bytes to the same command on another host.

use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

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
        Peer { child: None, cut }
    }

    fn process(child: Child) -> Peer {
        let pid = nix::unistd::Pid::from_raw(child.id() as i32);
        let cut = Breaker::new(move || {
            // Both ends of its pipes go with it. One that is stopped is killed as well.
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        });
        Peer { child: Some(child), cut }
    }

    /// Its process id.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
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
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while std::time::Instant::now() < deadline {
            match child.try_wait() {
                Ok(Some(_)) | Err(_) => return,
                Ok(None) => std::thread::sleep(std::time::Duration::from_millis(5)),
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
    let mut child = Command::new(program)
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
    let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(io::Error::other("the child has no pipes"));
    };
    Ok(Connection { reader: Box::new(stdout), writer: Box::new(stdin), peer: Peer::process(child) })
}
