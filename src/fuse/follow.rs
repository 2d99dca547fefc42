//! On which processor a worker runs.
//!
//! A program that waits for each of its requests and the worker that serves them never run at the same time. The
//! scheduler still puts them on two processors when one is idle, and each request then costs two wake-ups of a sleeping
//! processor: in a virtual machine, or with deep sleep states, more than the request itself. So a worker that hears from
//! one caller only goes to that caller's processor, and follows it when it moves.
//!
//! This is a hint to the scheduler and nothing else depends on it. The worker is free again as soon as others ask as
//! well, after a pause, and when it is parked; data that is read ahead is served beside its reader, not in turn with it.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use super::requests::Kind;

/// Requests after which it is looked who asks.
const WINDOW: u32 = 64;
/// So many of them must come from one caller.
const MOSTLY: u32 = 56;
/// After such a pause nothing is known of who asks.
const PAUSE: Duration = Duration::from_millis(50);
/// Reads of more than this are mostly of a file that is read from its beginning to its end.
const READ_AHEAD_BYTES: usize = 16 << 10;

thread_local! {
    static PLACE: RefCell<Place> = RefCell::new(Place::default());
}

/// Who a request came from, as far as it says something about the next one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Asker {
    /// A thread that waits for the answer.
    Waits(Pid),
    /// Somebody who goes on meanwhile.
    GoesOn,
    /// The kernel itself, or a thread in a pid namespace that is not ours.
    Unknown,
}

impl Asker {
    /// The sender of a request of `kind`: `pid` as the kernel gives it, 0 when it has none to give.
    pub(super) fn of(pid: u32, kind: Kind) -> Asker {
        match (kind, i32::try_from(pid)) {
            // close(2) does not wait for a RELEASE.
            (Kind::Forget | Kind::Release | Kind::Releasedir, _) | (_, Err(_) | Ok(0)) => Asker::Unknown,
            (_, Ok(pid)) => Asker::Waits(Pid::from_raw(pid)),
        }
    }

    /// The sender of a READ of `bytes`: a large one was read ahead.
    pub(super) fn of_read(pid: u32, bytes: usize) -> Asker {
        if bytes > READ_AHEAD_BYTES { Asker::GoesOn } else { Asker::of(pid, Kind::Read) }
    }
}

/// A request was answered, by this thread, for `asker`.
pub(super) fn served(asker: Asker, now: Instant) {
    PLACE.with_borrow_mut(|place| match place.asks.note(asker, now) {
        Verdict::Stay => {}
        Verdict::Free => place.free(),
        Verdict::Follow(pid) => place.go_to(pid),
    });
}

/// This thread will serve somebody else next, or nobody.
pub(super) fn release() {
    PLACE.with_borrow_mut(|place| {
        place.asks = Asks::default();
        place.free();
    });
}

/// Where this thread may run.
#[derive(Default)]
struct Place {
    asks: Asks,
    /// All that the service manager or the administrator allows; read once.
    allowed: Option<CpuSet>,
    /// The only one at the moment.
    at: Option<usize>,
}

impl Place {
    fn go_to(&mut self, caller: Pid) {
        let Some(cpu) = processor_of(caller) else {
            return self.free();
        };
        if self.at == Some(cpu) {
            return;
        }
        let allowed = *self.allowed.get_or_insert_with(|| sched_getaffinity(Pid::from_raw(0)).unwrap_or_default());
        let mut only = CpuSet::new();
        if allowed.is_set(cpu) != Ok(true) || only.set(cpu).is_err() {
            return self.free();
        }
        if sched_setaffinity(Pid::from_raw(0), &only).is_ok() {
            self.at = Some(cpu);
        }
    }

    fn free(&mut self) {
        if self.at.take().is_some()
            && let Some(allowed) = &self.allowed
            && let Err(errno) = sched_setaffinity(Pid::from_raw(0), allowed)
        {
            tracing::debug!(%errno, "a worker stays on one processor");
        }
    }
}

/// The processor on which `thread` ran last: field 39 of its `stat` (proc_pid_stat(5)).
fn processor_of(thread: Pid) -> Option<usize> {
    let stat = std::fs::read_to_string(format!("/proc/{thread}/stat")).ok()?;
    // The command's name may hold anything; it ends at the last parenthesis, and field 3 follows.
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(39 - 3)?.parse().ok()
}

/// What is to be done about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Stay,
    Free,
    Follow(Pid),
}

/// Who asked since the last look.
#[derive(Default)]
struct Asks {
    /// The one who asked last.
    caller: Option<Pid>,
    requests: u32,
    /// Of them, those of `caller`.
    same: u32,
    last: Option<Instant>,
}

impl Asks {
    fn note(&mut self, asker: Asker, now: Instant) -> Verdict {
        let paused = self.last.is_some_and(|last| now.duration_since(last) > PAUSE);
        self.last = Some(now);
        if paused {
            *self = Asks { last: self.last, ..Asks::default() };
            return Verdict::Free;
        }
        match asker {
            Asker::Unknown => return Verdict::Stay,
            Asker::GoesOn => {}
            Asker::Waits(pid) if self.caller == Some(pid) => self.same += 1,
            Asker::Waits(pid) => (self.caller, self.same) = (Some(pid), 1),
        }
        self.requests += 1;
        if self.requests < WINDOW {
            return Verdict::Stay;
        }
        let mostly = self.same >= MOSTLY;
        (self.requests, self.same) = (0, 0);
        match self.caller {
            Some(pid) if mostly => Verdict::Follow(pid),
            _ => Verdict::Free,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Pid = Pid::from_raw(11);
    const B: Pid = Pid::from_raw(12);

    fn verdicts(asks: &mut Asks, callers: impl IntoIterator<Item = Asker>) -> Vec<Verdict> {
        let now = Instant::now();
        callers.into_iter().map(|asker| asks.note(asker, now)).filter(|verdict| *verdict != Verdict::Stay).collect()
    }

    fn of(pid: Pid, count: u32) -> impl Iterator<Item = Asker> {
        (0..count).map(move |_| Asker::Waits(pid))
    }

    #[test]
    fn one_caller_is_followed_and_two_are_not() {
        let mut asks = Asks::default();
        assert_eq!(verdicts(&mut asks, of(A, WINDOW)), [Verdict::Follow(A)]);
        assert_eq!(verdicts(&mut asks, of(A, WINDOW / 2).chain(of(B, WINDOW / 2))), [Verdict::Free]);
        assert_eq!(verdicts(&mut asks, of(B, WINDOW)), [Verdict::Follow(B)]);
        let turns = (0..WINDOW).map(|turn| Asker::Waits(if turn % 2 == 0 { A } else { B }));
        assert_eq!(verdicts(&mut asks, turns), [Verdict::Free]);
    }

    #[test]
    fn who_goes_on_meanwhile_is_not_followed_and_the_kernel_says_nothing() {
        let mut asks = Asks::default();
        let mixed = of(A, WINDOW / 2).chain((0..WINDOW / 2).map(|_| Asker::GoesOn));
        assert_eq!(verdicts(&mut asks, mixed), [Verdict::Free]);
        let kernel = of(A, WINDOW).flat_map(|asker| [asker, Asker::Unknown]);
        assert_eq!(verdicts(&mut asks, kernel), [Verdict::Follow(A)]);
    }

    #[test]
    fn after_a_pause_the_worker_is_free() {
        let (mut asks, now) = (Asks::default(), Instant::now());
        for _ in 0..WINDOW - 1 {
            assert_eq!(asks.note(Asker::Waits(A), now), Verdict::Stay);
        }
        assert_eq!(asks.note(Asker::Waits(A), now + PAUSE * 2), Verdict::Free);
        assert_eq!(verdicts(&mut asks, [Asker::Waits(A)]), []);
    }

    #[test]
    fn the_kind_tells_who_waits() {
        assert!(Asker::of(11, Kind::Lookup) == Asker::Waits(A));
        assert!(Asker::of(0, Kind::Lookup) == Asker::Unknown);
        assert!(Asker::of(u32::MAX, Kind::Lookup) == Asker::Unknown);
        assert!(Asker::of(11, Kind::Release) == Asker::Unknown);
        assert!(Asker::of_read(11, 4096) == Asker::Waits(A));
        assert!(Asker::of_read(11, 1 << 20) == Asker::GoesOn);
    }

    /// A thread that goes to the processor of another one, and is free again afterwards.
    #[test]
    fn a_worker_goes_where_its_caller_is() {
        let before = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let mut place = Place::default();
        let caller = nix::unistd::gettid();
        place.go_to(caller);
        let at = place.at.expect("it follows");
        let now = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let all = 0..CpuSet::count();
        assert!(all.clone().all(|cpu| now.is_set(cpu) == Ok(cpu == at)));
        place.free();
        let after = sched_getaffinity(Pid::from_raw(0)).unwrap();
        assert!(all.clone().all(|cpu| after.is_set(cpu) == before.is_set(cpu)));
        place.go_to(Pid::from_raw(i32::MAX));
        assert_eq!(place.at, None, "nobody is followed who is not there");
    }
}
