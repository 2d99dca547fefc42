//! One volume: its journal, its stack, its mount and its senders.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use super::scan::{Scan, ScanJob};
use super::watched::{Moment, Unwatched};
use crate::backing::{BackingError, Tree, TreeView};
use crate::config::{
    AccessTimes, Adoption, MountEntry, Paths, TargetEntry, TargetName, TargetUrl, VolumeFile, VolumeName,
};
use crate::control::{ExitCode, Failure};
use crate::fuse::{MountError, MountedVolume, Unmount, Unmounted};
use crate::journal::{Journal, JournalError, JournalOptions, LastStop, Level};
use crate::record::MAX_RECORD_BYTES;
use crate::sender::{SenderOptions, SenderThread};
use crate::stack::{AtimeMode, Stack, StackError, StackOptions};
use crate::wire::{Compression, connect_local};

/// An open volume.
pub(super) struct Volume {
    pub(super) name: VolumeName,
    pub(super) path: PathBuf,
    pub(super) journal: Arc<Journal>,
    paths: Paths,
    options: StackOptions,
    /// Protects what changes when the volume is mounted or its targets are edited. Rank: the first of the daemon's locks;
    /// held across mount, unmount and the start of a sender, never across a wait for a target.
    live: Mutex<Live>,
}

/// The parts of a volume that come and go.
pub(super) struct Live {
    stack: Arc<Stack>,
    pub(super) mounted: Option<MountedVolume>,
    unwatched: Changes,
    pub(super) senders: BTreeMap<TargetName, SenderThread>,
}

/// What is known of changes that were made while the volume was not mounted.
enum Changes {
    /// They may be there, and nobody looks.
    Unknown,
    /// They are looked for.
    Scanned(Scan),
    /// All of them are work, or there are none.
    Queued,
}

impl Changes {
    fn are_queued(&self) -> bool {
        match self {
            Changes::Unknown => false,
            Changes::Scanned(scan) => scan.is_done(),
            Changes::Queued => true,
        }
    }
}

impl Live {
    /// Whether everything that was changed while the volume was not mounted is queued as work. Before that no target is
    /// consistent at any TID.
    pub(super) fn is_scanned(&self) -> bool {
        self.unwatched.are_queued()
    }
}

/// Why a volume cannot be opened or mounted.
#[derive(Debug, thiserror::Error)]
pub(super) enum VolumeError {
    #[error(transparent)]
    Backing(#[from] BackingError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Stack(#[from] StackError),
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error("{path}: {cause}")]
    Io {
        /// The directory.
        path: PathBuf,
        cause: std::io::Error,
    },
}

impl From<VolumeError> for Failure {
    fn from(error: VolumeError) -> Failure {
        let code = match &error {
            VolumeError::Backing(BackingError::InnerMounts { .. } | BackingError::Unsupported { .. }) => {
                ExitCode::Refused
            }
            VolumeError::Mount(MountError::Busy { .. }) | VolumeError::Journal(JournalError::Busy { .. }) => {
                ExitCode::Busy
            }
            _ => ExitCode::Failed,
        };
        let failure = Failure::new(code, &error);
        match &error {
            VolumeError::Mount(MountError::Busy { .. }) => {
                failure.with_remedy("end the programs that use it (fuser -vm shows them), or unmount with --lazy")
            }
            VolumeError::Backing(BackingError::InnerMounts { .. }) => {
                failure.with_remedy("unmount them first, and mount them again on top")
            }
            _ => failure,
        }
    }
}

impl Volume {
    /// Opens the journal and the tree of `entry`, and starts the senders of its targets.
    pub(super) fn open(paths: &Paths, entry: &MountEntry, file: &VolumeFile) -> Result<Arc<Volume>, VolumeError> {
        let options = StackOptions {
            atime: match entry.options.access_times {
                AccessTimes::Atime => AtimeMode::EachRead,
                AccessTimes::NoRepAtime => AtimeMode::AtClose,
            },
            ..StackOptions::default()
        };
        // A crashed daemon leaves a mount that answers nothing: the directory below it is what counts.
        if crate::fuse::dead_mount_at(&entry.path) {
            crate::fuse::detach(&entry.path)?;
        }
        let tree = Tree::open(&entry.path)?;
        let store = entry.options.store.clone().unwrap_or_else(|| paths.volume_state(&entry.volume));
        let (journal, last_stop) = open_journal(&store, file)?;
        let io = |cause| VolumeError::Io { path: entry.path.clone(), cause };
        if last_stop != LastStop::Clean {
            // Everything is compared, or mirrored, by readings from now on.
            Moment::now().map_err(io)?.store(journal.store())?;
        }
        let unwatched = if last_stop == LastStop::New { Changes::Queued } else { Changes::Unknown };
        let stack = Stack::new(tree, journal.clone(), options)?;
        let live = Live { stack, mounted: None, unwatched, senders: BTreeMap::new() };
        let volume = Arc::new(Volume {
            name: entry.volume.clone(),
            path: entry.path.clone(),
            journal,
            paths: paths.clone(),
            options,
            live: Mutex::new(live),
        });
        volume.tell(&last_stop);
        volume.set_targets(&file.targets)?;
        Ok(volume)
    }

    fn tell(&self, last_stop: &LastStop) {
        if let LastStop::Unclean { reason } = last_stop {
            tracing::warn!(volume = %self.name, %reason, "not stopped cleanly: every target is compared");
            let text = format!("not stopped cleanly ({reason}): every target is compared");
            let _ = self.journal.store().event(Level::Warning, None, &text);
        }
    }

    pub(super) fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock()
    }

    /// Mounts the volume; false when it was mounted already.
    pub(super) fn mount(&self, file: &VolumeFile) -> Result<bool, VolumeError> {
        let mut live = self.live.lock();
        match &live.mounted {
            Some(mounted) if mounted.is_serving() => return Ok(false),
            Some(_) => {
                // Its session ended without our doing: an operator's umount, or an abort.
                live.mounted = None;
                self.renew(&mut live, file)?;
            }
            None => {}
        }
        let mounted = MountedVolume::mount(live.stack.clone(), &self.path, self.name.as_str())?;
        live.mounted = Some(mounted);
        self.look_for_changes(&mut live)?;
        Ok(true)
    }

    /// Starts looking for what was changed while the volume was not mounted; from now on nothing goes by unseen.
    fn look_for_changes(&self, live: &mut Live) -> Result<(), VolumeError> {
        live.unwatched = Changes::Unknown;
        let mounted = self.moment()?;
        let unwatched = match Moment::load(self.journal.store())? {
            Some(moment) => moment.until(&mounted),
            None => Unwatched::Anywhere("it is not known when the volume was unmounted"),
        };
        let job = ScanJob {
            name: self.name.clone(),
            journal: self.journal.clone(),
            stack: live.stack.clone(),
            unwatched,
            mounted,
            suspects: Vec::new(),
            nudges: live.senders.values().map(SenderThread::nudge).collect(),
        };
        let io = |cause| VolumeError::Io { path: self.path.clone(), cause };
        live.unwatched = Changes::Scanned(Scan::start(job).map_err(io)?);
        Ok(())
    }

    /// The time up to which everything went through the mount, right before it is taken down; `None` when somebody else
    /// took it out of the way at a time that nobody knows.
    fn last_watched(&self, mounted: &MountedVolume) -> Result<Option<Moment>, VolumeError> {
        let moment = self.moment()?;
        Ok(mounted.is_in_place().then_some(moment))
    }

    /// Writes down that everything up to `moment` went through the mount. While it is not known what happened before the
    /// mount, the next scan starts where this one did.
    fn end_of_watch(&self, live: &mut Live, moment: Option<Moment>) -> Result<(), VolumeError> {
        let queued = live.unwatched.are_queued();
        live.unwatched = Changes::Unknown;
        if let (true, Some(moment)) = (queued, moment) {
            moment.store(self.journal.store())?;
            live.unwatched = Changes::Queued;
        }
        Ok(())
    }

    fn moment(&self) -> Result<Moment, VolumeError> {
        Moment::now().map_err(|cause| VolumeError::Io { path: self.path.clone(), cause })
    }

    /// Unmounts the volume; false when it was not mounted. The senders go on.
    pub(super) fn unmount(&self, how: Unmount, file: &VolumeFile) -> Result<bool, VolumeError> {
        let mut live = self.live.lock();
        let Some(mounted) = &live.mounted else { return Ok(false) };
        let moment = self.last_watched(mounted)?;
        let left = mounted.unmount(how)?;
        self.end_of_watch(&mut live, moment)?;
        if left == Unmounted::Ended {
            live.mounted = None;
            self.renew(&mut live, file)?;
        }
        Ok(true)
    }

    /// A mount that ended leaves nodes that the kernel never gave back: the next one gets a stack of its own, and the
    /// senders with it, because they share its locks.
    fn renew(&self, live: &mut Live, file: &VolumeFile) -> Result<(), VolumeError> {
        live.senders.clear();
        live.stack = Stack::new(Tree::open(&self.path)?, self.journal.clone(), self.options)?;
        self.start_senders(live, &file.targets)
    }

    /// Makes the running senders those of `targets`: new ones start, those that are no longer named stop.
    pub(super) fn set_targets(&self, targets: &[TargetEntry]) -> Result<(), VolumeError> {
        let mut live = self.live.lock();
        live.senders.retain(|name, _| targets.iter().any(|target| target.name == *name));
        let store = self.journal.store();
        for row in store.targets()? {
            if !targets.iter().any(|target| target.name.as_str() == row.name) {
                store.target_remove(row.id)?;
            }
        }
        self.start_senders(&mut live, targets)
    }

    fn start_senders(&self, live: &mut Live, targets: &[TargetEntry]) -> Result<(), VolumeError> {
        for target in targets.iter().filter(|target| !live.senders.contains_key(&target.name)).collect::<Vec<_>>() {
            let store = self.journal.store();
            let id = match store.target(target.name.as_str())? {
                Some(row) => row.id,
                None => store.target_add(target.name.as_str(), &target.url.to_string())?,
            };
            let options = SenderOptions {
                target: id,
                label: self.name.to_string(),
                connect: self.connect(target),
                compression: LOCAL_COMPRESSION,
            };
            let view: Arc<dyn TreeView> = live.stack.clone();
            let sender = SenderThread::spawn(self.journal.clone(), view, options)
                .map_err(|cause| VolumeError::Io { path: self.path.clone(), cause })?;
            live.senders.insert(target.name.clone(), sender);
        }
        Ok(())
    }

    fn connect(&self, target: &TargetEntry) -> crate::sender::Connect {
        let root = self.paths.root().map(Path::to_owned);
        let (url, adoption) = (target.url.clone(), target.adoption);
        Box::new(move || {
            let program = std::fs::read_link("/proc/self/exe")?;
            let global: Vec<&std::ffi::OsStr> = match &root {
                Some(root) => vec!["--root".as_ref(), root.as_os_str()],
                None => Vec::new(),
            };
            let extra: &[&str] = if adoption == Adoption::Allow { &["--adopt"] } else { &[] };
            let TargetUrl::Local(dir) = &url;
            connect_local(&program, &global, dir, extra)
        })
    }

    /// Makes everything up to now durable, in the tree and in the journal; returns the last TID.
    pub(super) fn synctid(&self) -> Result<crate::base::Tid, VolumeError> {
        let stack = self.live.lock().stack.clone();
        let tid = self.journal.last_tid();
        stack.tree().sync().map_err(|errno| {
            stack.fail("syncfs failed");
            VolumeError::Io { path: self.path.clone(), cause: errno.into() }
        })?;
        self.journal.commit(tid)?;
        Ok(tid)
    }

    /// Ends everything: no new ops, senders finished, journal clean.
    pub(super) fn close(&self) -> Result<(), VolumeError> {
        const HELD_OPEN: Duration = Duration::from_secs(1);
        let mut live = self.live.lock();
        if let Some(mounted) = live.mounted.take() {
            let moment = self.last_watched(&mounted)?;
            if let Err(error) = mounted.unmount(Unmount::Plain) {
                tracing::warn!(volume = %self.name, %error, "unmounting lazily: programs that use it will get ENOTCONN");
                mounted.unmount(Unmount::Lazy)?;
                let _ = mounted.wait(HELD_OPEN);
            }
            self.end_of_watch(&mut live, moment)?;
        }
        live.unwatched = Changes::Unknown;
        live.senders.clear();
        Ok(self.journal.close_clean()?)
    }
}

/// A pipe on one host is faster than compressing, except for small frames, which are mostly names and attributes.
const LOCAL_COMPRESSION: Compression = Compression::Zstd { level: 1, max_bytes: 64 << 10 };

fn open_journal(store: &Path, file: &VolumeFile) -> Result<(Arc<Journal>, LastStop), VolumeError> {
    std::fs::create_dir_all(store).map_err(|cause| VolumeError::Io { path: store.to_owned(), cause })?;
    let cap_bytes = match file.journal_cap {
        Some(size) => size.0,
        None => default_cap(store)?,
    };
    // A handful of segments below the cap, each large enough for any record.
    let most = JournalOptions::default().segment_bytes;
    let segment_bytes = (cap_bytes / 8).clamp(4 * MAX_RECORD_BYTES as u64, most) / 4096 * 4096;
    let options = JournalOptions { cap_bytes, segment_bytes, ..JournalOptions::default() };
    Ok(Journal::open(store, options)?)
}

/// The smaller of 8 GiB and a tenth of the filesystem that holds the journal.
fn default_cap(store: &Path) -> Result<u64, VolumeError> {
    let io = |cause| VolumeError::Io { path: store.to_owned(), cause };
    let dir = std::fs::File::open(store).map_err(io)?;
    let stat = crate::sys::fstatfs(std::os::fd::AsFd::as_fd(&dir)).map_err(|errno| io(errno.into()))?;
    Ok((stat.blocks * u64::from(stat.fragment_size) / 10).min(8 << 30))
}

impl Volume {
    /// Stops replicating to a target and forgets its place.
    pub(super) fn forget_target(&self, name: &TargetName) -> Result<(), VolumeError> {
        let mut live = self.live.lock();
        live.senders.remove(name);
        let store = self.journal.store();
        if let Some(row) = store.target(name.as_str())? {
            store.target_remove(row.id)?;
        }
        Ok(self.journal.trim()?)
    }

    /// Whether the target holds the tree as it was at `tid`: everything up to there is applied, and no older work is left.
    pub(super) fn is_consistent(&self, name: &TargetName, tid: crate::base::Tid) -> Result<bool, VolumeError> {
        let store = self.journal.store();
        let Some(row) = store.target(name.as_str())? else { return Ok(false) };
        let live = self.live.lock();
        let blocked = live.senders.get(name).is_some_and(|sender| sender.status().blocked > 0);
        let scanned = live.is_scanned();
        drop(live);
        Ok(scanned && row.mirrored && row.applied >= tid && !blocked && store.work_count_upto(row.id, tid)? == 0)
    }

    /// Asks the target to make durable what it has.
    pub(super) fn flush_target(&self, name: &TargetName) {
        if let Some(sender) = self.live.lock().senders.get(name) {
            sender.flush();
        }
    }

    /// Waits for news of the target, at most `timeout`.
    pub(super) fn wait_for_target(&self, name: &TargetName, timeout: Duration) {
        let waiter = self.live.lock().senders.get(name).map(SenderThread::waiter);
        match waiter {
            Some(waiter) => waiter.wait(timeout),
            None => std::thread::sleep(timeout),
        }
    }
}
