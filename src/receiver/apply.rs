//! The thread that performs what was received.

mod durable;
mod hold;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Select, TryRecvError};

use super::outbox::Outbox;
use super::positions::Positions;
use super::relay::RelayEnd;
use crate::applier::{Applier, ApplyError, Replica};
use crate::base::{EpochId, Position, Tid, faults};
use crate::journal::{ChainEnd, JournalError, SegmentLog};
use crate::record::{OrphanOrder, RecordIter, chain};
use crate::sys::Errno;
use crate::wire::{Convergence, Message, RefuseCode, Stall};
use durable::{Durable, Saying};
use hold::Hold;

/// Work for the applier, in the order of the stream.
pub(super) enum Job {
    /// The stream begins, or goes on, where this side is.
    Start,
    /// The history of the source left the one that this tree followed: what it has is kept from the next jump on.
    Keep { epoch: EpochId },
    /// The position moves to `after`; what lies between comes as state.
    Jump { after: Position },
    /// Records that are durable in the inbox up to `last`.
    Records { batch: u64, last: Position, body: Vec<u8> },
    /// State records.
    State { batch: u64, body: Vec<u8> },
    /// State records to compare with.
    Check { batch: u64, body: Vec<u8> },
    /// What is to become of orphans.
    Orphans(OrphanOrder),
    /// Someone waits for everything so far to be durable.
    Flush,
    /// The inbox has no room.
    MakeRoom,
    /// What stands against the tree's being a past state of the source.
    Convergence(Convergence),
    /// What the source knows to be in doubt is good here.
    Settled { mark: u64 },
    /// The inbox failed: what it was thought to hold may be lost.
    Doubt { reason: String },
}

/// How often what could not be done to an object is tried again.
const RETRY_BLOCKED: Duration = Duration::from_secs(60);
/// Records read from the inbox at a time when a session starts.
const REPLAY_BYTES: usize = 1 << 20;

/// How a session begins.
pub(super) struct Beginning {
    pub(super) replica: Replica,
    /// What sessions before this one received.
    pub(super) received: Tid,
    /// Up to here the tree may hold changes.
    pub(super) high_water: Tid,
    /// How old a record is when it is performed.
    pub(super) delay: Duration,
    pub(super) relay: RelayEnd,
}

pub(super) struct ApplyThread {
    handle: JoinHandle<Result<(), String>>,
}

impl ApplyThread {
    pub(super) fn spawn(
        beginning: Beginning,
        inbox: Arc<SegmentLog>,
        queue: Receiver<Job>,
        out: Outbox,
        positions: Arc<Positions>,
    ) -> ApplyThread {
        let handle = std::thread::spawn(move || {
            let done = perform(beginning, inbox, &queue, &out, &positions);
            positions.stop();
            match done {
                Ok(()) | Err(PerformError::Over) => Ok(()),
                Err(error) => {
                    let text = error.to_string();
                    tracing::error!(%text, "the target cannot go on");
                    out.send(Message::Refuse { code: error.code(), text: text.clone() });
                    Err(text)
                }
            }
        });
        ApplyThread { handle }
    }

    pub(super) fn join(self) -> Result<(), String> {
        self.handle.join().unwrap_or_else(|_| Err("the applier panicked".to_owned()))
    }
}

#[derive(Debug, thiserror::Error)]
enum PerformError {
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error("inbox: {0}")]
    Inbox(#[from] JournalError),
    #[error("inbox: {0}")]
    Record(#[from] crate::record::DecodeError),
    /// Its inbox has failed.
    #[error("{0}")]
    Doubt(String),
    /// The source went while this side waited for its disk. Nothing is wrong.
    #[error("the source has gone")]
    Over,
}

impl PerformError {
    fn casts_doubt(&self) -> bool {
        match self {
            PerformError::Apply(error) => error.casts_doubt(),
            PerformError::Inbox(error) => error.is_failed_sync(),
            PerformError::Doubt(_) => true,
            PerformError::Record(_) | PerformError::Over => false,
        }
    }

    fn code(&self) -> RefuseCode {
        if self.casts_doubt() { RefuseCode::Doubt } else { RefuseCode::Failed }
    }
}

fn perform(
    beginning: Beginning,
    inbox: Arc<SegmentLog>,
    queue: &Receiver<Job>,
    out: &Outbox,
    positions: &Positions,
) -> Result<(), PerformError> {
    let mut worker = Worker::new(beginning, inbox, out, positions)?;
    worker.run(queue).map_err(|error| worker.remember(error))
}

struct Worker<'a> {
    applier: Applier,
    inbox: Arc<SegmentLog>,
    out: &'a Outbox,
    positions: &'a Positions,
    /// Behind the last record performed.
    at: Position,
    /// What sessions before this one received.
    replay_to: Tid,
    /// Up to here the tree may have held changes when the session began.
    high_water: Tid,
    /// Whether the tree is a past state of the source, as far as the source said.
    settled: bool,
    /// What waits on purpose.
    hold: Hold,
    batch: u64,
    durable: Durable,
    /// Whether the source was told of that.
    saying: Saying,
    /// What came last was state.
    in_state: bool,
    /// Until the source has said how it begins nothing is made durable: it compares what this copy says of itself with what
    /// it remembers, and writes down what it finds before it says so.
    started: bool,
    /// What is here is kept when the position moves, in a place named after this epoch.
    keep: Option<EpochId>,
    /// When what is blocked was last asked for.
    retried: Instant,
    /// What is done for targets of this copy.
    relay: RelayEnd,
}

impl<'a> Worker<'a> {
    fn new(
        Beginning { replica, received, high_water, delay, relay }: Beginning,
        inbox: Arc<SegmentLog>,
        out: &'a Outbox,
        positions: &'a Positions,
    ) -> Result<Worker<'a>, PerformError> {
        let settled = !replica.is_converging();
        let applier = Applier::new(replica, high_water)?;
        Ok(Worker {
            at: applier.applied(),
            replay_to: received,
            high_water,
            settled,
            hold: Hold::new(delay),
            applier,
            inbox,
            out,
            positions,
            batch: 0,
            durable: Durable::new(),
            saying: Saying::Done,
            in_state: false,
            started: false,
            keep: None,
            retried: Instant::now(),
            relay,
        })
    }
}

/// What is next.
enum Next {
    Job(Job),
    /// What was being made durable in the background is.
    Synced,
    /// Nothing came for a while.
    Nothing,
    /// Nothing comes any more.
    Over,
}

impl Worker<'_> {
    fn run(&mut self, queue: &Receiver<Job>) -> Result<(), PerformError> {
        loop {
            if !self.durable.is_dirty() {
                self.relay.end_turn()?;
            }
            let next = self.next(queue);
            self.relay.take_turn()?;
            match next {
                Next::Job(job) => self.job(job)?,
                Next::Synced => self.end_group()?,
                Next::Nothing if self.saying == Saying::Goes => {}
                Next::Nothing => self.idle()?,
                Next::Over => return self.make_durable_if_dirty(),
            }
            self.release_in_time()?;
            if self.durable.is_dirty() && self.relay.is_wanted() {
                self.make_durable()?;
            } else if self.durable.is_due() {
                self.begin_group()?;
            } else if self.saying == Saying::Goes {
                self.say_durable()?;
            }
            self.tell_relay()?;
            self.tell_downstream()?;
        }
    }

    /// How far the targets of this copy are.
    fn tell_downstream(&mut self) -> Result<(), PerformError> {
        if let Some(downstream) = self.relay.news_of_downstream()? {
            self.positions.say(self.out, Vec::new(), |ack| ack.downstream = downstream);
        }
        Ok(())
    }

    /// Waits for what is next to do.
    fn next(&self, queue: &Receiver<Job>) -> Next {
        let synced = self.applier.synced();
        let mut select = Select::new();
        let job = select.recv(queue);
        select.recv(&synced);
        match select.ready_timeout(self.patience()) {
            Ok(ready) if ready != job => Next::Synced,
            Ok(_) => match queue.try_recv() {
                Ok(job) => Next::Job(job),
                Err(TryRecvError::Empty) => Next::Nothing,
                Err(TryRecvError::Disconnected) => Next::Over,
            },
            Err(_) => Next::Nothing,
        }
    }

    /// Nothing is told before the source has said how it begins: where this copy is may not count.
    fn tell_relay(&mut self) -> Result<(), PerformError> {
        if !self.started {
            return Ok(());
        }
        let is_settled = self.settled && !self.applier.is_in_doubt();
        Ok(self.relay.tell(self.at, is_settled, self.durable.is_dirty())?)
    }

    /// What must not be forgotten when the process ends with `error`.
    fn remember(&mut self, error: PerformError) -> PerformError {
        if error.casts_doubt()
            && let Err(worse) = self.applier.cast_doubt(&error.to_string())
        {
            tracing::error!(%worse, "that this replica is in doubt is known to its source only");
        }
        error
    }

    fn job(&mut self, job: Job) -> Result<(), PerformError> {
        self.in_state = matches!(job, Job::State { .. });
        match job {
            Job::Start => self.start(),
            Job::Keep { epoch } => {
                self.keep = Some(epoch);
                Ok(())
            }
            Job::Jump { after } => self.jump(after),
            Job::Records { batch, last, .. } if self.hold.is_on() => {
                self.hold_back(last.tid)?;
                self.taken(batch)
            }
            Job::Records { batch, last, body } => {
                self.records(&body)?;
                self.at = last;
                self.taken(batch)
            }
            Job::State { batch, body } => {
                self.catch_up("objects came")?;
                self.records(&body)?;
                self.durable.add_state(body.len());
                self.taken(batch)
            }
            Job::Check { batch, body } => {
                self.catch_up("objects came to be compared")?;
                self.check(batch, &body)?;
                self.taken(batch)
            }
            Job::Orphans(order) => {
                let list = self.applier.orphans(&order)?;
                self.out.send(Message::OrphansDone(list));
                Ok(())
            }
            Job::Flush => self.make_durable(),
            Job::MakeRoom => self.make_room(),
            Job::Convergence(state) => self.converge(state),
            Job::Settled { mark } if self.settled => Ok(self.applier.set_mark(mark)?),
            Job::Settled { .. } => Ok(()),
            Job::Doubt { reason } => Err(PerformError::Doubt(reason)),
        }
    }

    /// The source goes by it only once it is known to be durable here. It is believed that nothing is left only where nothing
    /// is lacking.
    fn converge(&mut self, state: Convergence) -> Result<(), PerformError> {
        let state = match state {
            Convergence::Consistent if !self.has_everything()? => Convergence::Converging,
            state => state,
        };
        self.settled = state == Convergence::Consistent;
        if !self.settled {
            self.end_hold()?;
        }
        self.applier.set_converging(!self.settled)?;
        if self.settled {
            self.applier.open_to_others()?;
        }
        self.positions.say(self.out, Vec::new(), |ack| ack.convergence = state);
        match self.settled {
            true => self.begin_hold(self.at.tid),
            false if self.applier.has_missing() => self.say_durable(),
            false => Ok(()),
        }
    }

    fn has_everything(&mut self) -> Result<bool, PerformError> {
        self.end_group()?;
        if !self.applier.has_everything()? {
            return Ok(false);
        }
        match self.applier.nameless_dir(self.at.tid)? {
            Some(oid) => {
                Err(PerformError::Doubt(format!("its source has nothing left to send, and {oid} has no name")))
            }
            None => Ok(true),
        }
    }

    fn start(&mut self) -> Result<(), PerformError> {
        self.begin()?;
        self.make_durable()
    }

    /// The source has said how it begins.
    fn begin(&mut self) -> Result<(), PerformError> {
        if std::mem::replace(&mut self.started, true) {
            return Ok(());
        }
        // It has written down where this copy goes on.
        self.applier.settle_rejoined()?;
        self.applier.settle_unguarded()?;
        let doubtful = self.applier.is_in_doubt();
        if self.settled && !doubtful {
            // Whoever was killed while he opened it.
            self.applier.open_to_others()?;
        }
        if self.settled && !doubtful {
            self.begin_hold(self.replay_to)?;
        }
        if !self.hold.is_on() {
            self.applier.forget_reach()?;
        }
        if doubtful {
            return Ok(self.applier.ask_for_parked()?);
        }
        if !self.hold.is_on() {
            self.replay()?;
        }
        self.applier.end_keeping_when_settled()?;
        match self.is_holding() {
            // What is parked may get a name by what waits; to ask for it would end the waiting.
            true => Ok(self.applier.ask_for_objects()?),
            false => Ok(self.applier.ask_for_incomplete()?),
        }
    }

    /// Performs what the inbox holds behind the cursor: a session before this one received it. What it takes in meanwhile
    /// comes as jobs, and must not be performed twice: the cursor may be behind it already.
    fn replay(&mut self) -> Result<(), PerformError> {
        let end = self.replay_to;
        let mut reader = self.inbox.reader(self.at.tid)?;
        while let Some(chunk) = reader.next_chunk(end, REPLAY_BYTES)? {
            self.records(&chunk.body)?;
            self.at = Position { tid: chunk.last, digest: chain(self.at.digest, &chunk.body)?, ..self.at };
            if self.durable.is_due() {
                self.make_durable()?;
            }
        }
        Ok(())
    }

    fn records(&mut self, body: &[u8]) -> Result<(), PerformError> {
        self.relay.before_change(self.at)?;
        for record in RecordIter::new(body) {
            let record = record?;
            if record.op.is_state() {
                self.relay.touched(record.oid);
            }
            self.with_room(|applier| applier.apply(&record))?;
        }
        self.with_room(Applier::finish_group)?;
        self.durable.add(body.len());
        Ok(())
    }

    /// What was performed so far is finished with every group, so the tree is at its place.
    fn check(&mut self, batch: u64, body: &[u8]) -> Result<(), PerformError> {
        let mut found = Vec::new();
        for record in RecordIter::new(body) {
            self.applier.check(&record?, &mut found)?;
        }
        let more = found.len().saturating_sub(Message::MAX_FOUND) as u64;
        found.truncate(Message::MAX_FOUND);
        self.out.send(Message::Checked { batch, more, found });
        Ok(())
    }

    /// Does `step`, as often as it takes: when the disk has no room this side waits, and so does the source.
    fn with_room(&mut self, step: impl Fn(&mut Applier) -> Result<(), ApplyError>) -> Result<(), PerformError> {
        loop {
            let done = step(&mut self.applier);
            match done.as_ref().err().and_then(ApplyError::full) {
                Some(errno) => self.wait_for_room(errno)?,
                None => {
                    done?;
                    break;
                }
            }
        }
        self.positions.go_on(self.out, Stall::Tree);
        Ok(())
    }

    fn wait_for_room(&self, errno: Errno) -> Result<(), PerformError> {
        match self.positions.wait_for_room(self.out, Stall::Tree, errno) {
            true => Ok(()),
            false => Err(PerformError::Over),
        }
    }

    fn taken(&mut self, batch: u64) -> Result<(), PerformError> {
        self.batch = batch;
        self.positions.say(self.out, Vec::new(), |ack| ack.batch_taken = batch);
        Ok(())
    }

    /// Everything before is made durable first, so that the cursor never names a place that the tree has not reached.
    fn jump(&mut self, after: Position) -> Result<(), PerformError> {
        self.begin()?;
        self.catch_up("the position moves")?;
        self.end_group()?;
        let at = self.at;
        if let Some(epoch) = self.keep {
            self.with_room(|applier| applier.begin_keeping(at, epoch))?;
            self.keep = None;
        }
        self.relay.before_change(at)?;
        self.relay.before_jump(&self.inbox, at.tid, after.tid)?;
        self.with_room(|applier| applier.begin_jump(at, after))?;
        faults::point("receiver.jump").map_err(ApplyError::Sync)?;
        self.inbox.reset(ChainEnd { tid: after.tid, digest: after.digest })?;
        self.applier.note_epoch(after)?;
        self.at = after;
        self.commit()?;
        self.positions.jump(after);
        self.say_durable()
    }

    fn idle(&mut self) -> Result<(), PerformError> {
        if self.retried.elapsed() >= RETRY_BLOCKED && !self.is_holding() {
            self.retried = Instant::now();
            self.applier.ask_for_blocked()?;
            if self.applier.has_missing() {
                return self.say_durable();
            }
        }
        self.make_durable_if_dirty()
    }
}
