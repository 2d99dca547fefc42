//! One volume: its journal, its stack, its mount and its senders.

mod error;
mod journal;
mod targets;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

pub(super) use self::error::{VolumeError, holders_below};
use self::journal::store_of;
pub(super) use self::journal::{journal_options, open_journal};
pub(super) use self::targets::{rate, sender_options};
use super::bypass::{Bypass, Watch};
use super::unwatched::{Changes, Suspects};
use super::watched::Moment;
use crate::backing::{BackingError, Tree, TreeView};
use crate::base::{Rules, Tid};
use crate::config::{
    AccessTimes, ByteSize, JournalFull, MountEntry, MountOptions, OpenFiles, Paths, Submounts, TargetEntry, TargetName,
    VolumeFile, VolumeName,
};
use crate::control::Holders;
use crate::fuse::{MountError, MountedVolume, Unmount, Unmounted};
use crate::journal::{Journal, LastStop, Level};
use crate::sender::SenderThread;
use crate::stack::{AtimeMode, Stack, StackOptions, Writes};

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
    pub(super) rules: Arc<Rules>,
}

/// How a mount went.
pub(super) enum Mounting {
    /// It was there.
    Already,
    /// It is there now; who holds what below the path from before.
    New { holders: Holders },
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

    /// Whether the file has other rules than its targets are sent by.
    pub(super) fn has_other_rules(&self, file: &VolumeFile) -> bool {
        *self.live.lock().rules != file.rules
    }

    /// Whether files say something now that only counts when the volume is opened.
    pub(super) fn opened_otherwise(&self, entry: &MountEntry, file: &VolumeFile) -> bool {
        let now = (entry.options.clone(), file.journal_cap, file.journal_full);
        self.path != entry.path || self.opened_with != now
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

/// How long users of a mount that is ending are waited for.
const HELD_OPEN: Duration = Duration::from_secs(1);
