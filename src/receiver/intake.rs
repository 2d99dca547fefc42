//! Takes frames in the order of their TIDs: records into the inbox, everything to the applier.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::apply::Job;
use super::arrivals::Arrivals;
use super::outbox::Outbox;
use super::positions::Positions;
use super::session::ServeError;
use crate::base::{Position, Tid, faults};
use crate::journal::{JournalError, SegmentLog};
use crate::record::{Record, RecordIter};
use crate::sys::Errno;
use crate::wire::{Message, Stall, WireError};

/// What this side says when its inbox is as large as it may be: no write to a disk fails with it.
const AT_CAP: Errno = Errno::ENOBUFS;
/// A tree that has applied nothing for so long stands still.
const STILL: Duration = Duration::from_secs(2);
/// So many batches are made durable at once, if they come fast enough: a sync takes as long for one as for a few.
const MOST_UNSYNCED: usize = 8;

pub(super) struct Intake {
    inbox: Arc<SegmentLog>,
    cap_bytes: u64,
    /// What is in the inbox and not yet durable there: neither acknowledged nor handed over.
    unsynced: Vec<Batch>,
    jobs: Sender<Job>,
    out: Outbox,
    positions: Arc<Positions>,
}

/// Records that are in the inbox up to `last`.
struct Batch {
    number: u64,
    last: Position,
    body: Vec<u8>,
}

impl Intake {
    pub(super) fn new(
        (inbox, cap_bytes): (Arc<SegmentLog>, u64),
        jobs: Sender<Job>,
        out: Outbox,
        positions: Arc<Positions>,
    ) -> Intake {
        Intake { inbox, cap_bytes, unsynced: Vec::new(), jobs, out, positions }
    }

    pub(super) fn run(&mut self, arrivals: &Arrivals) -> Result<(), ServeError> {
        let mut stage = Stage::Greeted;
        loop {
            let message = self.next(arrivals)?;
            // Whoever takes no answers gets no more of them to wait here.
            if self.out.is_full() {
                return Err(WireError::Flood.into());
            }
            stage = stage.after(&message)?;
            match message {
                Message::Start { after, jump } => self.start(after, jump)?,
                Message::Keep { epoch } => self.hand_over(Job::Keep { epoch })?,
                Message::Records { batch, prev, first, last, count, body } => {
                    let kept = self.records(batch, (prev, first, last), count, body);
                    kept.inspect_err(|error| self.report(error))?;
                }
                Message::State { batch, body } => {
                    check(batch, &body, |record| record.op.is_state())?;
                    self.hand_over(Job::State { batch, body })?;
                }
                Message::Check { batch, body } => {
                    check(batch, &body, |record| record.op.is_state())?;
                    self.hand_over(Job::Check { batch, body })?;
                }
                Message::Orphans(order) => self.hand_over(Job::Orphans(order))?,
                Message::Flush => self.hand_over(Job::Flush)?,
                Message::Convergence(state) => self.hand_over(Job::Convergence(state))?,
                Message::Settled { mark } => self.hand_over(Job::Settled { mark })?,
                Message::Ping => self.out.send(Message::pong()),
                Message::Bye => return Ok(()),
                Message::Pong { .. } => {}
                _ => return Err(ServeError::NoHello),
            }
        }
    }

    /// Records are made durable when nothing follows them yet, when there are enough of them, and before anything else is taken.
    fn next(&mut self, arrivals: &Arrivals) -> Result<Message, ServeError> {
        let come = arrivals.come();
        let follows = matches!(come, Some(Ok(Message::Records { .. })));
        if !follows || self.unsynced.len() >= MOST_UNSYNCED {
            self.make_durable().inspect_err(|error| self.report(error))?;
        }
        Ok(come.unwrap_or_else(|| arrivals.next())?)
    }

    /// A failed sync of the inbox is remembered before the process ends.
    fn report(&self, error: &ServeError) {
        if let ServeError::Inbox(cause) = error
            && cause.is_failed_sync()
        {
            let _ = self.jobs.send(Job::Doubt { reason: error.to_string() });
        }
    }

    /// The source's word for where its records go on. With a jump the difference comes as state.
    fn start(&mut self, after: Position, jump: bool) -> Result<(), ServeError> {
        let received = self.positions.received();
        if !jump {
            return match after == received {
                true => self.hand_over(Job::Start),
                false => Err(ServeError::Gap { batch: 0, prev: after.tid, received: received.tid }),
            };
        }
        // What the inbox holds is still to be performed; only then does the position move.
        self.positions.expect_jump(after);
        self.hand_over(Job::Jump { after })?;
        self.positions.wait_jumped(after);
        match self.positions.received() == after && self.inbox.last_tid() == after.tid {
            true => Ok(()),
            false => Err(ServeError::Gap { batch: 0, prev: after.tid, received: self.inbox.last_tid() }),
        }
    }

    fn records(
        &mut self,
        batch: u64,
        (prev, first, last): (Tid, Tid, Tid),
        count: u32,
        body: Vec<u8>,
    ) -> Result<(), ServeError> {
        let received = self.unsynced.last().map_or_else(|| self.positions.received(), |batch| batch.last);
        let prev = if faults::skipped("receiver.gap") { received.tid } else { prev };
        if prev != received.tid {
            return Err(ServeError::Gap { batch, prev, received: received.tid });
        }
        let tids = check(batch, &body, |record| !record.op.is_state())?;
        let ordered = tids.windows(2).all(|pair| pair[0] < pair[1]);
        if !ordered || tids.first() != Some(&first) || tids.last() != Some(&last) || tids.len() != count as usize {
            return Err(ServeError::Batch { batch });
        }
        self.keep((prev, first, last), count, &body)?;
        let last = Position { tid: last, digest: self.inbox.chain_end().digest, ..received };
        self.unsynced.push(Batch { number: batch, last, body });
        Ok(())
    }

    /// Puts a batch into the inbox.
    fn keep(&mut self, (prev, first, last): (Tid, Tid, Tid), count: u32, body: &[u8]) -> Result<(), ServeError> {
        self.wait_below_cap(body.len() as u64)?;
        loop {
            let step = faults::point("receiver.append").map_err(|errno| inbox_error("append", errno));
            let done = step.and_then(|()| self.inbox.append(prev, first, last, count, &[body]));
            match done.as_ref().err().and_then(JournalError::full).filter(|_| self.inbox.failed().is_none()) {
                Some(errno) => self.wait_for_room(errno)?,
                None => {
                    done?;
                    break;
                }
            }
        }
        self.positions.go_on(&self.out, Stall::Inbox);
        Ok(())
    }

    /// Makes durable what the inbox has, says so, and hands it over.
    fn make_durable(&mut self) -> Result<(), ServeError> {
        let Some(last) = self.unsynced.last().map(|batch| batch.last) else { return Ok(()) };
        faults::point("receiver.sync").map_err(|errno| inbox_error("fdatasync", errno))?;
        if !faults::skipped("receiver.fdatasync") {
            self.inbox.sync()?;
        }
        faults::point("receiver.ack_received").map_err(|errno| inbox_error("acknowledge", errno))?;
        self.positions.say_received(&self.out, last);
        for Batch { number, last, body } in std::mem::take(&mut self.unsynced) {
            self.hand_over(Job::Records { batch: number, last, body })?;
        }
        Ok(())
    }

    /// At the cap this side takes nothing more, and acknowledges nothing, until the tree has caught up. That is worth a word
    /// when the tree stands still.
    fn wait_below_cap(&mut self, bytes: u64) -> Result<(), ServeError> {
        if self.inbox.bytes_used() + bytes > self.cap_bytes {
            // What the tree has not got yet stays in the inbox.
            self.make_durable()?;
        }
        let is_full = || self.inbox.bytes_used() + bytes > self.cap_bytes;
        let (mut asked, mut applied, mut since) = (false, None, Instant::now());
        while is_full() && self.inbox.last_tid() > self.inbox.oldest_kept() {
            if !std::mem::replace(&mut asked, true) {
                // What is durable in the tree leaves the inbox.
                self.hand_over(Job::MakeRoom)?;
            }
            if !is_full() || self.positions.has_applied_all() {
                return Ok(());
            }
            let now = Some(self.positions.applied());
            if std::mem::replace(&mut applied, now) != now {
                since = Instant::now();
            }
            let goes_on = match since.elapsed() < STILL {
                true => self.positions.pause(),
                false => self.positions.wait_for_room(&self.out, Stall::Inbox, AT_CAP),
            };
            if !goes_on {
                return Err(WireError::Closed.into());
            }
        }
        Ok(())
    }

    fn wait_for_room(&mut self, errno: Errno) -> Result<(), ServeError> {
        self.make_durable()?;
        match self.positions.wait_for_room(&self.out, Stall::Inbox, errno) {
            true => Ok(()),
            false => Err(WireError::Closed.into()),
        }
    }

    fn hand_over(&self, job: Job) -> Result<(), ServeError> {
        self.jobs.send(job).map_err(|_| ServeError::Apply("the applier has stopped".to_owned()))
    }
}

/// How far a session is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The source has not said how it begins: nothing may become durable.
    Greeted,
    Begun,
}

impl Stage {
    fn after(self, message: &Message) -> Result<Stage, ServeError> {
        match message {
            Message::Start { .. } => Ok(Stage::Begun),
            Message::Records { .. }
            | Message::State { .. }
            | Message::Check { .. }
            | Message::Orphans(_)
            | Message::Flush
                if self == Stage::Greeted =>
            {
                Err(ServeError::NoStart)
            }
            _ => Ok(self),
        }
    }
}

/// Decodes every record of a batch, and returns their TIDs.
fn check(batch: u64, body: &[u8], fits: impl Fn(&Record<'_>) -> bool) -> Result<Vec<Tid>, ServeError> {
    let mut tids = Vec::new();
    for record in RecordIter::new(body) {
        let record = record.map_err(|cause| ServeError::Record { batch, cause })?;
        if !fits(&record) {
            return Err(ServeError::Batch { batch });
        }
        tids.push(record.tid);
    }
    Ok(tids)
}

fn inbox_error(what: &'static str, errno: Errno) -> JournalError {
    JournalError::Io { what, path: "inbox".into(), errno }
}

#[cfg(test)]
#[path = "intake_tests.rs"]
mod tests;
