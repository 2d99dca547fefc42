//! Answers the control socket.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::volumes::{Run, Volumes};
use crate::config::{OpenFiles, TargetName, VolumeName};
use crate::control::{Failure, Handler, MountsReply, Reply, ReplySink, Request, Stopper};
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
                super::wait::wait(&*volumes.sending(&volume)?, target.as_ref(), tid, deadline, sink)
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
                volumes.sending(&volume)?.verify(&target, request, sink)
            }
            Request::Rejoin { volume, target, discard } => {
                let own = if discard { Own::Discard } else { Own::Keep };
                volumes.need(&volume)?.rejoin(&target, own).map(|()| Reply::Done)
            }
            Request::Orphans { volume, target, what, older_than_sec } => {
                let reply = volumes.sending(&volume)?.orphans(&target, (what, older_than_sec), sink)?;
                Ok(Reply::Orphans(reply))
            }
            Request::SetMirror { volume, target, action, rate_bytes } => {
                volumes.sending(&volume)?.set_mirror(&target, action, rate_bytes)?;
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
