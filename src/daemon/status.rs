//! What `status` says.

use std::collections::BTreeMap;

use super::sends::Sends;
use super::volume::Volume;
use super::volumes::Volumes;
use crate::applier::Replica;
use crate::base::{Tid, Timespec};
use crate::config::{Delay, MountEntry, TargetName, VolumeFile, VolumeName};
use crate::control::{
    CopyStatus, Failure, LastError, StatusReply, TargetState, TargetStatus, VolumeState, VolumeStatus, rfc3339,
};
use crate::journal::{Replay, TargetRow, WorkReason};
use crate::sender::{SenderState, SenderStatus};

/// The state of an open volume.
pub(super) fn volume_state(volume: &Volume) -> VolumeState {
    let live = volume.live();
    let failed = volume.journal.failed();
    match (&live.mounted, failed) {
        (_, Some(reason)) => VolumeState::Failed { reason },
        (Some(mounted), None) if mounted.stack().has_failed() => {
            VolumeState::Failed { reason: "a write to the backing filesystem was lost".to_owned() }
        }
        (Some(mounted), None) if mounted.is_serving() => VolumeState::Mounted,
        _ => VolumeState::Unmounted,
    }
}

/// The status of all volumes, or of one.
pub(super) fn status(volumes: &Volumes, only: Option<&VolumeName>) -> Result<StatusReply, Failure> {
    let file = volumes.mounts_file()?;
    let mut reply = StatusReply { daemon: volumes.daemon.clone(), ..StatusReply::default() };
    for entry in file.entries().filter(|entry| only.is_none_or(|name| entry.volume == *name)) {
        reply.volumes.push(match volumes.find(&entry.volume) {
            Some(volume) => {
                let mut status = volume_status(&volume)?;
                volumes.meter.fill((&volume.name, volume.journal.store()), &mut status.targets);
                status
            }
            None => closed_volume(volumes, entry),
        });
    }
    match (only, reply.volumes.is_empty()) {
        (Some(name), true) if volumes.find_relay(name).is_some() => {
            let mut copies = copies(volumes)?;
            copies.retain(|copy| copy.name == *name);
            Ok(StatusReply { copies, ..reply })
        }
        (Some(name), true) => volumes.need(name).map(|_| reply),
        (Some(_), false) => Ok(reply),
        (None, _) => Ok(StatusReply { copies: copies(volumes)?, ..reply }),
    }
}

/// The copies that other hosts write here, and whom they pass it on to.
fn copies(volumes: &Volumes) -> Result<Vec<CopyStatus>, Failure> {
    let paths = &volumes.paths;
    let files = VolumeFile::load_all(paths)?.into_iter();
    let sources = files.filter_map(|named| Some((named.volume, named.file.ok()?.source?)));
    sources
        .map(|(name, source)| {
            let about = Replica::describe(&source.dir, &paths.replicas_dir()).ok().flatten();
            let applied_tid = about.map_or(Tid::ZERO, |about| about.applied.tid);
            let relay = volumes.find_relay(&name);
            let mut targets = relay.as_ref().map_or(Ok(Vec::new()), |relay| relay.targets())?;
            if let Some(log) = relay.as_ref().and_then(|relay| relay.log().ok()) {
                volumes.meter.fill((&name, log.store()), &mut targets);
            }
            let reason = relay.and_then(|relay| relay.reason());
            Ok(CopyStatus { name, host: source.host, path: source.dir, applied_tid, targets, reason })
        })
        .collect()
}

fn closed_volume(volumes: &Volumes, entry: &MountEntry) -> VolumeStatus {
    VolumeStatus {
        name: entry.volume.clone(),
        path: entry.path.clone(),
        uuid: None,
        state: volumes.state(&entry.volume),
        last_tid: Tid::ZERO,
        durable_tid: Tid::ZERO,
        journal_bytes: 0,
        journal_cap_bytes: 0,
        requests: 0,
        requests_by_kind: BTreeMap::new(),
        suspects: Vec::new(),
        unseen: Vec::new(),
        rules: Vec::new(),
        targets: Vec::new(),
    }
}

/// The status of an open volume.
pub(super) fn volume_status(volume: &Volume) -> Result<VolumeStatus, Failure> {
    let state = volume_state(volume);
    let targets = targets_of(volume)?;
    let live = volume.live();
    Ok(VolumeStatus {
        name: volume.name.clone(),
        path: volume.path.clone(),
        uuid: Some(volume.journal.identity().volume.to_string()),
        state,
        last_tid: volume.journal.last_tid(),
        durable_tid: volume.journal.durable_tid(),
        journal_bytes: volume.journal.bytes_used(),
        journal_cap_bytes: volume.journal.cap_bytes(),
        requests_by_kind: live.mounted.as_ref().map(|mounted| named(mounted.requests())).unwrap_or_default(),
        requests: live.mounted.as_ref().map_or(0, |mounted| mounted.answered()),
        suspects: live.suspects.objects.values().cloned().collect(),
        unseen: live.suspects.unseen.clone(),
        rules: live.rules.texts().map(str::to_owned).collect(),
        targets,
    })
}

/// How the targets of a volume stand.
///
/// # Errors
/// When its store cannot be read.
pub(super) fn targets_of(volume: &Volume) -> Result<Vec<TargetStatus>, Failure> {
    let live = volume.live();
    let mut targets = Vec::new();
    for (name, sender) in &live.senders {
        if let Some(row) = volume.journal.store().target(name.as_str()).map_err(super::volume::VolumeError::from)? {
            let status = target(volume, name, &row, (&sender.status(), live.sees_all()))?;
            let delay = live.entries.get(name).and_then(|entry| entry.delay);
            targets.push(TargetStatus { delay_seconds: delay.map_or(0, Delay::seconds), ..status });
        }
    }
    for name in &live.paused {
        if let Some(row) = volume.journal.store().target(name.as_str()).map_err(super::volume::VolumeError::from)? {
            let status = target(volume, name, &row, (&SenderStatus::default(), live.sees_all()))?;
            targets.push(TargetStatus { state: TargetState::Paused, ..status });
        }
    }
    Ok(targets)
}

fn target(
    volume: &Volume,
    name: &TargetName,
    row: &TargetRow,
    (sender, sees_all): (&SenderStatus, bool),
) -> Result<TargetStatus, Failure> {
    let standing = Standing { volume: &volume.name, log: volume.journal.as_ref(), sender, sees_all };
    target_status(&standing, name, row)
}

/// What is known of a target beside its row.
pub(super) struct Standing<'a> {
    pub(super) volume: &'a VolumeName,
    /// What is sent to it.
    pub(super) log: &'a dyn Replay,
    pub(super) sender: &'a SenderStatus,
    /// Whether nothing is missed here that it should have.
    pub(super) sees_all: bool,
}

/// The status of a target.
pub(super) fn target_status(
    standing: &Standing<'_>,
    name: &TargetName,
    row: &TargetRow,
) -> Result<TargetStatus, Failure> {
    let Standing { volume, log, sender, sees_all } = *standing;
    let (store, failed) = (log.store(), super::volume::VolumeError::from);
    let work_left = store.work_count(row.id).map_err(failed)?;
    let oldest = store.work_next(row.id, 0, 1).map_err(failed)?;
    let bulk = |reason| matches!(reason, WorkReason::Mirror | WorkReason::Difference);
    let mirroring = oldest.first().is_some_and(|work| bulk(work.reason));
    let settled = row.applied >= sender.high_water && !sender.unsettled && sender.forked.is_none();
    let consistent = sees_all && row.mirrored && work_left == 0 && sender.blocked == 0 && settled;
    let state = match &sender.state {
        SenderState::Refused(reason) => TargetState::Refused { reason: reason.clone() },
        SenderState::Offline | SenderState::Stopped if !row.mirrored && sender.last_error.is_none() => TargetState::New,
        SenderState::Offline | SenderState::Stopped => {
            let reason = sender.last_error.as_ref().map_or("not connected".to_owned(), |(_, text)| text.clone());
            TargetState::Offline { reason }
        }
        SenderState::Busy(reason) => TargetState::Offline { reason: reason.clone() },
        SenderState::Connected if let Some(reason) = &sender.stalled => TargetState::Stalled { reason: reason.clone() },
        SenderState::Connected if mirroring => TargetState::Mirroring,
        SenderState::Connected if !consistent => TargetState::Converging,
        SenderState::Connected => TargetState::Replicating,
    };
    Ok(TargetStatus {
        name: name.clone(),
        url: row.url.clone(),
        state,
        received_tid: row.received.max(sender.received),
        applied_tid: row.applied,
        lag_changes: log.last_tid().0.saturating_sub(row.applied.0),
        lag_bytes: log.bytes_after(row.applied),
        lag_seconds: 0.0,
        delay_seconds: 0,
        rate_bytes: 0,
        work_seconds: None,
        work_left,
        consistent_at: consistent.then_some(row.applied),
        bytes_sent: sender.bytes_sent,
        errors: sender.errors,
        clock_offset_seconds: sender.clock_offset_micros.map(|micros| micros as f64 / 1e6),
        differs: sender.differs.clone(),
        left_out: sender.left_out.filter(|left_out| *left_out > 0),
        orphans: sender.orphans,
        mirror: super::mirror::mirror_reply(store, row, sender)?,
        verify: sender.verify.as_ref().map(|progress| super::verify::verify_reply(volume, name, progress)),
        last_error: sender.last_error.as_ref().map(last_error),
    })
}

fn named(kinds: BTreeMap<&'static str, u64>) -> BTreeMap<String, u64> {
    kinds.into_iter().map(|(kind, count)| (kind.to_owned(), count)).collect()
}

fn last_error((time, message): &(Timespec, String)) -> LastError {
    LastError { time: rfc3339(*time), message: message.clone() }
}
