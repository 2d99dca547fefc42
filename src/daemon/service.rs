//! What the service manager hears of the daemon (sd_notify(3)): ready, reloading, stopping, and signs of life.
//!
//! A sign of life is given only for progress that was seen: the journal of every volume made durable what waited at the
//! last look, of the requests under way then at least one has ended, and every mount answered a request that came through
//! the kernel. A thread that only kept time would go on
//! giving them while nothing else in the daemon moves.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use sd_notify::NotifyState;

use super::volume::Volume;
use super::volumes::Volumes;
use crate::config::VolumeName;
use crate::journal::WhenFull;

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
    seen: BTreeMap<VolumeName, Seen>,
}

/// Two counters that follow each other: what began, or was given, and what ended, or is durable.
type Pair = (u64, u64);

/// One volume at one look.
struct Seen {
    journal: Pair,
    requests: Pair,
}

impl Progress {
    /// Says what does not move. Hangs when a mount does not answer, which is as good an answer.
    fn look(&mut self, volumes: &Volumes) -> Result<(), String> {
        let open = volumes.open();
        self.seen.retain(|name, _| open.iter().any(|volume| volume.name == *name));
        for volume in open {
            let now = Seen::of(&volume);
            let stuck = self.seen.get(&volume.name).and_then(|before| before.stuck(&now));
            self.seen.insert(volume.name.clone(), now);
            // A volume that failed says so to every caller, and is not helped by a restart without its operator.
            if let Some(what) = stuck.filter(|_| volume.journal.failed().is_none()) {
                return Err(format!("{what} of {} stands still", volume.name));
            }
            ask_mount(&volume)?;
        }
        Ok(())
    }
}

impl Seen {
    fn of(volume: &Volume) -> Seen {
        let durable = volume.journal.durable_tid();
        let journal = (volume.journal.last_tid().0, durable.0);
        // Programs that wait for a target because the operator wanted it so are no standstill of ours.
        let waits = volume.journal.when_full() == WhenFull::Block;
        let live = volume.live();
        let mounted = live.mounted.as_ref().filter(|_| !waits);
        Seen { journal, requests: mounted.map_or((0, 0), |mounted| mounted.progress()) }
    }

    fn stuck(&self, now: &Seen) -> Option<&'static str> {
        match (has_moved(self.journal, now.journal), has_moved(self.requests, now.requests)) {
            (false, _) => Some("the journal"),
            (true, false) => Some("every request"),
            (true, true) => None,
        }
    }
}

/// Whether nothing was under way, or something of it ended. A counter that is smaller began anew with another mount.
fn has_moved((begun, ended): Pair, (_, ended_now): Pair) -> bool {
    ended >= begun || ended_now != ended
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
    fn what_stands_still_while_something_is_under_way_has_not_moved() {
        assert!(has_moved((5, 5), (9, 5)), "nothing was under way");
        assert!(has_moved((9, 5), (9, 6)), "some of it");
        assert!(has_moved((9, 5), (0, 0)), "another mount");
        assert!(!has_moved((9, 5), (12, 5)));
    }
}
