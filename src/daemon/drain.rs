//! The end of the daemon, from the first signal on: targets that answer may take what they lack, for a while.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::sends::Sends;
use super::volume::Volume;
use crate::base::Tid;
use crate::config::{TargetName, VolumeName};
use crate::control::{TargetState, TargetStatus};

/// Without the key `drain` in `dtfs.toml`.
pub(super) const DEFAULT_PATIENCE: Duration = Duration::from_secs(10);
/// How soon a second signal counts.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const FLUSH_EVERY: Duration = Duration::from_secs(1);

/// Set by the second signal: nothing is waited for any more.
#[derive(Clone, Default)]
pub(super) struct Hurry(Arc<AtomicBool>);

impl Hurry {
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// What a target has not applied at the end.
struct Left {
    volume: VolumeName,
    target: TargetStatus,
    last: Tid,
}

/// Waits until the targets in a session have applied everything, at most for `patience`; says what is left to whom. The
/// mounts are gone, so nothing is added meanwhile.
pub(super) fn drain(volumes: &[Arc<Volume>], patience: Duration, hurry: &Hurry) {
    let deadline = Instant::now() + patience;
    let mut flushed = None;
    loop {
        let left: Vec<Left> = volumes.iter().flat_map(|volume| what_is_left(volume)).collect();
        let waiting = left.iter().any(|left| takes_changes(&left.target.state));
        if !waiting || hurry.is_set() || Instant::now() >= deadline {
            return left.iter().for_each(tell);
        }
        if flushed.is_none() {
            tracing::info!(seconds = patience.as_secs(), "unmounted; targets may take what they lack");
        }
        if flushed.is_none_or(|at: Instant| at.elapsed() >= FLUSH_EVERY) {
            flush(volumes, &left);
            flushed = Some(Instant::now());
        }
        let first = left.iter().find(|left| takes_changes(&left.target.state));
        if let Some((volume, left)) = first.and_then(|left| Some((find(volumes, &left.volume)?, left))) {
            let left_time = deadline.saturating_duration_since(Instant::now());
            volume.wait_for_target(&left.target.name, LOOK_EVERY.min(left_time));
        }
    }
}

fn find<'a>(volumes: &'a [Arc<Volume>], name: &VolumeName) -> Option<&'a Arc<Volume>> {
    volumes.iter().find(|volume| volume.name == *name)
}

fn what_is_left(volume: &Volume) -> Vec<Left> {
    let Ok(status) = super::status::volume_status(volume) else { return Vec::new() };
    // What waits on purpose is where it is to be when it was received.
    let reached = |target: &TargetStatus| match target.delay_seconds {
        0 => target.applied_tid,
        _ => target.received_tid,
    };
    let behind = status.targets.into_iter().filter(|target| reached(target) < status.last_tid);
    behind.map(|target| Left { volume: volume.name.clone(), target, last: status.last_tid }).collect()
}

/// A mirror has far more to do than changes, and goes on after the next start where it was; the others do not answer.
fn takes_changes(state: &TargetState) -> bool {
    matches!(state, TargetState::Replicating | TargetState::Converging)
}

fn flush(volumes: &[Arc<Volume>], left: &[Left]) {
    let asked: BTreeSet<(&VolumeName, &TargetName)> =
        left.iter().map(|left| (&left.volume, &left.target.name)).collect();
    for (volume, target) in asked {
        if let Some(volume) = find(volumes, volume) {
            volume.flush_target(target);
        }
    }
}

fn tell(left: &Left) {
    let first = Tid(left.target.applied_tid.0 + 1);
    let changes = left.target.lag_changes;
    let (state, _) = left.target.state.parts();
    tracing::warn!(
        volume = %left.volume, target = %left.target.name, state, changes, "not applied: {first} to {}", left.last
    );
}
