//! The targets of a volume: a sender for each that its file names, or that a command runs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::{Live, Volume, VolumeError};
use crate::backing::TreeView;
use crate::base::Tid;
use crate::config::{
    Activity, Adoption, Bandwidth, Delay, Paths, TargetEntry, TargetName, TargetUrl, VolumeFile, VolumeName,
};
use crate::control::{ExitCode, Failure, TargetStatus};
use crate::daemon::sends::Sends;
use crate::daemon::status::targets_of;
use crate::journal::{AWAITED, Replay, TargetId};
use crate::sender::{Forked, Rate, SenderHandle, SenderOptions, SenderThread};
use crate::stack::AtimeMode;
use crate::wire::Compression;

/// State of a target's row that no file names: the sessions of commands go on at its place.
const RUN: &str = "run";

/// A pipe on one host is faster than compressing, except for small frames, which are mostly names and attributes.
const LOCAL_COMPRESSION: Compression = Compression::Zstd { level: 1, max_bytes: 64 << 10 };

impl Volume {
    /// The targets that run, and where each is.
    pub(in crate::daemon) fn target_urls(&self) -> Result<BTreeMap<TargetName, String>, VolumeError> {
        let rows = self.journal.store().targets()?;
        Ok(rows.into_iter().filter_map(|row| Some((TargetName::new(&row.name).ok()?, row.url))).collect())
    }

    /// Makes the running senders those of `targets`: new ones start, those that are paused or no longer named stop, and those
    /// whose entry was changed start again, at their place in the journal. With other rules than before all do.
    pub(in crate::daemon) fn set_targets(&self, file: &VolumeFile) -> Result<(), VolumeError> {
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

    pub(super) fn start_senders(&self, live: &mut Live, targets: &[TargetEntry]) -> Result<(), VolumeError> {
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
        let options = sender_options(&self.paths, (&self.name, self.options.atime), (id, target), rate);
        let options = SenderOptions { rules: live.rules.clone(), ..options };
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
    pub(in crate::daemon) fn begin_run(
        &self,
        target: &TargetEntry,
        rate_bytes: Option<u64>,
    ) -> Result<Tid, VolumeError> {
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
    pub(in crate::daemon) fn end_sessions(&self) -> Result<(), VolumeError> {
        let mut live = self.live.lock();
        live.senders.clear();
        live.runs.clear();
        Ok(live.stack.checkpoint()?)
    }

    /// Ends the session of a command.
    pub(in crate::daemon) fn end_run(&self, target: &TargetName) {
        let mut live = self.live.lock();
        let sender = live.runs.remove(target).then(|| live.senders.remove(target)).flatten();
        drop(live);
        drop(sender);
    }

    /// Stops replicating to a target and forgets its place.
    pub(in crate::daemon) fn forget_target(&self, name: &TargetName) -> Result<(), VolumeError> {
        let mut live = self.live.lock();
        live.senders.remove(name);
        let store = self.journal.store();
        if let Some(row) = store.target(name.as_str())? {
            store.target_remove(row.id)?;
        }
        Ok(self.journal.trim()?)
    }
}

impl Sends for Volume {
    fn name(&self) -> &VolumeName {
        &self.name
    }

    fn log(&self) -> Result<Arc<dyn Replay>, Failure> {
        Ok(self.journal.clone())
    }

    fn sender(&self, target: &TargetName) -> Option<SenderHandle> {
        self.live.lock().senders.get(target).map(SenderThread::handle)
    }

    fn target_names(&self) -> Vec<TargetName> {
        let live = self.live.lock();
        live.senders.keys().chain(&live.paused).cloned().collect()
    }

    fn targets(&self) -> Result<Vec<TargetStatus>, Failure> {
        targets_of(self)
    }

    fn sees_all(&self) -> bool {
        self.live.lock().sees_all()
    }

    fn reach(&self, wanted: Option<Tid>) -> Result<Tid, Failure> {
        if wanted.is_none() {
            self.write_back()?;
        }
        let last = self.journal.last_tid();
        let tid = wanted.unwrap_or(last);
        if tid > last {
            return Err(Failure::new(ExitCode::Usage, format!("{tid} is not made yet: the last is {last}")));
        }
        self.journal.commit(tid).map_err(VolumeError::from)?;
        Ok(tid)
    }

    /// A file that was open before the mount keeps every target from being consistent until it is closed.
    fn while_awaited(&self, _target: &TargetName) -> Result<(), Failure> {
        Ok(self.check_suspects()?)
    }
}

/// What a sender needs to know of a target of the file of `volume`. It gets all of the tree.
pub(in crate::daemon) fn sender_options(
    paths: &Paths,
    (volume, access_times): (&VolumeName, AtimeMode),
    (id, target): (TargetId, &TargetEntry),
    rate: Rate,
) -> SenderOptions {
    let (paths, entry) = (paths.clone(), target.clone());
    SenderOptions {
        target: id,
        access_times,
        label: volume.to_string(),
        connect: Box::new(move || crate::daemon::connect::connect(&paths, &entry)),
        compression: match target.url {
            TargetUrl::Local(_) => LOCAL_COMPRESSION,
            _ => Compression::Adaptive,
        },
        rate,
        period: target.period.map(|seconds| Duration::from_secs(seconds.get().into())),
        orphans: Some(crate::daemon::orphans::policy(target)),
        rules: Arc::default(),
        delay_seconds: target.delay.map_or(0, Delay::seconds),
        forked: match target.adoption {
            Adoption::Allow => Forked::Compare,
            Adoption::Refuse => Forked::Refuse,
        },
    }
}

/// The rate of this minute, local time.
pub(in crate::daemon) fn rate(bandwidth: Option<Bandwidth>) -> crate::sender::Rate {
    Box::new(move || {
        let now = jiff::Zoned::now();
        bandwidth.as_ref()?.bytes_per_second(now.hour() as u16 * 60 + now.minute() as u16)
    })
}
