//! Whoever has targets: a volume, or a copy that passes on what it gets. What an operator asks of a target goes this way.

use std::sync::Arc;
use std::time::Duration;

use super::volume::VolumeError;
use super::volumes::Volumes;
use crate::base::Tid;
use crate::config::{TargetName, VolumeName};
use crate::control::{ExitCode, Failure, TargetStatus};
use crate::journal::{Replay, Store, TargetRow};
use crate::sender::{SenderHandle, SenderState};

/// What a volume and a copy with targets have in common.
pub(super) trait Sends: Send + Sync {
    /// Its name.
    fn name(&self) -> &VolumeName;

    /// What the targets are sent, and what is written down of them.
    ///
    /// # Errors
    /// When nothing is there to be sent yet.
    fn log(&self) -> Result<Arc<dyn Replay>, Failure>;

    /// Who sends to the target; `None` when nobody does now.
    fn sender(&self, target: &TargetName) -> Option<SenderHandle>;

    /// Its targets, those that are paused too.
    fn target_names(&self) -> Vec<TargetName>;

    /// How its targets stand.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn targets(&self) -> Result<Vec<TargetStatus>, Failure>;

    /// Whether nothing is missed here that its targets should have.
    fn sees_all(&self) -> bool;

    /// The TID that is waited for: `wanted`, or that of everything up to now. From then on it can be sent.
    ///
    /// # Errors
    /// When there will be none of that number soon, or it cannot be made durable.
    fn reach(&self, wanted: Option<Tid>) -> Result<Tid, Failure>;

    /// What is due every second while somebody waits for the target.
    ///
    /// # Errors
    /// When it fails.
    fn while_awaited(&self, target: &TargetName) -> Result<(), Failure>;

    /// Whether the target holds the tree as it was at `tid`: everything up to there is applied, and no older work is left.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn is_consistent(&self, target: &TargetName, tid: Tid) -> Result<bool, Failure> {
        // In this order. What becomes visible here only now is work before it is; and what the target lacks although no work is
        // left is in its word, which is the last that is looked at.
        if !self.sees_all() {
            return Ok(false);
        }
        // Whoever waits asks with every news of the target: while that is being filled its own word is enough.
        if self.sender(target).is_some_and(|sender| sender.status().unsettled) {
            return Ok(false);
        }
        let log = self.log()?;
        let Some(row) = at_tid(log.store(), target, tid)? else { return Ok(false) };
        let sender = self.sender(target).map(|sender| sender.status()).unwrap_or_default();
        Ok(sender.blocked == 0 && row.applied >= sender.high_water && !sender.unsettled && sender.forked.is_none())
    }

    /// Waits for news of the target, at most `timeout`.
    fn wait_for_target(&self, target: &TargetName, timeout: Duration) {
        match self.sender(target) {
            Some(sender) => sender.wait(timeout),
            None => std::thread::sleep(timeout),
        }
    }

    /// Asks the target to make durable what it has.
    fn flush_target(&self, target: &TargetName) {
        if let Some(sender) = self.sender(target) {
            sender.flush();
        }
    }
}

impl dyn Sends + '_ {
    /// The sender of a target that is in a session.
    ///
    /// # Errors
    /// When there is no such target, or it is not connected.
    pub(super) fn connected(&self, target: &TargetName) -> Result<SenderHandle, Failure> {
        let sender = self.sender(target).ok_or_else(|| self.no_target(target))?;
        match sender.status().state {
            SenderState::Connected => Ok(sender),
            _ => Err(Failure::new(ExitCode::Behind, format!("target {target} is not connected"))
                .with_remedy("dtfs status says why; try again when it is connected")),
        }
    }

    /// The targets that are meant: `only`, or all.
    ///
    /// # Errors
    /// When there is no such target, or none at all.
    pub(super) fn selected(&self, only: Option<&TargetName>) -> Result<Vec<TargetName>, Failure> {
        let all = self.target_names();
        match only {
            Some(name) if !all.contains(name) => Err(self.no_target(name)),
            Some(name) => Ok(vec![name.clone()]),
            None if all.is_empty() => {
                Err(Failure::new(ExitCode::Usage, format!("volume {} has no target", self.name()))
                    .with_remedy("add one: dtfs define target"))
            }
            None => Ok(all),
        }
    }

    /// There is no target of that name.
    pub(super) fn no_target(&self, target: &TargetName) -> Failure {
        Failure::new(ExitCode::Usage, format!("volume {} has no target {target}", self.name()))
            .with_remedy("dtfs status shows the targets")
    }
}

/// The target's row, when everything up to `tid` was applied and no older work is left.
fn at_tid(store: &Store, target: &TargetName, tid: Tid) -> Result<Option<TargetRow>, VolumeError> {
    let row = store.target(target.as_str())?.filter(|row| row.mirrored && row.applied >= tid);
    Ok(match row {
        Some(row) if !store.work_stands_against(row.id, tid)? => Some(row),
        _ => None,
    })
}

impl Volumes {
    /// Who has targets by this name.
    ///
    /// # Errors
    /// Why nobody does.
    pub(super) fn sending(&self, name: &VolumeName) -> Result<Arc<dyn Sends>, Failure> {
        match (self.find(name), self.find_relay(name)) {
            (Some(volume), _) => Ok(volume),
            (None, Some(copy)) => Ok(copy),
            (None, None) => self.need(name).map(|volume| volume as Arc<dyn Sends>),
        }
    }

    /// All who have targets, or may have.
    pub(super) fn all_sending(&self) -> Vec<Arc<dyn Sends>> {
        let volumes = self.open().into_iter().map(|volume| volume as Arc<dyn Sends>);
        let copies = self.relays.lock().values().cloned().map(|copy| copy as Arc<dyn Sends>).collect::<Vec<_>>();
        volumes.chain(copies).collect()
    }
}
