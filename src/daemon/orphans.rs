//! Orphans of targets.

use std::time::{Duration, Instant};

use super::verify::show;
use super::volume::Volume;
use crate::base::{Name, Timespec};
use crate::config::{Adoption, Orphans, TargetEntry, TargetName};
use crate::control::{ExitCode, Failure, OrphanRow, OrphanVerb, OrphansReply, ReplySink, rfc3339};
use crate::record::{Orphan, OrphanAction, OrphanList};
use crate::sender::{OrphanPolicy, SenderState};
use crate::sys::Errno;

/// How long a target may take for it: it may have a million files to remove.
const PATIENCE: Duration = Duration::from_secs(600);
/// How long orphans are kept when the file does not say.
const KEPT_SEC: u64 = 7 * 86_400;

/// What becomes of the target's orphans by itself.
pub(super) fn policy(target: &TargetEntry) -> OrphanPolicy {
    let older_than_sec = target.orphans_older_than.map_or(KEPT_SEC, |time| time.seconds());
    match (&target.orphans, target.adoption) {
        (Some(Orphans::Report), _) | (None, Adoption::Allow) => {
            OrphanPolicy { action: OrphanAction::Scan, older_than_sec: 0 }
        }
        (Some(Orphans::Move(name)), _) => OrphanPolicy { action: OrphanAction::Move(name.clone()), older_than_sec },
        (Some(Orphans::Delete), _) | (None, Adoption::Refuse) => {
            OrphanPolicy { action: OrphanAction::Delete, older_than_sec }
        }
    }
}

impl Volume {
    /// Asks the target, and waits for its answer.
    pub(super) fn orphans(
        &self,
        target: &TargetName,
        (verb, older_than_sec): (OrphanVerb, u64),
        sink: &mut dyn ReplySink,
    ) -> Result<OrphansReply, Failure> {
        let number = self.ask_about_orphans(target, action(verb)?, older_than_sec)?;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline && sink.is_wanted() {
            let live = self.live();
            let sender = live.senders.get(target).filter(|sender| sender.status().state == SenderState::Connected);
            let Some(sender) = sender else { break };
            if let Some(list) = sender.orphans_done(number) {
                return Ok(reply(&list));
            }
            drop(live);
            self.wait_for_target(target, Duration::from_millis(100));
        }
        Err(Failure::new(ExitCode::Behind, format!("the target {target} has not answered"))
            .with_remedy("dtfs status says how it stands; ask again"))
    }

    fn ask_about_orphans(
        &self,
        target: &TargetName,
        action: OrphanAction,
        older_than_sec: u64,
    ) -> Result<u64, Failure> {
        let live = self.live();
        let Some(sender) = live.senders.get(target) else {
            return Err(Failure::new(ExitCode::Usage, format!("volume {} has no target {target}", self.name))
                .with_remedy("dtfs status shows the targets"));
        };
        match sender.status().state {
            SenderState::Connected => Ok(sender.orphans(action, older_than_sec)),
            _ => Err(Failure::new(ExitCode::Behind, format!("target {target} is not connected"))
                .with_remedy("dtfs status says why; try again when it is connected")),
        }
    }
}

fn action(verb: OrphanVerb) -> Result<OrphanAction, Failure> {
    Ok(match verb {
        OrphanVerb::Scan => OrphanAction::Scan,
        OrphanVerb::Delete => OrphanAction::Delete,
        OrphanVerb::Move(name) => OrphanAction::Move(Name::new(name.as_bytes()).map_err(|_| {
            Failure::new(ExitCode::Usage, format!("\"{}\" is no name", name.escape_debug()))
                .with_remedy("name a directory below the target's .dtfs, without /")
        })?),
    })
}

fn reply(list: &OrphanList) -> OrphansReply {
    let row = |orphan: &Orphan| OrphanRow {
        path: show(&orphan.path),
        is_dir: orphan.is_dir,
        size: orphan.size,
        since: rfc3339(Timespec { sec: orphan.since_sec as i64, nsec: 0 }),
    };
    OrphansReply {
        count: list.count,
        bytes: list.bytes,
        failed: list.failed,
        reason: (list.failed > 0).then(|| Errno::from_raw(list.errno).to_string()),
        left: list.left,
        orphans: list.orphans.iter().map(row).collect(),
    }
}
