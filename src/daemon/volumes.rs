//! All volumes of this daemon.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::drain::{Hurry, drain};
use super::listener::Listening;
use super::meter::Meter;
use super::relay::RelayedCopy;
use super::sends::Sends;
use super::volume::{Mounting, Volume, VolumeError, holders_below};
use crate::base::Timespec;
use crate::config::{
    DaemonFile, MountEntry, MountsFile, OpenFiles, Paths, Refusal, VolumeFile, VolumeName, check_entry,
    check_target_entry,
};
use crate::control::{
    DaemonStatus, ExitCode, Failure, Holders, MountReply, MountVerdict, Problem, Selection, Verdict, VolumeState,
    rfc3339,
};
use crate::fuse::Unmount;

/// The open volumes, and why others are not open.
pub(super) struct Volumes {
    pub(super) paths: Paths,
    /// What `status` says of the daemon itself.
    pub(super) daemon: DaemonStatus,
    pub(super) meter: Meter,
    /// Copies with targets. Rank: as `table`.
    pub(super) relays: Mutex<BTreeMap<VolumeName, Arc<RelayedCopy>>>,
    pub(super) listening: Listening,
    /// Protects the table. Rank: above each volume's own lock, never held while one of them is taken for long: look-ups and
    /// insertions only.
    table: Mutex<Table>,
    /// Held while volumes are opened, mounted, unmounted or closed, so that two requests do not do it at once. Rank: the
    /// first of all.
    changing: Mutex<()>,
}

#[derive(Default)]
struct Table {
    open: BTreeMap<VolumeName, Arc<Volume>>,
    refused: BTreeMap<VolumeName, String>,
}

/// Whether something is done or only tried out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Run {
    Real,
    Dry,
}

impl Volumes {
    pub(super) fn new(paths: Paths) -> Volumes {
        let daemon = DaemonStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started: rfc3339(Timespec::now()),
        };
        Volumes {
            paths,
            daemon,
            meter: Meter::default(),
            relays: Mutex::default(),
            listening: Listening::default(),
            table: Mutex::new(Table::default()),
            changing: Mutex::new(()),
        }
    }

    pub(super) fn mounts_file(&self) -> Result<MountsFile, Failure> {
        Ok(MountsFile::load(&self.paths)?)
    }

    pub(super) fn find(&self, name: &VolumeName) -> Option<Arc<Volume>> {
        self.table.lock().open.get(name).cloned()
    }

    pub(super) fn open(&self) -> Vec<Arc<Volume>> {
        self.table.lock().open.values().cloned().collect()
    }

    /// The volume, or why there is none.
    pub(super) fn need(&self, name: &VolumeName) -> Result<Arc<Volume>, Failure> {
        if let Some(volume) = self.find(name) {
            return Ok(volume);
        }
        let refused = self.table.lock().refused.get(name).cloned();
        let source = VolumeFile::load(&self.paths, name).ok().and_then(|file| file.source);
        Err(match (refused, source) {
            (Some(reason), _) => Failure::new(ExitCode::Failed, format!("volume {name} is not open: {reason}")),
            (None, Some(source)) => {
                let (dir, host) = (source.dir.display(), source.host);
                Failure::new(ExitCode::Usage, format!("{name} is a copy here, in {dir}: {host} writes it")).with_remedy(
                    format!("ask on {host}, where the volume is; or dtfs promote {name} makes this copy one"),
                )
            }
            (None, None) => Failure::new(ExitCode::Usage, format!("there is no open volume {name}"))
                .with_remedy("dtfs mounts list shows the volumes, dtfs mounts mount opens one"),
        })
    }

    pub(super) fn state(&self, name: &VolumeName) -> VolumeState {
        let table = self.table.lock();
        match (table.open.get(name), table.refused.get(name)) {
            (Some(volume), refused) => match (super::status::volume_state(volume), refused) {
                (VolumeState::Unmounted, Some(reason)) => VolumeState::Refused { reason: reason.clone() },
                (state, _) => state,
            },
            (None, Some(reason)) => VolumeState::Refused { reason: reason.clone() },
            (None, None) => VolumeState::Unmounted,
        }
    }

    /// Mounts what is selected; one verdict each.
    pub(super) fn mount(&self, which: &Selection, run: Run, open_files: OpenFiles) -> Result<MountReply, Failure> {
        let _changing = self.changing.lock();
        let file = self.mounts_file()?;
        let verdicts = which
            .resolve(&file)
            .into_iter()
            .map(|entry| match entry {
                Ok(entry) => self.mount_entry(entry, &file, run, open_files),
                Err(verdict) => *verdict,
            })
            .collect();
        Ok(MountReply { verdicts, problems: file.errors().iter().map(Problem::from).collect() })
    }

    fn mount_entry(&self, entry: &MountEntry, file: &MountsFile, run: Run, open_files: OpenFiles) -> MountVerdict {
        let mut holders = Holders::default();
        let verdict = match self.try_mount(entry, file, run, open_files, &mut holders) {
            Ok(verdict) => {
                self.table.lock().refused.remove(&entry.volume);
                verdict
            }
            Err(failure) => {
                tracing::warn!(volume = %entry.volume, path = %entry.path.display(), %failure, "not mounted");
                if run == Run::Real {
                    self.table.lock().refused.insert(entry.volume.clone(), failure.message.clone());
                }
                Verdict::NotDone(failure)
            }
        };
        MountVerdict { holders, ..MountVerdict::of(entry, verdict) }
    }

    fn try_mount(
        &self,
        entry: &MountEntry,
        file: &MountsFile,
        run: Run,
        open_files: OpenFiles,
        holders: &mut Holders,
    ) -> Result<Verdict, Failure> {
        let open = self.find(&entry.volume);
        let mounted = open.as_ref().is_some_and(|volume| super::status::volume_state(volume) == VolumeState::Mounted);
        if mounted && run == Run::Dry {
            return Ok(Verdict::AlreadyMounted);
        }
        if !mounted {
            check_entry(&self.paths, entry, file)?;
        }
        let settings = self.settings(&entry.volume, file)?;
        let open_files = if entry.options.open_files == OpenFiles::Allow { OpenFiles::Allow } else { open_files };
        if run == Run::Dry {
            return rehearse(entry, open_files, holders);
        }
        let volume = match open {
            Some(volume) => volume,
            None => {
                let volume = Volume::open(&self.paths, entry, &settings)?;
                self.table.lock().open.insert(entry.volume.clone(), volume.clone());
                volume
            }
        };
        match volume.mount(&settings, open_files) {
            Ok(Mounting::New { holders: found }) => {
                *holders = found;
                Ok(Verdict::Mounted)
            }
            Ok(Mounting::Already) => Ok(Verdict::AlreadyMounted),
            Err(error) => {
                *holders = error.holders();
                Err(error.into())
            }
        }
    }

    /// The volume's settings, its targets checked.
    pub(super) fn settings(&self, name: &VolumeName, file: &MountsFile) -> Result<VolumeFile, Failure> {
        let mut settings = VolumeFile::load(&self.paths, name)?;
        settings.targets.retain(|target| match check_target_entry(&self.paths, name, target, file) {
            Ok(_) => true,
            // Perhaps it was promoted: what is mounted there answers for itself.
            Err(Refusal::MountedAlready { .. }) => true,
            Err(refusal) => {
                tracing::warn!(volume = %name, target = %target.name, %refusal, "target refused");
                false
            }
        });
        Ok(settings)
    }

    /// Unmounts what is selected; the volumes stay open and their senders go on.
    pub(super) fn unmount(&self, which: &Selection, how: Unmount) -> Result<MountReply, Failure> {
        let _changing = self.changing.lock();
        let file = self.mounts_file()?;
        let verdicts = which
            .resolve(&file)
            .into_iter()
            .map(|entry| match entry {
                Ok(entry) => self.unmount_entry(entry, &file, how),
                Err(verdict) => *verdict,
            })
            .collect();
        Ok(MountReply { verdicts, problems: Vec::new() })
    }

    /// What an unmount would say: who uses each mount.
    pub(super) fn rehearse_unmount(&self, which: &Selection) -> Result<MountReply, Failure> {
        let file = self.mounts_file()?;
        let judge = |entry: &MountEntry| {
            if self.state(&entry.volume) != VolumeState::Mounted {
                return MountVerdict::of(entry, Verdict::NotMounted);
            }
            let holders = holders_below(&crate::fuse::canonical(&entry.path));
            // Of whom it is not known, an unmount tells.
            let verdict = match holders.openers.is_empty() {
                true => Verdict::WouldUnmount,
                false => Verdict::NotDone(
                    Failure::new(ExitCode::Busy, format!("{}: in use", entry.path.display()))
                        .with_remedy("end the programs that use it, or unmount with --lazy"),
                ),
            };
            MountVerdict { holders, ..MountVerdict::of(entry, verdict) }
        };
        let verdicts = which.resolve(&file).into_iter().map(|found| found.map_or_else(|verdict| *verdict, judge));
        Ok(MountReply { verdicts: verdicts.collect(), problems: Vec::new() })
    }

    fn unmount_entry(&self, entry: &MountEntry, file: &MountsFile, how: Unmount) -> MountVerdict {
        let Some(volume) = self.find(&entry.volume) else {
            return MountVerdict::of(entry, take_dead_away(entry).unwrap_or_else(Verdict::NotDone));
        };
        let mut holders = Holders::default();
        let done = self.settings(&entry.volume, file).and_then(|settings| {
            volume.unmount(how, &settings).map_err(|error| {
                holders = error.holders();
                Failure::from(error)
            })
        });
        let verdict = match done {
            Ok(true) => Verdict::Unmounted,
            Ok(false) => take_dead_away(entry).unwrap_or_else(Verdict::NotDone),
            Err(failure) => Verdict::NotDone(failure),
        };
        MountVerdict { holders, ..MountVerdict::of(entry, verdict) }
    }

    /// What is due every half minute: looks in every volume for what is written behind its mount's back, and writes down
    /// which objects have handles.
    pub(super) fn tend(&self) {
        for volume in self.open() {
            volume.live().stack.flush_inodes();
            if let Err(error) = volume.check_suspects() {
                tracing::warn!(volume = %volume.name, %error, "files that were open before the mount are not compared");
            }
        }
        self.all_sending().iter().for_each(|sends| self.verify_when_due(sends.as_ref()));
    }

    fn verify_when_due(&self, sends: &dyn Sends) {
        // A file that cannot be read is told where it is edited and where it is loaded.
        let Ok(VolumeFile { verify: Some(every), .. }) = VolumeFile::load(&self.paths, sends.name()) else { return };
        if let Err(failure) = sends.verify_when_due(every) {
            tracing::warn!(volume = %sends.name(), %failure, "a verification that is due cannot be started");
        }
    }

    /// Reads the files again: the targets of open volumes become those of their files. Says what changed, or would change.
    pub(super) fn reload(&self, run: Run) -> Result<Vec<String>, Failure> {
        let _changing = self.changing.lock();
        let file = self.mounts_file()?;
        let mut notes: Vec<String> = file.errors().iter().map(|error| Problem::from(error).to_string()).collect();
        for entry in file.entries().filter(|entry| self.find(&entry.volume).is_none()) {
            let (volume, path) = (&entry.volume, entry.path.display());
            notes.push(format!("{volume}: the entry {path} is not mounted; mount it with: dtfs mounts mount {path}"));
        }
        if run == Run::Real {
            self.set_relays();
        }
        notes.extend(self.reload_listening(run));
        for volume in self.open() {
            // One file that cannot be read does not keep the other volumes from following theirs.
            match self.reload_volume(&volume, &file, run) {
                Ok(found) => notes.extend(found),
                Err(failure) => notes.push(format!("{}: nothing changed: {failure}", volume.name)),
            }
        }
        Ok(notes)
    }

    /// Where sources may call. The other keys of `dtfs.toml` count from the next start, or the next session.
    fn reload_listening(&self, run: Run) -> Option<String> {
        let wanted = match DaemonFile::load(&self.paths) {
            Ok(file) => file.listen,
            Err(error) => return Some(format!("dtfs.toml: nothing changed: {error}")),
        };
        let before = self.listening.address();
        if wanted == before {
            return None;
        }
        let told = match (before, wanted) {
            (None, Some(now)) => format!("sources can call at {now}"),
            (Some(before), Some(now)) => format!("sources can call at {now}, not at {before} any more"),
            (Some(before), None) => format!("no source can call any more, at {before} or elsewhere"),
            (None, None) => return None,
        };
        match if run == Run::Real { self.listening.set(&self.paths, wanted) } else { Ok(()) } {
            Ok(()) => Some(told),
            Err(error) => Some(format!("no source can call: {error}")),
        }
    }

    fn reload_volume(&self, volume: &Arc<Volume>, file: &MountsFile, run: Run) -> Result<Vec<String>, Failure> {
        let name = &volume.name;
        let Some(entry) = file.find_volume(name) else {
            return Ok(vec![format!("{name}: its entry is gone; it goes on until it is unmounted or the daemon ends")]);
        };
        let settings = self.settings(name, file)?;
        let mut notes = Vec::new();
        let before = volume.target_urls()?;
        for target in &settings.targets {
            match before.get(&target.name) {
                None => notes.push(format!("{name}: target {} added", target.name)),
                Some(url) if *url != target.url.to_string() => {
                    notes.push(format!("{name}: target {} moved from {url} to {}", target.name, target.url));
                }
                Some(_) => {}
            }
        }
        let gone = before.keys().filter(|known| !settings.targets.iter().any(|target| target.name == **known));
        notes.extend(gone.map(|known| format!("{name}: target {known} removed")));
        if volume.has_other_rules(&settings) {
            notes.push(format!("{name}: the rules have changed: every target is compared by the new ones"));
        }
        if volume.opened_otherwise(entry, &settings) {
            notes
                .push(format!("{name}: its path, options or journal settings count from the next start of the daemon"));
        }
        if run == Run::Real {
            volume.set_targets(&settings).map_err(Failure::from)?;
        }
        Ok(notes)
    }

    /// Closes a volume that is about to be forgotten.
    pub(super) fn forget(&self, name: &VolumeName) -> Result<(), Failure> {
        let _changing = self.changing.lock();
        let Some(volume) = self.find(name) else { return Ok(()) };
        if super::status::volume_state(&volume) == VolumeState::Mounted {
            return Err(Failure::new(ExitCode::Busy, format!("volume {name} is mounted on {}", volume.path.display()))
                .with_remedy("unmount it first: dtfs mounts unmount"));
        }
        volume.close()?;
        let mut table = self.table.lock();
        table.open.remove(name);
        table.refused.remove(name);
        Ok(())
    }

    /// Closes everything: mounts first, then the targets have `patience` for what they lack, then senders and journals. What
    /// fails is said and does not keep the rest from being closed.
    pub(super) fn close(&self, patience: Duration, hurry: &Hurry) -> Result<(), Failure> {
        let _changing = self.changing.lock();
        let mut failed = None;
        let mut open = self.open();
        // A mount inside another one goes first, or it would keep the outer one busy.
        open.sort_by_key(|volume| std::cmp::Reverse(volume.path.components().count()));
        for volume in &open {
            if let Err(error) = volume.end_mount() {
                tracing::error!(volume = %volume.name, %error, "not unmounted cleanly");
                failed = Some(Failure::from(error));
            }
        }
        drain(&self.all_sending(), patience, hurry);
        self.close_relays();
        drop(open);
        let open = std::mem::take(&mut self.table.lock().open);
        for (name, volume) in open {
            if let Err(error) = volume.close() {
                tracing::error!(volume = %name, %error, "not closed cleanly");
                failed = Some(Failure::from(error));
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

/// What a mount would say of open files.
fn rehearse(entry: &MountEntry, open_files: OpenFiles, holders: &mut Holders) -> Result<Verdict, Failure> {
    let path = crate::fuse::canonical(&entry.path);
    *holders = holders_below(&path);
    match open_files == OpenFiles::Refuse && holders.may_write() {
        true => Err(VolumeError::OpenFiles { path, holders: holders.clone() }.into()),
        false => Ok(Verdict::WouldMount),
    }
}

/// What is asked for where nothing of ours is mounted: a mount that a crashed daemon left is taken away.
fn take_dead_away(entry: &MountEntry) -> Result<Verdict, Failure> {
    if !crate::fuse::dead_mount_at(&entry.path) {
        return Ok(Verdict::NotMounted);
    }
    crate::fuse::detach_dead(&entry.path).map_err(|error| Failure::new(ExitCode::Failed, error))?;
    Ok(Verdict::Unmounted)
}
