//! What a sender says about itself.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::mirror::MirrorProgress;
use super::verify_desk::VerifyProgress;
use crate::base::{EpochId, Tid, Timespec, VolumeUuid};

/// What a sender is doing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum SenderState {
    /// Not connected; a new try follows.
    #[default]
    Offline,
    /// In a session.
    Connected,
    /// Another session has the target; a new try follows.
    Busy(String),
    /// The target, or this source, refuses; the reason is an operator's matter.
    Refused(String),
    /// Stopped for good.
    Stopped,
}

/// Where a sender is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SenderStatus {
    /// What it is doing.
    pub state: SenderState,
    /// Durable in the target's inbox up to here.
    pub received: Tid,
    /// Durable in the target's tree up to here.
    pub applied: Tid,
    /// Up to here its tree may hold changes from before a crash of its own: below it is no past state of the source.
    pub high_water: Tid,
    /// Which copy is refused because it followed another history, and the epoch that it is in. What it acknowledged before says
    /// nothing of it then: it is consistent nowhere.
    pub forked: Option<(VolumeUuid, EpochId)>,
    /// It has not said yet that it takes itself for consistent: without its source it would be taken for converging.
    pub unsettled: bool,
    /// What it waits for, when nothing goes on although the session lives.
    pub stalled: Option<String>,
    /// Bytes on the wire since the sender was started.
    pub bytes_sent: u64,
    /// State records sent since the sender was started.
    pub objects_read: u64,
    /// How often the target said that something more is durable.
    pub acks_durable: u64,
    /// Objects that the target could not bring to their state.
    pub blocked: u32,
    /// Errno of the first of them, else 0.
    pub blocked_errno: i32,
    /// Of how many objects the target has left something out; `None` before it said.
    pub left_out: Option<u32>,
    /// What the target stores otherwise than it is sent.
    pub differs: Option<String>,
    /// By how many microseconds its clock is ahead of ours; behind when negative.
    pub clock_offset_micros: Option<i64>,
    /// How the last session ended, and when, when that was an error.
    pub last_error: Option<(Timespec, String)>,
    /// Sessions that ended with an error since the sender was started.
    pub errors: u64,
    /// Process at the other end, for a local target.
    pub peer_pid: Option<u32>,
    /// The mirror that runs, or the last one.
    pub mirror: Option<MirrorProgress>,
    /// How many orphans it had when it said so last.
    pub orphans: Option<u64>,
    /// The verification that runs, or the last one.
    pub verify: Option<VerifyProgress>,
}

/// A status that others can wait on.
#[derive(Default)]
pub(super) struct SharedStatus {
    /// Protects the status. Rank: a leaf; held for assignments only.
    status: Mutex<SenderStatus>,
    changed: Condvar,
}

impl SharedStatus {
    pub(super) fn get(&self) -> SenderStatus {
        self.status.lock().clone()
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut SenderStatus)) {
        change(&mut self.status.lock());
        self.changed.notify_all();
    }

    /// Waits for any change, at most `timeout`.
    pub(super) fn wait(&self, timeout: Duration) {
        self.changed.wait_for(&mut self.status.lock(), timeout);
    }
}
