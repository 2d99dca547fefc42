//! A copy that another host writes, and that has targets of its own: its daemon passes on what it gets.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::sends::Sends;
use super::status::{Standing, target_status};
use super::volume::{VolumeError, rate, sender_options};
use super::volumes::Volumes;
use crate::applier::Replica;
use crate::base::Tid;
use crate::config::{
    Activity, Delay, Paths, SourceEntry, TargetEntry, TargetName, VolumeFile, VolumeName, check_target_entry,
};
use crate::control::{ExitCode, Failure, TargetState, TargetStatus};
use crate::journal::Replay;
use crate::receiver::{Relay, RelayError};
use crate::sender::{SenderHandle, SenderThread};
use crate::stack::AtimeMode;

/// How often a copy that nothing has filled yet is looked at.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A copy with targets.
pub(super) struct RelayedCopy {
    name: VolumeName,
    /// Who writes it.
    host: String,
    dir: PathBuf,
    paths: Paths,
    /// Protects what comes and goes. Rank: as a volume's; held while a sender is started, never across a wait for a target.
    live: Mutex<Live>,
}

#[derive(Default)]
struct Live {
    relay: Option<Arc<Relay>>,
    senders: BTreeMap<TargetName, SenderThread>,
    entries: BTreeMap<TargetName, TargetEntry>,
    /// All that the file names.
    targets: Vec<TargetEntry>,
    /// Why nothing is passed on.
    reason: Option<String>,
}

impl RelayedCopy {
    fn new(paths: &Paths, name: &VolumeName, source: &SourceEntry) -> Arc<RelayedCopy> {
        let (name, host, dir, paths) = (name.clone(), source.host.clone(), source.dir.clone(), paths.clone());
        Arc::new(RelayedCopy { name, host, dir, paths, live: Mutex::default() })
    }

    /// Makes its targets those of the file.
    fn set_targets(&self, targets: Vec<TargetEntry>) {
        let mut live = self.live.lock();
        live.targets = targets;
        self.settle(&mut live);
    }

    /// Looks whether the copy is there, and still the same.
    fn look(&self) {
        let mut live = self.live.lock();
        let here = Replica::describe(&self.dir, &self.paths.replicas_dir()).ok().flatten().map(|about| about.id);
        if live.relay.as_ref().is_some_and(|relay| Some(relay.copy()) != here) {
            live.senders.clear();
            live.entries.clear();
            live.relay = None;
        }
        if live.relay.is_none() || live.reason.is_some() {
            self.settle(&mut live);
        }
    }

    fn settle(&self, live: &mut Live) {
        let done = self.open(live).and_then(|relay| self.start_senders(live, &relay));
        live.reason = done.err().map(|error| error.to_string());
    }

    fn open(&self, live: &mut Live) -> Result<Arc<Relay>, RelayFailure> {
        if let Some(relay) = &live.relay {
            return Ok(relay.clone());
        }
        let relay = Relay::open(&self.dir, &self.paths.replicas_dir())?;
        live.relay = Some(relay.clone());
        Ok(relay)
    }

    fn start_senders(&self, live: &mut Live, relay: &Arc<Relay>) -> Result<(), RelayFailure> {
        let Live { senders, entries, targets, .. } = live;
        senders.retain(|name, _| {
            targets.iter().any(|target| {
                target.name == *name && target.activity == Activity::Running && entries.get(name) == Some(target)
            })
        });
        let store = relay.store();
        for row in store.targets().map_err(VolumeError::from)? {
            match targets.iter().find(|target| target.name.as_str() == row.name) {
                None => store.target_remove(row.id).map_err(VolumeError::from)?,
                Some(target) if target.url.to_string() != row.url => {
                    store.target_url(row.id, &target.url.to_string()).map_err(VolumeError::from)?;
                }
                Some(_) => {}
            }
        }
        let running = targets.iter().filter(|target| target.activity == Activity::Running);
        for target in running {
            if senders.contains_key(&target.name) {
                continue;
            }
            let id = match store.target(target.name.as_str()).map_err(VolumeError::from)? {
                Some(row) => row.id,
                None => store.target_add(target.name.as_str(), &target.url.to_string()).map_err(VolumeError::from)?,
            };
            if !relay.has_heard() {
                return Err(RelayFailure::Unheard);
            }
            let rate = rate(target.bandwidth.clone());
            let options = sender_options(&self.paths, (&self.name, AtimeMode::AtClose), (id, target), rate);
            let sender = SenderThread::spawn(relay.clone(), relay.view(), options)
                .map_err(|cause| VolumeError::Io { path: self.dir.clone(), cause })?;
            senders.insert(target.name.clone(), sender);
            entries.insert(target.name.clone(), target.clone());
        }
        Ok(())
    }

    /// Stops sending to a target and forgets its place.
    fn forget_target(&self, name: &TargetName) -> Result<(), Failure> {
        let mut live = self.live.lock();
        live.senders.remove(name);
        live.entries.remove(name);
        live.targets.retain(|target| target.name != *name);
        let Some(relay) = &live.relay else { return Ok(()) };
        let failed = |error| Failure::from(VolumeError::from(error));
        match relay.store().target(name.as_str()).map_err(failed)? {
            Some(row) => relay.store().target_remove(row.id).map_err(failed),
            None => Ok(()),
        }
    }

    /// Why nothing is passed on, if so.
    pub(super) fn reason(&self) -> Option<String> {
        self.live.lock().reason.clone()
    }
}

impl Sends for RelayedCopy {
    fn name(&self) -> &VolumeName {
        &self.name
    }

    fn log(&self) -> Result<Arc<dyn Replay>, Failure> {
        let live = self.live.lock();
        match (&live.relay, &live.reason) {
            (Some(relay), _) => Ok(relay.clone()),
            (None, reason) => {
                let reason = reason.as_deref().unwrap_or("it was not looked at yet");
                Err(Failure::new(ExitCode::Behind, format!("the copy {} passes nothing on: {reason}", self.name))
                    .with_remedy(format!("see that {} replicates to it: dtfs status, there", self.host)))
            }
        }
    }

    fn sender(&self, target: &TargetName) -> Option<SenderHandle> {
        self.live.lock().senders.get(target).map(SenderThread::handle)
    }

    fn target_names(&self) -> Vec<TargetName> {
        self.live.lock().targets.iter().map(|target| target.name.clone()).collect()
    }

    fn targets(&self) -> Result<Vec<TargetStatus>, Failure> {
        let live = self.live.lock();
        let mut all = Vec::new();
        for entry in &live.targets {
            let sender = live.senders.get(&entry.name).map(SenderThread::status);
            let row = match &live.relay {
                Some(relay) => relay.store().target(entry.name.as_str()).map_err(VolumeError::from)?,
                None => None,
            };
            let (Some(relay), Some(row)) = (&live.relay, row) else { continue };
            let sees_all = relay.is_settled();
            let sender = sender.unwrap_or_default();
            let standing = Standing { volume: &self.name, log: relay.as_ref(), sender: &sender, sees_all };
            let status = target_status(&standing, &entry.name, &row)?;
            let status = TargetStatus { delay_seconds: entry.delay.map_or(0, Delay::seconds), ..status };
            all.push(match entry.activity {
                Activity::Paused => TargetStatus { state: TargetState::Paused, ..status },
                Activity::Running => status,
            });
        }
        Ok(all)
    }

    fn sees_all(&self) -> bool {
        self.live.lock().relay.as_ref().is_some_and(|relay| relay.is_settled())
    }

    /// What its source has made comes here in time, so any TID can be waited for.
    fn reach(&self, wanted: Option<Tid>) -> Result<Tid, Failure> {
        match wanted {
            Some(tid) => Ok(tid),
            None => Ok(self.log()?.last_tid()),
        }
    }

    /// What came here meanwhile is to be made durable there at once, too.
    fn while_awaited(&self, target: &TargetName) -> Result<(), Failure> {
        self.flush_target(target);
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
enum RelayFailure {
    #[error("its own source has not called since the system started")]
    Unheard,
    #[error(transparent)]
    Relay(#[from] RelayError),
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

impl Volumes {
    /// The copies with targets become those of the files.
    pub(super) fn set_relays(&self) {
        let Ok((files, mounts)) = VolumeFile::load_all(&self.paths).and_then(|files| {
            let mounts = crate::config::MountsFile::load(&self.paths)?;
            Ok((files, mounts))
        }) else {
            return;
        };
        let (mut named, mut unreadable) = (BTreeMap::new(), BTreeSet::new());
        for (name, file) in files.into_iter().map(|named| (named.volume, named.file)) {
            let Ok(file) = file else {
                unreadable.insert(name);
                continue;
            };
            let is_volume = mounts.find_volume(&name).is_some();
            let may_have = |dir: &Path| !file.targets.is_empty() || Relay::was_begun(dir, &self.paths.replicas_dir());
            if let Some(source) = file.source.filter(|source| !is_volume && may_have(&source.dir)) {
                let mut targets = file.targets;
                targets.retain(|target| match check_target_entry(&self.paths, &name, target, &mounts) {
                    Ok(()) => true,
                    Err(refusal) => {
                        tracing::warn!(volume = %name, target = %target.name, %refusal, "target refused");
                        false
                    }
                });
                named.insert(name, (source, targets));
            }
        }
        let mut relays = self.relays.lock();
        relays.retain(|name, copy| {
            // A file that cannot be read says nothing.
            let is_same = |source: &SourceEntry| source.dir == copy.dir && source.host == copy.host;
            let stays = unreadable.contains(name) || named.get(name).is_some_and(|(source, _)| is_same(source));
            if !stays {
                // Nothing is kept for its targets any more. Dropping it stops its senders.
                copy.set_targets(Vec::new());
            }
            stays
        });
        for (name, (source, targets)) in named {
            let copy = relays.entry(name.clone()).or_insert_with(|| RelayedCopy::new(&self.paths, &name, &source));
            copy.set_targets(targets);
        }
    }

    /// Looks whether copies have come or gone.
    pub(super) fn tend_relays(&self) {
        let all: Vec<_> = self.relays.lock().values().cloned().collect();
        all.iter().for_each(|copy| copy.look());
    }

    /// The copy of that name, when it has targets.
    pub(super) fn find_relay(&self, name: &VolumeName) -> Option<Arc<RelayedCopy>> {
        self.relays.lock().get(name).cloned()
    }

    /// Forgets a target of a copy.
    pub(super) fn forget_relayed(&self, name: &VolumeName, target: &TargetName) -> Result<(), Failure> {
        self.find_relay(name).map_or(Ok(()), |copy| copy.forget_target(target))
    }

    /// Ends what is passed on.
    pub(super) fn close_relays(&self) {
        let all = std::mem::take(&mut *self.relays.lock());
        for copy in all.values() {
            copy.live.lock().senders.values().for_each(SenderThread::stop);
        }
    }
}
