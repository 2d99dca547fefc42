//! Mirrors: begun and held by an operator, and how they stand.

use super::sends::Sends;
use super::verify::show;
use super::volume::VolumeError;
use crate::base::Timespec;
use crate::config::TargetName;
use crate::control::{ExitCode, Failure, MirrorAction, MirrorReply, rfc3339};
use crate::journal::{Level, Store, TargetRow};
use crate::sender::{Hold, MirrorKind, SenderStatus, begin_mirror, last_mirror, limit_mirror};

impl dyn Sends + '_ {
    /// Does what an operator asks of the mirror of a target.
    pub(super) fn set_mirror(
        &self,
        target: &TargetName,
        action: MirrorAction,
        rate_bytes: Option<u64>,
    ) -> Result<(), Failure> {
        let log = self.log()?;
        let store = log.store();
        let row = self.mirrored_target(store, target)?;
        match action {
            MirrorAction::Full => start_mirror(store, &row, MirrorKind::Full, rate_bytes)?,
            MirrorAction::Difference => start_mirror(store, &row, MirrorKind::Difference, rate_bytes)?,
            MirrorAction::Checksum => start_mirror(store, &row, MirrorKind::Checksum, rate_bytes)?,
            MirrorAction::Stop => hold_mirror(store, &row, Hold::Stopped)?,
            MirrorAction::Pause => hold_mirror(store, &row, Hold::Paused)?,
            MirrorAction::Resume => resume_mirror(store, &row)?,
        }
        if let Some(sender) = self.sender(target) {
            sender.mirror_changed();
        }
        Ok(())
    }

    fn mirrored_target(&self, store: &Store, target: &TargetName) -> Result<TargetRow, Failure> {
        let row = store.target(target.as_str()).map_err(VolumeError::from)?;
        let row = row.ok_or_else(|| self.no_target(target))?;
        match row.mirrored {
            true => Ok(row),
            false => {
                Err(Failure::new(ExitCode::Busy, format!("the first mirror of {target} begins when it is connected"))
                    .with_remedy("dtfs status says why it is not; try again then"))
            }
        }
    }
}

fn start_mirror(store: &Store, row: &TargetRow, kind: MirrorKind, rate_bytes: Option<u64>) -> Result<(), Failure> {
    let hold = Hold::of(store, row.id).map_err(VolumeError::from)?;
    if hold != Hold::Stopped && store.mirror_is_left(row.id).map_err(VolumeError::from)? {
        let how = if hold == Hold::Paused { "is paused" } else { "runs" };
        let message = format!("a mirror of {} {how} already", row.name);
        return Err(Failure::new(ExitCode::Busy, message).with_remedy("give it up first: dtfs mirror stop VOL TARGET"));
    }
    limit_mirror(store, row.id, rate_bytes).map_err(VolumeError::from)?;
    Ok(begin_mirror(store, row.id, kind).map_err(VolumeError::from)?)
}

fn hold_mirror(store: &Store, row: &TargetRow, hold: Hold) -> Result<(), Failure> {
    if !store.mirror_is_left(row.id).map_err(VolumeError::from)? {
        return Err(Failure::new(ExitCode::Busy, format!("no mirror of {} runs", row.name)));
    }
    set_hold(store, row, hold)
}

fn resume_mirror(store: &Store, row: &TargetRow) -> Result<(), Failure> {
    match Hold::of(store, row.id).map_err(VolumeError::from)? {
        Hold::Paused => set_hold(store, row, Hold::Running),
        Hold::Running => Err(Failure::new(ExitCode::Busy, format!("the mirror of {} is not paused", row.name))),
        Hold::Stopped => Err(Failure::new(ExitCode::Busy, format!("the mirror of {} was given up", row.name))
            .with_remedy("begin one: dtfs mirror start VOL TARGET")),
    }
}

fn set_hold(store: &Store, row: &TargetRow, hold: Hold) -> Result<(), Failure> {
    let text = match hold {
        Hold::Running => "the mirror goes on",
        Hold::Paused => "the mirror is paused",
        Hold::Stopped => "the mirror is given up; until one is started the target stays as it is",
    };
    hold.set(store, row.id).map_err(VolumeError::from)?;
    Ok(store.event(Level::Info, Some(row.id), text).map_err(VolumeError::from)?)
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
