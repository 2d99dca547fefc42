//! The last changes before a stop: what is on its way to targets that answer gets there, or is said to be left.

use std::time::{Duration, Instant};

use super::volume::{Volume, VolumeError};
use crate::base::Tid;
use crate::config::TargetName;
use crate::journal::Level;
use crate::sender::SenderState;

/// What a target lacks.
struct Left {
    applied: Tid,
    changes: u64,
    objects: u64,
}

impl Volume {
    /// Waits until every target that answers has everything, until `deadline` at most; says of each other one what it
    /// lacks. Nothing of that is lost: the journal keeps it.
    pub(super) fn drain(&self, deadline: Instant) -> Result<(), VolumeError> {
        const LOOK_EVERY: Duration = Duration::from_millis(50);
        let last = self.journal.last_tid();
        self.journal.commit(last)?;
        for name in super::status::target_names(self) {
            self.flush_target(&name);
            let left = loop {
                let left = self.left(&name, last)?;
                if left.is_none() || !self.answers(&name) || Instant::now() >= deadline {
                    break left;
                }
                self.wait_for_target(&name, LOOK_EVERY);
            };
            if let Some(left) = left {
                self.tell_left(&name, last, &left)?;
            }
        }
        Ok(())
    }

    fn answers(&self, name: &TargetName) -> bool {
        self.sender_status(name).is_some_and(|status| status.state == SenderState::Connected)
    }

    fn left(&self, name: &TargetName, last: Tid) -> Result<Option<Left>, VolumeError> {
        let store = self.journal.store();
        let Some(row) = store.target(name.as_str())? else { return Ok(None) };
        let objects = store.work_count(row.id)?;
        let changes = last.0.saturating_sub(row.applied.0);
        Ok((changes > 0 || objects > 0).then_some(Left { applied: row.applied, changes, objects }))
    }

    fn tell_left(&self, name: &TargetName, last: Tid, left: &Left) -> Result<(), VolumeError> {
        let Left { applied, changes, objects } = left;
        let text = format!(
            "stopped before target {name} had everything: it has {applied} of {last}, {changes} changes and {objects} \
             objects are left"
        );
        tracing::warn!(volume = %self.name, "{text}");
        let store = self.journal.store();
        let id = store.target(name.as_str())?.map(|row| row.id);
        Ok(store.event(Level::Warning, id, &text)?)
    }
}
