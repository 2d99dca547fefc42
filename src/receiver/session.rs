//! Handshake and intake.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};

use super::apply::{ApplyThread, Job, Positions};
use crate::applier::{Adopt, Origin, Replica, ReplicaError};
use crate::base::{Tid, faults};
use crate::journal::{ChainEnd, JournalError, LogOptions, SegmentLog};
use crate::record::{DecodeError, RecordIter};
use crate::wire::{
    Compression, FrameReader, FrameWriter, Hello, HelloReply, Message, PROTOCOL_VERSION, RefuseCode, ReplicaState,
    WireError,
};

/// What `dtfs serve` works on.
pub struct ServeOptions {
    /// The replica's directory.
    pub dir: PathBuf,
    /// Where this host keeps the state of replicas.
    pub states: PathBuf,
    /// Whether files that are there already may be taken over.
    pub adopt: Adopt,
}

/// Why a session ended otherwise than by the source's word.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The connection failed or carried something it may not.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The directory cannot be a replica of that volume.
    #[error(transparent)]
    Replica(#[from] ReplicaError),
    /// The inbox cannot be used.
    #[error("inbox: {0}")]
    Inbox(#[from] JournalError),
    /// The source speaks another version.
    #[error("the source speaks protocol {found}, this program {PROTOCOL_VERSION}")]
    Version {
        /// Its version.
        found: u16,
    },
    /// Something else than a greeting came first.
    #[error("the source did not say who it is")]
    NoHello,
    /// A record that cannot be read.
    #[error("batch {batch}: {cause}")]
    Record {
        /// Number of the batch.
        batch: u64,
        /// What is wrong.
        cause: DecodeError,
    },
    /// Records are missing before this batch.
    #[error("batch {batch} follows {prev}, but {received} was received last")]
    Gap {
        /// Number of the batch.
        batch: u64,
        /// TID before its first record.
        prev: Tid,
        /// Where this side is.
        received: Tid,
    },
    /// The batch does not hold what its header says.
    #[error("batch {batch} does not hold the records that its header names")]
    Batch {
        /// Number of the batch.
        batch: u64,
    },
    /// The applier stopped; it has said why.
    #[error("{0}")]
    Apply(String),
}

/// Bytes that may wait between intake and applier: a slow tree stops the source by the window, not by memory.
const QUEUE_JOBS: usize = 8;

/// Serves one session over `input` and `output` until the source ends it.
///
/// # Errors
/// [`ServeError`]; the source was told where it could be.
pub fn serve<R, W>(input: R, output: W, options: &ServeOptions) -> Result<(), ServeError>
where
    R: Read,
    W: Write + Send + 'static,
{
    let mut writer = FrameWriter::start(output, Compression::Off)?;
    let mut reader = FrameReader::start(input)?;
    let hello = match reader.receive()? {
        Message::Hello(hello) => hello,
        _ => return Err(ServeError::NoHello),
    };
    let (replica, inbox, high_water) = match prepare(&hello, options) {
        Ok(ready) => ready,
        Err(error) => {
            let _ = writer.send(&Message::Refuse { code: refuse_code(&error), text: error.to_string() });
            return Err(error);
        }
    };
    let received = inbox.last_tid();
    writer.send(&Message::HelloReply(HelloReply {
        version: PROTOCOL_VERSION,
        replica: replica.id,
        state: match replica.origin {
            Origin::Existing => ReplicaState::Replica,
            Origin::Empty => ReplicaState::Fresh,
            Origin::Adopted => ReplicaState::Adopted,
        },
        received,
        applied: replica.applied(),
        stored_times: replica.stored_times(),
    }))?;
    reader.trust();
    run(reader, writer, (replica, high_water), inbox)
}

fn prepare(hello: &Hello, options: &ServeOptions) -> Result<(Replica, Arc<SegmentLog>, Tid), ServeError> {
    if hello.version != PROTOCOL_VERSION {
        return Err(ServeError::Version { found: hello.version });
    }
    let replica = Replica::open(&options.dir, &options.states, hello.volume, options.adopt)?;
    let (inbox, high_water) = open_inbox(hello, &replica)?;
    Ok((replica, Arc::new(inbox), high_water))
}

/// The inbox must continue where the tree's cursor is: one that is damaged, or lacks records behind the cursor, is begun
/// anew there, and the source sends again what it may have held.
///
/// The TID says up to where the tree may hold changes already: as far as the inbox reaches, or as far as the source can
/// ever have sent when the inbox does not tell any more.
fn open_inbox(hello: &Hello, replica: &Replica) -> Result<(SegmentLog, Tid), ServeError> {
    let applied = replica.applied();
    let inbox = match SegmentLog::open(&replica.inbox, hello.volume, hello.epoch, LogOptions::default()) {
        Ok(inbox) => inbox,
        Err(error @ (JournalError::Damaged { .. } | JournalError::Format { .. } | JournalError::Record { .. })) => {
            tracing::warn!(%error, "the inbox is begun anew");
            let inbox = SegmentLog::open_anew(
                &replica.inbox,
                hello.volume,
                hello.epoch,
                LogOptions::default(),
                ChainEnd::anew(applied),
            )?;
            return Ok((inbox, hello.durable.max(applied)));
        }
        Err(error) => return Err(error.into()),
    };
    if inbox.last_tid() < applied || inbox.reader(applied).is_err() {
        inbox.reset(ChainEnd::anew(applied))?;
        return Ok((inbox, hello.durable.max(applied)));
    }
    let end = inbox.last_tid();
    Ok((inbox, end))
}

fn refuse_code(error: &ServeError) -> RefuseCode {
    match error {
        ServeError::Replica(ReplicaError::Busy { .. }) => RefuseCode::Busy,
        ServeError::Replica(ReplicaError::NotEmpty { .. } | ReplicaError::OtherVolume { .. }) => RefuseCode::Wrong,
        ServeError::Version { .. } => RefuseCode::Version,
        _ => RefuseCode::Failed,
    }
}

fn run<R: Read, W: Write + Send + 'static>(
    mut reader: FrameReader<R>,
    writer: FrameWriter<W>,
    (replica, high_water): (Replica, Tid),
    inbox: Arc<SegmentLog>,
) -> Result<(), ServeError> {
    let (out, messages) = unbounded();
    let (jobs, queue) = bounded(QUEUE_JOBS);
    let positions = Arc::new(Positions::new(inbox.last_tid(), replica.applied()));
    let speak = std::thread::spawn(move || speak(writer, &messages));
    let apply = ApplyThread::spawn((replica, high_water), inbox.clone(), queue, out.clone(), positions.clone());
    let mut intake = Intake { inbox, jobs, out, positions };
    let outcome = intake.run(&mut reader);
    // Closing the queue lets the applier finish what it has, make it durable and say so.
    drop(intake);
    let applied = apply.join();
    let _ = speak.join();
    match (applied, outcome) {
        (Err(error), _) => Err(ServeError::Apply(error)),
        (Ok(()), Err(ServeError::Wire(WireError::Closed))) => Ok(()),
        (Ok(()), outcome) => outcome,
    }
}

/// Writes what the other threads have to say; a sign of life when they are silent, so that the source can tell a slow
/// target from a dead one.
fn speak<W: Write>(mut writer: FrameWriter<W>, messages: &Receiver<Message>) {
    const SILENCE: Duration = Duration::from_secs(2);
    loop {
        let message = match messages.recv_timeout(SILENCE) {
            Ok(message) => message,
            Err(RecvTimeoutError::Timeout) => Message::Pong,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if writer.send(&message).is_err() {
            return;
        }
    }
}

struct Intake {
    inbox: Arc<SegmentLog>,
    jobs: Sender<Job>,
    out: Sender<Message>,
    positions: Arc<Positions>,
}

impl Intake {
    fn run<R: Read>(&mut self, reader: &mut FrameReader<R>) -> Result<(), ServeError> {
        loop {
            match reader.receive()? {
                Message::Start { after, jump } => self.start(after, jump)?,
                Message::Records { batch, prev, first, last, count, body } => {
                    self.records(batch, (prev, first, last), count, body)?;
                }
                Message::State { batch, body } => {
                    check(batch, &body, |record| record.op.is_state())?;
                    self.hand_over(Job::State { batch, body })?;
                }
                Message::Flush => self.hand_over(Job::Flush)?,
                Message::Ping => drop(self.out.send(Message::Pong)),
                Message::Bye => return Ok(()),
                Message::Pong => {}
                _ => return Err(ServeError::NoHello),
            }
        }
    }

    /// The source's first word: where its records go on. With a jump the difference comes as state.
    fn start(&mut self, after: Tid, jump: bool) -> Result<(), ServeError> {
        let received = self.inbox.last_tid();
        if after == received {
            return Ok(());
        }
        if !jump {
            return Err(ServeError::Gap { batch: 0, prev: after, received });
        }
        // What the inbox holds is still to be performed; only then does the position move.
        self.hand_over(Job::Jump { after })?;
        self.positions.wait_jumped(after);
        match self.inbox.last_tid() == after {
            true => Ok(()),
            false => Err(ServeError::Gap { batch: 0, prev: after, received: self.inbox.last_tid() }),
        }
    }

    fn records(
        &mut self,
        batch: u64,
        (prev, first, last): (Tid, Tid, Tid),
        count: u32,
        body: Vec<u8>,
    ) -> Result<(), ServeError> {
        let received = self.inbox.last_tid();
        let prev = if faults::skipped("receiver.gap") { received } else { prev };
        if prev != received {
            return Err(ServeError::Gap { batch, prev, received });
        }
        let tids = check(batch, &body, |record| !record.op.is_state())?;
        let ordered = tids.windows(2).all(|pair| pair[0] < pair[1]);
        if !ordered || tids.first() != Some(&first) || tids.last() != Some(&last) || tids.len() != count as usize {
            return Err(ServeError::Batch { batch });
        }
        self.inbox.append(prev, first, last, count, &[&body])?;
        if !faults::skipped("receiver.fdatasync") {
            self.inbox.sync()?;
        }
        self.positions.say(&self.out, Vec::new(), |ack| ack.received = last);
        self.hand_over(Job::Records { batch, last, body })
    }

    fn hand_over(&self, job: Job) -> Result<(), ServeError> {
        self.jobs.send(job).map_err(|_| ServeError::Apply("the applier has stopped".to_owned()))
    }
}

/// Decodes every record of a batch, and returns their TIDs.
fn check(batch: u64, body: &[u8], fits: impl Fn(&crate::record::Record<'_>) -> bool) -> Result<Vec<Tid>, ServeError> {
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
