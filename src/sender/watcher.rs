//! What runs beside a session: the journal's progress, and the silence of the target.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::mailbox::{Call, Mailbox};
use crate::base::Tid;
use crate::journal::Replay;
use crate::wire::Breaker;

/// A connection on which nothing was heard for so long is cut: a target says something every two seconds.
pub(super) const SILENCE: Duration = Duration::from_secs(15);

/// Turns the journal's progress into events, so that the session waits in one place, and cuts a connection on which nothing
/// is heard: a write to such a target would never end. Ends with the session: the journal must be free to be closed
/// once its senders have stopped.
pub(super) struct Watcher {
    stop: Arc<AtomicBool>,
    broken: Arc<AtomicBool>,
    handle: Option<JoinHandle<()>>,
}

/// How long the end of a session may have to wait for its watcher.
const WATCH: Duration = Duration::from_millis(50);
/// A change after a pause is sent at once. While changes follow each other a batch goes out this often: a program that
/// calls fsync makes each of its changes durable alone, and the target would sync for each of them too.
const PACE: Duration = Duration::from_millis(20);

impl Watcher {
    pub(super) fn spawn(journal: Arc<dyn Replay>, mailbox: Arc<Mailbox>, mut after: Tid, breaker: Breaker) -> Watcher {
        let (stop, broken) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (stopped, cut) = (stop.clone(), broken.clone());
        let handle = std::thread::spawn(move || {
            let mut said: Option<Instant> = None;
            while !stopped.load(Ordering::Relaxed) && journal.failed().is_none() {
                let durable = journal.wait_durable_past(after, WATCH);
                if durable > after {
                    // What is durable when the pace allows the next batch goes with it.
                    std::thread::sleep(said.map_or(Duration::ZERO, |said| PACE.saturating_sub(said.elapsed())));
                    said = Some(Instant::now());
                    mailbox.call(Call::Durable);
                }
                after = durable;
                if mailbox.silence() > SILENCE {
                    cut.store(true, Ordering::SeqCst);
                    return breaker.cut();
                }
            }
        });
        Watcher { stop, broken, handle: Some(handle) }
    }

    pub(super) fn has_broken(&self) -> bool {
        self.broken.load(Ordering::SeqCst)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(handle) = self.handle.take() {
            let _ = handle.join();
        }
    }
}
