//! A volume and its local target, by the real program.

use std::path::PathBuf;

use super::behind::Behind;
use super::host::Host;
use super::scratch::{FileSystem, Scratch, utf8};
use super::trees;

const WAIT_SECONDS: u32 = 300;

/// A volume `data` with one target, mounted and mirrored. The fields are dropped in this order: host first.
pub(crate) struct Pair {
    pub(crate) host: Host,
    pub(crate) source: PathBuf,
    pub(crate) target: PathBuf,
    pub(crate) scratch: Scratch,
}

impl Pair {
    /// On a filesystem of its own, with what `prepare` puts into the source before the volume exists.
    pub(crate) fn new(kind: FileSystem, prepare: impl FnOnce(&PathBuf)) -> Pair {
        let scratch = Scratch::with_size(kind, 4096);
        let (source, target) = (scratch.dir("source"), scratch.dir("target"));
        prepare(&source);
        let mut host = Host::new();
        host.define_volume("data", &source);
        host.start_and_mount();
        host.define_target("data", &target);
        Pair { host, source, target, scratch }
    }

    /// As [`Pair::new`], with options of dtfs_mounts.
    pub(crate) fn with_options(kind: FileSystem, options: &str) -> Pair {
        let scratch = Scratch::with_size(kind, 4096);
        let (source, target) = (scratch.dir("source"), scratch.dir("target"));
        let mut host = Host::new();
        host.must(&["mounts", "add", utf8(&source), "-o", &format!("volume=data,{options}")]);
        host.adopt_volume(&source);
        host.start_and_mount();
        host.define_target("data", &target);
        Pair { host, source, target, scratch }
    }

    pub(crate) fn mirrored(kind: FileSystem, prepare: impl FnOnce(&PathBuf)) -> Pair {
        let pair = Pair::new(kind, prepare);
        pair.wait();
        pair
    }

    pub(crate) fn wait(&self) {
        self.host.wait("data", WAIT_SECONDS);
    }

    /// The target's tree, for tests that damage it.
    pub(crate) fn behind(&self) -> Behind {
        Behind::of(&self.target)
    }

    pub(crate) fn bytes_sent(&self) -> u64 {
        self.host.bytes_sent("data")
    }

    /// Bytes and changes that `change` costs, up to the moment the target has it.
    pub(crate) fn cost(&self, change: impl FnOnce()) -> (u64, u64) {
        self.wait();
        let (bytes, tid) = (self.bytes_sent(), self.host.tid("data"));
        change();
        self.wait();
        (self.bytes_sent() - bytes, self.host.tid("data") - tid)
    }

    /// Stops the daemon and compares what is left on both sides.
    pub(crate) fn stop_and_compare(mut self, context: &str) {
        self.wait();
        self.host.stop();
        trees::assert_equal(&self.source, &self.target, context);
    }
}
