//! A thread that commits the journal while a worker syncs the backing file.

use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use crate::base::Tid;
use crate::journal::{Journal, JournalError};

/// Someone waits for the records up to `tid`.
struct Request {
    tid: Tid,
    done: Sender<()>,
}

/// The thread and the way to it. Requests that come while it works are answered by one commit.
pub(super) struct Committer {
    requests: Option<Sender<Request>>,
    thread: Option<JoinHandle<()>>,
}

/// A commit that was asked for.
pub(super) struct Ticket(Receiver<()>);

impl Ticket {
    /// Waits until the journal is durable up to `tid`.
    ///
    /// # Errors
    /// As [`Journal::commit`].
    pub(super) fn wait(self, journal: &Journal, tid: Tid) -> Result<(), JournalError> {
        // The thread's own outcome is not passed on: this call finds the records durable, or the same failure.
        let _ = self.0.recv();
        journal.commit(tid)
    }
}

impl Committer {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub(super) fn start(journal: &Arc<Journal>) -> std::io::Result<Committer> {
        let (requests, queue) = unbounded();
        let journal = Arc::clone(journal);
        let thread = std::thread::Builder::new().name("committer".to_owned()).spawn(move || serve(&journal, &queue))?;
        Ok(Committer { requests: Some(requests), thread: Some(thread) })
    }

    /// Asks for the records up to `tid`. At most one request per worker is in the queue.
    pub(super) fn ask(&self, tid: Tid) -> Ticket {
        let (done, ticket) = bounded(1);
        if let Some(requests) = &self.requests {
            // Without the thread the answer comes at once, and the waiting call commits by itself.
            let _ = requests.send(Request { tid, done });
        }
        Ticket(ticket)
    }
}

fn serve(journal: &Journal, queue: &Receiver<Request>) {
    while let Ok(first) = queue.recv() {
        let waiting: Vec<Request> = std::iter::once(first).chain(queue.try_iter()).collect();
        let upto = waiting.iter().map(|request| request.tid).max().unwrap_or(Tid::ZERO);
        if let Err(error) = journal.commit(upto) {
            tracing::debug!(%error, "commit failed; whoever waits finds the same");
        }
        for request in waiting {
            // A worker that stopped waiting needs no answer.
            let _ = request.done.send(());
        }
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // Nothing to learn from how it ended.
            let _ = thread.join();
        }
    }
}
