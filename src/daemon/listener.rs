//! Where sources call: each accepted one gets a `dtfs serve` process of its own.
//!
//! Invariants: nothing but TLS is read from somebody whose key is not known; a key reaches the copies whose `[source]` names
//! its host and no others; how many shake hands and how many are served is bounded, and those who shake hands take no place
//! of those who are served.

use std::collections::HashMap;
use std::hash::Hash;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::Mutex;

use super::connect::global;
use super::identity::identity;
use crate::base::Fingerprint;
use crate::config::{Adoption, MountsFile, Paths, Peers, SourceEntry, VolumeFile, VolumeName};
use crate::record::HISTORY_XATTR;
use crate::wire::{Guest, RefuseCode, refuse, welcome};

/// Callers whose key is not known yet, at once.
const MOST_STRANGERS: usize = 256;
/// Of one address; of one /64 of IPv6, which one host has for itself.
const MOST_OF_ONE_ADDRESS: usize = 16;
/// Sessions at once.
const MOST_GUESTS: usize = 256;
/// Of one key.
const MOST_OF_ONE_KEY: usize = 32;
/// A stranger who calls again and again does not fill the log.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// Listens until it is dropped. Sessions end with it.
pub(super) struct Listener {
    stop: Arc<AtomicBool>,
    handle: Option<JoinHandle<()>>,
}

/// Where this host listens, if it does.
#[derive(Default)]
pub(super) struct Listening {
    /// Rank: a leaf but for the end of a listener, which is waited for under it.
    now: Mutex<Option<(SocketAddr, Listener)>>,
}

impl Listening {
    /// Where it listens.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.now.lock().as_ref().map(|(address, _)| *address)
    }

    /// Listens at `address` from now on, and nowhere else; the sessions of another address end.
    ///
    /// # Errors
    /// When it cannot be had, or there is no key; then nobody is listened to.
    pub(super) fn set(&self, paths: &Paths, address: Option<SocketAddr>) -> io::Result<()> {
        let mut now = self.now.lock();
        if now.as_ref().map(|(address, _)| *address) == address {
            return Ok(());
        }
        // First: the new address may be a part of the old one.
        *now = None;
        if let Some(address) = address {
            *now = Some((address, Listener::start(paths, address)?));
        }
        Ok(())
    }
}

/// Who is there, by what they have in common.
struct Crowd<K> {
    most: usize,
    most_of_one: usize,
    /// Protects the counts. Rank: a leaf, held for an assignment.
    counts: Arc<Mutex<HashMap<K, usize>>>,
}

/// A place in a crowd.
struct Place<K: Eq + Hash> {
    counts: Arc<Mutex<HashMap<K, usize>>>,
    key: K,
}

impl<K: Eq + Hash + Copy> Crowd<K> {
    fn new(most: usize, most_of_one: usize) -> Crowd<K> {
        Crowd { most, most_of_one, counts: Arc::default() }
    }

    fn admit(&self, key: K) -> Option<Place<K>> {
        let mut counts = self.counts.lock();
        let (all, own) = (counts.values().sum::<usize>(), counts.get(&key).copied().unwrap_or(0));
        if all >= self.most || own >= self.most_of_one {
            return None;
        }
        counts.insert(key, own + 1);
        Some(Place { counts: self.counts.clone(), key })
    }
}

impl<K: Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let mut counts = self.counts.lock();
        if let Some(own) = counts.get_mut(&self.key) {
            *own -= 1;
            if *own == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

/// What one host is known by before it has shown a key.
fn neighbourhood(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        address => address,
    }
}

/// What the threads of all callers share.
struct Door {
    paths: Paths,
    stop: Arc<AtomicBool>,
    strangers: Crowd<IpAddr>,
    guests: Crowd<Fingerprint>,
    /// When a stranger was last written into the log. Rank: a leaf, held for an assignment.
    warned: Mutex<Option<Instant>>,
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
        let door = Arc::new(Door {
            paths: paths.clone(),
            stop: stop.clone(),
            strangers: Crowd::new(MOST_STRANGERS, MOST_OF_ONE_ADDRESS),
            guests: Crowd::new(MOST_GUESTS, MOST_OF_ONE_KEY),
            warned: Mutex::new(None),
        });
        let handle = std::thread::Builder::new().name("dtfs-listener".into()).spawn(move || accept(&socket, &door))?;
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

fn accept(socket: &TcpListener, door: &Arc<Door>) {
    const LOOK_EVERY: Duration = Duration::from_millis(500);
    while !door.stop.load(Ordering::Relaxed) {
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
        let Some(place) = door.strangers.admit(neighbourhood(address.ip())) else { continue };
        let door = door.clone();
        let _ = std::thread::Builder::new().name("dtfs-session".into()).spawn(move || {
            if let Err(error) = door.receive(tcp, address, place) {
                tracing::info!(%address, %error, "a caller was not served");
            }
        });
    }
}

impl Door {
    fn receive(&self, tcp: TcpStream, address: SocketAddr, place: Place<IpAddr>) -> io::Result<()> {
        let mut guest = welcome(identity(&self.paths)?, tcp, address)?;
        let fingerprint = guest.fingerprint;
        let known = Peers::load(&self.paths).map_err(io::Error::other)?;
        let Some((host, _)) = known.iter().find(|(_, known)| *known == fingerprint) else {
            self.warn(&format!("a host with a key that is not known calls from {address}: {fingerprint}"));
            let text = format!("this host does not know the key {fingerprint}; there: dtfs peer add HOST KEY");
            return dismiss(guest, RefuseCode::Wrong, &text);
        };
        let asked = guest.request()?;
        let Some(wish) = allowed(&self.paths, host, &asked) else {
            self.warn(&format!("{host} asks for a copy that is not its own: {}", asked.escape_debug()));
            let text = "there is no such copy for this host; there: dtfs define source VOLUME HOST DIR";
            return dismiss(guest, RefuseCode::Wrong, text);
        };
        let Some(_served) = self.guests.admit(fingerprint) else {
            return dismiss(guest, RefuseCode::Busy, "too many sessions");
        };
        drop(place);
        let may = || !self.stop.load(Ordering::Relaxed) && still_allowed(&self.paths, fingerprint, &asked);
        serve(&self.paths, &wish, guest, &may)
    }

    fn warn(&self, text: &str) {
        let mut warned = self.warned.lock();
        if warned.is_none_or(|last| last.elapsed() >= WARN_EVERY) {
            *warned = Some(Instant::now());
            tracing::warn!("{text}");
        }
    }
}

fn dismiss(guest: Guest, code: RefuseCode, text: &str) -> io::Result<()> {
    let mut bytes = Vec::new();
    refuse(&mut bytes, code, text).map_err(io::Error::other)?;
    guest.dismiss(&bytes)
}

/// What a host that asks for `asked` may have.
enum Wish {
    /// To write this copy.
    Copy(SourceEntry),
    /// To be told that the copy which it wrote is a volume, mounted here.
    News(PathBuf),
}

fn allowed(paths: &Paths, host: &str, asked: &str) -> Option<Wish> {
    let volume = VolumeName::new(asked).ok()?;
    let file = VolumeFile::load(paths, &volume).ok()?;
    let mounts = MountsFile::load(paths).ok()?;
    // A tree that is a volume of this host is changed here and nowhere else, whatever its file says.
    match mounts.find_volume(&volume) {
        None => file.source.filter(|source| source.host == host).map(Wish::Copy),
        Some(entry) => (file.former_source.as_deref() == Some(host) && is_mounted(&entry.path))
            .then(|| Wish::News(entry.path.clone())),
    }
}

/// Whether a volume is mounted there: behind the mount, a session would take the bare directory for a new copy's.
fn is_mounted(path: &Path) -> bool {
    let name = std::ffi::CString::new(HISTORY_XATTR).unwrap_or_default();
    std::fs::File::open(path).is_ok_and(|root| crate::sys::getxattr(root.as_fd(), &name).is_ok())
}

/// A host that was forgotten, and a source that was, end with the next look.
fn still_allowed(paths: &Paths, fingerprint: Fingerprint, asked: &str) -> bool {
    let Ok(peers) = Peers::load(paths) else { return false };
    peers.iter().any(|(host, known)| known == fingerprint && allowed(paths, host, asked).is_some())
}

fn serve(paths: &Paths, wish: &Wish, guest: Guest, may: &dyn Fn() -> bool) -> io::Result<()> {
    let (ours, theirs) = UnixStream::pair()?;
    let input: OwnedFd = theirs.try_clone()?.into();
    let output: OwnedFd = theirs.into();
    let mut command = Command::new("/proc/self/exe");
    let (dir, adoption) = match wish {
        Wish::Copy(source) => (&source.dir, source.adoption),
        Wish::News(dir) => (dir, Adoption::Refuse),
    };
    command.args(global(paths)).args(["serve", "--stdio"]).arg(dir).current_dir("/");
    if adoption == Adoption::Allow {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_is_bounded_and_places_come_free() {
        let crowd = Crowd::new(3, 2);
        let first = crowd.admit(1);
        let second = crowd.admit(1);
        assert!(first.is_some() && second.is_some() && crowd.admit(1).is_none(), "two of one");
        let third = crowd.admit(2);
        assert!(third.is_some() && crowd.admit(3).is_none(), "three in all");
        drop(first);
        assert!(crowd.admit(3).is_some());
        drop((second, third));
        assert!(crowd.counts.lock().is_empty(), "nothing is kept of those who have gone");
    }

    #[test]
    fn a_host_has_a_whole_prefix_for_itself() {
        let of = |text: &str| neighbourhood(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1:2:3"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.2"), of("10.0.0.1"));
    }
}
