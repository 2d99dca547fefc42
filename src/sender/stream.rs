//! The merged stream: records in the order of their TIDs, readings of state where their stamp puts them.

use std::collections::VecDeque;
use std::sync::Arc;

use super::SessionError;
use super::standing::{epochs_after, position_at};
use super::work::{Done, Purpose, Reading};
use crate::base::{EpochId, Position, Tid, faults};
use crate::journal::{EpochRow, Replay, ReplayReader};
use crate::wire::Message;

/// Bytes in one batch, about.
const BATCH_BYTES: usize = 1 << 20;

pub(super) struct Stream {
    journal: Arc<dyn Replay>,
    reader: Box<dyn ReplayReader>,
    /// Epochs that begin behind what was sent: the target's position names the epoch that its TID belongs to.
    epochs: VecDeque<EpochRow>,
    /// The last epoch that is known of.
    known: EpochId,
    /// Last TID sent.
    sent: Tid,
    /// Readings that wait for their place; stamps never go down from one to the next.
    waiting: VecDeque<Reading>,
    /// Whether records may be there that were not looked at.
    maybe_more: bool,
}

/// One batch.
pub(super) struct Batch {
    pub(super) message: Message,
    /// Rows that end or move on when it is durable.
    pub(super) done: Vec<Done>,
    /// Objects that were read, and bytes of their content.
    pub(super) read: (u64, u64),
}

impl Stream {
    pub(super) fn new(journal: Arc<dyn Replay>, after: Position) -> Result<Stream, SessionError> {
        let reader = journal.read_after(after.tid)?;
        let all = journal.epochs()?;
        let (epochs, known) = (epochs_after(&all, after.epoch), all.last().map_or(after.epoch, |epoch| epoch.id));
        Ok(Stream { journal, reader, epochs, known, sent: after.tid, waiting: VecDeque::new(), maybe_more: true })
    }

    /// Last TID sent.
    pub(super) fn sent(&self) -> Tid {
        self.sent
    }

    /// More records have become durable.
    pub(super) fn more(&mut self) {
        self.maybe_more = true;
    }

    /// Whether readings can be taken: those taken before are all sent, so memory stays bounded and stamps in order.
    pub(super) fn wants_state(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Takes readings; returns the TID that must be durable before they can all be sent.
    pub(super) fn queue(&mut self, readings: Vec<Reading>) -> Option<Tid> {
        self.waiting.extend(readings);
        self.waiting.back().map(|reading| reading.stamp)
    }

    /// The next batch, or `None` when nothing can be sent now. `durable` was read before: no record up to there belongs to an
    /// epoch that is not known of then.
    pub(super) fn next(&mut self, durable: Tid, batch: u64) -> Result<Option<Batch>, SessionError> {
        self.learn_epochs()?;
        let stamp = self.waiting.front().map_or(Tid(u64::MAX), |reading| reading.stamp);
        let fork = self.epochs.front().map_or(Tid(u64::MAX), |epoch| epoch.fork.tid);
        let readable = if faults::skipped("journal.durable_only") { Tid(u64::MAX) } else { durable };
        let limit = stamp.min(fork).min(readable);
        let looked = self.maybe_more || !self.waiting.is_empty();
        if looked && let Some(chunk) = self.reader.next_chunk(limit, BATCH_BYTES)? {
            let prev = std::mem::replace(&mut self.sent, chunk.last);
            let (first, last, count) = (chunk.first, chunk.last, chunk.count);
            let message = Message::Records { batch, prev, first, last, count, body: chunk.body };
            return Ok(Some(Batch { message, done: Vec::new(), read: (0, 0) }));
        }
        if looked
            && fork <= stamp
            && let Some(epoch) = self.epochs.pop_front()
        {
            return Ok(Some(self.enter(&epoch)));
        }
        match self.waiting.is_empty() {
            true if looked && self.sent < durable => return Ok(Some(self.skip(durable)?)),
            true => self.maybe_more = false,
            false if stamp <= durable => return Ok(Some(self.state(stamp, batch))),
            false => {}
        }
        Ok(None)
    }

    /// An epoch may have begun since the session did.
    fn learn_epochs(&mut self) -> Result<(), SessionError> {
        if self.journal.identity().epoch != self.known {
            let all = self.journal.epochs()?;
            self.epochs.extend(epochs_after(&all, self.known));
            self.known = all.last().map_or(self.known, |epoch| epoch.id);
        }
        Ok(())
    }

    /// Every record up to `durable` was sent and the last one has a lower TID: the numbers between were jumped over when
    /// the journal started again. The target's place moves behind them, or it would never be where the source is.
    fn skip(&mut self, to: Tid) -> Result<Batch, SessionError> {
        self.sent = to;
        Ok(start(position_at(self.journal.as_ref(), to)?))
    }

    /// Every record of the epoch before was sent.
    fn enter(&mut self, epoch: &EpochRow) -> Batch {
        self.sent = epoch.fork.tid;
        start(Position { epoch: epoch.id, tid: epoch.fork.tid, digest: epoch.fork.digest })
    }

    /// Goes on behind `after`: rows of work cover the records up to there.
    pub(super) fn jump(&mut self, after: Tid) -> Result<Batch, SessionError> {
        self.reader = self.journal.read_after(after)?;
        self.maybe_more = true;
        let to = position_at(self.journal.as_ref(), after)?;
        let all = self.journal.epochs()?;
        self.epochs = epochs_after(&all, to.epoch);
        self.known = all.last().map_or(to.epoch, |epoch| epoch.id);
        self.skip(after)
    }

    /// Every record up to `stamp` was sent: the readings that have this stamp follow, as much of them as a batch takes.
    /// No record comes between the parts of a long one.
    fn state(&mut self, stamp: Tid, batch: u64) -> Batch {
        let mut body = Vec::new();
        let (mut done, mut read) = (Vec::new(), (0, 0));
        let purpose = self.waiting.front().map_or(Purpose::Apply, |reading| reading.purpose);
        let together = |reading: &&mut Reading| reading.stamp == stamp && reading.purpose == purpose;
        while let Some(reading) = self.waiting.front_mut().filter(together) {
            if !reading.give(&mut body, BATCH_BYTES) {
                break;
            }
            done.push(reading.done);
            read = (read.0 + reading.objects, read.1 + reading.covered);
            self.waiting.pop_front();
        }
        match purpose {
            Purpose::Apply => Batch { message: Message::State { batch, body }, done, read },
            Purpose::Check => Batch { message: Message::Check { batch, body }, done, read },
        }
    }
}

fn start(after: Position) -> Batch {
    Batch { message: Message::Start { after, jump: true }, done: Vec::new(), read: (0, 0) }
}
