//! When what was performed is made durable, and saying so.
//!
//! State is not in the inbox: what of it is not durable in the tree is sent once more after a session that ended badly. So it
//! is made durable in small groups, each while the next one is performed, and a target never lacks more than two of them.
//! Records lie in the inbox and are made durable in large groups.

use std::time::{Duration, Instant};

use super::{PerformError, Worker};
use crate::applier::ApplyError;
use crate::base::{Position, faults};
use crate::wire::{Ack, Need};

/// How long a stream is idle before everything is made durable at once.
const IDLE: Duration = Duration::from_millis(20);
/// A source that reads from a busy disk pauses too. Where making durable takes long, a stream counts as idle only after
/// twice that time, or the target would sync between any two batches; but never later than this.
const IDLE_MOST: Duration = Duration::from_millis(250);
/// State comes in a long row, from a source that reads as fast as its disk lets it and says when it has no more: a pause
/// between two readings is no reason to sync.
const IDLE_STATE: Duration = Duration::from_secs(1);
/// How long and how much may be performed before it is made durable.
pub(super) const DURABLE_EVERY: Duration = Duration::from_secs(5);
const DURABLE_BYTES: usize = 64 << 20;
/// State that makes a group, and behind which the group before is waited for.
const GROUP_BYTES: usize = 4 << 20;
/// How soon more is asked for, while the source takes in what it was asked for.
const ASK_AGAIN: Duration = Duration::from_millis(10);

/// Whether what is durable was told.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Saying {
    Done,
    /// What has to be asked for before is more than the source takes at once.
    Goes,
}

/// What is durable and what is not yet.
pub(super) struct Durable {
    /// The last batch that was taken when the tree was made durable.
    batch: u64,
    /// What is being made durable in the background.
    group: Option<Group>,
    /// What came behind it.
    pending_bytes: usize,
    pending_state_bytes: usize,
    pending_since: Option<Instant>,
    /// How long the stream may pause before everything is made durable.
    idle: Duration,
}

/// Where the worker was when the group began.
struct Group {
    at: Position,
    batch: u64,
    began: Instant,
}

impl Durable {
    pub(super) fn new() -> Durable {
        let (pending_bytes, pending_state_bytes, pending_since) = (0, 0, None);
        Durable { batch: 0, group: None, pending_bytes, pending_state_bytes, pending_since, idle: IDLE }
    }

    /// Records of so many bytes were performed.
    pub(super) fn add(&mut self, bytes: usize) {
        self.pending_bytes += bytes;
        self.pending_since.get_or_insert_with(Instant::now);
    }

    /// So many of them are state.
    pub(super) fn add_state(&mut self, bytes: usize) {
        self.pending_state_bytes += bytes;
    }

    /// Whether a group is to begin, even if that means to wait for the one before.
    pub(super) fn is_due(&self) -> bool {
        self.pending_state_bytes >= GROUP_BYTES
            || self.pending_bytes >= DURABLE_BYTES
            || self.pending_since.is_some_and(|since| since.elapsed() >= DURABLE_EVERY)
    }

    /// Whether something is not durable.
    pub(super) fn is_dirty(&self) -> bool {
        self.group.is_some() || self.pending_since.is_some()
    }

    /// What follows belongs to the next group.
    fn nothing_pending(&mut self) {
        (self.pending_bytes, self.pending_state_bytes, self.pending_since) = (0, 0, None);
    }

    fn took(&mut self, time: Duration) {
        self.idle = (time * 2).clamp(IDLE, IDLE_MOST);
    }
}

impl Worker<'_> {
    pub(super) fn patience(&self) -> Duration {
        let patience = match self.durable.pending_since {
            _ if self.saying == Saying::Goes => ASK_AGAIN,
            Some(_) if self.in_state => IDLE_STATE,
            Some(_) => self.durable.idle,
            None => self.relay.patience().unwrap_or(DURABLE_EVERY),
        };
        self.hold.patience().map_or(patience, |wait| wait.min(patience))
    }

    pub(super) fn make_durable_if_dirty(&mut self) -> Result<(), PerformError> {
        match self.durable.is_dirty() {
            true => self.make_durable(),
            false => Ok(()),
        }
    }

    /// Makes everything durable, and says so.
    pub(super) fn make_durable(&mut self) -> Result<(), PerformError> {
        self.commit()?;
        self.say_durable()?;
        Ok(self.inbox.trim_upto(self.relay.trim_upto(self.at.tid)?)?)
    }

    pub(super) fn commit(&mut self) -> Result<(), PerformError> {
        let began = Instant::now();
        let at = self.at;
        self.with_room(|applier| applier.make_durable(at))?;
        self.relay.write_rows()?;
        self.durable.group = None;
        self.durable.batch = self.batch;
        self.durable.took(began.elapsed());
        self.durable.nothing_pending();
        Ok(())
    }

    /// Begins to make everything so far durable, behind the group before.
    pub(super) fn begin_group(&mut self) -> Result<(), PerformError> {
        self.end_group()?;
        let at = self.at;
        self.with_room(|applier| applier.begin_durable(at))?;
        self.durable.group = Some(Group { at, batch: self.batch, began: Instant::now() });
        self.durable.nothing_pending();
        Ok(())
    }

    /// Waits for the group that was begun, and says that it is durable.
    pub(super) fn end_group(&mut self) -> Result<(), PerformError> {
        let Some(Group { at, batch, began }) = self.durable.group.take() else { return Ok(()) };
        self.applier.end_durable()?;
        self.relay.write_rows()?;
        self.durable.batch = batch;
        self.durable.took(began.elapsed());
        self.say_durable()?;
        Ok(self.inbox.trim_upto(self.relay.trim_upto(at.tid)?)?)
    }

    /// What is needed goes out before the positions that follow from it: once the source has the position, it has what was
    /// asked for up to there as well. Of very much a part is asked for at a time, as the source takes it in; the rest
    /// takes less room where it is.
    pub(super) fn say_durable(&mut self) -> Result<(), PerformError> {
        loop {
            // Nothing was taken yet: what stands since sessions before is told apart by that.
            if self.batch > 0 && self.applier.has_missing() && self.out.is_busy() {
                self.saying = Saying::Goes;
                return Ok(());
            }
            let missing = self.applier.take_missing(Ack::MAX_NEEDS);
            let needs = missing.iter().map(|m| Need { oid: m.oid, offset: m.offset, len: m.len }).collect();
            if self.applier.has_missing() {
                self.positions.say(self.out, needs, |_| ());
                continue;
            }
            return self.say_positions(needs);
        }
    }

    fn say_positions(&mut self, needs: Vec<Need>) -> Result<(), PerformError> {
        self.saying = Saying::Done;
        let (blocked, left_out) = (self.applier.blocked(), self.applier.left_out());
        let (applied, commit) = (self.applier.applied().tid, self.applier.commit_no());
        faults::point("receiver.ack_applied").map_err(ApplyError::Sync)?;
        self.positions.say(self.out, needs, |ack| {
            ack.applied = applied.min(ack.received);
            ack.commit = commit;
            ack.batch_durable = self.durable.batch;
            ack.blocked = blocked.count;
            ack.left_out = left_out;
            (ack.blocked_oid, ack.blocked_errno) = blocked.first.unwrap_or((crate::base::Oid::ROOT, 0));
        });
        Ok(())
    }
}
