//! One session: handshake, then the loop of sending and listening.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use super::plan::{Ours, Plan, plan};
use super::status::SharedStatus;
use super::stream::{Batch, Stream};
use super::thread::SenderOptions;
use super::work::{Done, Walk};
use super::{SenderState, SessionError};
use crate::base::{AtimeMode, StoredTimes, Tid, faults};
use crate::catchup::TreeView;
use crate::journal::{Journal, JournalError, Level, NewWork, TargetId, TargetRow, WorkKind, WorkReason};
use crate::wire::{Ack, FrameReader, FrameWriter, Hello, HelloReply, Message, Need, PROTOCOL_VERSION, WireError};

/// What wakes a sender.
pub(super) enum Event {
    /// The target said something.
    Heard(Message),
    /// The connection ended.
    Ended(WireError),
    /// More records are durable.
    Durable,
    /// Someone waits for the target.
    Flush,
    /// Work rows were added.
    Work,
    /// End the session and the thread.
    Stop,
}

/// What a session works with.
#[derive(Clone, Copy)]
pub(super) struct Parts<'a> {
    pub(super) journal: &'a Arc<Journal>,
    pub(super) view: &'a dyn TreeView,
    pub(super) options: &'a SenderOptions,
    pub(super) events: &'a Sender<Event>,
    pub(super) queue: &'a Receiver<Event>,
    pub(super) status: &'a SharedStatus,
}

/// Bytes that may be under way.
const WINDOW_BYTES: u64 = 16 << 20;
/// How long a greeting may take. The target opens its state first, which may mean a recovery of its database.
const HANDSHAKE: Duration = Duration::from_secs(60);
/// A target says something every two seconds.
const SILENCE: Duration = Duration::from_secs(15);
const TICK: Duration = Duration::from_secs(2);
/// Journal segments are freed at most this often.
const TRIM_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Session<'a> {
    parts: Parts<'a>,
    target: TargetId,
    writer: FrameWriter<Box<dyn Write + Send>>,
    stream: Stream,
    walk: Walk<'a>,
    batch: u64,
    /// Batches under way and their size on the wire.
    under_way: VecDeque<(u64, u64)>,
    under_way_bytes: u64,
    /// Rows that end, or move on, when their batch is durable at the target.
    unfinished: VecDeque<(u64, Vec<Done>)>,
    last_ack: Ack,
    heard: Instant,
    trimmed: Instant,
    counted_bytes: u64,
    _watcher: Watcher,
}

impl<'a> Session<'a> {
    /// Reads what the target says, on a thread of its own.
    pub(super) fn spawn_reader(input: Box<dyn Read + Send>, events: Sender<Event>) -> std::io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name("dtfs-acks".into()).spawn(move || {
            let listen = || -> Result<(), WireError> {
                let mut reader = FrameReader::start(input)?;
                let _ = events.send(Event::Heard(reader.receive()?));
                reader.trust();
                loop {
                    if events.send(Event::Heard(reader.receive()?)).is_err() {
                        return Ok(());
                    }
                }
            };
            if let Err(error) = listen() {
                let _ = events.send(Event::Ended(error));
            }
        })
    }

    /// Greets the target, decides how to begin, and says so.
    pub(super) fn open(parts: Parts<'a>, output: Box<dyn Write + Send>) -> Result<Session<'a>, SessionError> {
        let target = parts.options.target;
        let mut writer = FrameWriter::start(output, parts.options.compression)?;
        let identity = parts.journal.identity();
        writer.send(&Message::Hello(Hello {
            version: PROTOCOL_VERSION,
            volume: identity.volume,
            epoch: identity.epoch,
            durable: parts.journal.durable_tid(),
            access_times: parts.options.access_times,
            label: parts.options.label.clone(),
        }))?;
        let reply = wait_for_reply(parts.queue)?;
        let differs = note_times(&parts, &reply)?;
        let after = begin(&parts, &reply)?;
        let stored = find_target(&parts)?.applied;
        let stream = Stream::new(parts.journal.reader(after)?, after);
        writer.send(&Message::Start { after, jump: after != reply.received })?;
        parts.journal.store().target_error(target, None)?;
        let bytes = writer.bytes_sent();
        parts.status.update(|status| {
            status.state = SenderState::Connected;
            status.received = reply.received;
            status.applied = reply.applied;
            status.last_error = None;
            status.differs = differs;
            status.bytes_sent += bytes;
        });
        Ok(Session {
            parts,
            target,
            writer,
            stream,
            walk: Walk::new(parts.view, parts.journal, target),
            batch: 0,
            under_way: VecDeque::new(),
            under_way_bytes: 0,
            unfinished: VecDeque::new(),
            // What the store does not know yet is news: the ack that said so may have been lost with the session before.
            last_ack: Ack { received: after, applied: reply.applied.min(stored), ..Ack::default() },
            heard: Instant::now(),
            trimmed: Instant::now(),
            counted_bytes: bytes,
            _watcher: Watcher::spawn(parts.journal.clone(), parts.events.clone(), after),
        })
    }

    /// Sends and listens until told to stop.
    pub(super) fn run(mut self) -> Result<(), SessionError> {
        loop {
            while let Ok(event) = self.parts.queue.try_recv() {
                if !self.on(event)? {
                    return Ok(());
                }
            }
            if self.send_some()? {
                continue;
            }
            match self.parts.queue.recv_timeout(TICK) {
                Ok(event) => {
                    if !self.on(event)? {
                        return Ok(());
                    }
                }
                Err(_) => self.tick()?,
            }
        }
    }

    /// False when the session is to end.
    fn on(&mut self, event: Event) -> Result<bool, SessionError> {
        match event {
            Event::Heard(message) => {
                self.heard = Instant::now();
                match message {
                    Message::Ack(ack) => self.on_ack(ack)?,
                    Message::Refuse { code, text } => return Err(SessionError::Refused { code, text }),
                    Message::Ping => self.send(&Message::Pong)?,
                    Message::Pong => {}
                    _ => return Err(SessionError::Protocol("unexpected message")),
                }
            }
            Event::Ended(error) => return Err(error.into()),
            Event::Durable => self.stream.more(),
            Event::Flush => self.send(&Message::Flush)?,
            Event::Work => self.walk.look_again(),
            Event::Stop => {
                let _ = self.send(&Message::Bye);
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn tick(&mut self) -> Result<(), SessionError> {
        if self.heard.elapsed() > SILENCE {
            return Err(SessionError::Silent(SILENCE.as_secs()));
        }
        self.walk.look_again();
        self.send(&Message::Ping)
    }

    /// Sends a bounded piece of what there is: records first, then state. False when there is nothing to send now.
    fn send_some(&mut self) -> Result<bool, SessionError> {
        if self.under_way_bytes >= WINDOW_BYTES {
            return Ok(false);
        }
        if self.stream.wants_state() {
            let readings = self.walk.read_some()?;
            let stamp = self.stream.queue(readings);
            if let Some(stamp) = stamp.filter(|_| !faults::skipped("journal.durable_only")) {
                // State may not overtake the records it includes, and those are sent only once they are durable.
                self.parts.journal.commit(stamp)?;
            }
        }
        let durable = match faults::skipped("journal.durable_only") {
            true => self.parts.journal.last_tid(),
            false => self.parts.journal.durable_tid(),
        };
        let next = match self.stream.next(durable, self.batch + 1) {
            Err(SessionError::Journal(JournalError::Trimmed { oldest })) => Some(self.pass_over(oldest)?),
            next => next?,
        };
        let Some(next) = next else { return Ok(false) };
        let bytes = match matches!(next.message, Message::Records { .. }) && faults::skipped("sender.batch") {
            true => 0,
            false => self.writer.send(&next.message)?,
        };
        if next.message.is_batch() {
            self.batch += 1;
            self.under_way.push_back((self.batch, bytes));
            self.under_way_bytes += bytes;
        }
        if !next.done.is_empty() {
            self.unfinished.push_back((self.batch, next.done));
        }
        self.count_bytes(next.objects);
        Ok(true)
    }

    /// The records that come next were dropped while they waited: rows of work cover them, and the stream goes on behind.
    fn pass_over(&mut self, oldest: Tid) -> Result<Batch, SessionError> {
        let journal = self.parts.journal;
        let row = find_target(&self.parts)?;
        if row.covered < oldest {
            return Err(JournalError::Trimmed { oldest }.into());
        }
        self.walk.look_again();
        Ok(self.stream.jump(journal.reader(row.covered)?, row.covered))
    }

    fn send(&mut self, message: &Message) -> Result<(), SessionError> {
        self.writer.send(message)?;
        self.count_bytes(0);
        Ok(())
    }

    fn count_bytes(&mut self, objects: u64) {
        let new = self.writer.bytes_sent() - self.counted_bytes;
        self.counted_bytes += new;
        self.parts.status.update(|status| {
            status.bytes_sent += new;
            status.objects_read += objects;
        });
    }

    fn on_ack(&mut self, ack: Ack) -> Result<(), SessionError> {
        self.check(&ack)?;
        while self.under_way.front().is_some_and(|(batch, _)| *batch <= ack.batch_taken) {
            self.under_way_bytes -= self.under_way.pop_front().map_or(0, |(_, bytes)| bytes);
        }
        let advanced = ack.applied > self.last_ack.applied || ack.batch_durable > self.last_ack.batch_durable;
        if advanced || !ack.needs.is_empty() {
            self.advance(&ack)?;
        }
        self.parts.status.update(|status| {
            status.acks_durable += u64::from(advanced);
            status.received = ack.received;
            status.applied = ack.applied;
            status.blocked = ack.blocked;
            status.blocked_errno = ack.blocked_errno;
        });
        self.last_ack = Ack { needs: Vec::new(), ..ack };
        Ok(())
    }

    /// A target can only acknowledge what it was sent, and never takes anything back.
    fn check(&self, ack: &Ack) -> Result<(), SessionError> {
        let last = &self.last_ack;
        let possible = ack.batch_taken <= self.batch
            && ack.batch_durable <= ack.batch_taken
            && ack.received <= self.stream.sent()
            && ack.applied <= ack.received.max(last.received);
        let forward = ack.batch_taken >= last.batch_taken
            && ack.batch_durable >= last.batch_durable
            && ack.applied >= last.applied;
        match (possible, forward) {
            (true, true) => Ok(()),
            (false, _) => Err(SessionError::Protocol("it acknowledged what it was not sent")),
            (_, false) => Err(SessionError::Protocol("it took an acknowledgement back")),
        }
    }

    /// Cursor, finished work and new work, in one transaction.
    fn advance(&mut self, ack: &Ack) -> Result<(), SessionError> {
        let (mut finished, mut progress) = (Vec::new(), Vec::new());
        while self.unfinished.front().is_some_and(|(batch, _)| *batch <= ack.batch_durable) {
            for done in self.unfinished.pop_front().map(|(_, done)| done).unwrap_or_default() {
                match done {
                    Done::Row(id) => finished.push(id),
                    Done::Upto(id, offset) => progress.push((id, offset)),
                }
            }
        }
        let needs: Vec<NewWork> = ack.needs.iter().map(new_work).collect();
        let store = self.parts.journal.store();
        let first = ack.batch_taken == 0;
        if first {
            // Nothing of this session was taken in: the target repeats what earlier sessions knew, and rows that are
            // under way keep their place.
            store.work_insert_absent(self.target, &needs)?;
        }
        let needs = if first { &[][..] } else { &needs };
        store.ack(self.target, ack.received, ack.applied, &finished, &progress, needs)?;
        self.walk.look_again();
        if self.trimmed.elapsed() >= TRIM_EVERY {
            self.trimmed = Instant::now();
            self.parts.journal.trim()?;
        }
        Ok(())
    }
}

/// Work that a target asked for stands against every TID.
fn new_work(need: &Need) -> NewWork {
    let kind = if need.len == 0 { WorkKind::Object } else { WorkKind::Range };
    NewWork {
        oid: need.oid,
        kind,
        reason: WorkReason::Need,
        offset: need.offset,
        len: need.len,
        created_tid: Tid::ZERO,
    }
}

fn wait_for_reply(queue: &Receiver<Event>) -> Result<HelloReply, SessionError> {
    let deadline = Instant::now() + HANDSHAKE;
    loop {
        match queue.recv_deadline(deadline) {
            Ok(Event::Heard(Message::HelloReply(reply))) if reply.version == PROTOCOL_VERSION => return Ok(reply),
            Ok(Event::Heard(Message::Refuse { code, text })) => return Err(SessionError::Refused { code, text }),
            Ok(Event::Heard(_)) => return Err(SessionError::Protocol("it did not say who it is")),
            Ok(Event::Ended(error)) => return Err(error.into()),
            Ok(Event::Stop) => return Err(SessionError::Protocol("stopped before it answered")),
            Ok(Event::Durable | Event::Flush | Event::Work) => {}
            Err(_) => return Err(SessionError::Silent(HANDSHAKE.as_secs())),
        }
    }
}

/// Writes down how the session begins; returns the TID behind which its records start.
fn begin(parts: &Parts<'_>, reply: &HelloReply) -> Result<Tid, SessionError> {
    let (journal, target) = (parts.journal, parts.options.target);
    let store = journal.store();
    let row = find_target(parts)?;
    let ours = Ours {
        durable: journal.durable_tid(),
        oldest_kept: journal.oldest_kept(),
        received: row.received,
        applied: row.applied,
        covered: row.covered,
        mirrored: row.mirrored,
        same_copy: store.meta_get(&copy_key(target))?.is_some_and(|id| id == reply.replica.0),
    };
    let (base, reason, word) = match plan(&ours, reply.state, reply.received, reply.applied) {
        Plan::Stream { after } => return Ok(after),
        Plan::Fork => return Err(SessionError::Fork { received: reply.received, durable: ours.durable }),
        Plan::Mirror { base } => (base, WorkReason::Mirror, "mirror"),
        Plan::Compare { base } => (base, WorkReason::Verify, "comparison"),
    };
    store.reset_target(target, base, &[NewWork::whole_tree(reason, base)])?;
    // After the work is queued: a copy that is known by its id has had its beginning.
    store.meta_set(&copy_key(target), &reply.replica.0)?;
    store.event(Level::Info, Some(target), &format!("{word} of the whole tree begins at {base}"))?;
    Ok(base)
}

/// The target's row, as it is now.
fn find_target(parts: &Parts<'_>) -> Result<TargetRow, SessionError> {
    let row = parts.journal.store().target_by_id(parts.options.target)?;
    row.ok_or(SessionError::Protocol("the target was forgotten"))
}

/// What the target does otherwise with access times, if it does; an event when that is news.
fn note_times(parts: &Parts<'_>, reply: &HelloReply) -> Result<Option<String>, SessionError> {
    let text = match (reply.stored_times, parts.options.access_times) {
        (StoredTimes::Coarse, _) => "times are stored coarser than here: its filesystem keeps fewer digits",
        (StoredTimes::Moving, AtimeMode::EachRead) => {
            "access times differ once its tree is read: it is mounted without noatime"
        }
        (StoredTimes::Moving, AtimeMode::AtClose) | (StoredTimes::Exact, _) => "",
    };
    let (store, target) = (parts.journal.store(), parts.options.target);
    let key = format!("times.{}", target.0);
    let said = store.meta_get(&key)?.unwrap_or_default();
    if said != text.as_bytes() {
        store.meta_set(&key, text.as_bytes())?;
        let event = if text.is_empty() { "times are stored as here" } else { text };
        store.event(Level::Warning, Some(target), event)?;
    }
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

/// Where the id of the target's copy is remembered.
fn copy_key(target: TargetId) -> String {
    format!("copy.{}", target.0)
}

/// Turns the journal's progress into events, so that the session waits in one place. Ends with the session: the journal
/// must be free to be closed once its senders have stopped.
struct Watcher {
    stop: Arc<AtomicBool>,
    handle: Option<JoinHandle<()>>,
}

/// How long the end of a session may have to wait for its watcher.
const WATCH: Duration = Duration::from_millis(50);
/// A change after a pause is sent at once. While changes follow each other a batch goes out this often: a program that
/// calls fsync makes each of its changes durable alone, and the target would sync for each of them too.
const PACE: Duration = Duration::from_millis(20);

impl Watcher {
    fn spawn(journal: Arc<Journal>, events: Sender<Event>, mut after: Tid) -> Watcher {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let handle = std::thread::spawn(move || {
            let mut said: Option<Instant> = None;
            while !stopped.load(Ordering::Relaxed) {
                let durable = journal.wait_durable_past(after, WATCH);
                let failed = journal.failed().is_some();
                if durable > after {
                    // What is durable when the pace allows the next batch goes with it.
                    std::thread::sleep(said.map_or(Duration::ZERO, |said| PACE.saturating_sub(said.elapsed())));
                    said = Some(Instant::now());
                    if events.send(Event::Durable).is_err() {
                        return;
                    }
                }
                if failed {
                    return;
                }
                after = durable;
            }
        });
        Watcher { stop, handle: Some(handle) }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(handle) = self.handle.take() {
            let _ = handle.join();
        }
    }
}
