//! One volume: its journal, its stack, its mount and its senders.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use super::bypass::{Bypass, Watch};
use super::memory::memory_file;
use super::unwatched::{Changes, Suspects};
use super::watched::Moment;
use crate::backing::{BackingError, Tree, TreeView};
use crate::base::{Rules, Tid};
use crate::config::{
    AccessTimes, Activity, Adoption, Bandwidth, ByteSize, Delay, JournalFull, MountEntry, MountOptions, OpenFiles,
    Paths, Submounts, TargetEntry, TargetName, TargetUrl, VolumeFile, VolumeName,
};
use crate::control::{ExitCode, Failure, Holders, Objects, Opener, look_below};
use crate::fuse::{MountError, MountedVolume, Unmount, Unmounted};
use crate::journal::{AWAITED, Journal, JournalError, JournalOptions, LastStop, Level, TargetId, WhenFull};
use crate::record::MAX_RECORD_BYTES;
use crate::sender::{Forked, Rate, SenderOptions, SenderStatus, SenderThread};
use crate::stack::{AtimeMode, Stack, StackError, StackOptions, Writes};
use crate::wire::Compression;

/// An open volume.
pub(super) struct Volume {
    pub(super) name: VolumeName,
    pub(super) path: PathBuf,
    pub(super) journal: Arc<Journal>,
    paths: Paths,
    /// Where the journal lies.
    pub(super) store_dir: PathBuf,
    options: StackOptions,
    submounts: Submounts,
    /// The entry and the settings that it was opened with.
    opened_with: (MountOptions, Option<ByteSize>, JournalFull),
    /// Protects what changes when the volume is mounted or its targets are edited. Rank: the first of the daemon's locks;
    /// held across mount, unmount and the start of a sender, never across a wait for a target.
    live: Mutex<Live>,
}

/// The parts of a volume that come and go.
pub(super) struct Live {
    pub(super) stack: Arc<Stack>,
    pub(super) mounted: Option<Arc<MountedVolume>>,
    /// Mounts that were taken out of sight while somebody used them: what their users do is still journaled.
    detached: Vec<Arc<MountedVolume>>,
    /// The stack has served a mount that has ended, or ends when its users leave.
    used: bool,
    pub(super) unwatched: Changes,
    pub(super) suspects: Suspects,
    /// While somebody stands behind the mount.
    pub(super) bypass: Option<Bypass>,
    pub(super) senders: BTreeMap<TargetName, SenderThread>,
    /// Those of them that a command runs, and not the volume's file.
    runs: BTreeSet<TargetName>,
    /// What each sender was started with.
    pub(super) entries: BTreeMap<TargetName, TargetEntry>,
    /// Targets that nothing is sent to for now.
    pub(super) paused: Vec<TargetName>,
    /// What of the tree the targets get.
    rules: Arc<Rules>,
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
    #[error("{path}: in use by {}", list(.holders))]
    InUse {
        /// The mount point.
        path: PathBuf,
        holders: Holders,
    },
    #[error("{path}: files below it are open for writing, or may be, and what is written to them would not be seen: {}",
        list(&writers(.holders)))]
    OpenFiles {
        /// The directory.
        path: PathBuf,
        holders: Holders,
    },
    #[error("{path} is a copy of another source: what is written here would not be known there")]
    IsCopy {
        /// The directory.
        path: PathBuf,
    },
    #[error("target {target} is served already, by {}", if *.by_command { "another command" } else { "the daemon" })]
    Running { target: TargetName, by_command: bool },
    #[error("{path}: {cause}")]
    Io {
        /// The directory.
        path: PathBuf,
        cause: std::io::Error,
    },
}

/// How a mount went.
pub(super) enum Mounting {
    /// It was there.
    Already,
    /// It is there now; who holds what below the path from before.
    New { holders: Holders },
}

/// Each process once.
fn list(holders: &Holders) -> String {
    let name = |(pid, command): (u32, &str)| format!("pid {pid} ({command})");
    let names: BTreeMap<u32, &str> =
        holders.openers.iter().map(|opener| (opener.pid, opener.command.as_str())).collect();
    let mut names: Vec<String> = names.into_iter().map(name).collect();
    names.extend(holders.unseen.iter().map(ToString::to_string));
    if names.is_empty() { "somebody /proc does not show".to_owned() } else { names.join(", ") }
}

fn writers(holders: &Holders) -> Holders {
    let mut writers = holders.clone();
    writers.openers.retain(|opener: &Opener| opener.writes);
    writers
}

/// Who holds files at or below `path`.
pub(super) fn holders_below(path: &Path) -> Holders {
    let dev = std::fs::symlink_metadata(path).map(|root| std::os::unix::fs::MetadataExt::dev(&root));
    dev.map(|dev| look_below(dev, path, Objects::Named).holders()).unwrap_or_default()
}

impl VolumeError {
    /// Who stands in the way.
    pub(super) fn holders(&self) -> Holders {
        match self {
            VolumeError::InUse { holders, .. } | VolumeError::OpenFiles { holders, .. } => holders.clone(),
            _ => Holders::default(),
        }
    }
}

impl From<VolumeError> for Failure {
    fn from(error: VolumeError) -> Failure {
        let code = match &error {
            VolumeError::Backing(BackingError::InnerMounts { .. } | BackingError::Unsupported { .. }) => {
                ExitCode::Refused
            }
            VolumeError::OpenFiles { .. } | VolumeError::IsCopy { .. } => ExitCode::Refused,
            VolumeError::InUse { .. } | VolumeError::Running { .. } => ExitCode::Busy,
            VolumeError::Mount(MountError::Busy { .. }) | VolumeError::Journal(JournalError::Busy { .. }) => {
                ExitCode::Busy
            }
            _ => ExitCode::Failed,
        };
        let failure = Failure::new(code, &error);
        match &error {
            VolumeError::InUse { .. } | VolumeError::Mount(MountError::Busy { .. }) => {
                failure.with_remedy("end the programs that use it, or unmount with --lazy")
            }
            VolumeError::OpenFiles { .. } => failure.with_remedy(
                "end these programs, or mount with --allow-open: then the files are compared until they are closed, and \
                 everything once when a program that could not be looked into has gone on or ended",
            ),
            VolumeError::Backing(BackingError::InnerMounts { .. }) => failure.with_remedy(
                "unmount them first, and mount them again on top; or choose submounts=ignore: they stay out",
            ),
            VolumeError::IsCopy { .. } => failure
                .with_remedy("make it a master with dtfs promote, or take the entry away with dtfs forget volume"),
            VolumeError::Running { by_command: true, .. } => {
                failure.with_remedy("one session to a target at a time: end the other one")
            }
            VolumeError::Running { by_command: false, .. } => {
                failure.with_remedy("it is kept up to date all the time; dtfs wait waits until it has everything")
            }
            _ => failure,
        }
    }
}

/// The tree at `path`, and the filesystems mounted below that its mount will hide.
fn open_tree(path: &Path, submounts: Submounts) -> Result<(Tree, Vec<PathBuf>), BackingError> {
    match submounts {
        Submounts::Refuse => Tree::open(path).map(|tree| (tree, Vec::new())),
        Submounts::Ignore => Tree::open_below_mounts(path),
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
            writes: match entry.options.writes {
                crate::config::Writes::Through => Writes::Through,
                crate::config::Writes::Back => Writes::Back,
            },
            ..StackOptions::default()
        };
        let (tree, hidden) = open_tree(&entry.path, entry.options.submounts)?;
        if crate::sys::openat2_beneath(tree.root(), c".dtfs/id", libc::O_PATH, 0).is_ok() {
            return Err(VolumeError::IsCopy { path: entry.path.clone() });
        }
        let store = store_of(paths, entry);
        let io = |cause| VolumeError::Io { path: entry.path.clone(), cause };
        // A mount that lies dead over the tree is there since the daemon died.
        let covered = crate::sys::is_dead(&entry.path);
        let (journal, last_stop) = open_journal(paths, entry, file)?;
        let stack = Stack::new(tree, journal.clone(), options)?;
        super::unwatched::remember_inodes(&stack, &store, &journal);
        if starts_watch(&last_stop, covered) {
            Moment::now().map_err(io)?.store(journal.store())?;
        }
        let unwatched = if last_stop == LastStop::New { Changes::Queued } else { Changes::Unknown };
        let live = Live {
            stack,
            mounted: None,
            detached: Vec::new(),
            used: false,
            unwatched,
            suspects: Suspects::default(),
            bypass: None,
            senders: BTreeMap::new(),
            runs: BTreeSet::new(),
            entries: BTreeMap::new(),
            paused: Vec::new(),
            rules: Arc::new(file.rules.clone()),
        };
        let volume = Arc::new(Volume {
            name: entry.volume.clone(),
            path: entry.path.clone(),
            journal,
            paths: paths.clone(),
            store_dir: store,
            options,
            submounts: entry.options.submounts,
            opened_with: (entry.options.clone(), file.journal_cap, file.journal_full),
            live: Mutex::new(live),
        });
        volume.tell(&last_stop);
        volume.tell_hidden(&hidden);
        volume.set_targets(file)?;
        Ok(volume)
    }

    fn tell(&self, last_stop: &LastStop) {
        match last_stop {
            LastStop::New | LastStop::Clean => {}
            LastStop::Killed { records, objects } => {
                tracing::warn!(volume = %self.name, records, objects, "killed: what was under way is compared");
            }
            LastStop::PowerLoss { suspects, epoch } => {
                tracing::warn!(volume = %self.name, suspects, %epoch, "power loss: what is in doubt is compared");
            }
            LastStop::Damaged { reason } => {
                tracing::warn!(volume = %self.name, %reason, "the journal is damaged: every target is compared");
            }
        }
    }

    /// The operator chose that they do not count; what they hold is still not to be missed in silence.
    fn tell_hidden(&self, hidden: &[PathBuf]) {
        if hidden.is_empty() {
            return;
        }
        let list = hidden.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
        tracing::warn!(volume = %self.name, %list, "filesystems mounted below the path are not part of the volume");
        let text = format!("not part of the volume, and hidden by its mount: {list}");
        let _ = self.journal.store().event(Level::Warning, None, &text);
    }

    pub(super) fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock()
    }

    /// Mounts the volume. What is open for writing below the path then refuses it, or makes the volume bypass-suspect.
    pub(super) fn mount(&self, file: &VolumeFile, open_files: OpenFiles) -> Result<Mounting, VolumeError> {
        // Mounts and unmounts come one after the other (`Volumes::changing`), so what is found here holds until the mount.
        let Some(stack) = self.make_ready(file)? else { return Ok(Mounting::Already) };
        let before = self.look_behind(&stack);
        if open_files == OpenFiles::Refuse && before.holders().may_write() {
            return Err(VolumeError::OpenFiles { path: self.path.clone(), holders: before.holders() });
        }
        // From before the mount, so that nothing falls between this and the second look.
        let watch = Watch::on(&crate::fuse::canonical(&self.path))
            .inspect_err(|error| tracing::info!(volume = %self.name, %error, "writes past the mount are not watched"))
            .ok();
        let mut live = self.live.lock();
        live.mounted = Some(Arc::new(MountedVolume::mount(stack.clone(), &self.path, self.name.as_str())?));
        self.look_for_changes(&mut live)?;
        self.suspect_first(&mut live, before)?;
        drop(live);
        // Again: a file that was opened right before the mount was in place.
        let look = self.look_behind(&stack);
        let holders = look.holders();
        self.watch(&stack, watch, &look);
        self.suspect(&stack, look)?;
        Ok(Mounting::New { holders })
    }

    /// The stack for a mount; `None` when the volume is mounted.
    fn make_ready(&self, file: &VolumeFile) -> Result<Option<Arc<Stack>>, VolumeError> {
        let mut live = self.live.lock();
        if live.mounted.as_ref().is_some_and(|mounted| mounted.is_serving() && mounted.is_in_place()) {
            self.look_for_changes_again(&mut live)?;
            return Ok(None);
        }
        // Taken down without our doing: an operator's umount, or an abort.
        let gone = live.mounted.take();
        live.used |= gone.is_some();
        live.detached.extend(gone);
        self.renew_used(&mut live, file)?;
        Ok(Some(live.stack.clone()))
    }

    /// Unmounts the volume; false when it was not mounted. The senders go on.
    pub(super) fn unmount(&self, how: Unmount, file: &VolumeFile) -> Result<bool, VolumeError> {
        self.check_suspects()?;
        match self.take_down(how, file) {
            // Who keeps it busy is looked for with no lock held.
            Err(VolumeError::Mount(MountError::Busy { .. })) => {
                let path = crate::fuse::canonical(&self.path);
                let holders = holders_below(&path);
                Err(VolumeError::InUse { path, holders })
            }
            done => done,
        }
    }

    fn take_down(&self, how: Unmount, file: &VolumeFile) -> Result<bool, VolumeError> {
        let mut live = self.live.lock();
        let Some(mounted) = &live.mounted else { return Ok(false) };
        let moment = self.last_watched(mounted)?;
        let left = mounted.unmount(how)?;
        self.end_of_watch(&mut live, moment)?;
        let mounted = live.mounted.take();
        live.used = true;
        if left == Unmounted::InUse {
            live.detached.extend(mounted);
        }
        self.renew_used(&mut live, file)?;
        Ok(true)
    }

    /// Gives the next mount a stack of its own, unless users of an earlier one are left: they must share its locks.
    fn renew_used(&self, live: &mut Live, file: &VolumeFile) -> Result<(), VolumeError> {
        live.detached.retain(|mounted| mounted.is_serving());
        if live.used && live.detached.is_empty() {
            self.renew(live, file)?;
            live.used = false;
        }
        Ok(())
    }

    /// A mount that ended leaves nodes that the kernel never gave back: the next one gets a stack of its own, and the
    /// senders with it, because they share its locks.
    fn renew(&self, live: &mut Live, file: &VolumeFile) -> Result<(), VolumeError> {
        live.senders.clear();
        live.runs.clear();
        // The new stack goes on with the same list; the old one has no more to say.
        live.stack.flush_inodes();
        let (tree, hidden) = open_tree(&self.path, self.submounts)?;
        live.stack = Stack::new(tree, self.journal.clone(), self.options)?;
        self.tell_hidden(&hidden);
        self.remember_inodes(&live.stack);
        live.rules = Arc::new(file.rules.clone());
        self.start_senders(live, &file.targets)
    }

    /// Whether files say something now that only counts when the volume is opened.
    pub(super) fn opened_otherwise(&self, entry: &MountEntry, file: &VolumeFile) -> bool {
        let now = (entry.options.clone(), file.journal_cap, file.journal_full);
        self.path != entry.path || self.opened_with != now
    }

    /// Whether the file has other rules than its targets are sent by.
    pub(super) fn has_other_rules(&self, file: &VolumeFile) -> bool {
        *self.live.lock().rules != file.rules
    }

    /// The targets that run, and where each is.
    pub(super) fn target_urls(&self) -> Result<BTreeMap<TargetName, String>, VolumeError> {
        let rows = self.journal.store().targets()?;
        Ok(rows.into_iter().filter_map(|row| Some((TargetName::new(&row.name).ok()?, row.url))).collect())
    }

    /// Makes the running senders those of `targets`: new ones start, those that are paused or no longer named stop, and those
    /// whose entry was changed start again, at their place in the journal. With other rules than before all do.
    pub(super) fn set_targets(&self, file: &VolumeFile) -> Result<(), VolumeError> {
        let targets = &file.targets[..];
        let mut live = self.live.lock();
        let Live { senders, entries, runs, rules, .. } = &mut *live;
        if **rules != file.rules {
            *rules = Arc::new(file.rules.clone());
            senders.clear();
            runs.clear();
        }
        senders.retain(|name, _| {
            let named = targets.iter().any(|target| target.name == *name && entries.get(name) == Some(target));
            named || runs.contains(name)
        });
        let store = self.journal.store();
        for row in store.targets()? {
            match targets.iter().find(|target| target.name.as_str() == row.name) {
                None if row.state == RUN || row.state == AWAITED => {}
                None => store.target_remove(row.id)?,
                Some(target) if target.url.to_string() != row.url => {
                    live.senders.remove(&target.name);
                    store.target_url(row.id, &target.url.to_string())?;
                }
                Some(_) => {}
            }
        }
        self.start_senders(&mut live, targets)
    }

    fn start_senders(&self, live: &mut Live, targets: &[TargetEntry]) -> Result<(), VolumeError> {
        let paused = targets.iter().filter(|target| target.activity == Activity::Paused);
        live.paused = paused.map(|target| target.name.clone()).collect();
        let running = targets.iter().filter(|target| target.activity == Activity::Running);
        for target in running.filter(|target| !live.senders.contains_key(&target.name)).collect::<Vec<_>>() {
            let store = self.journal.store();
            let id = match store.target(target.name.as_str())? {
                Some(row) => row.id,
                None => store.target_add(target.name.as_str(), &target.url.to_string())?,
            };
            if store.target_by_id(id)?.is_some_and(|row| row.state == RUN) {
                store.target_state(id, "active")?;
            }
            self.start_sender(live, id, target, rate(target.bandwidth.clone()))?;
            live.entries.insert(target.name.clone(), target.clone());
        }
        Ok(())
    }

    fn start_sender(&self, live: &mut Live, id: TargetId, target: &TargetEntry, rate: Rate) -> Result<(), VolumeError> {
        let options = SenderOptions {
            target: id,
            access_times: self.options.atime,
            label: self.name.to_string(),
            connect: self.connect(target),
            compression: match target.url {
                TargetUrl::Local(_) => LOCAL_COMPRESSION,
                _ => Compression::Adaptive,
            },
            rate,
            period: target.period.map(|seconds| Duration::from_secs(seconds.get().into())),
            orphans: Some(super::orphans::policy(target)),
            rules: live.rules.clone(),
            delay_seconds: target.delay.map_or(0, Delay::seconds),
            forked: match target.adoption {
                Adoption::Allow => Forked::Compare,
                Adoption::Refuse => Forked::Refuse,
            },
        };
        let view: Arc<dyn TreeView> = live.stack.clone();
        let sender = SenderThread::spawn(self.journal.clone(), view, options)
            .map_err(|cause| VolumeError::Io { path: self.path.clone(), cause })?;
        live.senders.insert(target.name.clone(), sender);
        Ok(())
    }

    /// Starts a session to `target` that a command wants; returns where the target is. Its row outlives the session, so
    /// that the next one goes on at its place.
    ///
    /// # Errors
    /// `Running` when there is a session to it already.
    pub(super) fn begin_run(&self, target: &TargetEntry, rate_bytes: Option<u64>) -> Result<Tid, VolumeError> {
        let mut live = self.live.lock();
        if live.senders.contains_key(&target.name) {
            let by_command = live.runs.contains(&target.name);
            return Err(VolumeError::Running { target: target.name.clone(), by_command });
        }
        let store = self.journal.store();
        let (id, applied) = match store.target(target.name.as_str())? {
            Some(row) => (row.id, row.applied),
            None => {
                let id = store.target_add(target.name.as_str(), &target.url.to_string())?;
                store.target_state(id, RUN)?;
                (id, Tid::ZERO)
            }
        };
        self.start_sender(&mut live, id, target, Box::new(move || rate_bytes))?;
        live.runs.insert(target.name.clone());
        Ok(applied)
    }

    /// Ends all sessions, and makes everything durable.
    pub(super) fn end_sessions(&self) -> Result<(), VolumeError> {
        let mut live = self.live.lock();
        live.senders.clear();
        live.runs.clear();
        Ok(live.stack.checkpoint()?)
    }

    /// Ends the session of a command.
    pub(super) fn end_run(&self, target: &TargetName) {
        let mut live = self.live.lock();
        let sender = live.runs.remove(target).then(|| live.senders.remove(target)).flatten();
        drop(live);
        drop(sender);
    }

    /// How a target's session stands; `None` when there is none.
    pub(super) fn sender_status(&self, target: &TargetName) -> Option<SenderStatus> {
        self.live.lock().senders.get(target).map(SenderThread::status)
    }

    fn connect(&self, target: &TargetEntry) -> crate::sender::Connect {
        let (paths, target) = (self.paths.clone(), target.clone());
        Box::new(move || super::connect::connect(&paths, &target))
    }

    /// Makes everything up to now durable, in the tree and in the journal; returns the last TID.
    pub(super) fn synctid(&self) -> Result<Tid, VolumeError> {
        self.write_back()?;
        let stack = self.live.lock().stack.clone();
        let tid = self.journal.last_tid();
        stack.tree().sync().map_err(|errno| {
            stack.fail("syncfs failed");
            VolumeError::Io { path: self.path.clone(), cause: errno.into() }
        })?;
        self.journal.commit(tid)?;
        Ok(tid)
    }

    /// Has the kernel hand over what it holds of programs' writes.
    pub(super) fn write_back(&self) -> Result<(), VolumeError> {
        let mounted = self.live.lock().mounted.clone();
        // The workers serve what comes of it, and nothing that they wait for is held here.
        match mounted.filter(|mounted| mounted.is_serving() && mounted.is_in_place()) {
            Some(mounted) => Ok(mounted.write_back()?),
            None => Ok(()),
        }
    }

    /// Ends the mount: no new ops; the senders go on. Programs that use it get errors from now on.
    pub(super) fn end_mount(&self) -> Result<(), VolumeError> {
        if let Err(error) = self.check_suspects() {
            tracing::warn!(volume = %self.name, %error, "files that were open before the mount are not compared");
        }
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
        Ok(())
    }

    /// Ends everything: no new ops, senders finished, journal clean.
    pub(super) fn close(&self) -> Result<(), VolumeError> {
        self.end_mount()?;
        let mut live = self.live.lock();
        live.detached.retain(|mounted| mounted.wait(HELD_OPEN) == Unmounted::InUse);
        live.unwatched = Changes::Unknown;
        live.senders.clear();
        // A clean stop says that nothing is in doubt, also when the system goes down right behind it.
        live.stack.checkpoint()?;
        Ok(self.journal.close_clean()?)
    }
}

/// Whether nothing can have been changed behind the journal since the last stop, other than what is queued already: then a
/// scan for such changes begins now. Nobody gets past a dead mount (ENOTCONN), and only a daemon replaces it; a tree of which
/// everything is compared, or mirrored, is read from now on. Otherwise the scan begins where the volume was last known to be
/// watched, and finds what went through the mount since then a second time.
fn starts_watch(last_stop: &LastStop, covered: bool) -> bool {
    match last_stop {
        LastStop::Clean => false,
        LastStop::Killed { .. } | LastStop::PowerLoss { .. } => covered,
        LastStop::New | LastStop::Damaged { .. } => true,
    }
}

/// State of a target's row that no file names: the sessions of commands go on at its place.
const RUN: &str = "run";

/// Where the journal of `entry` lies.
fn store_of(paths: &Paths, entry: &MountEntry) -> PathBuf {
    entry.options.store.clone().unwrap_or_else(|| paths.volume_state(&entry.volume))
}

/// The rate of this minute, local time.
fn rate(bandwidth: Option<Bandwidth>) -> crate::sender::Rate {
    Box::new(move || {
        let now = jiff::Zoned::now();
        bandwidth.as_ref()?.bytes_per_second(now.hour() as u16 * 60 + now.minute() as u16)
    })
}

/// How long users of a mount that is ending are waited for.
const HELD_OPEN: Duration = Duration::from_secs(1);
/// A pipe on one host is faster than compressing, except for small frames, which are mostly names and attributes.
const LOCAL_COMPRESSION: Compression = Compression::Zstd { level: 1, max_bytes: 64 << 10 };

/// The journal of `entry`, made when there is none.
pub(super) fn open_journal(
    paths: &Paths,
    entry: &MountEntry,
    file: &VolumeFile,
) -> Result<(Arc<Journal>, LastStop), VolumeError> {
    let store = &store_of(paths, entry);
    let memory = memory_file(paths, &entry.volume);
    let memory = &memory.map_err(|cause| VolumeError::Io { path: entry.path.clone(), cause })?;
    let options = journal_options(store, file)?;
    Ok(Journal::open_with(store, memory, options)?)
}

/// The sizes of a volume's journal that lies, or will lie, in `store`.
pub(super) fn journal_options(store: &Path, file: &VolumeFile) -> Result<JournalOptions, VolumeError> {
    // It holds copies of private and deleted data.
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(store)
        .map_err(|cause| VolumeError::Io { path: store.to_owned(), cause })?;
    let cap_bytes = match file.journal_cap {
        Some(size) => size.0,
        None => default_cap(store)?,
    };
    // A handful of segments below the cap, each large enough for any record.
    let most = JournalOptions::default().segment_bytes;
    let segment_bytes = (cap_bytes / 8).clamp(4 * MAX_RECORD_BYTES as u64, most) / 4096 * 4096;
    let when_full = match file.journal_full {
        JournalFull::Degrade => WhenFull::Degrade,
        JournalFull::Block => WhenFull::Block,
    };
    Ok(JournalOptions { cap_bytes, when_full, segment_bytes, ..JournalOptions::default() })
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
    pub(super) fn is_consistent(&self, name: &TargetName, tid: Tid) -> Result<bool, VolumeError> {
        let store = self.journal.store();
        let Some(row) = store.target(name.as_str())? else { return Ok(false) };
        let live = self.live.lock();
        let sender = live.senders.get(name).map(SenderThread::status).unwrap_or_default();
        let is_past_state =
            sender.blocked == 0 && row.applied >= sender.high_water && !sender.unsettled && sender.forked.is_none();
        let sees_all = live.sees_all();
        drop(live);
        let reached = sees_all && row.mirrored && row.applied >= tid && is_past_state;
        Ok(reached && !store.work_stands_against(row.id, tid)?)
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
