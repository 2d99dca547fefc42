//! What the service manager hears of the daemon (sd_notify(3)): ready, reloading, stopping, and signs of life.
//!
//! A sign of life is given only for progress that was seen: the journal of every volume made durable what waited at the
//! last look, and every mount answered a request that came through the kernel. A thread that only kept time would go on
//! giving them while nothing else in the daemon moves.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use sd_notify::NotifyState;

use super::volume::Volume;
use super::volumes::Volumes;
use crate::base::Tid;
use crate::config::VolumeName;

/// Every listed entry was mounted, or refused for a reason that was said.
pub(super) fn ready(volumes: &Volumes) {
    tell(&[NotifyState::Ready, NotifyState::Status(&summary(volumes))]);
}

/// The files are read again; [`ready`] follows.
pub(super) fn reloading() {
    // Without a clock there is nothing to say that the manager would accept.
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        tell(&[NotifyState::Reloading, now, NotifyState::Status("reading the configuration")]);
    }
}

/// The stop began; `what` is under way.
pub(super) fn stopping(what: &str) {
    tell(&[NotifyState::Stopping, NotifyState::Status(what)]);
}

/// Nobody may be listening, and a manager that is gone is no reason to stop serving files.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager was not told");
    }
}

fn summary(volumes: &Volumes) -> String {
    let open = volumes.open();
    let mounted = open.iter().filter(|volume| volume.live().mounted.is_some()).count();
    let lag = open.iter().filter_map(|volume| super::status::volume_status(volume).ok());
    let lag = lag.flat_map(|status| status.targets).map(|target| target.lag_changes).max();
    match lag {
        Some(changes) => format!("{mounted} volumes mounted; the slowest target lacks {changes} changes"),
        None => format!("{mounted} volumes mounted"),
    }
}

/// Gives signs of life to a manager that wants them (WATCHDOG_USEC), until the returned end is dropped.
///
/// # Errors
/// When the system has no thread to give.
pub(super) fn watch(volumes: Arc<Volumes>) -> std::io::Result<Option<Sender<()>>> {
    let Some(limit) = sd_notify::watchdog_enabled() else { return Ok(None) };
    let (end, ended) = bounded::<()>(0);
    // A third of the limit, so that one look that comes late does no harm.
    let every = (limit / 3).max(Duration::from_millis(1));
    std::thread::Builder::new().name("dtfs-watchdog".into()).spawn(move || {
        let mut progress = Progress::default();
        loop {
            match progress.look(&volumes) {
                Ok(()) => tell(&[NotifyState::Watchdog, NotifyState::Status(&summary(&volumes))]),
                Err(stuck) => tracing::warn!(%stuck, "no sign of life for the service manager"),
            }
            if ended.recv_timeout(every) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
    })?;
    Ok(Some(end))
}

/// What has to have happened until the next look.
#[derive(Default)]
struct Progress {
    /// Where each journal was: durable, and given.
    seen: BTreeMap<VolumeName, (Tid, Tid)>,
}

impl Progress {
    /// Says what does not move. Hangs when a mount does not answer, which is as good an answer.
    fn look(&mut self, volumes: &Volumes) -> Result<(), String> {
        let open = volumes.open();
        self.seen.retain(|name, _| open.iter().any(|volume| volume.name == *name));
        for volume in open {
            let now = (volume.journal.durable_tid(), volume.journal.last_tid());
            let before = self.seen.insert(volume.name.clone(), now);
            // A volume that failed says so to every caller, and is not helped by a restart without its operator.
            if volume.journal.failed().is_none() && !has_moved(before, now.0) {
                return Err(format!("the journal of {} stays at {}", volume.name, now.0));
            }
            ask_mount(&volume)?;
        }
        Ok(())
    }
}

/// Whether everything that waited at the last look is durable, or at least more than then.
fn has_moved(before: Option<(Tid, Tid)>, durable: Tid) -> bool {
    before.is_none_or(|(durable_then, given_then)| durable >= given_then || durable > durable_then)
}

/// One request through the kernel and back.
fn ask_mount(volume: &Volume) -> Result<(), String> {
    let path = {
        let live = volume.live();
        let serving = live.mounted.as_ref().filter(|mounted| mounted.is_serving() && mounted.is_in_place());
        serving.map(|mounted| mounted.path().to_owned())
    };
    path.map_or(Ok(()), |path| ask(&path))
}

fn ask(path: &Path) -> Result<(), String> {
    // statfs(2) is always asked of the daemon; attributes may come from the kernel's cache.
    match nix::sys::statfs::statfs(path) {
        Ok(_) | Err(nix::errno::Errno::ENOENT | nix::errno::Errno::EIO) => Ok(()),
        Err(errno) => Err(format!("{} answers {errno}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_that_stands_still_while_records_wait_has_not_moved() {
        assert!(has_moved(None, Tid(0)));
        assert!(has_moved(Some((Tid(5), Tid(5))), Tid(5)), "nothing waited");
        assert!(has_moved(Some((Tid(5), Tid(9))), Tid(6)), "some of it");
        assert!(has_moved(Some((Tid(5), Tid(9))), Tid(9)), "all of it");
        assert!(!has_moved(Some((Tid(5), Tid(9))), Tid(5)));
    }
}
