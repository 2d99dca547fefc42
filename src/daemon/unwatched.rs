//! What happens to a volume's tree and not through its mount: changes made while it was not mounted, and writes through
//! files that were open before it was mounted.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use super::bypass::{Bypass, Watch};
use super::scan::{Scan, ScanJob, compare};
use super::volume::{Live, Volume, VolumeError};
use super::watched::{Moment, Unwatched};
use crate::backing::TreeView;
use crate::base::Oid;
use crate::control::{Look, Objects, Opener, Unseen, look_below};
use crate::fuse::{MountedVolume, canonical};
use crate::journal::{Journal, Level, NewWork, WorkKind};
use crate::sender::SenderThread;
use crate::stack::Stack;

/// Key in the journal's `meta`: the objects that were bypass-suspect at the last unmount.
const SUSPECTS: &str = "suspects";
/// Key in the journal's `meta`: not empty when somebody was unseen at the last unmount.
const UNSEEN: &str = "unseen";

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

/// Who can write behind the mount's back.
#[derive(Clone, Default)]
pub(super) struct Suspects {
    /// The objects, by who can write them.
    pub(super) objects: BTreeMap<Oid, Opener>,
    /// Who could not be looked into: it may write any object.
    pub(super) unseen: Vec<Unseen>,
}

impl Suspects {
    fn of(stack: &Stack, look: Look) -> Suspects {
        let written = look.holds.into_iter().filter(|hold| hold.opener.writes);
        let oid = |object: &OwnedFd| Some(stack.oid(stack.tree().key_of(object.as_fd()).ok()?));
        let objects = written.filter_map(|hold| Some((oid(hold.object.as_ref()?)?, hold.opener))).collect();
        Suspects { objects, unseen: look.unseen }
    }

    fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.unseen.is_empty()
    }

    /// These and `others`.
    fn with(mut self, others: Suspects) -> Suspects {
        self.objects.extend(others.objects);
        let new = others.unseen.into_iter().filter(|other| !self.has_unseen(other)).collect::<Vec<_>>();
        self.unseen.extend(new);
        self
    }

    fn has_unseen(&self, other: &Unseen) -> bool {
        self.unseen.iter().any(|unseen| unseen.is(other))
    }

    /// What is written down of them for the next mount.
    fn kept(&self) -> (Vec<u8>, Vec<u8>) {
        let oids = self.objects.keys().flat_map(|oid| oid.to_bytes()).collect();
        (oids, vec![1; usize::from(!self.unseen.is_empty())])
    }
}

impl Live {
    /// Whether everything that was changed while the volume was not mounted is queued as work, and nobody writes behind
    /// the mount's back. Otherwise no target is consistent at any TID.
    pub(super) fn sees_all(&self) -> bool {
        self.unwatched.are_queued() && self.suspects.is_empty() && self.bypass.as_ref().is_none_or(Bypass::is_quiet)
    }
}

impl Volume {
    /// Starts looking for what was changed while the volume was not mounted; from now on nothing goes by unseen.
    pub(super) fn look_for_changes(&self, live: &mut Live) -> Result<(), VolumeError> {
        live.unwatched = Changes::Unknown;
        let mounted = self.moment()?;
        let store = self.journal.store();
        let unseen = store.meta_get(UNSEEN)?.is_some_and(|kept| !kept.is_empty());
        let unwatched = match Moment::load(store)? {
            Some(_) if unseen => {
                Unwatched::Anywhere("a process that could not be looked into may have written past the mount")
            }
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
            senders: live.senders.values().map(SenderThread::handle).collect(),
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
        live.suspects = Suspects::default();
        live.bypass = None;
        Ok(())
    }

    pub(super) fn moment(&self) -> Result<Moment, VolumeError> {
        Moment::now().map_err(|cause| VolumeError::Io { path: self.path.clone(), cause })
    }

    /// Lets `stack` know which objects had handles before it; called before the moment of the last watch is replaced.
    pub(super) fn remember_inodes(&self, stack: &Stack) {
        remember_inodes(stack, &self.store_dir, &self.journal)
    }

    /// Who holds objects of the backing tree itself, past the mount. To be called with no lock held: it may take long.
    pub(super) fn look_behind(&self, stack: &Stack) -> Look {
        look_below(stack.tree().dev(), &canonical(&self.path), Objects::Opened)
    }

    /// Looks who writes behind the mount's back. What somebody could write since the last look becomes work for every
    /// target: whatever is still open, and once more what is not.
    pub(super) fn check_suspects(&self) -> Result<(), VolumeError> {
        let live = self.live();
        let (suspected, stack) = (!live.suspects.is_empty() || live.bypass.is_some(), live.stack.clone());
        drop(live);
        match suspected {
            true => self.suspect(&stack, self.look_behind(&stack)),
            false => Ok(()),
        }
    }

    /// Starts to note what those who stand behind the mount write from now on; nobody does when `look` is empty.
    pub(super) fn watch(&self, stack: &Arc<Stack>, watch: Option<Watch>, look: &Look) {
        let Some(watch) = watch.filter(|_| !look.is_empty()) else { return };
        match Bypass::start(watch, stack.clone()) {
            Ok(bypass) => self.live().bypass = Some(bypass),
            Err(error) => tracing::warn!(volume = %self.name, %error, "writes past the mount are not watched"),
        }
    }

    /// What was found right before the mount counts from its first moment on.
    pub(super) fn suspect_first(&self, live: &mut Live, before: Look) -> Result<(), VolumeError> {
        live.suspects = Suspects::of(&live.stack, before);
        match live.suspects.is_empty() {
            true => Ok(()),
            false => self.keep_suspects(&live.suspects),
        }
    }

    /// Makes the written ones of what `look` found the suspects, with whoever could not be looked into, and work of what
    /// could be written past the mount since the last look. Where that may be anything, everything is compared: once when a
    /// process that was unseen has gone on or ended, whatever it did meanwhile.
    pub(super) fn suspect(&self, stack: &Stack, look: Look) -> Result<(), VolumeError> {
        let nobody = look.is_empty();
        let now = Suspects::of(stack, look);
        let mut live = self.live();
        // Without a mount there is nothing to bypass: the next scan finds everything.
        let mut now = if live.mounted.is_some() { now } else { Suspects::default() };
        let before = live.suspects.clone();
        // What an unseen process was seen to write, it may go on writing.
        let still =
            before.objects.iter().filter(|(_, opener)| now.unseen.iter().any(|unseen| unseen.pid == opener.pid));
        now.objects.extend(still.map(|(oid, opener)| (*oid, opener.clone())));
        // Also for a daemon that is killed: they are looked at after the next mount. Nobody is taken out before what
        // follows of it is queued.
        let all = before.clone().with(now.clone());
        self.keep_if_changed(&before, &all)?;
        let noted = live.bypass.as_ref().map(Bypass::take).unwrap_or_default();
        let objects = all.objects.keys().copied().chain(noted.objects).map(|oid| (oid, WorkKind::Object));
        self.compare(objects.chain(noted.dirs.into_iter().map(|oid| (oid, WorkKind::Dir))))?;
        if noted.anything {
            self.compare_all("more was written past the mount than could be noted")?;
        }
        if before.unseen.iter().any(|unseen| !now.has_unseen(unseen)) {
            self.compare_all("a process that could not be looked into may have written past the mount")?;
        }
        self.keep_if_changed(&all, &now)?;
        live.suspects = now.clone();
        if nobody {
            live.bypass = None;
        }
        live.senders.values().for_each(|sender| sender.handle().work_added());
        drop(live);
        self.tell_suspects(&before, &now)
    }

    fn compare_all(&self, why: &str) -> Result<(), VolumeError> {
        Ok(self.journal.store().work_compare_all(self.journal.last_tid(), why)?)
    }

    fn keep_if_changed(&self, kept: &Suspects, now: &Suspects) -> Result<(), VolumeError> {
        if kept.kept() == now.kept() { Ok(()) } else { self.keep_suspects(now) }
    }

    fn keep_suspects(&self, suspects: &Suspects) -> Result<(), VolumeError> {
        let (oids, unseen) = suspects.kept();
        let store = self.journal.store();
        store.meta_set(SUSPECTS, &oids)?;
        Ok(store.meta_set(UNSEEN, &unseen)?)
    }

    fn compare(&self, objects: impl Iterator<Item = (Oid, WorkKind)>) -> Result<(), VolumeError> {
        let created = self.journal.last_tid();
        let rows: Vec<NewWork> = objects.map(|(oid, kind)| compare(oid, kind, created)).collect();
        let store = self.journal.store();
        for target in store.targets()?.iter().filter(|target| target.mirrored && !rows.is_empty()) {
            store.work_renew(target.id, &rows)?;
        }
        Ok(())
    }

    fn tell_suspects(&self, before: &Suspects, now: &Suspects) -> Result<(), VolumeError> {
        let store = self.journal.store();
        for opener in now.objects.iter().filter(|(oid, _)| !before.objects.contains_key(oid)).map(|(_, opener)| opener)
        {
            tracing::warn!(volume = %self.name, %opener, "bypass-suspect: its writes are not seen");
            let text = format!("bypass-suspect, compared until it is closed: {opener}");
            store.event(Level::Warning, None, &text)?;
        }
        for opener in before.objects.iter().filter(|(oid, _)| !now.objects.contains_key(oid)).map(|(_, opener)| opener)
        {
            tracing::info!(volume = %self.name, %opener, "closed: not bypass-suspect any more");
        }
        for unseen in now.unseen.iter().filter(|unseen| !before.has_unseen(unseen)) {
            tracing::warn!(volume = %self.name, %unseen, "bypass-suspect: what it writes past the mount is not seen");
            store.event(Level::Warning, None, &format!("bypass-suspect, no target is consistent: {unseen}"))?;
        }
        Ok(())
    }
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
