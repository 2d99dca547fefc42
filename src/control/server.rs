//! The daemon's end of the socket.

use std::collections::HashMap;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, BufReader};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Gid;
use parking_lot::Mutex;

use super::line::{ReplyLine, RequestLine, read_line, write_line};
use super::sink::StreamSink;
use super::{Access, ExitCode, Failure, Reply, Request, VERSION};
use crate::config::Paths;

/// Its members may look; they change nothing.
pub(super) const GROUP: &str = "dtfs";
/// More callers than this at once are told to try again.
const MAX_CALLERS: usize = 64;
/// Those who may only look cannot take the last places.
const MAX_READERS: usize = 32;
/// A caller that says nothing for so long is hung up on, so that forgotten ones do not use up the places.
const IDLE: Duration = Duration::from_secs(60);
/// A caller that does not take its answer for so long is hung up on.
const STUCK: Duration = Duration::from_secs(30);

/// What the daemon does for a request. Called from one thread per connection, from several at once.
pub trait Handler: Send + Sync {
    /// Does what `request` asks and returns the last (mostly the only) answer. Long answers go to `sink` in parts;
    /// whoever waits or follows asks [`ReplySink::is_wanted`] at least once a second and returns when it says no.
    ///
    /// # Errors
    /// The failure is sent to the caller as it is.
    fn handle(&self, request: Request, sink: &mut dyn ReplySink) -> Result<Reply, Failure>;
}

/// Takes the parts of an answer.
pub trait ReplySink {
    /// Sends one part; more follow.
    ///
    /// # Errors
    /// When the caller is gone; the handler then gives up and returns it.
    fn send(&mut self, reply: Reply) -> Result<(), Failure>;

    /// False once the caller hung up or the server is stopping: nobody waits for the answer any more.
    fn is_wanted(&self) -> bool;
}

/// The bound socket of the one daemon of a root directory.
pub struct Server {
    listener: UnixListener,
    socket: PathBuf,
    stop: Arc<StopState>,
    wake: UnixStream,
    readers: Option<Gid>,
    /// Held as long as the server lives: whoever has it is the daemon.
    _lock: Flock<File>,
}

/// Ends [`Server::serve`] from another thread.
#[derive(Clone)]
pub struct Stopper {
    stop: Arc<StopState>,
}

pub(super) struct StopState {
    stopping: AtomicBool,
    /// Written to once, to end the poll of the accept loop.
    waker: UnixStream,
    /// Protects the streams of all callers, to end their reading at stop. Rank: a leaf. Held for a look-up only.
    callers: Mutex<HashMap<u64, UnixStream>>,
}

impl StopState {
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}

impl Stopper {
    /// Takes no new callers; requests that run are told that they are not wanted, and finish. May be called often.
    pub fn stop(&self) {
        self.stop.stopping.store(true, Ordering::Release);
        // A full pipe is as good a wake-up as one more byte in it.
        let _ = io::Write::write(&mut &self.stop.waker, b"x");
        for stream in self.stop.callers.lock().values() {
            // Fails when the caller is gone already, which is what it is for.
            let _ = stream.shutdown(Shutdown::Read);
        }
    }
}

impl Server {
    /// Takes the place of the daemon of `paths`: its lock, then its socket. A socket that nobody answers is replaced.
    ///
    /// # Errors
    /// Code 5 when another daemon has the place; code 1 or 2 when the directory or the socket cannot be made.
    pub fn bind(paths: &Paths) -> Result<Server, Failure> {
        let group = nix::unistd::Group::from_name(GROUP).ok().flatten();
        Server::bind_for(paths, group.map(|group| group.gid))
    }

    /// As [`Server::bind`]; members of the group `readers` may look.
    fn bind_for(paths: &Paths, readers: Option<Gid>) -> Result<Server, Failure> {
        private_dir(&paths.run_dir(), readers)?;
        let lock = take_lock(&paths.daemon_lock())?;
        let socket = paths.socket();
        remove_stale(&socket)?;
        let failed =
            |e: io::Error| Failure::new(ExitCode::Failed, format!("cannot listen at {}: {e}", socket.display()));
        let listener = UnixListener::bind(&socket).map_err(failed)?;
        open_to(&socket, readers, 0o600, 0o660).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let (wake, waker) = UnixStream::pair().map_err(failed)?;
        waker.set_nonblocking(true).map_err(failed)?;
        let stop = StopState { stopping: AtomicBool::new(false), waker, callers: Mutex::default() };
        Ok(Server { listener, socket, stop: Arc::new(stop), wake, readers, _lock: lock })
    }

    /// A handle that stops this server.
    pub fn stopper(&self) -> Stopper {
        Stopper { stop: Arc::clone(&self.stop) }
    }

    /// Answers callers until [`Stopper::stop`], waits for the requests that run, and removes the socket.
    ///
    /// # Errors
    /// When the kernel refuses to wait for callers.
    pub fn serve(self, handler: Arc<dyn Handler>) -> Result<(), Failure> {
        let outcome = std::thread::scope(|scope| {
            let mut next_id = 0;
            while self.wait_for_caller()? {
                let Ok((stream, _)) = self.listener.accept() else {
                    // Out of descriptors, perhaps: the caller still waits, so the poll would return at once, for ever.
                    std::thread::sleep(Duration::from_millis(50));
                    continue;
                };
                next_id += 1;
                self.admit(scope, next_id, stream, &handler);
            }
            Ok(())
        });
        // The socket is ours as long as the lock is; a missing one changes nothing.
        let _ = std::fs::remove_file(&self.socket);
        outcome
    }

    /// True when somebody called, false when the server shall stop.
    fn wait_for_caller(&self) -> Result<bool, Failure> {
        let mut fds =
            [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN), PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(!self.stop.is_stopping()),
            Err(errno) => Err(Failure::new(ExitCode::Failed, format!("cannot wait for callers: {errno}"))),
        }
    }

    fn admit<'scope>(
        &'scope self,
        scope: &'scope std::thread::Scope<'scope, '_>,
        id: u64,
        stream: UnixStream,
        handler: &Arc<dyn Handler>,
    ) {
        let access = match self.admission(&stream) {
            Ok(access) => access,
            Err(failure) => {
                // A caller that is gone misses nothing.
                let _ = write_line(&mut &stream, &ReplyLine::last(Err(failure)));
                return;
            }
        };
        let Ok(copy) = stream.try_clone() else { return };
        self.stop.callers.lock().insert(id, copy);
        let handler = Arc::clone(handler);
        let spawned = std::thread::Builder::new().name("control".to_owned()).spawn_scoped(scope, move || {
            // A caller that breaks the connection ends it; there is nobody to tell.
            let _ = converse(&stream, access, handler.as_ref(), &self.stop);
            self.stop.callers.lock().remove(&id);
        });
        if spawned.is_err() {
            self.stop.callers.lock().remove(&id);
        }
    }

    /// What the caller may do, by the credentials that the kernel noted when it connected.
    fn admission(&self, stream: &UnixStream) -> Result<Access, Failure> {
        let unusable = |e: io::Error| Failure::new(ExitCode::Failed, format!("the connection cannot be used: {e}"));
        stream.set_nonblocking(false).map_err(unusable)?;
        stream.set_read_timeout(Some(IDLE)).map_err(unusable)?;
        stream.set_write_timeout(Some(STUCK)).map_err(unusable)?;
        let peer = getsockopt(stream, PeerCredentials).map_err(|e| unusable(e.into()))?;
        let is_reader = |gid: Gid| peer.gid() == gid.as_raw() || peer_groups(stream).contains(&gid.as_raw());
        let (access, most) = match self.readers {
            _ if peer.uid() == 0 => (Access::Change, MAX_CALLERS),
            Some(readers) if is_reader(readers) => (Access::Read, MAX_READERS),
            _ => {
                let message = format!("the daemon answers only root and members of the group {GROUP}");
                return Err(Failure::new(ExitCode::Refused, message).with_remedy("run it as root"));
            }
        };
        match self.stop.callers.lock().len() < most {
            true => Ok(access),
            false => Err(Failure::new(ExitCode::Busy, "the daemon has too many callers").with_remedy("try again")),
        }
    }
}

/// Answers one caller's requests until it hangs up or the server stops.
fn converse(stream: &UnixStream, access: Access, handler: &dyn Handler, stop: &Arc<StopState>) -> io::Result<()> {
    let mut lines = BufReader::new(stream);
    while !stop.is_stopping() {
        let outcome = match read_line(&mut lines) {
            Ok(None) => return Ok(()),
            Ok(Some(line)) => parse_request(&line).and_then(|request| {
                if request.access() > access {
                    let message = format!("only root may do that; members of the group {GROUP} may look");
                    return Err(Failure::new(ExitCode::Refused, message).with_remedy("run it as root"));
                }
                let mut sink = StreamSink { stream, stop };
                handler.handle(request, &mut sink)
            }),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                // Where the next line begins is not known, so this is the last answer.
                return write_line(&mut &*stream, &ReplyLine::last(Err(Failure::new(ExitCode::Usage, e))));
            }
            Err(e) => return Err(e),
        };
        write_line(&mut &*stream, &ReplyLine::last(outcome))?;
    }
    Ok(())
}

/// What a line asks. The version is read first, so that a newer caller gets a sentence about versions and not about some
/// field.
///
/// # Errors
/// Code 2 when it is not understood.
pub fn parse_request(line: &[u8]) -> Result<Request, Failure> {
    let wrong = |e: serde_json::Error| Failure::new(ExitCode::Usage, format!("the request is not understood: {e}"));
    let value: serde_json::Value = serde_json::from_slice(line).map_err(wrong)?;
    match value.get("v").and_then(serde_json::Value::as_u64) {
        Some(v) if v == u64::from(VERSION) => {}
        _ => {
            let message = format!("the daemon speaks version {VERSION} of the protocol, the caller another one");
            return Err(Failure::new(ExitCode::Usage, message).with_remedy("use the dtfs that the daemon runs"));
        }
    }
    serde_json::from_value::<RequestLine>(value).map(|line| line.request).map_err(wrong)
}

/// The further groups of whoever connected.
fn peer_groups(stream: &UnixStream) -> Vec<u32> {
    crate::sys::peer_groups(stream.as_fd()).unwrap_or_default()
}

/// Gives `path` to the group `readers` with `shared`, or to nobody with `private`.
fn open_to(path: &Path, readers: Option<Gid>, private: u32, shared: u32) -> io::Result<()> {
    match readers {
        // The group first: with the mode first another group could come in for a moment.
        Some(gid) => {
            std::os::unix::fs::chown(path, None, Some(gid.as_raw()))?;
            std::fs::set_permissions(path, Permissions::from_mode(shared))
        }
        None => std::fs::set_permissions(path, Permissions::from_mode(private)),
    }
}

/// Makes the directory with mode 0700 (0710 and the group of those who may look, when there is one), or takes the bits of
/// others away; a symlink or another's directory is refused.
fn private_dir(dir: &Path, readers: Option<Gid>) -> Result<(), Failure> {
    let failed = |e: io::Error| Failure::new(ExitCode::Failed, format!("cannot make {} private: {e}", dir.display()));
    if let Some(parent) = dir.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(failed)?;
    }
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed(e)),
        _ => {}
    }
    let meta = std::fs::symlink_metadata(dir).map_err(failed)?;
    if !meta.is_dir() || meta.uid() != nix::unistd::geteuid().as_raw() {
        let message = format!("{} is not a directory of our own", dir.display());
        return Err(Failure::new(ExitCode::Refused, message).with_remedy("see who made it, and remove it"));
    }
    open_to(dir, readers, 0o700, 0o710).map_err(failed)
}

fn take_lock(file: &Path) -> Result<Flock<File>, Failure> {
    let failed = |e: io::Error| Failure::new(ExitCode::Failed, format!("cannot lock {}: {e}", file.display()));
    let handle = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(file)
        .map_err(failed)?;
    Flock::lock(handle, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => already_running(file),
        errno => failed(errno.into()),
    })
}

/// Nobody else holds the lock, so a socket that is there is left from a daemon that died; asking costs nothing.
fn remove_stale(socket: &Path) -> Result<(), Failure> {
    if UnixStream::connect(socket).is_ok() {
        return Err(already_running(socket));
    }
    match std::fs::remove_file(socket) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(Failure::new(ExitCode::Failed, format!("cannot remove the old socket {}: {e}", socket.display())))
        }
        _ => Ok(()),
    }
}

fn already_running(place: &Path) -> Failure {
    let message = format!("a daemon is running already: it holds {}", place.display());
    Failure::new(ExitCode::Busy, message).with_remedy("stop it first, or use another --root")
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
