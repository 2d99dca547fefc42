//! Mirrors: begun and held by an operator, and how they stand.

use super::verify::show;
use super::volume::{Volume, VolumeError};
use crate::base::Timespec;
use crate::config::TargetName;
use crate::control::{ExitCode, Failure, MirrorAction, MirrorReply, rfc3339};
use crate::journal::{Level, Store, TargetRow};
use crate::sender::{Hold, MirrorKind, SenderStatus, begin_mirror, last_mirror, limit_mirror};

impl Volume {
    /// Does what an operator asks of the mirror of a target.
    pub(super) fn set_mirror(
        &self,
        target: &TargetName,
        action: MirrorAction,
        rate_bytes: Option<u64>,
    ) -> Result<(), Failure> {
        let row = self.mirrored_target(target)?;
        match action {
            MirrorAction::Full => self.start_mirror(&row, MirrorKind::Full, rate_bytes)?,
            MirrorAction::Difference => self.start_mirror(&row, MirrorKind::Difference, rate_bytes)?,
            MirrorAction::Checksum => self.start_mirror(&row, MirrorKind::Checksum, rate_bytes)?,
            MirrorAction::Stop => self.hold_mirror(&row, Hold::Stopped)?,
            MirrorAction::Pause => self.hold_mirror(&row, Hold::Paused)?,
            MirrorAction::Resume => self.resume_mirror(&row)?,
        }
        if let Some(sender) = self.live().senders.get(target) {
            sender.mirror_changed();
        }
        Ok(())
    }

    fn mirrored_target(&self, target: &TargetName) -> Result<TargetRow, Failure> {
        let row = self.journal.store().target(target.as_str()).map_err(VolumeError::from)?;
        let row = row.ok_or_else(|| {
            Failure::new(ExitCode::Usage, format!("volume {} has no target {target}", self.name))
                .with_remedy("dtfs status shows the targets")
        })?;
        match row.mirrored {
            true => Ok(row),
            false => {
                Err(Failure::new(ExitCode::Busy, format!("the first mirror of {target} begins when it is connected"))
                    .with_remedy("dtfs status says why it is not; try again then"))
            }
        }
    }

    fn start_mirror(&self, row: &TargetRow, kind: MirrorKind, rate_bytes: Option<u64>) -> Result<(), Failure> {
        let store = self.journal.store();
        let hold = Hold::of(store, row.id).map_err(VolumeError::from)?;
        if hold != Hold::Stopped && store.mirror_is_left(row.id).map_err(VolumeError::from)? {
            let how = if hold == Hold::Paused { "is paused" } else { "runs" };
            let message = format!("a mirror of {} {how} already", row.name);
            return Err(
                Failure::new(ExitCode::Busy, message).with_remedy("give it up first: dtfs mirror stop VOL TARGET")
            );
        }
        limit_mirror(store, row.id, rate_bytes).map_err(VolumeError::from)?;
        Ok(begin_mirror(store, row.id, kind).map_err(VolumeError::from)?)
    }

    fn hold_mirror(&self, row: &TargetRow, hold: Hold) -> Result<(), Failure> {
        let store = self.journal.store();
        if !store.mirror_is_left(row.id).map_err(VolumeError::from)? {
            return Err(Failure::new(ExitCode::Busy, format!("no mirror of {} runs", row.name)));
        }
        self.set_hold(row, hold)
    }

    fn resume_mirror(&self, row: &TargetRow) -> Result<(), Failure> {
        let store = self.journal.store();
        match Hold::of(store, row.id).map_err(VolumeError::from)? {
            Hold::Paused => self.set_hold(row, Hold::Running),
            Hold::Running => Err(Failure::new(ExitCode::Busy, format!("the mirror of {} is not paused", row.name))),
            Hold::Stopped => Err(Failure::new(ExitCode::Busy, format!("the mirror of {} was given up", row.name))
                .with_remedy("begin one: dtfs mirror start VOL TARGET")),
        }
    }

    fn set_hold(&self, row: &TargetRow, hold: Hold) -> Result<(), Failure> {
        let store = self.journal.store();
        let text = match hold {
            Hold::Running => "the mirror goes on",
            Hold::Paused => "the mirror is paused",
            Hold::Stopped => "the mirror is given up; until one is started the target stays as it is",
        };
        hold.set(store, row.id).map_err(VolumeError::from)?;
        Ok(store.event(Level::Info, Some(row.id), text).map_err(VolumeError::from)?)
    }
}

/// How the mirror of a target stands; `None` when there was none.
pub(super) fn mirror_reply(
    store: &Store,
    row: &TargetRow,
    sender: &SenderStatus,
) -> Result<Option<MirrorReply>, VolumeError> {
    let progress = match &sender.mirror {
        Some(progress) => progress.clone(),
        None => last_mirror(store, row.id)?,
    };
    let Some(kind) = progress.kind else { return Ok(None) };
    let state = match (store.mirror_is_left(row.id)?, Hold::of(store, row.id)?) {
        (false, _) => "done",
        (true, Hold::Running) => "running",
        (true, hold) => hold.word(),
    };
    let runs = state == "running";
    Ok(Some(MirrorReply {
        mirror: kind.word().to_owned(),
        progress: state.to_owned(),
        began: rfc3339(Timespec { sec: progress.began_sec, nsec: 0 }),
        objects: progress.objects,
        bytes: progress.bytes,
        total_objects: progress.total.map(|(objects, _)| objects),
        total_bytes: progress.total.map(|(_, bytes)| bytes),
        objects_a_second: if runs { progress.rate.0 } else { 0 },
        bytes_a_second: if runs { progress.rate.1 } else { 0 },
        seconds_left: progress.seconds_left().filter(|_| runs),
        current: runs.then(|| show(&progress.current)),
    }))
}
