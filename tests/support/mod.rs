//! What the integration tests share: scratch filesystems, a workload, and a whole dtfs host.
//!
//! Everything here gives back what it took when it is dropped, also while a test fails: mounts, loop devices, processes.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

pub(crate) mod behind;
pub(crate) mod both;
pub(crate) mod conformance;
pub(crate) mod forked;
pub(crate) mod fuse_rig;
pub(crate) mod fuzzer;
pub(crate) mod ganesha;
pub(crate) mod hand;
pub(crate) mod history;
pub(crate) mod host;
pub(crate) mod length;
pub(crate) mod link;
pub(crate) mod loopback;
pub(crate) mod mapping;
pub(crate) mod mounted;
pub(crate) mod ops;
pub(crate) mod pair;
pub(crate) mod positions;
pub(crate) mod postgres;
pub(crate) mod power;
pub(crate) mod prng;
pub(crate) mod process;
pub(crate) mod promises;
pub(crate) mod recorder;
pub(crate) mod replica;
pub(crate) mod samba;
pub(crate) mod scratch;
pub(crate) mod sshd;
pub(crate) mod steps;
pub(crate) mod storm;
pub(crate) mod stuck;
pub(crate) mod tampering;
pub(crate) mod thief;
pub(crate) mod trees;
pub(crate) mod unsynced;
pub(crate) mod user;
pub(crate) mod workers;
pub(crate) mod workload;
