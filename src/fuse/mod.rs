//! The kernel's door: /dev/fuse, mount(2), and the translation of each request into one call of the stack.
//!
//! Invariants:
//! - The only room that knows `fuser`. It decides nothing about files: decode, one stack call, reply.
//! - We mount and unmount ourselves, and only what is ours: fuser's own unmount could hit what lies below the mount.
//! - A request that panics is answered with EIO and the volume fails: a worker never disappears unnoticed, and nothing
//!   goes on from a state that is not known.

mod adapter;
mod follow;
mod init;
mod mount;
mod readers;
mod reply;
mod requests;
mod waiting;
mod worker;

pub use init::Agreed;
pub use mount::{MountError, MountedVolume, Unmount, Unmounted, canonical, dead_mount_at, detach, detach_dead};
pub use requests::{OP_SECONDS_BOUNDS, OpTimes};
