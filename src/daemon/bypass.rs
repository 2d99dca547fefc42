//! Who writes below a volume's path past its mount: seen by fanotify on the mount that the volume's mount hides.
//!
//! A process that stands in the bare directory since before the mount opens files there by relative paths, and closes
//! them again between two looks at /proc. Our own descriptors are on a private clone of that mount, so nothing that comes
//! through the volume's mount is seen here.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;

use crate::backing::TreeView;
use crate::base::Oid;
use crate::stack::Stack;
use crate::sys;

/// How often the events are taken out of the kernel's queue, which holds 16384.
const DRAIN_EVERY: Duration = Duration::from_millis(250);
/// More objects than this are not told apart any more: everything is compared.
const MOST: usize = 65_536;

/// What was written past the mount.
#[derive(Default, Debug, PartialEq, Eq)]
pub(super) struct Noted {
    /// The objects.
    pub(super) objects: BTreeSet<Oid>,
    /// Directories on the way to them: an object, or one of these, may be new.
    pub(super) dirs: BTreeSet<Oid>,
    /// Events were lost, or there were too many: anything may have been written.
    pub(super) anything: bool,
}

impl Noted {
    pub(super) fn is_empty(&self) -> bool {
        *self == Noted::default()
    }
}

/// A mount that is watched before a volume's mount hides it.
pub(super) struct Watch {
    events: OwnedFd,
    path: PathBuf,
}

impl Watch {
    /// Starts to watch the mount that `path` is reached by; to be called before the volume is mounted there.
    pub(super) fn on(path: &Path) -> std::io::Result<Watch> {
        let events = sys::watch_mount(File::open(path)?.as_fd())?;
        Ok(Watch { events, path: path.to_owned() })
    }
}

/// A watch whose events are taken, on a thread of its own, until this is dropped.
pub(super) struct Bypass {
    shared: Arc<Shared>,
    /// Dropped first: that ends the thread.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    watch: Watch,
    stack: Arc<Stack>,
    /// Protects what was noted. Rank: a leaf but for the node look-ups of the backing filesystem; held while the events
    /// are taken, so that none is between queue and note when someone asks.
    noted: Mutex<Noted>,
}

impl Bypass {
    /// Takes the events of `watch`; the objects are those of `stack`.
    pub(super) fn start(watch: Watch, stack: Arc<Stack>) -> std::io::Result<Bypass> {
        let shared = Arc::new(Shared { watch, stack, noted: Mutex::default() });
        let (stop, stopped) = bounded(0);
        let own = shared.clone();
        let thread = std::thread::Builder::new().name("bypass".into()).spawn(move || own.run(&stopped))?;
        Ok(Bypass { shared, stop: Some(stop), thread: Some(thread) })
    }

    /// What was written since the last call, up to now.
    pub(super) fn take(&self) -> Noted {
        let mut noted = self.shared.noted.lock();
        self.shared.drain(&mut noted);
        std::mem::take(&mut noted)
    }

    /// Whether nothing was written since the last [`Bypass::take`].
    pub(super) fn is_quiet(&self) -> bool {
        self.shared.noted.lock().is_empty()
    }
}

impl Drop for Bypass {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self, stop: &Receiver<()>) {
        while stop.recv_timeout(DRAIN_EVERY) == Err(RecvTimeoutError::Timeout) {
            self.drain(&mut self.noted.lock());
        }
    }

    fn drain(&self, noted: &mut Noted) {
        loop {
            match sys::read_written(self.watch.events.as_fd()) {
                Ok(written) if written.is_empty() => return,
                Ok(written) => written.iter().for_each(|written| match &written.file {
                    Some(file) => self.note(file.as_fd(), noted),
                    None => noted.anything = true,
                }),
                Err(errno) => {
                    tracing::warn!(%errno, "what is written past the mount is not seen");
                    noted.anything = true;
                    return;
                }
            }
        }
    }

    /// The mount holds more than the tree: what counts is what was reached by a path below the volume's.
    fn note(&self, file: BorrowedFd<'_>, noted: &mut Noted) {
        let tree = self.stack.tree();
        let Some(shown) = sys::path_of(file) else { return };
        let Ok(below) = shown.strip_prefix(&self.watch.path) else { return };
        let Ok(found) = tree.found(file) else { return };
        if found.stat.nlink == 0 {
            return;
        }
        noted.objects.insert(self.stack.oid(found.key));
        noted.dirs.extend(below.ancestors().skip(1).filter_map(|dir| self.dir(dir)));
        if noted.objects.len() > MOST {
            *noted = Noted { anything: true, ..Noted::default() };
        }
    }

    /// The directory at `below` the root, by the names that it had a moment ago.
    fn dir(&self, below: &Path) -> Option<Oid> {
        let tree = self.stack.tree();
        let key = match below.as_os_str().as_bytes() {
            b"" => tree.root_key(),
            path => {
                let path = std::ffi::CString::new(path).ok()?;
                let dir = sys::openat2_beneath(tree.root(), &path, libc::O_PATH | libc::O_DIRECTORY, 0).ok()?;
                tree.key_of(dir.as_fd()).ok()?
            }
        };
        Some(self.stack.oid(key))
    }
}
