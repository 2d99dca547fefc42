//! How many requests of each kind the kernel has sent: what an operation costs, told exactly and on any machine.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

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

/// Counters, one for each kind. Only sums are read from them, so their order among each other does not matter.
pub(super) struct Requests {
    counts: [AtomicU64; NAMES.len()],
}

impl Default for Requests {
    fn default() -> Requests {
        Requests { counts: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

impl Requests {
    pub(super) fn count(&self, kind: Kind) {
        self.counts[kind as usize].fetch_add(1, Ordering::Relaxed);
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
}
