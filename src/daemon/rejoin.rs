//! `dtfs rejoin`: a target that followed another history is to follow this volume again.

use super::volume::{Volume, VolumeError};
use crate::config::TargetName;
use crate::control::{ExitCode, Failure};
use crate::journal::{Level, Own, Rejoin};

impl Volume {
    /// Writes the operator's decision down, for this copy as it is now and no other, and lets the next session begin.
    pub(super) fn rejoin(&self, target: &TargetName, own: Own) -> Result<(), Failure> {
        let live = self.live();
        let store = self.journal.store();
        let (Some(sender), Some(row)) =
            (live.senders.get(target), store.target(target.as_str()).map_err(VolumeError::from)?)
        else {
            return Err(Failure::new(ExitCode::Usage, format!("volume {} has no target {target} in use", self.name))
                .with_remedy("dtfs status shows the targets"));
        };
        let Some((copy, epoch)) = sender.status().forked else {
            return Err(Failure::new(
                ExitCode::Usage,
                format!(
                    "target {target} of {} is not refused for another history: there is nothing to decide",
                    self.name
                ),
            )
            .with_remedy("dtfs status shows how it stands"));
        };
        store.rejoin_set(row.id, Some(&Rejoin { copy, epoch, own })).map_err(VolumeError::from)?;
        let what = match own {
            Own::Keep => "kept there",
            Own::Discard => "given up",
        };
        let text = format!("it is to follow this volume again, by an operator's word; what only it has is {what}");
        store.event(Level::Warning, Some(row.id), &text).map_err(VolumeError::from)?;
        sender.handle().retry();
        Ok(())
    }
}
