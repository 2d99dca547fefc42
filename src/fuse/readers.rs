//! Which workers wait for the kernel's next request.
//!
//! The kernel wakes the worker that has waited longest, so with all of them waiting each request goes to a thread whose
//! stack and cache are cold, and a request costs a wake-up even while requests follow each other. So as few as possible
//! wait (usually one), and the rest are parked: the same thread serves request after request, and often finds the next
//! one when it comes back from the last.
//!
//! Nobody must wait for a request that is served slowly:
//! - before a request that waits for a disk as a rule, another worker is called;
//! - so it is when more requests wait already;
//! - and a watch calls one when no worker has come back for a moment, and then lets more of them wait for a while.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::{follow, worker};

/// How long no worker may wait for requests before another one is called.
const TICK: Duration = Duration::from_millis(2);
/// How often the end of the connection is looked for while there are no requests.
const IDLE_TICK: Duration = Duration::from_millis(250);
/// Ticks without a request after which the watch takes it easy.
const IDLE_AFTER: u32 = 25;
/// Without slow requests for so long, one worker less waits.
const CALM: Duration = Duration::from_secs(1);

/// What serving a request is like.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// Memory only.
    Quick,
    /// Some system calls, which seldom wait.
    Usual,
    /// It waits for a disk as a rule.
    Slow,
}

/// The workers of one mount.
pub(super) struct Readers {
    /// A duplicate of the device's descriptor, to ask it for its state. It must not outlive the session: the kernel ends the
    /// connection when nobody has the device open.
    device: OwnedFd,
    /// Protects the counts. Rank: a leaf. Held for a few words.
    state: Mutex<State>,
    /// Parked workers wait here.
    called: Condvar,
    /// The watch waits here.
    tick: Condvar,
}

struct State {
    /// Workers that wait for a request, or are on their way to.
    reading: usize,
    /// Workers that wait to be called.
    parked: usize,
    /// Workers that were called and have not left yet.
    calls: usize,
    /// As many may wait for a request.
    most: usize,
    /// Requests so far.
    served: u64,
    /// A slow one came since the watch looked.
    slow: bool,
    watch: Watch,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Watch {
    Asleep,
    Awake,
    /// The connection is over: nobody parks any more.
    Ended,
}

/// One request that is being served; when it ends the worker may be parked.
pub(super) struct Turn<'r>(&'r Readers);

impl Readers {
    /// For `workers` workers that are about to wait for requests from `device`.
    pub(super) fn new(device: OwnedFd, workers: usize) -> Readers {
        let state =
            State { reading: workers, parked: 0, calls: 0, most: 1, served: 0, slow: false, watch: Watch::Asleep };
        Readers { device, state: Mutex::new(state), called: Condvar::new(), tick: Condvar::new() }
    }

    /// A worker has a request.
    pub(super) fn begin(&self, pace: Pace) -> Turn<'_> {
        let mut state = self.state.lock();
        state.reading = state.reading.saturating_sub(1);
        state.served += 1;
        if state.watch == Watch::Asleep {
            state.watch = Watch::Awake;
            self.tick.notify_one();
        }
        if pace == Pace::Slow {
            // Two wait from now on: the one that is called stays, and the next slow request calls nobody.
            state.slow = true;
            state.most = state.most.max(2);
        }
        if state.lacks_reader() {
            match pace {
                Pace::Quick => {}
                Pace::Slow => self.call(&mut state),
                Pace::Usual => {
                    drop(state);
                    self.call_if_more_wait();
                }
            }
        }
        Turn(self)
    }

    fn call_if_more_wait(&self) {
        if self.events(PollFlags::POLLIN).contains(PollFlags::POLLIN) {
            let mut state = self.state.lock();
            if state.lacks_reader() {
                self.call(&mut state);
            }
        }
    }

    fn call(&self, state: &mut State) {
        state.parked -= 1;
        state.reading += 1;
        state.calls += 1;
        self.called.notify_one();
    }

    /// The request is answered: on to the next, or aside when enough others wait for it.
    fn end(&self) {
        let mut state = self.state.lock();
        if state.reading < state.most || state.watch == Watch::Ended {
            state.reading += 1;
            return;
        }
        state.parked += 1;
        MutexGuard::unlocked(&mut state, follow::release);
        while state.calls == 0 && state.watch != Watch::Ended {
            self.called.wait(&mut state);
        }
        state.calls = state.calls.saturating_sub(1);
    }

    /// Lets all workers go when the connection is over, so that they find out.
    pub(super) fn look_for_end(&self) {
        if self.events(PollFlags::empty()).intersects(PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL) {
            self.release_all();
        }
    }

    fn release_all(&self) {
        self.state.lock().watch = Watch::Ended;
        self.called.notify_all();
        self.tick.notify_all();
    }

    fn events(&self, wanted: PollFlags) -> PollFlags {
        let mut asked = [PollFd::new(self.device.as_fd(), wanted)];
        match nix::poll::poll(&mut asked, PollTimeout::ZERO) {
            Ok(_) => asked[0].revents().unwrap_or(PollFlags::empty()),
            Err(_) => PollFlags::empty(),
        }
    }

    /// Starts the watch.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub(super) fn watch(self: &Arc<Readers>) -> std::io::Result<JoinHandle<()>> {
        let readers = Arc::clone(self);
        std::thread::Builder::new().name("fuse-watch".to_owned()).spawn(move || {
            worker::prepare();
            readers.run_watch();
        })
    }

    fn run_watch(&self) {
        let mut seen = Seen { served: 0, idle: 0, last_slow: Instant::now() };
        let mut state = self.state.lock();
        while state.watch != Watch::Ended {
            let tick = if state.watch == Watch::Asleep { IDLE_TICK } else { TICK };
            let timed_out = self.tick.wait_for(&mut state, tick).timed_out();
            if state.watch == Watch::Asleep && timed_out {
                drop(state);
                self.look_for_end();
                state = self.state.lock();
            } else if timed_out {
                self.look_after(&mut state, &mut seen);
            }
        }
    }

    /// One tick while requests come.
    fn look_after(&self, state: &mut State, seen: &mut Seen) {
        let stands = state.served == seen.served;
        seen.served = state.served;
        seen.idle = if stands { seen.idle + 1 } else { 0 };
        let slow = std::mem::take(&mut state.slow);
        if stands && state.lacks_reader() {
            self.call(state);
            state.most = (state.most * 2).min(state.parked + state.reading + 1);
            seen.last_slow = Instant::now();
        } else if slow {
            seen.last_slow = Instant::now();
        } else if state.most > 1 && seen.last_slow.elapsed() > CALM {
            state.most -= 1;
            seen.last_slow = Instant::now();
        }
        if seen.idle > IDLE_AFTER && state.reading > 0 {
            state.watch = Watch::Asleep;
        }
    }
}

/// What the watch saw at its last tick.
struct Seen {
    served: u64,
    /// Ticks without a request.
    idle: u32,
    last_slow: Instant,
}

impl State {
    /// Whether nobody waits for the next request, though somebody could.
    fn lacks_reader(&self) -> bool {
        self.reading == 0 && self.parked > 0
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Ends the watch with the session.
pub(super) struct Watching {
    pub(super) readers: Arc<Readers>,
    pub(super) thread: Option<JoinHandle<()>>,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.readers.release_all();
        if let Some(thread) = self.thread.take() {
            // Nothing to learn from how it ended.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// A stream stands in for the device: readable while requests wait, POLLHUP at the end.
    fn readers(workers: usize) -> (Arc<Readers>, UnixStream) {
        let (device, other) = UnixStream::pair().unwrap();
        (Arc::new(Readers::new(device.into(), workers)), other)
    }

    fn until(met: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !met() {
            assert!(Instant::now() < deadline, "the condition is not met");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Parks all but one of four workers: each has served one request.
    fn park_three(readers: &Arc<Readers>) -> (Arc<AtomicUsize>, Vec<JoinHandle<()>>) {
        let back = Arc::new(AtomicUsize::new(0));
        let threads = (0..3).map(|_| {
            let (readers, back) = (Arc::clone(readers), Arc::clone(&back));
            std::thread::spawn(move || {
                drop(readers.begin(Pace::Quick));
                back.fetch_add(1, Ordering::SeqCst);
            })
        });
        let threads = threads.collect();
        until(|| readers.state.lock().parked == 3);
        (back, threads)
    }

    fn finish(readers: &Readers, threads: Vec<JoinHandle<()>>) {
        readers.release_all();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn one_worker_waits_and_goes_on_alone() {
        let (readers, _other) = readers(4);
        let (back, threads) = park_three(&readers);
        for _ in 0..100 {
            drop(readers.begin(Pace::Usual));
        }
        assert_eq!((readers.state.lock().reading, back.load(Ordering::SeqCst)), (1, 0));
        finish(&readers, threads);
    }

    #[test]
    fn another_is_called_for_a_slow_request_and_for_one_that_waits() {
        let (readers, mut other) = readers(4);
        let (back, threads) = park_three(&readers);
        let slow = readers.begin(Pace::Slow);
        until(|| back.load(Ordering::SeqCst) == 1);
        let usual = readers.begin(Pace::Usual);
        assert_eq!(readers.state.lock().reading, 0, "nothing waits");
        other.write_all(b"x").unwrap();
        let more = readers.begin(Pace::Usual);
        until(|| back.load(Ordering::SeqCst) == 2);
        finish(&readers, threads);
        drop((slow, usual, more));
    }

    #[test]
    fn the_watch_calls_one_when_nobody_comes_back() {
        let (readers, _other) = readers(4);
        let (back, threads) = park_three(&readers);
        let watching = Watching { readers: readers.clone(), thread: Some(readers.watch().unwrap()) };
        let stuck = readers.begin(Pace::Usual);
        until(|| back.load(Ordering::SeqCst) > 0);
        assert!(readers.state.lock().most > 1);
        finish(&readers, threads);
        drop((stuck, watching));
    }

    #[test]
    fn the_end_of_the_connection_lets_all_go() {
        let (readers, other) = readers(4);
        let (_, threads) = park_three(&readers);
        let _watching = Watching { readers: readers.clone(), thread: Some(readers.watch().unwrap()) };
        drop(other);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}
