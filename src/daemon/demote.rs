//! `dtfs demote`: a master becomes a copy, whose new source it asks for what only it has changed.

use std::collections::HashSet;

use super::volume::{Volume, VolumeError};
use super::volumes::Volumes;
use crate::applier::Joining;
use crate::base::{Oid, Position, Tid};
use crate::config::VolumeName;
use crate::control::{Demoted, ExitCode, Failure, LogEntry, OwnVersions};
use crate::journal::OwnChanges;
use crate::receiver;

/// Most changes that are listed one by one.
const MOST_LISTED: usize = 1000;

impl Volumes {
    /// Makes the volume a copy. It stays in the files until the caller takes it out.
    pub(super) fn demote(&self, name: &VolumeName, own: OwnVersions) -> Result<Demoted, Failure> {
        let volume = self.need(name)?;
        let superseded = volume.journal.superseded().map_err(VolumeError::from)?;
        if superseded.is_none() {
            refuse_ahead(&volume)?;
        }
        let file = self.settings(name, &self.mounts_file()?)?;
        if !file.rules.is_empty() && own == OwnVersions::Keep {
            // A new source does not have what the rules kept from it: that would count as removed.
            return Err(Failure::new(
                ExitCode::Refused,
                format!("only this copy of {name} has what its rules exclude"),
            )
            .with_remedy("copy what you need of that, then give up the rest with --discard"));
        }
        let sees_all = volume.live().sees_all();
        volume.unmount(crate::fuse::Unmount::Plain, &file)?;
        volume.end_sessions()?;
        let at = place(&volume, superseded)?;
        let changes = match (superseded, sees_all) {
            // It is as its targets are, and nothing else was written.
            (None, true) => Some(OwnChanges::default()),
            (Some(_), true) => volume.journal.own_changes(at.tid).map_err(VolumeError::from)?,
            (_, false) => None,
        };
        if changes.is_none() && own == OwnVersions::Keep {
            return Err(Failure::new(ExitCode::Refused, format!("it is not known any more what only {name} has"))
                .with_remedy("copy what you need, then give up the rest with --discard"));
        }
        self.join(&volume, at, superseded, changes, own)
    }

    fn join(
        &self,
        volume: &Volume,
        at: Position,
        superseded: Option<Position>,
        changes: Option<OwnChanges>,
        own: OwnVersions,
    ) -> Result<Demoted, Failure> {
        let (journal, stack) = (&volume.journal, volume.live().stack.clone());
        let differing: Option<HashSet<Oid>> =
            changes.map(|changes| changes.objects.into_iter().chain(changes.directories).collect());
        let count = differing.as_ref().map_or(0, HashSet::len) as u64;
        let name = superseded.map(|fork| format!("fork-{}", fork.epoch));
        let keep = name.as_deref().filter(|_| own == OwnVersions::Keep && count > 0);
        let (history, spaces) = (journal.history(), journal.spaces());
        let joining = Joining {
            history: &history.map_err(VolumeError::from)?,
            spaces: &spaces.map_err(VolumeError::from)?,
            at,
            oid_of: &|key| stack.oid(key),
            own: differing.as_ref(),
            keep,
        };
        let only_here = only_here(volume, at.tid)?;
        let path = crate::fuse::canonical(&volume.path);
        let guarding = super::guard::guarding(&self.paths)?;
        let (_, objects, kept) = receiver::join((&path, &self.paths.replicas_dir()), &joining, guarding)
            .map_err(|error| Failure::new(ExitCode::Failed, format!("volume {}: {error}", volume.name)))?;
        tracing::info!(volume = %volume.name, objects, differing = count, kept, "demoted");
        Ok(Demoted {
            shared_uuid: journal.identity().volume.to_string(),
            shared: at.tid,
            own: journal.last_tid(),
            only_here,
            differing: count,
            kept: keep.map(|name| (path.join(".dtfs").join(name), kept)),
            dir: path,
        })
    }
}

/// Without a fork nothing that only this copy has may be left: nobody would ever know of it.
fn refuse_ahead(volume: &Volume) -> Result<(), Failure> {
    let last = volume.journal.last_tid();
    let store = volume.journal.store();
    for target in store.targets().map_err(VolumeError::from)? {
        let left = store.work_count(target.id).map_err(VolumeError::from)?;
        if target.state != crate::journal::AWAITED && (target.applied < last || left > 0) {
            let message =
                format!("target {} lacks changes of {}: it has {} of {last}", target.name, volume.name, target.applied);
            return Err(Failure::new(ExitCode::Refused, message)
                .with_remedy("stop the programs that write, and wait for it first: dtfs wait"));
        }
    }
    Ok(())
}

/// The last place that is shared with the history that will be followed.
fn place(volume: &Volume, superseded: Option<Position>) -> Result<Position, Failure> {
    let journal = &volume.journal;
    let Some(fork) = superseded else {
        journal.commit(journal.last_tid()).map_err(VolumeError::from)?;
        return Ok(journal.position());
    };
    let epochs = journal.epochs().map_err(VolumeError::from)?;
    let own = epochs.iter().rev().find(|epoch| epoch.fork.tid < fork.tid).or(epochs.first());
    Ok(Position { epoch: own.map_or(journal.identity().epoch, |epoch| epoch.id), ..fork })
}

/// The changes behind `tid`, as far as the log has them.
fn only_here(volume: &Volume, tid: Tid) -> Result<Vec<LogEntry>, Failure> {
    let mut listed = Vec::new();
    super::log::each(volume, tid, &mut |entry| {
        listed.push(entry);
        listed.len() < MOST_LISTED
    })?;
    Ok(listed)
}
