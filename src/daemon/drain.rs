//! The end of the daemon, from the first signal on: targets that answer may take what they lack, for a while.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::sends::Sends;
use crate::base::Tid;
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

/// Who has targets, and what these are to have: what came behind that is not waited for.
struct Goal<'a> {
    sends: &'a Arc<dyn Sends>,
    last: Tid,
}

/// What a target has not applied at the end.
struct Left<'a> {
    goal: &'a Goal<'a>,
    target: TargetStatus,
}

/// Waits until the targets in a session have applied everything, at most for `patience`; says what is left to whom. The
/// mounts are gone, so nothing is added meanwhile, but to a copy whose own source goes on.
pub(super) fn drain(all: &[Arc<dyn Sends>], patience: Duration, hurry: &Hurry) {
    let goals = all.iter().filter_map(|sends| Some(Goal { sends, last: sends.log().ok()?.last_tid() }));
    let goals: Vec<Goal<'_>> = goals.collect();
    let deadline = Instant::now() + patience;
    let mut flushed = None;
    loop {
        let left: Vec<Left<'_>> = goals.iter().flat_map(what_is_left).collect();
        let first = left.iter().find(|left| takes_changes(&left.target.state));
        let Some(first) = first.filter(|_| !hurry.is_set() && Instant::now() < deadline) else {
            return left.iter().for_each(tell);
        };
        if flushed.is_none() {
            tracing::info!(seconds = patience.as_secs(), "unmounted; targets may take what they lack");
        }
        if flushed.is_none_or(|at: Instant| at.elapsed() >= FLUSH_EVERY) {
            left.iter().for_each(|left| left.goal.sends.flush_target(&left.target.name));
            flushed = Some(Instant::now());
        }
        let left_time = deadline.saturating_duration_since(Instant::now());
        first.goal.sends.wait_for_target(&first.target.name, LOOK_EVERY.min(left_time));
    }
}

fn what_is_left<'a>(goal: &'a Goal<'a>) -> Vec<Left<'a>> {
    // What waits on purpose is where it is to be when it was received.
    let reached = |target: &TargetStatus| match target.delay_seconds {
        0 => target.applied_tid,
        _ => target.received_tid,
    };
    let behind = goal.sends.targets().unwrap_or_default().into_iter().filter(|target| reached(target) < goal.last);
    behind.map(|target| Left { goal, target }).collect()
}

/// A mirror has far more to do than changes, and goes on after the next start where it was; the others do not answer.
fn takes_changes(state: &TargetState) -> bool {
    matches!(state, TargetState::Replicating | TargetState::Converging)
}

fn tell(left: &Left<'_>) {
    let first = Tid(left.target.applied_tid.0 + 1);
    let changes = left.target.lag_changes;
    let (state, _) = left.target.state.parts();
    tracing::warn!(
        volume = %left.goal.sends.name(), target = %left.target.name, state, changes,
        "not applied: {first} to {}", left.goal.last
    );
}
