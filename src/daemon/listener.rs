//! Where sources call: each accepted one gets a `dtfs serve` process of its own.
//!
//! Invariants: nothing but TLS is read from somebody whose key is not known; a key reaches the copies whose `[source]` names
//! its host and no others; how many shake hands and how many are served is bounded, also for each address.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::Mutex;

use super::connect::global;
use super::identity::identity;
use crate::base::Fingerprint;
use crate::config::{Adoption, Paths, Peers, SourceEntry, VolumeFile, VolumeName};
use crate::wire::{Guest, RefuseCode, refuse, welcome};

/// Callers at once, in a handshake or served.
const MOST_CALLERS: usize = 256;
/// Of one address.
const MOST_OF_ONE: usize = 32;

/// Listens until it is dropped. Sessions end with it.
pub(super) struct Listener {
    stop: Arc<AtomicBool>,
    handle: Option<JoinHandle<()>>,
}

/// Who is there, by address.
#[derive(Clone, Default)]
struct Callers {
    /// Protects the counts. Rank: a leaf, held for an assignment.
    count: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// A place among the callers.
struct Place {
    callers: Callers,
    address: IpAddr,
}

impl Callers {
    fn admit(&self, address: IpAddr) -> Option<Place> {
        let mut count = self.count.lock();
        let (all, own) = (count.values().sum::<usize>(), count.get(&address).copied().unwrap_or(0));
        if all >= MOST_CALLERS || own >= MOST_OF_ONE {
            return None;
        }
        count.insert(address, own + 1);
        Some(Place { callers: self.clone(), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut count = self.callers.count.lock();
        if let Some(own) = count.get_mut(&self.address) {
            *own -= 1;
            if *own == 0 {
                count.remove(&self.address);
            }
        }
    }
}

impl Listener {
    /// Listens at `address`.
    ///
    /// # Errors
    /// When the address cannot be had, or there is no key.
    pub(super) fn start(paths: &Paths, address: SocketAddr) -> io::Result<Listener> {
        identity(paths)?;
        let socket = TcpListener::bind(address)
            .map_err(|error| io::Error::new(error.kind(), format!("cannot listen at {address}: {error}")))?;
        socket.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, paths) = (stop.clone(), paths.clone());
        let handle = std::thread::Builder::new()
            .name("dtfs-listener".into())
            .spawn(move || accept(&socket, &paths, &stopped))?;
        Ok(Listener { stop, handle: Some(handle) })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(handle) = self.handle.take() {
            let _ = handle.join();
        }
    }
}

fn accept(socket: &TcpListener, paths: &Paths, stop: &Arc<AtomicBool>) {
    use std::os::fd::AsFd;
    const LOOK_EVERY: Duration = Duration::from_millis(500);
    let callers = Callers::default();
    while !stop.load(Ordering::Relaxed) {
        let timeout = PollTimeout::try_from(LOOK_EVERY).unwrap_or(PollTimeout::MAX);
        let _ = poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], timeout);
        let (tcp, address) = match socket.accept() {
            Ok(caller) => caller,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_) => {
                // Out of descriptors, perhaps: the caller still waits, so the poll would return at once, for ever.
                std::thread::sleep(Duration::from_millis(50));
                continue;
            }
        };
        // Closed without a word when there are too many.
        let Some(place) = callers.admit(address.ip()) else { continue };
        let (paths, stop) = (paths.clone(), stop.clone());
        let _ = std::thread::Builder::new().name("dtfs-session".into()).spawn(move || {
            if let Err(error) = receive(&paths, tcp, address, &stop) {
                tracing::info!(%address, %error, "a caller was not served");
            }
            drop(place);
        });
    }
}

fn receive(paths: &Paths, tcp: TcpStream, address: SocketAddr, stop: &AtomicBool) -> io::Result<()> {
    let mut guest = welcome(identity(paths)?, tcp, address)?;
    let fingerprint = guest.fingerprint;
    let known = Peers::load(paths).map_err(io::Error::other)?;
    let Some((host, _)) = known.iter().find(|(_, known)| *known == fingerprint) else {
        tracing::warn!(%address, %fingerprint, "a host with a key that is not known calls");
        return dismiss(
            guest,
            &format!("this host does not know the key {fingerprint}; there: dtfs peer add HOST KEY"),
        );
    };
    let asked = guest.request()?;
    let Some(source) = allowed(paths, host, &asked) else {
        tracing::warn!(%address, host, asked = %asked.escape_debug(), "a host asks for a copy that is not its own");
        return dismiss(guest, "there is no such copy for this host; there: dtfs define source VOLUME HOST DIR");
    };
    let may = || !stop.load(Ordering::Relaxed) && still_allowed(paths, fingerprint, &asked);
    serve(paths, &source, guest, &may)
}

fn dismiss(guest: Guest, text: &str) -> io::Result<()> {
    let mut bytes = Vec::new();
    refuse(&mut bytes, RefuseCode::Wrong, text).map_err(io::Error::other)?;
    guest.dismiss(&bytes)
}

/// The copy called `asked`, when it is for `host` to write.
fn allowed(paths: &Paths, host: &str, asked: &str) -> Option<SourceEntry> {
    let volume = VolumeName::new(asked).ok()?;
    let source = VolumeFile::load(paths, &volume).ok()?.source?;
    (source.host == host).then_some(source)
}

/// A host that was forgotten, and a source that was, end with the next look.
fn still_allowed(paths: &Paths, fingerprint: Fingerprint, asked: &str) -> bool {
    let Ok(peers) = Peers::load(paths) else { return false };
    peers.iter().any(|(host, known)| known == fingerprint && allowed(paths, host, asked).is_some())
}

fn serve(paths: &Paths, source: &SourceEntry, guest: Guest, may: &dyn Fn() -> bool) -> io::Result<()> {
    let (ours, theirs) = UnixStream::pair()?;
    let input: OwnedFd = theirs.try_clone()?.into();
    let output: OwnedFd = theirs.into();
    let mut command = Command::new("/proc/self/exe");
    command.args(global(paths)).args(["serve", "--stdio"]).arg(&source.dir).current_dir("/");
    if source.adoption == Adoption::Allow {
        command.arg("--adopt");
    }
    command.env_remove("SSH_ORIGINAL_COMMAND");
    let mut child = command.stdin(Stdio::from(input)).stdout(Stdio::from(output)).spawn()?;
    // Its copies of the socket must be the only ones, or its end would not be seen.
    drop(command);
    if let Err(errno) = crate::sys::put_behind(child.id()) {
        tracing::debug!(%errno, "the target's process runs at the common priority");
    }
    guest.serve(&ours, may);
    // It has seen the end of what it reads, makes durable what it has, and ends.
    drop(ours);
    child.wait().map(drop)
}
