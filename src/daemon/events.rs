//! `dtfs events`: what was written down, of one volume or of all.

use std::sync::Arc;
use std::time::Duration;

use super::volume::{Volume, VolumeError};
use super::volumes::Volumes;
use crate::base::Timespec;
use crate::config::VolumeName;
use crate::control::{EventEntry, Failure, Reply, ReplySink, rfc3339};
use crate::journal::EventRow;

/// Entries in one line of an answer.
const CHUNK: usize = 256;
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Which events.
pub(super) struct Which {
    /// One volume, or all.
    pub(super) volume: Option<VolumeName>,
    /// Go on with new ones.
    pub(super) follow: super::log::Follow,
    /// At most this many of the newest of each volume to begin with.
    pub(super) limit: usize,
}

/// Sends the events of open volumes in the order of their times, then new ones as they come.
pub(super) fn events(volumes: &Volumes, which: &Which, sink: &mut dyn ReplySink) -> Result<Reply, Failure> {
    let chosen = || match &which.volume {
        Some(name) => volumes.need(name).map(|volume| vec![volume]),
        None => Ok(volumes.open()),
    };
    let mut seen: Vec<(VolumeName, i64)> = Vec::new();
    let mut found = Vec::new();
    for volume in chosen()? {
        let mut rows = volume.journal.store().events(which.limit.max(1)).map_err(VolumeError::from)?;
        rows.reverse();
        seen.push((volume.name.clone(), rows.last().map_or(0, |row| row.id)));
        rows.truncate(which.limit);
        found.extend(rows.into_iter().map(|row| (volume.clone(), row)));
    }
    send(&mut found, sink)?;
    while which.follow == super::log::Follow::Yes && sink.is_wanted() {
        std::thread::sleep(LOOK_EVERY);
        for volume in chosen()? {
            found.extend(newer(&volume, &mut seen)?);
        }
        send(&mut found, sink)?;
    }
    Ok(Reply::Events(Vec::new()))
}

/// What was written down since the last look; of a volume that was opened meanwhile, everything.
fn newer(volume: &Arc<Volume>, seen: &mut Vec<(VolumeName, i64)>) -> Result<Vec<(Arc<Volume>, EventRow)>, Failure> {
    let at = seen.iter().position(|(name, _)| *name == volume.name).unwrap_or_else(|| {
        seen.push((volume.name.clone(), 0));
        seen.len() - 1
    });
    let rows = volume.journal.store().events_after(seen[at].1, CHUNK).map_err(VolumeError::from)?;
    if let Some(last) = rows.last() {
        seen[at].1 = last.id;
    }
    Ok(rows.into_iter().map(|row| (volume.clone(), row)).collect())
}

fn send(found: &mut Vec<(Arc<Volume>, EventRow)>, sink: &mut dyn ReplySink) -> Result<(), Failure> {
    found.sort_by_key(|(_, row)| row.time_ns);
    for part in found.chunks(CHUNK) {
        let entries = part.iter().map(|(volume, row)| entry(volume, row)).collect::<Result<_, _>>()?;
        sink.send(Reply::Events(entries))?;
    }
    found.clear();
    Ok(())
}

fn entry(volume: &Volume, row: &EventRow) -> Result<EventEntry, Failure> {
    let time =
        Timespec { sec: row.time_ns.div_euclid(1_000_000_000), nsec: row.time_ns.rem_euclid(1_000_000_000) as u32 };
    let target = match row.target {
        Some(id) => volume.journal.store().target_by_id(id).map_err(VolumeError::from)?,
        None => None,
    };
    Ok(EventEntry {
        time: rfc3339(time),
        level: row.level.word().to_owned(),
        volume: volume.name.clone(),
        target: target.map(|target| target.name),
        text: row.text.clone(),
    })
}
