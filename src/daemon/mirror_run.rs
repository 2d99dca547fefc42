//! `mirror-copy` and `mirror-stream`: a session that lasts as long as a command wants it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::sends::Sends;
use super::volume::{Volume, VolumeError};
use super::volumes::Volumes;
use crate::base::Tid;
use crate::config::{TargetEntry, TargetName, TargetUrl, VolumeName, check_target_entry};
use crate::control::{ExitCode, Failure, MirrorMode, MirrorProgress, MirrorRun, Reply, ReplySink};
use crate::sender::SenderState;

/// How often the caller hears how far it is.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// How often a target is asked to make durable at once what it has. Each time costs it a sync, and is answered.
const FLUSH_EVERY: Duration = Duration::from_secs(1);
/// How often it is looked whether the caller is still there.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A session of one command. Dropping it ends the session; the target keeps its place.
struct Run {
    volume: Arc<Volume>,
    name: TargetName,
    from: Tid,
    to: Tid,
}

/// Runs the session that `wanted` asks for.
pub(super) fn mirror(
    volumes: &Volumes,
    volume: &VolumeName,
    wanted: &MirrorRun,
    sink: &mut dyn ReplySink,
) -> Result<Reply, Failure> {
    let open = volumes.need(volume)?;
    let entry = find_target(volumes, volume, &wanted.target)?;
    // Before the first byte: the copy reaches at least what the caller sees now.
    let to = open.synctid()?;
    let from = open.begin_run(&entry, wanted.rate_bytes)?;
    let run = Run { volume: open, name: entry.name, from, to };
    sink.send(Reply::Mirror(run.progress()?))?;
    run.until(wanted.mode, sink)
}

/// What `text` means: the name of a defined target, or a place.
fn find_target(volumes: &Volumes, volume: &VolumeName, text: &str) -> Result<TargetEntry, Failure> {
    let mounts = volumes.mounts_file()?;
    let file = crate::config::VolumeFile::load(&volumes.paths, volume)?;
    if let Some(entry) = file.targets.iter().find(|target| target.name.as_str() == text) {
        return Ok(entry.clone());
    }
    let usage = |message: String| {
        let known: Vec<&str> = file.targets.iter().map(|target| target.name.as_str()).collect();
        let names = if known.is_empty() { "it has no defined target".to_owned() } else { known.join(", ") };
        Failure::new(ExitCode::Usage, message).with_remedy(format!("write local:DIR, or the name of a target: {names}"))
    };
    let url = if Path::new(text).is_absolute() { format!("local:{text}") } else { text.to_owned() };
    let url: TargetUrl = url.parse().map_err(|problem| usage(format!("{problem}")))?;
    if let Some(entry) = file.targets.iter().find(|target| target.url == url) {
        return Ok(entry.clone());
    }
    let name = url.default_name().ok_or_else(|| usage(format!("{url} gives no name for the target")))?;
    if file.target(&name).is_some() {
        return Err(usage(format!("the volume {volume} has another target that is called {name}")));
    }
    let entry = TargetEntry::new(name, url);
    check_target_entry(&volumes.paths, volume, &entry, &mounts)?;
    Ok(entry)
}

impl Run {
    fn until(&self, mode: MirrorMode, sink: &mut dyn ReplySink) -> Result<Reply, Failure> {
        let (mut told, mut flushed) = (Instant::now(), None);
        loop {
            if mode == MirrorMode::Copy && self.volume.is_consistent(&self.name, self.to)? {
                return Ok(Reply::Mirror(self.progress()?));
            }
            if !sink.is_wanted() {
                return Err(Failure::new(ExitCode::Failed, "nobody waits any more"));
            }
            self.check()?;
            if told.elapsed() >= TELL_EVERY {
                told = Instant::now();
                sink.send(Reply::Mirror(self.progress()?))?;
            }
            if mode == MirrorMode::Copy && flushed.is_none_or(|at: Instant| at.elapsed() >= FLUSH_EVERY) {
                flushed = Some(Instant::now());
                self.volume.flush_target(&self.name);
            }
            self.volume.wait_for_target(&self.name, LOOK_EVERY);
        }
    }

    /// What no further try would change ends the run.
    fn check(&self) -> Result<(), Failure> {
        let target = &self.name;
        match self.volume.sender(target).map(|sender| sender.status().state) {
            None | Some(SenderState::Stopped) => Err(Failure::new(
                ExitCode::Failed,
                format!("the session to {target} was ended: the volume was unmounted"),
            )
            .with_remedy("start it again")),
            Some(SenderState::Busy(reason)) => Err(Failure::new(ExitCode::Busy, format!("target {target}: {reason}"))
                .with_remedy("one session to a target at a time: end the other one")),
            Some(SenderState::Refused(reason)) => {
                Err(Failure::new(ExitCode::Refused, format!("target {target}: {reason}")))
            }
            Some(SenderState::Offline | SenderState::Connected) => Ok(()),
        }
    }

    fn progress(&self) -> Result<MirrorProgress, Failure> {
        let store = self.volume.journal.store();
        let row = store.target(self.name.as_str()).map_err(VolumeError::from)?;
        let (applied, work_left) = match &row {
            Some(row) => (row.applied, store.work_count(row.id).map_err(VolumeError::from)?),
            None => (Tid::ZERO, 0),
        };
        Ok(MirrorProgress {
            target: self.name.to_string(),
            from: self.from,
            to: self.to,
            applied,
            work_left,
            bytes_sent: self.volume.sender(&self.name).map_or(0, |sender| sender.status().bytes_sent),
        })
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.volume.end_run(&self.name);
    }
}
