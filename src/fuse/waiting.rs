//! Requests that may wait for a disk, and the workers that never do.
//!
//! A change waits while the journal has no room, an fsync until it is durable. Were all workers to wait so, look-ups and
//! reads would wait with them. So only some workers may; what they cannot take goes to a few threads that do nothing
//! else. Their queue is bounded, because a write in it holds its bytes: when it is full the worker waits after all.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};

/// Workers that never wait for a disk while the queue has room.
const RESERVED: usize = 2;
/// Requests that wait for a thread; each may hold a transfer (1 MiB).
const QUEUE: usize = 64;

/// A request with its reply.
type Job = Box<dyn FnOnce() + Send>;

/// Who waits. Dropping it ends the threads when all requests are answered.
pub(super) struct Waiting {
    /// Workers that may still begin to wait.
    passes: Arc<AtomicUsize>,
    queue: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

/// The right of one worker to wait.
pub(super) struct Pass(Arc<AtomicUsize>);

impl Waiting {
    /// For `workers` workers.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub(super) fn new(workers: usize) -> std::io::Result<Waiting> {
        let (queue, jobs) = bounded(QUEUE);
        let passes = Arc::new(AtomicUsize::new(workers.saturating_sub(RESERVED).max(1)));
        let mut waiting = Waiting { passes, queue: Some(queue), threads: Vec::new() };
        for number in 0..RESERVED {
            let jobs = jobs.clone();
            let thread = std::thread::Builder::new().name(format!("fuse-waiting-{number}"));
            waiting.threads.push(thread.spawn(move || work(&jobs))?);
        }
        Ok(waiting)
    }

    /// A pass, when there is one left.
    pub(super) fn enter(&self) -> Option<Pass> {
        let one_less = |passes: usize| passes.checked_sub(1);
        let taken = self.passes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less);
        taken.is_ok().then(|| Pass(Arc::clone(&self.passes)))
    }

    /// Has `job` done by a thread that may wait; by the caller when too many are queued.
    pub(super) fn hand_over(&self, job: Job) {
        let Some(queue) = &self.queue else {
            return job();
        };
        if let Err(refused) = queue.try_send(job) {
            refused.into_inner()();
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.queue = None;
        for thread in self.threads.drain(..) {
            // A job catches its own panics: there is nothing to learn from how a thread ended.
            let _ = thread.join();
        }
    }
}

fn work(jobs: &Receiver<Job>) {
    jobs.iter().for_each(|job| job());
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn some_workers_never_wait() {
        let waiting = Waiting::new(8).unwrap();
        let passes: Vec<Pass> = std::iter::from_fn(|| waiting.enter()).collect();
        assert_eq!(passes.len(), 8 - RESERVED);
        let (done, outcome) = bounded(1);
        waiting.hand_over(Box::new(move || done.send(std::thread::current().id()).unwrap()));
        assert_ne!(outcome.recv_timeout(Duration::from_secs(10)).unwrap(), std::thread::current().id());
        drop(passes);
        assert!(waiting.enter().is_some());
    }

    #[test]
    fn a_full_queue_is_served_by_the_caller() {
        let waiting = Waiting::new(1).unwrap();
        let (block, blocked) = bounded::<()>(0);
        let (done, outcome) = bounded(1);
        let caller = std::thread::current().id();
        // The threads take their first jobs at their own time; then they are blocked, and the queue fills.
        for _ in 0..=RESERVED + QUEUE {
            let (done, blocked) = (done.clone(), blocked.clone());
            waiting.hand_over(Box::new(move || match std::thread::current().id() == caller {
                true => assert!(done.try_send(()).is_ok() || done.is_full()),
                false => assert!(blocked.recv().is_err()),
            }));
        }
        assert!(outcome.try_recv().is_ok());
        drop(block);
    }
}
