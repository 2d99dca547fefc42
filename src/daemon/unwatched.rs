//! What happens to a volume's tree and not through its mount: changes made while it was not mounted, and writes through
//! files that were open before it was mounted.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::openers::{Hold, holds_below};
use super::scan::{Scan, ScanJob, compare};
use super::volume::{Live, Volume, VolumeError};
use super::watched::{Moment, Unwatched};
use crate::backing::TreeView;
use crate::base::Oid;
use crate::control::Opener;
use crate::fuse::{MountedVolume, canonical};
use crate::journal::{Journal, Level, NewWork, WorkKind};
use crate::sender::SenderThread;
use crate::stack::Stack;

/// Key in the journal's `meta`: the objects that were bypass-suspect at the last unmount.
const SUSPECTS: &str = "suspects";

/// What is known of changes that were made while the volume was not mounted.
pub(super) enum Changes {
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

    fn are_looked_for(&self) -> bool {
        match self {
            Changes::Unknown => false,
            Changes::Scanned(scan) => !scan.has_failed(),
            Changes::Queued => true,
        }
    }
}

/// The objects that can be written behind the mount's back, by who can.
pub(super) type Suspects = BTreeMap<Oid, Opener>;

impl Live {
    /// Whether everything that was changed while the volume was not mounted is queued as work, and nobody writes behind
    /// the mount's back. Otherwise no target is consistent at any TID.
    pub(super) fn sees_all(&self) -> bool {
        self.unwatched.are_queued() && self.suspects.is_empty()
    }
}

impl Volume {
    /// Starts looking for what was changed while the volume was not mounted; from now on nothing goes by unseen.
    pub(super) fn look_for_changes(&self, live: &mut Live) -> Result<(), VolumeError> {
        live.unwatched = Changes::Unknown;
        let mounted = self.moment()?;
        let store = self.journal.store();
        let unwatched = match Moment::load(store)? {
            Some(moment) => moment.until(&mounted),
            None => Unwatched::Anywhere("it is not known when the volume was unmounted"),
        };
        let suspects = store.meta_get(SUSPECTS)?.unwrap_or_default();
        let job = ScanJob {
            name: self.name.clone(),
            journal: self.journal.clone(),
            stack: live.stack.clone(),
            unwatched,
            mounted,
            suspects: suspects.as_chunks().0.iter().map(|bytes| Oid::from_bytes(*bytes)).collect(),
            nudges: live.senders.values().map(SenderThread::nudge).collect(),
        };
        let io = |cause| VolumeError::Io { path: self.path.clone(), cause };
        live.unwatched = Changes::Scanned(Scan::start(job).map_err(io)?);
        Ok(())
    }

    /// As [`Volume::look_for_changes`], unless that is done or under way.
    pub(super) fn look_for_changes_again(&self, live: &mut Live) -> Result<(), VolumeError> {
        match live.unwatched.are_looked_for() {
            true => Ok(()),
            false => self.look_for_changes(live),
        }
    }

    /// The time up to which everything went through the mount, right before it is taken down; `None` when somebody else
    /// took it out of the way at a time that nobody knows.
    pub(super) fn last_watched(&self, mounted: &MountedVolume) -> Result<Option<Moment>, VolumeError> {
        let moment = self.moment()?;
        Ok(mounted.is_in_place().then_some(moment))
    }

    /// Writes down that everything up to `moment` went through the mount, but for what is bypass-suspect. While it is not
    /// known what happened before the mount, the next scan starts where this one did.
    pub(super) fn end_of_watch(&self, live: &mut Live, moment: Option<Moment>) -> Result<(), VolumeError> {
        let queued = live.unwatched.are_queued();
        live.unwatched = Changes::Unknown;
        if let (true, Some(moment)) = (queued, moment) {
            self.keep_suspects(&live.suspects)?;
            moment.store(self.journal.store())?;
            live.unwatched = Changes::Queued;
        }
        live.suspects.clear();
        Ok(())
    }

    pub(super) fn moment(&self) -> Result<Moment, VolumeError> {
        Moment::now().map_err(|cause| VolumeError::Io { path: self.path.clone(), cause })
    }

    /// Lets `stack` know which objects had handles before it; called before the moment of the last watch is replaced.
    pub(super) fn remember_inodes(&self, stack: &Stack) {
        remember_inodes(stack, &self.store_dir, &self.journal)
    }

    /// Who holds objects of the backing tree itself, past the mount.
    pub(super) fn holds_behind(&self, stack: &Stack) -> Vec<Hold> {
        holds_below(stack.tree().dev(), &canonical(&self.path))
    }

    /// Looks who writes behind the mount's back. What somebody could write since the last look becomes work for every
    /// target: whatever is still open, and once more what is not.
    pub(super) fn check_suspects(&self) -> Result<(), VolumeError> {
        let live = self.live();
        let (suspected, stack) = (!live.suspects.is_empty(), live.stack.clone());
        drop(live);
        match suspected {
            true => self.suspect(&stack, self.holds_behind(&stack)),
            false => Ok(()),
        }
    }

    /// Makes the written ones of `holds` the suspects.
    pub(super) fn suspect(&self, stack: &Stack, holds: Vec<Hold>) -> Result<(), VolumeError> {
        let written = holds.into_iter().filter(|hold| hold.opener.writes);
        let now: Suspects = written.filter_map(|hold| Some((oid_of(stack, &hold)?, hold.opener))).collect();
        let mut live = self.live();
        // Without a mount there is nothing to bypass: the next scan finds everything.
        let now = if live.mounted.is_some() { now } else { Suspects::new() };
        let before = std::mem::replace(&mut live.suspects, now.clone());
        if !before.keys().eq(now.keys()) {
            // Also for a daemon that is killed: they are looked at after the next mount.
            self.keep_suspects(&now)?;
        }
        let mut all = before.clone();
        all.extend(now.clone());
        self.compare(all.keys().copied())?;
        live.senders.values().for_each(|sender| sender.nudge().work_added());
        drop(live);
        self.tell_suspects(&before, &now)
    }

    fn keep_suspects(&self, suspects: &Suspects) -> Result<(), VolumeError> {
        let oids: Vec<u8> = suspects.keys().flat_map(|oid| oid.to_bytes()).collect();
        Ok(self.journal.store().meta_set(SUSPECTS, &oids)?)
    }

    fn compare(&self, objects: impl Iterator<Item = Oid>) -> Result<(), VolumeError> {
        let created = self.journal.last_tid();
        let rows: Vec<NewWork> = objects.map(|oid| compare(oid, WorkKind::Object, created)).collect();
        let store = self.journal.store();
        for target in store.targets()?.iter().filter(|target| target.mirrored && !rows.is_empty()) {
            store.work_renew(target.id, &rows)?;
        }
        Ok(())
    }

    fn tell_suspects(&self, before: &Suspects, now: &Suspects) -> Result<(), VolumeError> {
        let store = self.journal.store();
        for opener in now.iter().filter(|(oid, _)| !before.contains_key(oid)).map(|(_, opener)| opener) {
            tracing::warn!(volume = %self.name, %opener, "bypass-suspect: its writes are not seen");
            let text = format!("bypass-suspect, compared until it is closed: {opener}");
            store.event(Level::Warning, None, &text)?;
        }
        for opener in before.iter().filter(|(oid, _)| !now.contains_key(oid)).map(|(_, opener)| opener) {
            tracing::info!(volume = %self.name, %opener, "closed: not bypass-suspect any more");
        }
        Ok(())
    }
}

/// The object that is held, if it still is.
fn oid_of(stack: &Stack, hold: &Hold) -> Option<Oid> {
    let object = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(&hold.link).ok()?;
    let key = stack.tree().key_of(object.as_fd()).ok()?;
    Some(stack.oid_of(key))
}

/// As [`Volume::remember_inodes`], before there is a volume. Without the list handles are found by walks.
pub(super) fn remember_inodes(stack: &Stack, store_dir: &Path, journal: &Journal) {
    let unchanged = Moment::load(journal.store()).ok().flatten().zip(Moment::now().ok());
    let unchanged_before = unchanged.and_then(|(then, now)| match then.until(&now) {
        Unwatched::Since(time) => Some(time),
        Unwatched::Anywhere(_) => None,
    });
    let file = store_dir.join("inodes");
    if let Err(error) = stack.remember_inodes(&file, unchanged_before) {
        tracing::warn!(file = %file.display(), %error, "handles of files are found by walks over the tree");
    }
}
