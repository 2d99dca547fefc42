//! How many requests of each kind the kernel has sent: what an operation costs, told exactly and on any machine. And how long
//! each took.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::readers::Pace;

/// What the kernel asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Lookup,
    Forget,
    Getattr,
    Setattr,
    Readlink,
    Mknod,
    Mkdir,
    Unlink,
    Rmdir,
    Symlink,
    Rename,
    Link,
    Open,
    Read,
    Write,
    Flush,
    Release,
    Fsync,
    Opendir,
    Readdir,
    Readdirplus,
    Releasedir,
    Fsyncdir,
    Statfs,
    Setxattr,
    Getxattr,
    Listxattr,
    Removexattr,
    Create,
    Ioctl,
    Fallocate,
    Lseek,
    CopyFileRange,
}

impl Kind {
    /// What serving it is like, as far as the kind alone tells.
    pub(super) fn pace(self) -> Pace {
        match self {
            Kind::Forget | Kind::Getattr | Kind::Flush | Kind::Release | Kind::Statfs => Pace::Quick,
            Kind::Fsync | Kind::Fsyncdir => Pace::Slow,
            _ => Pace::Usual,
        }
    }
}

const NAMES: [(Kind, &str); 33] = [
    (Kind::Lookup, "lookup"),
    (Kind::Forget, "forget"),
    (Kind::Getattr, "getattr"),
    (Kind::Setattr, "setattr"),
    (Kind::Readlink, "readlink"),
    (Kind::Mknod, "mknod"),
    (Kind::Mkdir, "mkdir"),
    (Kind::Unlink, "unlink"),
    (Kind::Rmdir, "rmdir"),
    (Kind::Symlink, "symlink"),
    (Kind::Rename, "rename"),
    (Kind::Link, "link"),
    (Kind::Open, "open"),
    (Kind::Read, "read"),
    (Kind::Write, "write"),
    (Kind::Flush, "flush"),
    (Kind::Release, "release"),
    (Kind::Fsync, "fsync"),
    (Kind::Opendir, "opendir"),
    (Kind::Readdir, "readdir"),
    (Kind::Readdirplus, "readdirplus"),
    (Kind::Releasedir, "releasedir"),
    (Kind::Fsyncdir, "fsyncdir"),
    (Kind::Statfs, "statfs"),
    (Kind::Setxattr, "setxattr"),
    (Kind::Getxattr, "getxattr"),
    (Kind::Listxattr, "listxattr"),
    (Kind::Removexattr, "removexattr"),
    (Kind::Create, "create"),
    (Kind::Ioctl, "ioctl"),
    (Kind::Fallocate, "fallocate"),
    (Kind::Lseek, "lseek"),
    (Kind::CopyFileRange, "copy_file_range"),
];

/// The bounds between which times are counted, in seconds.
pub const OP_SECONDS_BOUNDS: [f64; 6] = [0.0001, 0.001, 0.01, 0.1, 1.0, 10.0];

/// How long the requests of one kind took, since the mount.
#[derive(Clone, PartialEq, Debug)]
pub struct OpTimes {
    /// The kind.
    pub op: &'static str,
    /// How many took up to each of [`OP_SECONDS_BOUNDS`], and longer than all of them.
    pub counts: [u64; OP_SECONDS_BOUNDS.len() + 1],
    /// All of them together.
    pub seconds: f64,
}

#[derive(Default)]
struct Times {
    counts: [AtomicU64; OP_SECONDS_BOUNDS.len() + 1],
    nanos: AtomicU64,
}

/// Counters, one for each kind. Only sums are read from them, so their order among each other does not matter.
pub(super) struct Requests {
    counts: [AtomicU64; NAMES.len()],
    times: [Times; NAMES.len()],
    handed_over: AtomicU64,
}

impl Default for Requests {
    fn default() -> Requests {
        Requests {
            counts: std::array::from_fn(|_| AtomicU64::new(0)),
            times: std::array::from_fn(|_| Times::default()),
            handed_over: AtomicU64::new(0),
        }
    }
}

impl Requests {
    pub(super) fn count(&self, kind: Kind) {
        self.counts[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_handed_over(&self) {
        self.handed_over.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn handed_over(&self) -> u64 {
        self.handed_over.load(Ordering::Relaxed)
    }

    /// One request was served in `time`.
    pub(super) fn took(&self, kind: Kind, time: Duration) {
        let times = &self.times[kind as usize];
        let seconds = time.as_secs_f64();
        let at = OP_SECONDS_BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(OP_SECONDS_BOUNDS.len());
        times.counts[at].fetch_add(1, Ordering::Relaxed);
        times.nanos.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }

    /// How many began and how many of them ended, without those that say nothing of a disk (statfs, forget).
    pub(super) fn progress(&self) -> (u64, u64) {
        let counts = |kind: &Kind| !matches!(kind, Kind::Statfs | Kind::Forget);
        let mut progress = (0, 0);
        for (kind, _) in NAMES.iter().filter(|(kind, _)| counts(kind)) {
            // Ended first: one that ends in between then counts as under way, and not the other way round.
            progress.1 += self.times[*kind as usize].counts.iter().map(|n| n.load(Ordering::Relaxed)).sum::<u64>();
            progress.0 += self.counts[*kind as usize].load(Ordering::Relaxed);
        }
        progress
    }

    /// The times of those that were served at all.
    pub(super) fn times(&self) -> Vec<OpTimes> {
        let read = |(times, (_, op)): (&Times, &(Kind, &'static str))| OpTimes {
            op,
            counts: std::array::from_fn(|at| times.counts[at].load(Ordering::Relaxed)),
            seconds: Duration::from_nanos(times.nanos.load(Ordering::Relaxed)).as_secs_f64(),
        };
        let all = self.times.iter().zip(&NAMES).map(read);
        all.filter(|times| times.counts.iter().any(|count| *count > 0)).collect()
    }

    /// Those that came at all.
    pub(super) fn all(&self) -> BTreeMap<&'static str, u64> {
        let counted = NAMES.iter().map(|(kind, name)| (*name, self.counts[*kind as usize].load(Ordering::Relaxed)));
        counted.filter(|(_, count)| *count > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_own_counter_and_name() {
        let requests = Requests::default();
        for (at, (kind, name)) in NAMES.iter().enumerate() {
            assert_eq!(*kind as usize, at, "{name}");
            requests.count(*kind);
        }
        assert_eq!(requests.all().len(), NAMES.len());
        assert!(requests.all().values().all(|count| *count == 1));
    }

    #[test]
    fn times_fall_between_their_bounds() {
        let requests = Requests::default();
        for nanos in [1, 100_000, 100_001, 60_000_000_000] {
            requests.took(Kind::Write, Duration::from_nanos(nanos));
        }
        let [times] = &requests.times()[..] else { panic!("one kind was served") };
        assert_eq!((times.op, times.counts), ("write", [2, 1, 0, 0, 0, 0, 1]));
        assert!((times.seconds - 60.000_200_002).abs() < 1e-9, "{}", times.seconds);
    }
}
