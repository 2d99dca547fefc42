//! Mounting a stack over a directory, and taking it down again.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::OpenOptions;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fuser::{Config, Session, SessionACL};
use parking_lot::Mutex;

use super::adapter::Adapter;
use super::readers::{Readers, Watching};
use super::requests::{OpTimes, Requests};
use super::waiting::Waiting;
use crate::base::ObjectKey;
use crate::stack::{Stack, Writes};
use crate::sys::{self, Errno, RawHandle};

/// How long a session may take to end once its mount is gone.
const END_PATIENCE: Duration = Duration::from_secs(10);
/// Read-ahead of the mount, in KiB: one transfer under way while the one before is consumed.
const READ_AHEAD_KB: &str = "2048";

/// Why a mount or an unmount did not happen.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// A system call failed.
    #[error("{path}: {what}: {errno}")]
    Io {
        /// The mount point.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        errno: Errno,
    },
    /// Someone uses the mount: an open file, a working directory.
    #[error("{path}: in use")]
    Busy {
        /// The mount point.
        path: PathBuf,
    },
    /// What is mounted there now is not what we mounted.
    #[error("{path}: another mount lies over ours, or ours is gone")]
    NotOurs {
        /// The mount point.
        path: PathBuf,
    },
    /// The session did not end though its mount is gone.
    #[error("{path}: unmounted, but requests are still being served")]
    StillServing {
        /// The mount point.
        path: PathBuf,
    },
}

/// How to unmount.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unmount {
    /// Only when nobody uses the mount.
    Plain,
    /// Out of sight at once; whoever uses it may finish (MNT_DETACH).
    Lazy,
}

/// What an unmount left behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unmounted {
    /// Nothing: all requests are answered, no more will come.
    Ended,
    /// Users that may go on for as long as they like (lazy only).
    InUse,
}

/// A stack that is mounted. Dropping this does not unmount: a path that stops answering is safer than one that shows
/// the bare directory.
pub struct MountedVolume {
    path: PathBuf,
    mount_id: u64,
    stack: Arc<Stack>,
    requests: Arc<Requests>,
    /// Ends with the session, which owns the workers.
    readers: Weak<Readers>,
    /// Protects the handle of the thread that serves the mount. Rank: a leaf; not held while waiting for the thread.
    session: Mutex<Option<JoinHandle<()>>>,
}

impl MountedVolume {
    /// Mounts `stack` over the directory `path`, shown in the mount table as `dtfs:LABEL`. A dead mount that a daemon
    /// left there stays below, so that there is no moment in which the path shows the bare directory; it goes with the
    /// unmount.
    ///
    /// # Errors
    /// [`MountError::Io`] naming the step.
    pub fn mount(stack: Arc<Stack>, path: &Path, label: &str) -> Result<MountedVolume, MountError> {
        let path = canonical(path);
        let device = mount_device(&path, label)?;
        let requests = Arc::new(Requests::default());
        let (served, readers) = serve(stack.clone(), requests.clone(), device).map_err(|errno| {
            // Nothing answers there: leave the directory as it was.
            let _ = detach(&path);
            io(&path, "start the FUSE session")(errno)
        })?;
        let mounted = top(&path)?;
        raise_read_ahead(&mounted.device);
        Ok(MountedVolume { path, mount_id: mounted.id, stack, requests, readers, session: Mutex::new(Some(served)) })
    }

    /// The mount point.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is mounted.
    pub fn stack(&self) -> &Arc<Stack> {
        &self.stack
    }

    /// With [`Writes::Back`], has the kernel hand over what it holds of the pages that programs wrote until now; returns
    /// when it has. Called with no lock held that a worker may want.
    ///
    /// syncfs(2) would not do it: the kernel does not wait for the pages of a FUSE filesystem there. But every close of a
    /// file writes all of it back (fuse_flush in fs/fuse/file.c). What cannot be written is told to the programs that hold
    /// the file, and was never recorded.
    ///
    /// # Errors
    /// When the mount cannot be opened.
    pub fn write_back(&self) -> Result<(), MountError> {
        if self.stack.writes() == Writes::Through {
            return Ok(());
        }
        let root = std::fs::File::open(&self.path).map_err(|error| io(&self.path, "open")(errno_of(&error)))?;
        for key in self.stack.open_for_writing() {
            // A file that is gone meanwhile has nothing to hand over.
            drop(sys::open_by_handle_at(root.as_fd(), &handle_of(key), libc::O_RDONLY));
        }
        Ok(())
    }

    /// How many requests of each kind the kernel has sent so far.
    pub fn requests(&self) -> BTreeMap<&'static str, u64> {
        self.requests.all()
    }

    /// How many of them no worker served itself, because all that may wait for a disk were waiting.
    pub fn handed_over(&self) -> u64 {
        self.requests.handed_over()
    }

    /// How long the requests of each kind took so far.
    pub fn times(&self) -> Vec<OpTimes> {
        self.requests.times()
    }

    /// How many requests that change or read files began, and how many of them ended.
    pub fn progress(&self) -> (u64, u64) {
        self.requests.progress()
    }

    /// How many requests of the kernel were answered so far.
    pub fn answered(&self) -> u64 {
        let counts = self.requests.all();
        counts.iter().filter(|(kind, _)| **kind != "forget").map(|(_, count)| count).sum()
    }

    /// Whether requests are still served; false after an unmount by anyone.
    pub fn is_serving(&self) -> bool {
        let session = self.session.lock();
        session.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Whether the path leads to this mount; false after an unmount by anyone, also while users are left.
    pub fn is_in_place(&self) -> bool {
        sys::mount_at(&self.path).is_ok_and(|top| top.is_some_and(|mount| mount.id == self.mount_id))
    }

    /// Unmounts, and waits until the last request is answered. Calling it again after a lazy unmount waits for the users
    /// that were left.
    ///
    /// # Errors
    /// [`MountError::Busy`] when someone uses the mount and `how` is plain; [`MountError::NotOurs`] when the path
    /// shows another mount.
    pub fn unmount(&self, how: Unmount) -> Result<Unmounted, MountError> {
        if self.is_serving() {
            self.take_down(how)?;
        }
        match (self.wait(end_patience(how)), how) {
            (Unmounted::InUse, Unmount::Plain) => Err(MountError::StillServing { path: self.path.clone() }),
            (outcome, _) => Ok(outcome),
        }
    }

    fn take_down(&self, how: Unmount) -> Result<(), MountError> {
        let top = sys::mount_at(&self.path).map_err(io(&self.path, "read mountinfo"))?;
        match (top, how) {
            (Some(mount), _) if mount.id == self.mount_id => {}
            // A lazy unmount that is still in use: only waiting is left.
            (_, Unmount::Lazy) => return Ok(()),
            _ => {
                return Err(MountError::NotOurs { path: self.path.clone() });
            }
        }
        let flags = match how {
            Unmount::Plain => libc::UMOUNT_NOFOLLOW,
            Unmount::Lazy => libc::UMOUNT_NOFOLLOW | libc::MNT_DETACH,
        };
        sys::unmount(&c_path(&self.path)?, flags).map_err(|errno| match errno {
            Errno::EBUSY => MountError::Busy { path: self.path.clone() },
            errno => io(&self.path, "umount")(errno),
        })?;
        detach_dead(&self.path)
    }

    /// Waits until no request will come any more, at most for `patience`.
    pub fn wait(&self, patience: Duration) -> Unmounted {
        let deadline = Instant::now() + patience;
        while self.is_serving() {
            if Instant::now() >= deadline {
                return Unmounted::InUse;
            }
            if let Some(readers) = self.readers.upgrade() {
                readers.look_for_end();
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        if let Some(thread) = self.session.lock().take() {
            // The thread catches its own panics; there is nothing to learn from how it ended.
            let _ = thread.join();
        }
        Unmounted::Ended
    }
}

/// A lazy unmount does not wait for users, only for requests that are about to be answered.
fn end_patience(how: Unmount) -> Duration {
    match how {
        Unmount::Plain => END_PATIENCE,
        Unmount::Lazy => Duration::from_millis(200),
    }
}

fn mount_device(path: &Path, label: &str) -> Result<OwnedFd, MountError> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .map_err(|error| io(path, "open /dev/fuse")(errno_of(&error)))?;
    // No nosuid, no nodev: programs must find the directory as it was.
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other,subtype=dtfs",
        device.as_raw_fd()
    );
    let text = |text: String| CString::new(text).map_err(|_| io(path, "mount")(Errno::EINVAL));
    let (source, options) = (text(format!("dtfs:{label}"))?, text(options)?);
    sys::mount_fuse(&source, &c_path(path)?, &options).map_err(io(path, "mount"))?;
    Ok(device.into())
}

/// The thread that serves a mount, and its workers.
type Served = (JoinHandle<()>, Weak<Readers>);

/// Answers the kernel's first request, then serves the rest from threads of its own.
fn serve(stack: Arc<Stack>, requests: Arc<Requests>, device: OwnedFd) -> Result<Served, Errno> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut config = Config::default();
    config.acl = SessionACL::All;
    // More than cores: a request waits in the backing filesystem, and others must go on.
    let workers = (4 * cores).max(8);
    config.n_threads = Some(workers);
    let readers = Arc::new(Readers::new(device.try_clone().map_err(|error| errno_of(&error))?, workers));
    let weak = Arc::downgrade(&readers);
    let thread = readers.watch().map_err(|error| errno_of(&error))?;
    let watching = Watching { readers, thread: Some(thread) };
    config.clone_fd = true;
    let waiting = Waiting::new(workers).map_err(|error| errno_of(&error))?;
    let session = Session::from_fd(Adapter { stack, requests, waiting, watching }, device, SessionACL::All, config)
        .map_err(|error| errno_of(&error))?;
    let thread = std::thread::Builder::new()
        .name("fuse-session".to_owned())
        .spawn(move || {
            if let Err(error) = session.run() {
                tracing::error!(%error, "the FUSE session ended with an error");
            }
        })
        .map_err(|error| errno_of(&error))?;
    Ok((thread, weak))
}

/// The kernel caps the read-ahead that INIT agrees on by the device's own setting. Only speed depends on it.
fn raise_read_ahead(device: &str) {
    let path = format!("/sys/class/bdi/{device}/read_ahead_kb");
    if let Err(error) = std::fs::write(&path, READ_AHEAD_KB) {
        tracing::debug!(%error, path, "read-ahead not raised");
    }
}

/// What the kernel calls this object in file handles of the mount: FILEID_INO64_GEN (fuse_encode_fh in fs/fuse/inode.c).
fn handle_of(key: ObjectKey) -> RawHandle {
    const FILEID_INO64_GEN: i32 = 0x81;
    let words = [(key.ino >> 32) as u32, key.ino as u32, key.generation];
    let mut bytes = [0; 12];
    for (place, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(words) {
        *place = word.to_ne_bytes();
    }
    RawHandle::of(FILEID_INO64_GEN, bytes)
}

/// Whether a FUSE mount lies at `path` that nobody serves any more.
pub fn dead_mount_at(path: &Path) -> bool {
    let path = &canonical(path);
    let is_fuse = sys::mount_at(path).is_ok_and(|top| top.is_some_and(|mount| mount.kind.starts_with("fuse")));
    is_fuse && sys::is_dead(path)
}

/// Takes the topmost mount at `path` out of sight.
///
/// # Errors
/// [`MountError::Io`].
pub fn detach(path: &Path) -> Result<(), MountError> {
    let flags = libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW;
    sys::unmount(&c_path(path)?, flags).map_err(io(path, "umount"))
}

/// Takes the dead mounts at `path` out of sight, if there are any; then the directory below them is seen.
///
/// # Errors
/// [`MountError::Io`].
pub fn detach_dead(path: &Path) -> Result<(), MountError> {
    while dead_mount_at(path) {
        detach(path)?;
    }
    Ok(())
}

/// `path` as the mount table and /proc show it. The last component is not looked at: a dead mount there answers nothing.
pub fn canonical(path: &Path) -> PathBuf {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return path.to_owned();
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    match parent.canonicalize() {
        Ok(parent) => parent.join(name),
        Err(_) => path.to_owned(),
    }
}

fn top(path: &Path) -> Result<sys::Mount, MountError> {
    sys::mount_at(path)
        .map_err(io(path, "read mountinfo"))?
        .ok_or_else(|| io(path, "find the mount in mountinfo")(Errno::ENOENT))
}

fn io(path: &Path, what: &'static str) -> impl FnOnce(Errno) -> MountError {
    let path = path.to_owned();
    move |errno| MountError::Io { path, what, errno }
}

fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

fn c_path(path: &Path) -> Result<CString, MountError> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io(path, "mount")(Errno::EINVAL))
}
