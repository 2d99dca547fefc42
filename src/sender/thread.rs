//! The thread of one target: connect, run a session, try again.

use std::cell::RefCell;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::mailbox::{Call, Event, Mailbox};
use super::mirror::Counter;
use super::orphans::{OrphanDesk, OrphanPolicy};
use super::pace::Rate;
use super::plan::Forked;
use super::scope::Scope;
use super::session::{Ears, Session};
use super::status::SharedStatus;
use super::verify::Verifier;
use super::verify_desk::{VerifyDesk, VerifyRequest};
use super::{SenderState, SenderStatus, SessionError};
use crate::base::{AtimeMode, Rules, Timespec, random_bytes};
use crate::catchup::TreeView;
use crate::journal::{Level, Replay, TargetId};
use crate::record::{OrphanAction, OrphanList};
use crate::wire::{Compression, Connection, RefuseCode, Stall, WireError};

/// Makes a connection to the target.
pub type Connect = Box<dyn Fn() -> std::io::Result<Connection> + Send>;

/// What a sender needs to know of its target.
pub struct SenderOptions {
    /// The target.
    pub target: TargetId,
    /// When access times are recorded here.
    pub access_times: AtimeMode,
    /// Name of the volume, for people at the other end.
    pub label: String,
    /// How to reach it.
    pub connect: Connect,
    /// How frames are compressed.
    pub compression: Compression,
    /// How fast it may be sent to.
    pub rate: Rate,
    /// How long nothing is sent, unless somebody waits for it, once the target has been sent everything; `None` for not at
    /// all.
    pub period: Option<Duration>,
    /// What becomes of its orphans by itself; `None` for nothing.
    pub orphans: Option<OrphanPolicy>,
    /// What of the tree it gets.
    pub rules: Arc<Rules>,
    /// How long the target stays behind on purpose, in seconds.
    pub delay_seconds: u64,
    /// What is done with a target that followed another history, when it was defined just now.
    pub forked: Forked,
}

/// A running sender. Dropping it stops the thread and waits for it.
pub struct SenderThread {
    handle: SenderHandle,
    thread: Option<JoinHandle<()>>,
}

/// Asks a sender for things, and waits for news of it. Does not keep it.
#[derive(Clone)]
pub struct SenderHandle {
    desk: Arc<VerifyDesk>,
    orphans: Arc<OrphanDesk>,
    mailbox: Arc<Mailbox>,
    status: Arc<SharedStatus>,
}

/// How long a target may take to finish its session.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(30);

impl SenderThread {
    /// Starts replicating `view` through `journal` to the target.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn spawn(
        journal: Arc<dyn Replay>,
        view: Arc<dyn TreeView>,
        options: SenderOptions,
    ) -> std::io::Result<SenderThread> {
        super::edge::note_rules(journal.store(), options.target, &options.rules).map_err(std::io::Error::other)?;
        let (mailbox, status) = (Arc::new(Mailbox::default()), Arc::new(SharedStatus::default()));
        let desk = Arc::new(VerifyDesk::default());
        let verifier = RefCell::new(Verifier::new(desk.clone(), options.rules.clone()));
        let counter = Counter::new(view.clone(), options.rules.clone());
        let (mail, shared) = (mailbox.clone(), status.clone());
        let orphans = Arc::new(OrphanDesk::default());
        let runner = Runner {
            journal,
            view,
            options,
            mailbox: mail,
            status: shared,
            verifier,
            counter,
            orphans: orphans.clone(),
            scope: RefCell::default(),
        };
        let thread = std::thread::Builder::new().name("dtfs-sender".into()).spawn(move || runner.run())?;
        Ok(SenderThread { handle: SenderHandle { desk, orphans, mailbox, status }, thread: Some(thread) })
    }

    /// Something to ask it by that does not keep it.
    pub fn handle(&self) -> SenderHandle {
        self.handle.clone()
    }

    /// As [`SenderHandle::status`].
    pub fn status(&self) -> SenderStatus {
        self.handle.status()
    }

    /// As [`SenderHandle::flush`].
    pub fn flush(&self) {
        self.handle.flush();
    }

    /// As [`SenderHandle::verify`].
    pub fn verify(&self, request: VerifyRequest) -> Option<u64> {
        self.handle.verify(request)
    }

    /// Tells the thread to stop; [`Drop`] waits for it.
    pub fn stop(&self) {
        self.handle.mailbox.call(Call::Stop);
    }
}

impl SenderHandle {
    /// Where it is.
    pub fn status(&self) -> SenderStatus {
        self.status.get()
    }

    /// Waits for any change of its status, at most `timeout`.
    pub fn wait(&self, timeout: Duration) {
        self.status.wait(timeout);
    }

    /// Asks the target to make everything it has durable at once: someone waits for it.
    pub fn flush(&self) {
        self.mailbox.call(Call::Flush);
    }

    /// Asks for a comparison of the whole tree, and returns its number in [`SenderStatus::verify`]; `None` while one runs.
    pub fn verify(&self, request: VerifyRequest) -> Option<u64> {
        let id = self.desk.ask(request);
        self.mailbox.call(Call::Work);
        id
    }

    /// Asks for something to become of the target's orphans; returns the number of the order.
    pub fn orphans(&self, action: OrphanAction, older_than_sec: u64) -> u64 {
        let number = self.orphans.ask(action, older_than_sec);
        self.mailbox.call(Call::Orphans);
        number
    }

    /// The answer to an order, when it is there.
    pub fn orphans_done(&self, number: u64) -> Option<OrphanList> {
        self.orphans.answer(number)
    }

    /// A mirror was begun, or held, or is to go on: what was read of work counts no more.
    pub fn mirror_changed(&self) {
        self.mailbox.call(Call::Mirror);
    }

    /// Rows of work were added; without this word they are seen within two seconds.
    pub fn work_added(&self) {
        self.mailbox.call(Call::Work);
    }

    /// The next session is to begin at once: the operator has decided what it was refused for.
    pub fn retry(&self) {
        self.mailbox.call(Call::Retry);
    }
}

impl Drop for SenderThread {
    /// A target that hangs takes no more bytes, and a write to it would never end: after a while its process is killed,
    /// which ends the session. What it had not made durable is sent again.
    fn drop(&mut self) {
        self.stop();
        let Some(thread) = self.thread.take() else { return };
        let deadline = Instant::now() + STOP_PATIENCE;
        while !thread.is_finished() && Instant::now() < deadline {
            self.handle.wait(Duration::from_millis(20));
        }
        if !thread.is_finished()
            && let Some(pid) = self.status().peer_pid
        {
            tracing::warn!(pid, "the target does not take the end of its session: its process is killed");
            let pid = nix::unistd::Pid::from_raw(pid as i32);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        let _ = thread.join();
    }
}

struct Runner {
    journal: Arc<dyn Replay>,
    view: Arc<dyn TreeView>,
    options: SenderOptions,
    mailbox: Arc<Mailbox>,
    status: Arc<SharedStatus>,
    verifier: RefCell<Verifier>,
    counter: Counter,
    orphans: Arc<OrphanDesk>,
    scope: RefCell<Option<Scope>>,
}

impl Runner {
    fn run(self) {
        let mut delay = FIRST_RETRY;
        loop {
            let before = self.status.get().acks_durable;
            match self.session() {
                Ok(()) => break,
                Err(error) => self.explain(&error),
            }
            // A session in which the target made something durable worked: begin again with short delays.
            let worked = self.status.get().acks_durable > before;
            delay = if worked { FIRST_RETRY } else { (delay * 2).min(LAST_RETRY) };
            if self.pause(jitter(delay)) {
                break;
            }
        }
        self.status.update(|status| status.state = SenderState::Stopped);
    }

    /// One session, until told to stop.
    fn session(&self) -> Result<(), SessionError> {
        let connection = (self.options.connect)().map_err(SessionError::Connect)?;
        let Connection { reader, writer, peer } = connection;
        self.status.update(|status| status.peer_pid = peer.pid());
        let session = self.mailbox.open_session();
        let (journal, status) = (self.journal.clone(), self.status.clone());
        let ears = Ears { journal, target: self.options.target, status, stalled_at: Stall::No };
        let reader =
            Session::spawn_reader(reader, self.mailbox.clone(), (session, ears)).map_err(SessionError::Connect)?;
        let outcome = Session::open(self.parts(), writer, (peer.breaker(), peer.follower())).and_then(Session::run);
        self.mailbox.close_session();
        let outcome = match outcome {
            // ssh, for one, says why.
            Err(SessionError::Wire(WireError::Closed)) => Err(closed(&peer.last_words())),
            outcome => outcome,
        };
        // The writer is closed by now: the target finishes what it has and closes its end, which ends the reader.
        self.status.update(|status| status.peer_pid = None);
        drop(peer);
        let _ = reader.join();
        outcome
    }

    fn parts(&self) -> super::session::Parts<'_> {
        super::session::Parts {
            journal: &self.journal,
            view: self.view.as_ref(),
            options: &self.options,
            mailbox: &self.mailbox,
            status: &self.status,
            verifier: &self.verifier,
            counter: &self.counter,
            orphans: &self.orphans,
            scope: &self.scope,
        }
    }

    fn explain(&self, error: &SessionError) {
        let text = error.to_string();
        tracing::warn!(target = self.options.target.0, %text, "session ended");
        let store = self.journal.store();
        let _ = store.target_error(self.options.target, Some(&text));
        let _ = store.event(Level::Warning, Some(self.options.target), &format!("session ended: {text}"));
        if let SessionError::Refused { code: RefuseCode::Doubt, .. } = error {
            // It may not have been able to write that down itself.
            let _ = store.target_said(self.options.target, None);
        }
        let state = match error {
            SessionError::Refused { code: RefuseCode::Wrong | RefuseCode::Version, .. }
            | SessionError::Fork { .. }
            | SessionError::Superseded { .. } => SenderState::Refused(text.clone()),
            SessionError::Refused { code: RefuseCode::Busy, .. } => SenderState::Busy(text.clone()),
            _ => SenderState::Offline,
        };
        let forked = match error {
            SessionError::Fork { copy, received, .. } => Some((*copy, received.epoch)),
            _ => None,
        };
        self.status.update(|status| {
            status.state = state;
            // Until a session begins, whatever else goes wrong before.
            status.forked = forked.or(status.forked);
            status.stalled = None;
            status.peer_pid = None;
            status.last_error = Some((Timespec::now(), text));
            status.errors += 1;
        });
    }

    /// Waits before the next try; true when told to stop.
    fn pause(&self, delay: Duration) -> bool {
        let deadline = Instant::now() + delay;
        loop {
            match self.mailbox.next(deadline) {
                Some(Event::Stop) => return true,
                Some(Event::Retry) => return false,
                Some(_) => {}
                None => return false,
            }
        }
    }
}

/// What led to the target may have said why it does not any more.
fn closed(last_words: &str) -> SessionError {
    match last_words {
        "" => WireError::Closed.into(),
        words => SessionError::Connect(std::io::Error::other(words.to_owned())),
    }
}

/// Between half of `delay` and all of it, so that many senders do not knock together.
fn jitter(delay: Duration) -> Duration {
    let random = u32::from(u16::from_le_bytes(random_bytes::<2>()));
    delay / 2 + delay / 2 * random / u32::from(u16::MAX)
}
