//! `dtfs wait`: until targets are consistent at a TID.

use std::time::{Duration, Instant};

use super::sends::Sends;
use crate::base::Tid;
use crate::config::TargetName;
use crate::control::{ExitCode, Failure, Reply, ReplySink};

/// How often it is looked whether the caller is still there.
const LOOK_EVERY: Duration = Duration::from_millis(200);
const TEND_EVERY: Duration = Duration::from_secs(1);

/// Waits until the target, or every target, is consistent at `tid` (at everything up to now without one).
pub(super) fn wait(
    sends: &dyn Sends,
    only: Option<&TargetName>,
    tid: Option<Tid>,
    deadline: Option<Instant>,
    sink: &mut dyn ReplySink,
) -> Result<Reply, Failure> {
    let tid = sends.reach(tid)?;
    let targets = sends.selected(only)?;
    for name in &targets {
        wait_for_one(sends, name, tid, deadline, sink)?;
    }
    Ok(Reply::Waited { tid, targets })
}

fn wait_for_one(
    sends: &dyn Sends,
    name: &TargetName,
    tid: Tid,
    deadline: Option<Instant>,
    sink: &mut dyn ReplySink,
) -> Result<(), Failure> {
    let behind = |text: String| Failure::new(ExitCode::Behind, text).with_remedy("dtfs status shows how far it is");
    sends.flush_target(name);
    let mut tended = Instant::now();
    sends.while_awaited(name)?;
    while !sends.is_consistent(name, tid)? {
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(behind(format!("target {name} is not consistent at {tid} yet")));
        }
        if !sink.is_wanted() {
            return Err(behind("nobody waits any more".to_owned()));
        }
        if tended.elapsed() >= TEND_EVERY {
            tended = Instant::now();
            sends.while_awaited(name)?;
        }
        let left = deadline.map_or(LOOK_EVERY, |deadline| deadline.saturating_duration_since(Instant::now()));
        sends.wait_for_target(name, left.min(LOOK_EVERY));
    }
    Ok(())
}
