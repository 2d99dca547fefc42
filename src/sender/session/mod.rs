//! One session: handshake, then the loop of sending and listening.

mod acks;
mod sending;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub(super) use acks::Ears;

use super::edge;
use super::greeting::{Begin, begin, find_target, note_times, wait_for_reply};
use super::limit::Limit;
use super::mailbox::{Closed, Event, Mailbox};
use super::mirror::{Counter, Hold, Meter};
use super::orphans::OrphanDesk;
use super::pace::Pace;
use super::scope::Scope;
use super::status::SharedStatus;
use super::stream::Stream;
use super::thread::SenderOptions;
use super::verify::Verifier;
use super::watcher::{SILENCE, Watcher};
use super::window::Window;
use super::work::{Done, Reading, Walk};
use super::{SenderState, SessionError};
use crate::base::{Tid, VolumeUuid};
use crate::catchup::TreeView;
use crate::journal::{Part, Replay, TargetId};
use crate::record::OrphanList;
use crate::sys::Share;
use crate::wire::{Ack, Breaker, Convergence, FrameReader, FrameWriter, Hello, Message, PROTOCOL_VERSION, WireError};

/// What a session works with.
#[derive(Clone, Copy)]
pub(super) struct Parts<'a> {
    pub(super) journal: &'a Arc<dyn Replay>,
    pub(super) view: &'a dyn TreeView,
    pub(super) options: &'a SenderOptions,
    pub(super) mailbox: &'a Arc<Mailbox>,
    pub(super) status: &'a SharedStatus,
    pub(super) verifier: &'a RefCell<Verifier>,
    pub(super) counter: &'a Counter,
    pub(super) orphans: &'a OrphanDesk,
    /// What the rules leave of the tree, if there are any.
    pub(super) scope: &'a RefCell<Option<Scope>>,
}

/// How often a session looks at itself when nothing happens.
const TICK: Duration = Duration::from_secs(2);
/// How soon a tree that could not be read is asked for again.
const TURN_AGAIN: Duration = Duration::from_millis(100);

pub(super) struct Session<'a> {
    parts: Parts<'a>,
    target: TargetId,
    writer: FrameWriter<Box<dyn Write + Send>>,
    stream: Stream,
    walk: Walk<'a>,
    meter: Meter,
    limit: Limit,
    batch: u64,
    window: Window,
    /// Rows that end, or move on, when their batch is durable at the target.
    unfinished: VecDeque<(u64, Vec<Done>)>,
    /// The process of a target on this host.
    follower: Option<u32>,
    /// How the process of a local target stands to the programs whose changes it follows.
    share: Share,
    /// The last batch that the target was asked to make durable because nothing followed it.
    flushed: u64,
    last_ack: Ack,
    /// What was asked for since the queue was last looked at.
    asked: usize,
    /// What the target was told of its work.
    told: Option<Convergence>,
    /// The copy that answered.
    copy: VolumeUuid,
    /// It came with another history, and takes ours when it reaches this place.
    joins_at: Option<Tid>,
    trimmed: Instant,
    /// When the target was last given a sign of life.
    ticked: Instant,
    pace: Pace,
    /// With a period: when records are sent again.
    rests_until: Option<Instant>,
    counted_bytes: u64,
    watcher: Watcher,
    /// There may be something to read, and the tree cannot be read now.
    waits_for_turn: bool,
    /// The mark that the target was told.
    told_mark: u64,
    /// It was written down in this session that the target leaves something out.
    told_left_out: bool,
}

impl<'a> Session<'a> {
    /// Reads what the target says, on a thread of its own.
    pub(super) fn spawn_reader(
        input: Box<dyn Read + Send>,
        mailbox: Arc<Mailbox>,
        (session, mut ears): (u64, Ears),
    ) -> std::io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name("dtfs-acks".into()).spawn(move || {
            let listen = || -> Result<(), WireError> {
                let mut reader = FrameReader::start(input)?;
                loop {
                    let message = reader.receive()?;
                    if matches!(message, Message::HelloReply(_)) {
                        reader.trust();
                    }
                    if let Message::Ack(ack) = &message {
                        ears.hear(ack);
                    }
                    mailbox.hear(session, message).map_err(|Closed| WireError::Flood)?;
                }
            };
            if let Err(error) = listen() {
                mailbox.end(session, error);
            }
        })
    }

    /// Greets the target, decides how to begin, and says so.
    pub(super) fn open(
        parts: Parts<'a>,
        output: Box<dyn Write + Send>,
        (breaker, follower): (Breaker, Option<u32>),
    ) -> Result<Session<'a>, SessionError> {
        let target = parts.options.target;
        let mut writer = FrameWriter::start(output, parts.options.compression)?;
        let identity = parts.journal.identity();
        writer.send(&Message::Hello(Hello {
            version: PROTOCOL_VERSION,
            volume: identity.volume,
            spaces: parts.journal.spaces()?,
            epoch: identity.epoch,
            durable: parts.journal.durable_tid(),
            access_times: parts.options.access_times,
            label: parts.options.label.clone(),
            epochs: parts.journal.history()?.epochs,
            delay_seconds: parts.options.delay_seconds,
        }))?;
        let reply = wait_for_reply(&parts)?;
        let differs = note_times(&parts, &reply)?;
        let mirrored = find_target(&parts)?.mirrored;
        let start = begin(&parts, &reply)?;
        edge::begin(&parts, start.after.tid, start.what, mirrored)?;
        super::guarded::note_guarded(&parts, &reply)?;
        if start.what == Begin::Keep {
            writer.send(&Message::Keep { epoch: start.after.epoch })?;
        }
        let after = start.after.tid;
        let row = find_target(&parts)?;
        let (stored, downstream) = (row.applied, row.downstream);
        let stream = Stream::new(parts.journal.clone(), start.after)?;
        let watcher = Watcher::spawn(parts.journal.clone(), parts.mailbox.clone(), after, breaker);
        writer.send(&Message::Start { after: start.after, jump: start.what != Begin::Stream })?;
        parts.journal.store().target_error(target, None)?;
        parts.verifier.borrow_mut().begin_session();
        let bytes = writer.bytes_sent();
        parts.status.update(|status| {
            status.state = SenderState::Connected;
            status.received = reply.received.tid;
            status.applied = reply.applied.tid;
            status.high_water = reply.high_water.min(after);
            status.unsettled = true;
            status.stalled = None;
            status.forked = None;
            status.last_error = None;
            status.differs = differs;
            status.bytes_sent += bytes;
        });
        Ok(Session {
            parts,
            target,
            writer,
            stream,
            walk: Walk::new(&parts, Hold::of(parts.journal.store(), target)?)?,
            meter: Meter::open(parts.journal.store(), target)?,
            limit: Limit::open(parts.journal.store(), target)?,
            batch: 0,
            window: Window::default(),
            unfinished: VecDeque::new(),
            follower,
            share: Share::Behind,
            flushed: 0,
            // What the store does not know yet is news: the ack that said so may have been lost with the session before.
            last_ack: Ack {
                received: after,
                applied: reply.applied.tid.min(stored).min(after),
                downstream,
                ..Ack::default()
            },
            asked: 0,
            told: None,
            copy: reply.replica,
            joins_at: start.is_fork.then_some(after),
            trimmed: Instant::now(),
            ticked: Instant::now(),
            pace: Pace::new(Instant::now()),
            rests_until: None,
            counted_bytes: bytes,
            watcher,
            waits_for_turn: false,
            told_mark: 0,
            told_left_out: false,
        })
    }

    /// Sends and listens until told to stop.
    pub(super) fn run(mut self) -> Result<(), SessionError> {
        let outcome = self.converse();
        // A connection that was cut because nothing was heard fails like any other.
        match outcome {
            Err(_) if self.watcher.has_broken() => Err(SessionError::Silent(SILENCE.as_secs())),
            outcome => outcome,
        }
    }

    fn converse(&mut self) -> Result<(), SessionError> {
        self.tell_convergence()?;
        loop {
            while let Some(event) = self.parts.mailbox.try_next() {
                if !self.on(event)? {
                    return Ok(());
                }
                // Also while there is much to hear the target has to hear something.
                self.tick()?;
            }
            self.tick()?;
            let patience = match self.pace.wait((self.parts.options.rate)(), Instant::now()) {
                Some(wait) => wait.min(TICK),
                None if self.send_some()? => continue,
                None => self.patience(),
            };
            if let Some(event) = self.parts.mailbox.next(Instant::now() + patience)
                && !self.on(event)?
            {
                return Ok(());
            }
        }
    }

    /// False when the session is to end.
    fn on(&mut self, event: Event) -> Result<bool, SessionError> {
        match event {
            Event::Heard(message) => match message {
                Message::Ack(ack) => self.on_ack(ack)?,
                Message::Refuse { code, text } => return Err(SessionError::Refused { code, text }),
                Message::Checked { batch, more, found } => {
                    let view = self.parts.view;
                    if !self.parts.verifier.borrow_mut().checked(view, batch, more, found) {
                        return Err(SessionError::Protocol("it compared what it was not sent"));
                    }
                }
                Message::OrphansDone(list) => self.note_orphans(list),
                Message::Ping => self.send(&Message::pong())?,
                _ => return Err(SessionError::Protocol("unexpected message")),
            },
            Event::Ended(error) => return Err(error.into()),
            Event::Durable => self.stream.more(),
            Event::Flush => {
                self.rests_until = None;
                self.send(&Message::Flush)?;
            }
            Event::Work => self.walk.look_again(),
            Event::Retry => {}
            Event::Mirror => self.begin_mirror_again()?,
            Event::Orphans => self.ask_about_orphans()?,
            Event::Stop => {
                let _ = self.send(&Message::Bye);
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// An operator has begun a mirror, or holds it, or lets it go on.
    fn begin_mirror_again(&mut self) -> Result<(), SessionError> {
        self.walk.begin_again(Hold::of(self.parts.journal.store(), self.target)?)?;
        self.meter = Meter::open(self.parts.journal.store(), self.target)?;
        self.limit = Limit::open(self.parts.journal.store(), self.target)?;
        self.count_bytes((0, 0));
        self.parts.orphans.policy_is_due();
        Ok(())
    }

    /// An operator asks about orphans.
    fn ask_about_orphans(&mut self) -> Result<(), SessionError> {
        match self.parts.orphans.take() {
            Some(order) => self.send(&Message::Orphans(order)),
            None => Ok(()),
        }
    }

    fn note_orphans(&mut self, list: OrphanList) {
        let told = Some(list.left);
        self.parts.orphans.done(list);
        self.parts.status.update(|status| status.orphans = told);
    }

    /// How long there is nothing to do but listen.
    fn patience(&self) -> Duration {
        let patience = if self.waits_for_turn { TURN_AGAIN } else { TICK };
        let due = [self.parts.verifier.borrow().due_in(), self.limit.due_in()];
        due.into_iter().flatten().fold(patience, Duration::min)
    }

    fn tick(&mut self) -> Result<(), SessionError> {
        if self.ticked.elapsed() < TICK {
            return Ok(());
        }
        self.ticked = Instant::now();
        if self.parts.mailbox.silence() > SILENCE {
            return Err(SessionError::Silent(SILENCE.as_secs()));
        }
        self.walk.look_again();
        if self.told == Some(Convergence::Converging) && self.parts.journal.part() == Part::Relay {
            // Its own source may have said so to this copy.
            self.tell_convergence()?;
        }
        self.tell_mark()?;
        let clock = self.parts.mailbox.clock_offset_micros();
        self.parts.status.update(|status| status.clock_offset_micros = clock);
        self.send(&Message::Ping)
    }

    /// Tells the target whether rows of work are left for it, when that is news: it must know when nobody is there to ask.
    fn tell_convergence(&mut self) -> Result<(), SessionError> {
        // In this order: a copy is settled only once it has written down what it passes on.
        let settled = self.parts.journal.is_settled();
        let left = !settled || !self.parts.journal.store().work_next(self.target, 0, 1)?.is_empty();
        self.tell(if left { Convergence::Converging } else { Convergence::Consistent })?;
        self.tell_mark()
    }

    /// Tells the target what is good there, when nothing is left for it. What comes into doubt after the mark was read has
    /// another one.
    fn tell_mark(&mut self) -> Result<(), SessionError> {
        let mark = self.parts.journal.mark()?;
        let is_news = mark != 0 && mark != self.told_mark && self.told == Some(Convergence::Consistent);
        if is_news && self.parts.journal.store().work_next(self.target, 0, 1)?.is_empty() {
            self.told_mark = mark;
            self.send(&Message::Settled { mark })?;
        }
        Ok(())
    }

    fn tell(&mut self, state: Convergence) -> Result<(), SessionError> {
        if state == Convergence::Converging {
            self.told_mark = 0;
        }
        match self.told.replace(state) == Some(state) {
            true => Ok(()),
            false => self.send(&Message::Convergence(state)),
        }
    }

    fn send(&mut self, message: &Message) -> Result<(), SessionError> {
        self.writer.send(message)?;
        self.count_bytes((0, 0));
        Ok(())
    }

    /// `read` is what was sent of work: objects, and bytes of content that they have.
    fn count_bytes(&mut self, read: (u64, u64)) {
        let new = self.writer.bytes_sent() - self.counted_bytes;
        self.counted_bytes += new;
        self.pace.sent(new);
        self.meter.add(read, self.walk.current_path(), self.parts.counter.counted());
        let mirror = self.meter.progress();
        self.parts.status.update(|status| {
            status.bytes_sent += new;
            status.objects_read += read.0;
            status.mirror = Some(mirror.clone());
        });
    }
}
