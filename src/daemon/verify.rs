//! Verifications: asked for by an operator, or due by the volume's file.

use std::time::{Duration, Instant};

use super::sends::Sends;
use crate::base::{Name, Timespec};
use crate::config::{TargetName, TimeSpan, VolumeName};
use crate::control::{DifferenceRow, ExitCode, Failure, Reply, ReplySink, VerifyReply};
use crate::sender::{Found, SenderState, VerifyProgress, VerifyRequest, last_verified};

/// How often the caller hears how far it is.
const TELL_EVERY: Duration = Duration::from_millis(500);

impl dyn Sends + '_ {
    /// Verifies a target and waits for the outcome; parts of the answer say how far it is. It goes on when the caller leaves.
    pub(super) fn verify(
        &self,
        target: &TargetName,
        request: VerifyRequest,
        sink: &mut dyn ReplySink,
    ) -> Result<Reply, Failure> {
        let id = self.ask_to_verify(target, request)?;
        let mut told = Instant::now();
        loop {
            let progress = self.verify_progress(target)?;
            if let Some(progress) = progress.filter(|progress| progress.id == id) {
                if progress.is_done {
                    return Ok(Reply::Verified(verify_reply(self.name(), target, &progress)));
                }
                if told.elapsed() >= TELL_EVERY {
                    told = Instant::now();
                    sink.send(Reply::Verified(verify_reply(self.name(), target, &progress)))?;
                }
            }
            if !sink.is_wanted() {
                return Err(Failure::new(ExitCode::Behind, "nobody waits for the outcome any more"));
            }
            self.wait_for_target(target, Duration::from_millis(200));
        }
    }

    fn ask_to_verify(&self, target: &TargetName, request: VerifyRequest) -> Result<u64, Failure> {
        self.connected(target)?.verify(request).ok_or_else(|| {
            Failure::new(ExitCode::Busy, format!("target {target} is being verified already"))
                .with_remedy("dtfs status shows how far it is")
        })
    }

    fn verify_progress(&self, target: &TargetName) -> Result<Option<VerifyProgress>, Failure> {
        match self.sender(target).map(|sender| sender.status()) {
            Some(status) if status.state == SenderState::Stopped => Err(interrupted(target)),
            Some(status) => Ok(status.verify),
            None => Err(interrupted(target)),
        }
    }

    /// Starts the verifications that are due.
    pub(super) fn verify_when_due(&self, every: TimeSpan) -> Result<(), Failure> {
        let log = self.log()?;
        let (store, failed) = (log.store(), super::volume::VolumeError::from);
        for row in store.targets().map_err(failed)? {
            let last = last_verified(store, row.id).map_err(failed)?;
            let due = last.is_none_or(|last| Timespec::now().sec - last.sec >= every.seconds() as i64);
            let Ok(name) = TargetName::new(&row.name) else { continue };
            if due && row.mirrored && self.ask_to_verify(&name, VerifyRequest::default()).is_ok() {
                tracing::info!(volume = %self.name(), target = %name, "a verification is due, and begins");
            }
        }
        Ok(())
    }
}

/// How a verification of the target stands.
pub(super) fn verify_reply(volume: &VolumeName, target: &TargetName, progress: &VerifyProgress) -> VerifyReply {
    VerifyReply {
        volume: volume.clone(),
        target: target.clone(),
        from_tid: progress.position.0,
        upto_tid: progress.position.1,
        objects: progress.objects,
        bytes: progress.bytes,
        current: (!progress.is_done).then(|| show(&progress.current)),
        found: progress.found,
        left: progress.left,
        unsettled: progress.unsettled,
        unreadable: progress.unreadable,
        differences: progress.differences.iter().map(row).collect(),
    }
}

fn interrupted(target: &TargetName) -> Failure {
    Failure::new(ExitCode::Behind, format!("the verification of {target} was interrupted: its sender was stopped"))
        .with_remedy("start it again")
}

fn row(found: &Found) -> DifferenceRow {
    DifferenceRow {
        path: show(&found.path),
        what: found.kind.word().to_owned(),
        offset: found.kind.has_range().then_some(found.offset),
        xattr: (!found.xattr.is_empty()).then(|| found.xattr.escape_ascii().to_string()),
    }
}

/// A path for people: bytes that are no text escaped, `.` for the root.
pub(super) fn show(path: &[u8]) -> String {
    let part = |bytes: &[u8]| Name::new(bytes).map_or_else(|_| bytes.escape_ascii().to_string(), |n| n.to_string());
    match path.is_empty() {
        true => ".".to_owned(),
        false => path.split(|b| *b == b'/').map(part).collect::<Vec<_>>().join("/"),
    }
}
