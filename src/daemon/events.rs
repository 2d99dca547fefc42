//! `dtfs events`: what was written down, of one volume or of all.

use std::sync::Arc;
use std::time::Duration;

use super::sends::Sends;
use super::volume::VolumeError;
use super::volumes::Volumes;
use crate::base::Timespec;
use crate::config::VolumeName;
use crate::control::{EventEntry, Failure, Reply, ReplySink, rfc3339};
use crate::journal::EventRow;

/// Entries in one line of an answer.
const CHUNK: usize = 256;
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// An event, and whose it is.
type Found = (Arc<dyn Sends>, EventRow);

/// Which events.
pub(super) struct Which {
    /// One volume, or all.
    pub(super) volume: Option<VolumeName>,
    /// Go on with new ones.
    pub(super) follow: super::log::Follow,
    /// At most this many of the newest of each volume to begin with.
    pub(super) limit: usize,
}

/// Sends the events of open volumes, and of copies with targets, in the order of their times, then new ones as they come.
pub(super) fn events(volumes: &Volumes, which: &Which, sink: &mut dyn ReplySink) -> Result<Reply, Failure> {
    let chosen = || match &which.volume {
        Some(name) => volumes.sending(name).map(|sends| vec![sends]),
        None => Ok(volumes.all_sending()),
    };
    let mut seen: Vec<(VolumeName, i64)> = Vec::new();
    let mut found = Vec::new();
    for sends in chosen()? {
        let log = match sends.log() {
            Ok(log) => log,
            // A copy that nothing has filled has no events.
            Err(_) if which.volume.is_none() => continue,
            Err(failure) => return Err(failure),
        };
        let mut rows = log.store().events(which.limit.max(1)).map_err(VolumeError::from)?;
        rows.reverse();
        seen.push((sends.name().clone(), rows.last().map_or(0, |row| row.id)));
        rows.truncate(which.limit);
        found.extend(rows.into_iter().map(|row| (sends.clone(), row)));
    }
    send(&mut found, sink)?;
    while which.follow == super::log::Follow::Yes && sink.is_wanted() {
        std::thread::sleep(LOOK_EVERY);
        for sends in chosen()? {
            found.extend(newer(&sends, &mut seen)?);
        }
        send(&mut found, sink)?;
    }
    Ok(Reply::Events(Vec::new()))
}

/// What was written down since the last look; of a volume that was opened meanwhile, everything.
fn newer(sends: &Arc<dyn Sends>, seen: &mut Vec<(VolumeName, i64)>) -> Result<Vec<Found>, Failure> {
    let Ok(log) = sends.log() else { return Ok(Vec::new()) };
    let at = seen.iter().position(|(name, _)| name == sends.name()).unwrap_or_else(|| {
        seen.push((sends.name().clone(), 0));
        seen.len() - 1
    });
    let rows = log.store().events_after(seen[at].1, CHUNK).map_err(VolumeError::from)?;
    if let Some(last) = rows.last() {
        seen[at].1 = last.id;
    }
    Ok(rows.into_iter().map(|row| (sends.clone(), row)).collect())
}

fn send(found: &mut Vec<Found>, sink: &mut dyn ReplySink) -> Result<(), Failure> {
    found.sort_by_key(|(_, row)| row.time_ns);
    for part in found.chunks(CHUNK) {
        let entries = part.iter().map(|(sends, row)| entry(sends.as_ref(), row)).collect::<Result<_, _>>()?;
        sink.send(Reply::Events(entries))?;
    }
    found.clear();
    Ok(())
}

fn entry(sends: &dyn Sends, row: &EventRow) -> Result<EventEntry, Failure> {
    let time =
        Timespec { sec: row.time_ns.div_euclid(1_000_000_000), nsec: row.time_ns.rem_euclid(1_000_000_000) as u32 };
    let target = match row.target {
        Some(id) => sends.log()?.store().target_by_id(id).map_err(VolumeError::from)?,
        None => None,
    };
    Ok(EventEntry {
        time: rfc3339(time),
        level: row.level.word().to_owned(),
        volume: sends.name().clone(),
        target: target.map(|target| target.name),
        text: row.text.clone(),
    })
}
