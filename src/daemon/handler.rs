//! Answers the control socket.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::relay::RelayedCopy;
use super::volume::{Volume, VolumeError};
use super::volumes::{Run, Volumes};
use crate::base::Tid;
use crate::config::{OpenFiles, TargetName, VolumeName};
use crate::control::{ExitCode, Failure, Handler, MountsReply, Reply, ReplySink, Request, Stopper};
use crate::fuse::Unmount;
use crate::journal::Own;
use crate::sender::{Repair, VerifyRequest};

pub(super) struct DaemonHandler {
    pub(super) volumes: Arc<Volumes>,
    pub(super) stopper: Stopper,
}

impl Handler for DaemonHandler {
    fn handle(&self, request: Request, sink: &mut dyn ReplySink) -> Result<Reply, Failure> {
        let volumes = &self.volumes;
        match request {
            Request::MountsList => {
                let state = |entry: &crate::config::MountEntry| Some(volumes.state(&entry.volume));
                Ok(Reply::Mounts(MountsReply::from_file(&volumes.mounts_file()?, state)))
            }
            Request::Mount { which, dry_run, allow_open } => {
                let open_files = if allow_open { OpenFiles::Allow } else { OpenFiles::Refuse };
                let run = if dry_run { Run::Dry } else { Run::Real };
                Ok(Reply::Verdicts(volumes.mount(&which, run, open_files)?))
            }
            Request::Unmount { which, dry_run: true, .. } => Ok(Reply::Verdicts(volumes.rehearse_unmount(&which)?)),
            Request::Unmount { which, lazy, dry_run: false } => {
                let how = if lazy { Unmount::Lazy } else { Unmount::Plain };
                Ok(Reply::Verdicts(volumes.unmount(&which, how)?))
            }
            Request::Reload => Ok(Reply::Notes(volumes.reload(Run::Real)?)),
            Request::PlanReload => Ok(Reply::Notes(volumes.reload(Run::Dry)?)),
            Request::DefineTarget { volume: _, target: _ } => volumes.reload(Run::Real).map(|_| Reply::Done),
            Request::Forget { volume, target } => self.forget(&volume, target.as_ref()),
            Request::Status { volume } => Ok(Reply::Status(super::status::status(volumes, volume.as_ref())?)),
            Request::Wait { volume, target, tid, timeout_ms } => {
                let deadline = timeout_ms.map(|ms| Instant::now() + Duration::from_millis(ms));
                match volumes.find_relay(&volume) {
                    Some(copy) => wait_for_relayed(&copy, target.as_ref(), tid, deadline, sink),
                    None => wait(&*volumes.need(&volume)?, target.as_ref(), tid, deadline, sink),
                }
            }
            Request::SyncTid { volume } => Ok(Reply::Tid { tid: volumes.need(&volume)?.synctid()? }),
            Request::Log { volume, from, follow, limit } => {
                let follow = if follow { super::log::Follow::Yes } else { super::log::Follow::No };
                super::log::log(&*volumes.need(&volume)?, from, follow, limit, sink)
            }
            Request::PfsStatus { volume } => Ok(Reply::Pfs(super::pfs::of_volume(&*volumes.need(&volume)?)?)),
            Request::Mirror { volume, run } => super::mirror_run::mirror(volumes, &volume, &run, sink),
            Request::Demote { volume, own } => Ok(Reply::Demoted(volumes.demote(&volume, own)?)),
            Request::Verify { volume, target, repair, bandwidth } => {
                let repair = if repair { Repair::Yes } else { Repair::No };
                let request = VerifyRequest { repair, bandwidth_bytes: bandwidth };
                volumes.need(&volume)?.verify(&target, request, sink)
            }
            Request::Rejoin { volume, target, discard } => {
                let own = if discard { Own::Discard } else { Own::Keep };
                volumes.need(&volume)?.rejoin(&target, own).map(|()| Reply::Done)
            }
            Request::Orphans { volume, target, what, older_than_sec } => {
                let reply = volumes.need(&volume)?.orphans(&target, (what, older_than_sec), sink)?;
                Ok(Reply::Orphans(reply))
            }
            Request::SetMirror { volume, target, action, rate_bytes } => {
                volumes.need(&volume)?.set_mirror(&target, action, rate_bytes)?;
                Ok(Reply::Done)
            }
            Request::Events { volume, follow, limit } => {
                let follow = if follow { super::log::Follow::Yes } else { super::log::Follow::No };
                super::events::events(volumes, &super::events::Which { volume, follow, limit }, sink)
            }
            Request::Stop => {
                self.stopper.stop();
                Ok(Reply::Done)
            }
        }
    }
}

impl DaemonHandler {
    fn forget(&self, volume: &VolumeName, target: Option<&TargetName>) -> Result<Reply, Failure> {
        match (target, self.volumes.find(volume)) {
            (None, _) => self.volumes.forget(volume)?,
            (Some(target), Some(open)) => open.forget_target(target)?,
            (Some(target), None) => self.volumes.forget_relayed(volume, target)?,
        }
        Ok(Reply::Done)
    }
}

/// Waits until the target, or every target, is consistent at `tid` (at everything up to now without one).
fn wait(
    volume: &Volume,
    only: Option<&TargetName>,
    tid: Option<Tid>,
    deadline: Option<Instant>,
    sink: &mut dyn ReplySink,
) -> Result<Reply, Failure> {
    let tid = match tid {
        Some(tid) => tid,
        None => {
            volume.write_back()?;
            volume.journal.last_tid()
        }
    };
    if tid > volume.journal.last_tid() {
        let last = volume.journal.last_tid();
        return Err(Failure::new(ExitCode::Usage, format!("{tid} is not made yet: the last is {last}")));
    }
    volume.journal.commit(tid).map_err(VolumeError::from)?;
    let targets = selected(volume, only)?;
    for name in &targets {
        wait_for_one(volume, name, tid, deadline, sink)?;
    }
    Ok(Reply::Waited { tid, targets })
}

/// The same for the targets of a copy, which get what it has.
fn wait_for_relayed(
    copy: &RelayedCopy,
    only: Option<&TargetName>,
    tid: Option<Tid>,
    deadline: Option<Instant>,
    sink: &mut dyn ReplySink,
) -> Result<Reply, Failure> {
    const LOOK_EVERY: Duration = Duration::from_millis(100);
    const FLUSH_EVERY: Duration = Duration::from_secs(1);
    let tid = tid.unwrap_or_else(|| copy.last_tid());
    let all = copy.target_names();
    let targets = only.map_or_else(|| all.clone(), |name| vec![name.clone()]);
    if let Some(name) = targets.iter().find(|name| !all.contains(name)) {
        return Err(Failure::new(ExitCode::Usage, format!("the copy has no target {name}"))
            .with_remedy("dtfs status shows the targets"));
    }
    for name in &targets {
        let mut flushed: Option<Instant> = None;
        while !copy.is_consistent(name, tid)? {
            let late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
            if late || !sink.is_wanted() {
                return Err(Failure::new(ExitCode::Behind, format!("target {name} is not consistent at {tid} yet"))
                    .with_remedy("dtfs status shows how far it is"));
            }
            if flushed.is_none_or(|at| at.elapsed() >= FLUSH_EVERY) {
                copy.flush_target(name);
                flushed = Some(Instant::now());
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
    Ok(Reply::Waited { tid, targets })
}

fn selected(volume: &Volume, only: Option<&TargetName>) -> Result<Vec<TargetName>, Failure> {
    let all = super::status::target_names(volume);
    match only {
        Some(name) if !all.contains(name) => {
            Err(Failure::new(ExitCode::Usage, format!("volume {} has no target {name}", volume.name))
                .with_remedy("dtfs status shows the targets"))
        }
        Some(name) => Ok(vec![name.clone()]),
        None if all.is_empty() => Err(Failure::new(ExitCode::Usage, format!("volume {} has no target", volume.name))
            .with_remedy("add one: dtfs define target")),
        None => Ok(all),
    }
}

fn wait_for_one(
    volume: &Volume,
    name: &TargetName,
    tid: Tid,
    deadline: Option<Instant>,
    sink: &mut dyn ReplySink,
) -> Result<(), Failure> {
    /// A file that was open before the mount keeps every target from being consistent until it is closed.
    const SUSPECT_EVERY: Duration = Duration::from_secs(1);
    const LOOK_EVERY: Duration = Duration::from_millis(200);
    let behind = |text: String| Failure::new(ExitCode::Behind, text).with_remedy("dtfs status shows how far it is");
    volume.flush_target(name);
    let mut looked = Instant::now();
    volume.check_suspects()?;
    while !volume.is_consistent(name, tid)? {
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(behind(format!("target {name} is not consistent at {tid} yet")));
        }
        if !sink.is_wanted() {
            return Err(behind("nobody waits any more".to_owned()));
        }
        if looked.elapsed() >= SUSPECT_EVERY {
            looked = Instant::now();
            volume.check_suspects()?;
        }
        let left = deadline.map_or(LOOK_EVERY, |deadline| deadline.saturating_duration_since(Instant::now()));
        volume.wait_for_target(name, left.min(LOOK_EVERY));
    }
    Ok(())
}
