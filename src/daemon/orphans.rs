//! Orphans of targets.

use std::time::{Duration, Instant};

use super::sends::Sends;
use super::verify::show;
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

impl dyn Sends + '_ {
    /// Asks the target, and waits for its answer.
    pub(super) fn orphans(
        &self,
        target: &TargetName,
        (verb, older_than_sec): (OrphanVerb, u64),
        sink: &mut dyn ReplySink,
    ) -> Result<OrphansReply, Failure> {
        let number = self.connected(target)?.orphans(action(verb)?, older_than_sec);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline && sink.is_wanted() {
            let sender = self.sender(target).filter(|sender| sender.status().state == SenderState::Connected);
            let Some(sender) = sender else { break };
            if let Some(list) = sender.orphans_done(number) {
                return Ok(reply(&list));
            }
            sender.wait(Duration::from_millis(100));
        }
        Err(Failure::new(ExitCode::Behind, format!("the target {target} has not answered"))
            .with_remedy("dtfs status says how it stands; ask again"))
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
