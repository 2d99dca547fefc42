//! The handshake, and the threads of a session.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, bounded};
use parking_lot::Mutex;

use super::apply::{ApplyThread, Beginning};
use super::arrivals::Arrivals;
use super::inbox::{self, Inbox};
use super::intake::Intake;
use super::outbox::{Outbox, Outgoing, outbox};
use super::positions::Positions;
use super::relay::RelayEnd;
use crate::applier::{self, Adopt, Guarding, Origin, Replica, ReplicaError, Trust};
use crate::base::{Guarded, History, StoredTimes, Tid, VolumeUuid};
use crate::journal::JournalError;
use crate::record::{DecodeError, HISTORY_XATTR};
use crate::sys;
use crate::wire::{
    Compression, Convergence, FrameReader, FrameWriter, Hello, HelloReply, Message, PROTOCOL_VERSION, RefuseCode,
    ReplicaState, WireError,
};

/// Says which volume of this host a directory is, if it is one.
pub type OwnVolume = Box<dyn Fn(&Path) -> Option<String> + Send + Sync>;

/// What `dtfs serve` works on.
pub struct ServeOptions {
    /// The replica's directory.
    pub dir: PathBuf,
    /// Where this host keeps the state of replicas.
    pub states: PathBuf,
    /// Whether files that are there already may be taken over.
    pub adopt: Adopt,
    /// Whether others are kept out of its tree.
    pub guarding: Guarding,
    /// What the source is trusted with.
    pub trust: Trust,
    /// Whose place a directory is, if it is no copy's; asked before anything is made there, and again when that was begun.
    pub own_volume: OwnVolume,
    /// Most bytes of the inbox; `None` for a tenth of its filesystem, at most 8 GiB.
    pub inbox_cap: Option<u64>,
    /// Size of an inbox segment in bytes, a multiple of 4096; `None` for one that any batch fits in. A model of many short
    /// histories makes it small.
    pub inbox_segment: Option<u64>,
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
    /// The tree was promoted: it is no target any more.
    #[error("it was promoted to a master: it is no target any more")]
    Superseded(History),
    /// The directory is a volume's, and that is not mounted: it would have said what its history is.
    #[error("{path} is {volume}, and not mounted now: it is no place for a copy", path = path.display())]
    OwnVolume {
        /// The directory.
        path: PathBuf,
        /// Whose it is, in words.
        volume: String,
    },
    /// Something else than a greeting came first.
    #[error("the source did not say who it is")]
    NoHello,
    /// Records or state came before the source said where it begins.
    #[error("the source did not say where it begins")]
    NoStart,
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

/// Batches that may wait between intake and applier: a slow tree stops the source by the window, not by memory.
const QUEUE_JOBS: usize = 8;

/// Serves one session over `input` and `output` until the source ends it.
///
/// # Errors
/// [`ServeError`]; the source was told where it could be.
pub fn serve<R, W>(input: R, output: W, options: &ServeOptions) -> Result<(), ServeError>
where
    R: Read + Send + 'static,
    W: Write + Send + 'static,
{
    let writer = FrameWriter::start(output, Compression::Off)?;
    let mut reader = FrameReader::start(input)?;
    let hello = match reader.receive()? {
        Message::Hello(hello) => hello,
        _ => return Err(ServeError::NoHello),
    };
    // From here on the source hears that somebody is there, however long it takes to open a large replica.
    let (out, messages) = outbox();
    let gone = Arc::new(Gone::default());
    let heard = gone.clone();
    let speak = std::thread::spawn(move || speak(writer, &messages, &heard));
    let outcome = match prepare(&hello, options) {
        Ok(ready) => {
            reader.trust();
            run(reader, out, ready, &gone)
        }
        Err(error) => {
            out.send(match &error {
                ServeError::Superseded(history) => Message::Superseded(history.clone()),
                error => Message::Refuse { code: refuse_code(error), text: error.to_string() },
            });
            drop(out);
            Err(error)
        }
    };
    // One whose answers nobody takes is stuck in a write for ever.
    if !matches!(outcome, Err(ServeError::Wire(WireError::Flood))) {
        let _ = speak.join();
    }
    outcome
}

/// Everything that a session works with.
struct Ready {
    replica: Replica,
    inbox: Inbox,
    cap_bytes: u64,
    /// How old a record is when it is performed.
    delay: Duration,
    guarded: Guarded,
}

fn prepare(hello: &Hello, options: &ServeOptions) -> Result<Ready, ServeError> {
    if hello.version != PROTOCOL_VERSION {
        return Err(ServeError::Version { found: hello.version });
    }
    refuse_promoted(&options.dir, hello.volume)?;
    refuse_own_volume(options)?;
    let mut replica = Replica::open(&options.dir, &options.states, (hello.volume, &hello.spaces), options.adopt)?;
    if replica.origin != Origin::Existing
        && let Err(refusal) = refuse_own_volume(options)
    {
        // It was promoted since: whoever does that keeps the copy's lock until the directory is known as a volume's.
        applier::leave(&options.dir, replica.state_dir())
            .map_err(|cause| ReplicaError::Io { path: options.dir.clone(), cause })?;
        return Err(refusal);
    }
    let guarded = replica.guard(options.guarding)?;
    replica.trust(options.trust)?;
    replica.remember_history(&History::new(hello.volume, hello.epochs.clone()))?;
    let cap_bytes = match options.inbox_cap {
        Some(bytes) => bytes,
        None => inbox::default_cap(&replica.inbox)?,
    };
    let inbox = Inbox::open(&mut replica, hello, inbox::log_options(cap_bytes, options.inbox_segment))?;
    Ok(Ready { replica, inbox, cap_bytes, delay: Duration::from_secs(hello.delay_seconds), guarded })
}

fn refuse_own_volume(options: &ServeOptions) -> Result<(), ServeError> {
    match (options.own_volume)(&options.dir) {
        Some(volume) => Err(ServeError::OwnVolume { path: options.dir.clone(), volume }),
        None => Ok(()),
    }
}

/// A mounted volume says on its root what its history is.
fn refuse_promoted(dir: &Path, volume: VolumeUuid) -> Result<(), ServeError> {
    let name = std::ffi::CString::new(HISTORY_XATTR).unwrap_or_default();
    let told = std::fs::File::open(dir).ok().and_then(|dir| sys::getxattr(dir.as_fd(), &name).ok());
    match told.and_then(|bytes| History::from_bytes(&bytes)) {
        None => Ok(()),
        Some(history) if history.volume == volume => Err(ServeError::Superseded(history)),
        Some(History { volume: found, .. }) => {
            Err(ReplicaError::OtherVolume { path: dir.to_owned(), found, wanted: volume }.into())
        }
    }
}

fn greeting(Ready { replica, inbox, guarded, .. }: &Ready) -> HelloReply {
    HelloReply {
        version: PROTOCOL_VERSION,
        replica: replica.id,
        state: match (replica.origin, replica.doubt()) {
            (Origin::Empty, _) => ReplicaState::Fresh,
            (Origin::Adopted, _) => ReplicaState::Adopted,
            (Origin::Existing, None) if replica.has_rejoined() => ReplicaState::Rejoined,
            (Origin::Existing, None) => ReplicaState::Replica,
            (Origin::Existing, Some(_)) => ReplicaState::Doubtful,
        },
        received: replica.reached().unwrap_or(inbox.received),
        applied: replica.applied(),
        commit: replica.commit(),
        high_water: inbox.high_water,
        doubt: replica.doubt().unwrap_or_default().to_owned(),
        stored_times: match (replica.stored_times(), guarded) {
            // Who reads there finds a read-only mount.
            (StoredTimes::Moving, Guarded::Kept | Guarded::Restored) => StoredTimes::Exact,
            (stored, _) => stored,
        },
        guarded: *guarded,
        settled: applier::told_mark(replica.state_dir()),
    }
}

fn refuse_code(error: &ServeError) -> RefuseCode {
    match error {
        ServeError::Replica(ReplicaError::Busy { .. }) => RefuseCode::Busy,
        ServeError::Replica(ReplicaError::NotEmpty { .. } | ReplicaError::OtherVolume { .. }) => RefuseCode::Wrong,
        ServeError::Version { .. } => RefuseCode::Version,
        _ => RefuseCode::Failed,
    }
}

fn run<R>(reader: FrameReader<R>, out: Outbox, ready: Ready, gone: &Gone) -> Result<(), ServeError>
where
    R: Read + Send + 'static,
{
    out.send(Message::HelloReply(greeting(&ready)));
    let Ready { replica, inbox: Inbox { log, received, high_water }, cap_bytes, delay, .. } = ready;
    // Until the intake has ended too: it writes to the inbox.
    let lock = replica.lock();
    let log = Arc::new(log);
    let (jobs, queue) = bounded(QUEUE_JOBS);
    let convergence = if replica.is_converging() { Convergence::Converging } else { Convergence::Consistent };
    let positions = Arc::new(Positions::new(received, replica.applied().tid, replica.commit(), convergence));
    gone.tell(positions.clone());
    // Before anything is said: what targets of this copy still need must not be freed for a moment.
    let mut relay = RelayEnd::new(replica.state_dir());
    positions.set_downstream(relay.begin()?);
    let beginning = Beginning { replica, received: received.tid, high_water, delay, relay };
    let apply = ApplyThread::spawn(beginning, log.clone(), queue, out.clone(), positions.clone());
    let mut intake = Intake::new((log, cap_bytes), jobs, out, positions.clone());
    let outcome = intake.run(&Arrivals::of(reader));
    // Closing the queue lets the applier finish what it has, make it durable and say so.
    drop(intake);
    let applied = apply.join();
    drop(lock);
    match (applied, outcome) {
        (Err(error), _) => Err(ServeError::Apply(error)),
        (Ok(()), Err(ServeError::Wire(WireError::Closed))) => Ok(()),
        (Ok(()), outcome) => outcome,
    }
}

/// Who wants to know that the source takes nothing any more.
#[derive(Default)]
struct Gone {
    /// Protects both. Rank: a leaf, held for assignments and to notify.
    state: Mutex<(bool, Option<Arc<Positions>>)>,
}

impl Gone {
    fn tell(&self, positions: Arc<Positions>) {
        let mut state = self.state.lock();
        if state.0 {
            positions.end();
        }
        state.1 = Some(positions);
    }

    fn happened(&self) {
        let mut state = self.state.lock();
        state.0 = true;
        if let Some(positions) = &state.1 {
            positions.end();
        }
    }
}

/// Writes what the other threads have to say; a sign of life when they are silent, so that the source can tell a slow
/// target from a dead one.
fn speak<W: Write>(mut writer: FrameWriter<W>, messages: &Outgoing, gone: &Gone) {
    const SILENCE: Duration = Duration::from_secs(2);
    loop {
        let message = match messages.next(SILENCE) {
            Ok(message) => message,
            Err(RecvTimeoutError::Timeout) => Message::pong(),
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if writer.send(&message).is_err() {
            return gone.happened();
        }
    }
}
