//! The thread that performs what was received.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use parking_lot::{Condvar, Mutex};

use crate::applier::{Applier, ApplyError, Replica};
use crate::base::Tid;
use crate::journal::{ChainEnd, JournalError, SegmentLog};
use crate::record::RecordIter;
use crate::wire::{Ack, Message, Need, RefuseCode};

/// Work for the applier, in the order of the stream.
pub(super) enum Job {
    /// Records that are durable in the inbox.
    Records { batch: u64, last: Tid, body: Vec<u8> },
    /// State records.
    State { batch: u64, body: Vec<u8> },
    /// The position moves to `after`; what lies between comes as state.
    Jump { after: Tid },
    /// Someone waits for everything so far to be durable.
    Flush,
}

/// How far this side is; what acks are made of.
pub(super) struct Positions {
    /// Protects the positions and the order of acks. Rank: a leaf; held for a few assignments and one hand-over.
    ack: Mutex<Ack>,
    /// The applier has stopped: nobody will perform a jump any more.
    stopped: AtomicBool,
    jumped: Condvar,
}

impl Positions {
    pub(super) fn new(received: Tid, applied: Tid) -> Positions {
        let ack = Ack { received, applied, ..Ack::default() };
        Positions { ack: Mutex::new(ack), stopped: AtomicBool::new(false), jumped: Condvar::new() }
    }

    /// Changes the positions and says so. Two threads do: the lock is held until the ack is in the queue (which never
    /// blocks), so that no ack overtakes a later one and seems to take something back.
    pub(super) fn say(&self, out: &Sender<Message>, needs: Vec<Need>, change: impl FnOnce(&mut Ack)) {
        let mut ack = self.ack.lock();
        change(&mut ack);
        let _ = out.send(Message::Ack(Ack { needs, ..ack.clone() }));
    }

    fn jump(&self, after: Tid) {
        let mut ack = self.ack.lock();
        ack.received = after;
        drop(ack);
        self.jumped.notify_all();
    }

    /// Waits until the applier has performed a jump, or has stopped.
    pub(super) fn wait_jumped(&self, after: Tid) {
        let mut ack = self.ack.lock();
        while ack.received != after && !self.stopped.load(Ordering::SeqCst) {
            self.jumped.wait(&mut ack);
        }
    }

    fn stop(&self) {
        let _ack = self.ack.lock();
        self.stopped.store(true, Ordering::SeqCst);
        self.jumped.notify_all();
    }
}

/// How long a stream is idle before everything is made durable at once.
const IDLE: Duration = Duration::from_millis(20);
/// A source that reads from a busy disk pauses too. Where making durable takes long, a stream counts as idle only after
/// twice that time, or the target would sync between any two batches; but never later than this.
const IDLE_MOST: Duration = Duration::from_millis(250);
/// How long and how much may be performed before it is made durable.
const DURABLE_EVERY: Duration = Duration::from_secs(5);
const DURABLE_BYTES: usize = 64 << 20;
/// Records read from the inbox at a time when a session starts.
const REPLAY_BYTES: usize = 1 << 20;

pub(super) struct ApplyThread {
    handle: JoinHandle<Result<(), String>>,
}

impl ApplyThread {
    pub(super) fn spawn(
        (replica, high_water): (Replica, Tid),
        inbox: Arc<SegmentLog>,
        queue: Receiver<Job>,
        out: Sender<Message>,
        positions: Arc<Positions>,
    ) -> ApplyThread {
        let handle = std::thread::spawn(move || {
            let done = perform((replica, high_water), inbox, &queue, &out, &positions);
            positions.stop();
            done.map_err(|error| {
                let text = error.to_string();
                tracing::error!(%text, "the target cannot go on");
                let _ = out.send(Message::Refuse { code: RefuseCode::Failed, text: text.clone() });
                text
            })
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
}

fn perform(
    (replica, high_water): (Replica, Tid),
    inbox: Arc<SegmentLog>,
    queue: &Receiver<Job>,
    out: &Sender<Message>,
    positions: &Positions,
) -> Result<(), PerformError> {
    let applied = replica.applied();
    let applier = Applier::new(replica, high_water)?;
    let mut worker = Worker {
        applier,
        inbox,
        out,
        positions,
        at: applied,
        durable: applied,
        batch: 0,
        pending_bytes: 0,
        pending_since: None,
        idle: IDLE,
    };
    worker.replay()?;
    worker.applier.ask_for_incomplete()?;
    worker.make_durable()?;
    loop {
        match queue.recv_timeout(worker.patience()) {
            Ok(job) => worker.job(job)?,
            Err(RecvTimeoutError::Timeout) => worker.make_durable_if_dirty()?,
            Err(RecvTimeoutError::Disconnected) => return worker.make_durable_if_dirty(),
        }
        if worker.is_due() {
            worker.make_durable()?;
        }
    }
}

struct Worker<'a> {
    applier: Applier,
    inbox: Arc<SegmentLog>,
    out: &'a Sender<Message>,
    positions: &'a Positions,
    /// TID of the last record performed.
    at: Tid,
    durable: Tid,
    batch: u64,
    pending_bytes: usize,
    pending_since: Option<Instant>,
    /// How long the stream may pause before everything is made durable.
    idle: Duration,
}

impl Worker<'_> {
    /// Performs what the inbox holds behind the cursor: a session before this one received it.
    fn replay(&mut self) -> Result<(), PerformError> {
        let end = self.inbox.last_tid();
        let mut reader = self.inbox.reader(self.at)?;
        while let Some(chunk) = reader.next_chunk(end, REPLAY_BYTES)? {
            self.records(&chunk.body)?;
            self.at = chunk.last;
            if self.is_due() {
                self.make_durable()?;
            }
        }
        Ok(())
    }

    fn job(&mut self, job: Job) -> Result<(), PerformError> {
        match job {
            Job::Records { batch, last, body } => {
                self.records(&body)?;
                self.at = last;
                self.taken(batch)
            }
            Job::State { batch, body } => {
                self.records(&body)?;
                self.taken(batch)
            }
            Job::Jump { after } => self.jump(after),
            Job::Flush => self.make_durable(),
        }
    }

    fn records(&mut self, body: &[u8]) -> Result<(), PerformError> {
        for record in RecordIter::new(body) {
            self.applier.apply(&record?)?;
        }
        self.applier.finish_group()?;
        self.pending_bytes += body.len();
        self.pending_since.get_or_insert_with(Instant::now);
        Ok(())
    }

    fn taken(&mut self, batch: u64) -> Result<(), PerformError> {
        self.batch = batch;
        self.positions.say(self.out, Vec::new(), |ack| ack.batch_taken = batch);
        Ok(())
    }

    /// Everything before is made durable first, so that the cursor never names a place that the tree has not reached.
    fn jump(&mut self, after: Tid) -> Result<(), PerformError> {
        self.make_durable()?;
        self.inbox.reset(ChainEnd::anew(after))?;
        self.at = after;
        self.pending_since.get_or_insert_with(Instant::now);
        self.positions.jump(after);
        Ok(())
    }

    fn is_due(&self) -> bool {
        self.pending_bytes >= DURABLE_BYTES || self.pending_since.is_some_and(|since| since.elapsed() >= DURABLE_EVERY)
    }

    fn patience(&self) -> Duration {
        match self.pending_since {
            Some(_) => self.idle,
            None => DURABLE_EVERY,
        }
    }

    fn make_durable_if_dirty(&mut self) -> Result<(), PerformError> {
        match self.pending_since {
            Some(_) => self.make_durable(),
            None => Ok(()),
        }
    }

    fn make_durable(&mut self) -> Result<(), PerformError> {
        let began = Instant::now();
        self.applier.make_durable(self.at)?;
        self.idle = (began.elapsed() * 2).clamp(IDLE, IDLE_MOST);
        self.durable = self.at;
        self.pending_bytes = 0;
        self.pending_since = None;
        self.say_durable()?;
        Ok(self.inbox.trim_upto(self.at)?)
    }

    /// What is needed goes out before the positions that follow from it: once the source has the position, it has what was
    /// asked for up to there as well.
    fn say_durable(&mut self) -> Result<(), PerformError> {
        loop {
            let missing = self.applier.take_missing(Ack::MAX_NEEDS);
            let needs = missing.iter().map(|m| Need { oid: m.oid, offset: m.offset, len: m.len }).collect();
            if self.applier.has_missing() {
                self.positions.say(self.out, needs, |_| ());
                continue;
            }
            let blocked = self.applier.blocked()?;
            self.positions.say(self.out, needs, |ack| {
                ack.applied = self.durable;
                ack.batch_durable = self.batch;
                ack.blocked = blocked.count;
                ack.blocked_errno = blocked.errno;
            });
            return Ok(());
        }
    }
}
