//! A source and its target in one process: the whole pipeline without a mount.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dtfs::applier::{Adopt, Guarding, Trust};
use dtfs::backing::Tree;
use dtfs::backing::compare::CompareOptions;
use dtfs::base::Rules;
use dtfs::journal::{Journal, JournalOptions, Own, Rejoin, TargetId};
use dtfs::receiver::{ServeOptions, serve};
use dtfs::sender::{Connect, Forked, SenderOptions, SenderState, SenderStatus, SenderThread};
use dtfs::stack::{AtimeMode, Stack, StackOptions};
use dtfs::wire::{Breaker, Compression, Connection, Peer};
use parking_lot::Mutex;
use tempfile::TempDir;

use super::trees;

/// How long a target may take to have everything.
const PATIENCE: Duration = Duration::from_secs(120);

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(2);

/// Large enough for every change that the tests make.
const TIGHT_SEGMENT: u64 = 512 << 10;
/// Large enough for every record of a [`Pair::small`], and for a frame of many.
const SMALL_SEGMENT: u64 = 512 << 10;
/// Most bytes of a [`Pair::tight`] journal.
pub(crate) const TIGHT_CAP: u64 = 5 * TIGHT_SEGMENT;

/// The sessions that were opened, for cutting them and for waiting until they are over.
#[derive(Default)]
struct Sessions {
    wires: Mutex<Vec<UnixStream>>,
    ends: Mutex<Vec<JoinHandle<()>>>,
    errors: Mutex<Vec<String>>,
    /// Process ids of the programs that serve and were not waited for.
    programs: Mutex<Vec<i32>>,
}

/// A source tree with its journal and one target, all below one temporary directory.
pub(crate) struct Pair {
    root: TempDir,
    options: JournalOptions,
    target: TargetId,
    stack: Option<Arc<Stack>>,
    sender: Option<SenderThread>,
    sessions: Arc<Sessions>,
    /// Bytes and objects that senders before the present one have sent.
    before: (u64, u64),
    in_memory: bool,
    serving: Serving,
    moved: Option<(PathBuf, PathBuf)>,
    /// How long a target may take to have everything.
    pub(crate) patience: Duration,
    /// What is done with a target of another history; see [`SenderOptions::forked`].
    pub(crate) forked: Forked,
    /// What of the tree the target gets, from the next start of the sender on.
    pub(crate) rules: Rules,
}

/// Who serves the target.
#[derive(Clone)]
enum Serving {
    /// A thread of this process, with this much inbox in segments of this size.
    Thread { inbox_cap: Option<u64>, inbox_segment: Option<u64> },
    /// The real program, the next one with these fault points armed.
    Program { faults: Arc<Mutex<Option<String>>>, killed: Arc<AtomicU64> },
}

impl Pair {
    /// On the filesystem of the temporary directory. The sender is not started.
    pub(crate) fn new() -> Pair {
        Pair::below(&std::env::temp_dir())
    }

    /// On a filesystem in memory: for many short histories.
    pub(crate) fn in_memory() -> Pair {
        let mut pair = Pair::below(Path::new("/dev/shm"));
        pair.in_memory = true;
        pair
    }

    /// For a worker, whose temporary directory is in memory: with journal and inbox as small as short histories of small changes allow: making files of the usual size
    /// would take most of the time.
    pub(crate) fn small() -> Pair {
        let ring_bytes = 256 << 10;
        let options = JournalOptions { segment_bytes: SMALL_SEGMENT, ring_bytes, ..JournalOptions::default() };
        let mut pair = Pair::with(&std::env::temp_dir(), options);
        pair.in_memory = true;
        pair.serving = Serving::Thread { inbox_cap: None, inbox_segment: Some(SMALL_SEGMENT) };
        pair
    }

    /// In memory, with a journal so small that what a target has not received soon becomes work.
    pub(crate) fn tight() -> Pair {
        let options =
            JournalOptions { segment_bytes: TIGHT_SEGMENT, cap_bytes: TIGHT_CAP, ..JournalOptions::default() };
        let mut pair = Pair::with(Path::new("/dev/shm"), options);
        pair.in_memory = true;
        pair
    }

    /// With source and journal in `dir`; the target belongs elsewhere.
    pub(crate) fn on(dir: &Path) -> Pair {
        Pair::below(dir)
    }

    /// As [`Pair::on`], with a journal as small as that of [`Pair::tight`].
    pub(crate) fn tight_on(dir: &Path) -> Pair {
        let options =
            JournalOptions { segment_bytes: TIGHT_SEGMENT, cap_bytes: TIGHT_CAP, ..JournalOptions::default() };
        Pair::with(dir, options)
    }

    fn below(dir: &Path) -> Pair {
        Pair::with(dir, JournalOptions { segment_bytes: 8 << 20, ..JournalOptions::default() })
    }

    fn with(dir: &Path, options: JournalOptions) -> Pair {
        let root = tempfile::Builder::new().prefix("dtfs-pair-").tempdir_in(dir).expect("a temporary directory");
        for name in ["source", "target", "states"] {
            fs::create_dir(root.path().join(name)).expect("a directory");
        }
        let mut pair = Pair {
            root,
            options,
            target: TargetId(0),
            stack: None,
            sender: None,
            sessions: Arc::default(),
            before: (0, 0),
            in_memory: false,
            serving: Serving::Thread { inbox_cap: None, inbox_segment: None },
            moved: None,
            patience: PATIENCE,
            forked: Forked::Refuse,
            rules: Rules::default(),
        };
        pair.open();
        pair.target = pair.stack().journal().store().target_add("target", "test:").expect("a new target");
        pair
    }

    /// Lets the real program serve the target.
    pub(crate) fn served_by_program(mut self) -> Pair {
        self.serving = Serving::Program { faults: Arc::default(), killed: Arc::default() };
        self
    }

    /// Arms fault points (as `DTFS_FAULTS` names them) in the next program that serves the target.
    pub(crate) fn arm(&self, spec: &str) {
        let Serving::Program { faults, .. } = &self.serving else { panic!("a thread serves the target") };
        *faults.lock() = Some(spec.to_owned());
    }

    /// How many of the programs ended by a signal.
    pub(crate) fn killed(&self) -> u64 {
        let Serving::Program { killed, .. } = &self.serving else { panic!("a thread serves the target") };
        killed.load(Ordering::SeqCst)
    }

    /// Process ids of the programs that serve the target.
    pub(crate) fn programs(&self) -> Vec<i32> {
        self.sessions.programs.lock().clone()
    }

    /// The target's directory and its state lie in these from now on.
    pub(crate) fn move_target(&mut self, target: &Path, states: &Path) {
        self.moved = Some((target.to_owned(), states.to_owned()));
    }

    pub(crate) fn set_inbox_cap(&mut self, bytes: u64) {
        self.serving = Serving::Thread { inbox_cap: Some(bytes), inbox_segment: None };
    }

    /// The texts of the journal's last events, newest first.
    pub(crate) fn events(&self) -> Vec<String> {
        let rows = self.stack().journal().store().events(100).expect("the store");
        rows.into_iter().map(|row| row.text).collect()
    }

    pub(crate) fn source(&self) -> PathBuf {
        self.root.path().join("source")
    }

    pub(crate) fn target(&self) -> PathBuf {
        self.moved.as_ref().map_or_else(|| self.root.path().join("target"), |(target, _)| target.clone())
    }

    pub(crate) fn states(&self) -> PathBuf {
        self.moved.as_ref().map_or_else(|| self.root.path().join("states"), |(_, states)| states.clone())
    }

    /// Where everything lies.
    pub(crate) fn root(&self) -> &Path {
        self.root.path()
    }

    pub(crate) fn stack(&self) -> &Arc<Stack> {
        self.stack.as_ref().expect("the stack is open")
    }

    /// Decides, as by `dtfs rejoin`, what becomes of a target that is refused because it followed another history.
    pub(crate) fn rejoin(&self, own: Own) {
        let (copy, epoch) = self.status().forked.expect("it is refused for another history");
        self.stack().journal().store().rejoin_set(self.target, Some(&Rejoin { copy, epoch, own })).expect("the store");
        self.sender.as_ref().expect("the sender runs").handle().retry();
    }

    /// Opens tree and journal.
    pub(crate) fn open(&mut self) {
        let (journal, _) = Journal::open(&self.root.path().join("journal"), self.options).expect("a journal");
        let tree = Tree::open(&self.source()).expect("a tree");
        self.stack = Some(Stack::new(tree, journal, StackOptions::default()).expect("a stack"));
    }

    /// The target's id in the journal.
    pub(crate) fn id(&self) -> TargetId {
        self.target
    }

    /// Forgets the target and defines it anew, as an operator does. The sender does not run.
    pub(crate) fn forget_target(&mut self) {
        let store = self.stack().journal().store();
        store.target_remove(self.target).expect("the store");
        self.target = store.target_add("target", "test:").expect("a new target");
    }

    /// Closes tree and journal; `clean` as by SIGTERM, else as by a crash.
    pub(crate) fn close(&mut self, clean: bool) {
        self.stop();
        let stack = self.stack.take().expect("the stack is open");
        if clean {
            stack.journal().close_clean().expect("a clean stop");
        }
    }

    /// Closes tree and journal and opens them again; `clean` as by SIGTERM, else as by a crash.
    pub(crate) fn reopen(&mut self, clean: bool) {
        let running = self.sender.is_some();
        self.close(clean);
        self.open();
        if running {
            self.start();
        }
    }

    /// Waits until the target has applied what is durable.
    pub(crate) fn wait_for_durable(&self) {
        let journal = self.stack().journal();
        let sender = self.sender.as_ref().expect("the sender runs");
        sender.flush();
        let store = journal.store();
        let reached = || {
            let row = store.target_by_id(self.target).expect("the store").expect("the target");
            row.applied >= journal.durable_tid()
        };
        let until = Instant::now() + self.patience;
        while !reached() {
            assert!(Instant::now() < until, "the target does not get there:\n{}", self.explain());
            std::thread::sleep(POLL);
        }
    }

    /// As [`Pair::reopen`] after a clean stop; `between` sees every file closed. Where the journal does not open, the
    /// reason; it can be called again then.
    pub(crate) fn try_reopen(&mut self, between: impl FnOnce(&Path)) -> Result<(), String> {
        self.stop();
        if let Some(stack) = self.stack.take() {
            stack.journal().close_clean().expect("a clean stop");
        }
        between(self.root.path());
        let (journal, _) =
            Journal::open(&self.root.path().join("journal"), self.options).map_err(|error| error.to_string())?;
        let tree = Tree::open(&self.source()).expect("a tree");
        self.stack = Some(Stack::new(tree, journal, StackOptions::default()).map_err(|error| error.to_string())?);
        Ok(())
    }

    /// Starts the sender.
    pub(crate) fn start(&mut self) {
        assert!(self.sender.is_none(), "one sender per target");
        let options = SenderOptions {
            period: None,
            target: self.target,
            access_times: AtimeMode::AtClose,
            label: "data".into(),
            connect: self.connect(),
            compression: Compression::Zstd { level: 1, max_bytes: 64 << 10 },
            rate: Box::new(|| None),
            orphans: None,
            rules: Arc::new(self.rules.clone()),
            delay_seconds: 0,
            forked: self.forked,
        };
        let stack = self.stack().clone();
        self.sender = Some(SenderThread::spawn(stack.journal().clone(), stack, options).expect("a thread"));
    }

    /// Stops the sender; returns when the target's side has ended too.
    pub(crate) fn stop(&mut self) {
        if let Some(sender) = self.sender.take() {
            let status = sender.status();
            drop(sender);
            self.before = (self.before.0 + status.bytes_sent, self.before.1 + status.objects_read);
        }
        for end in std::mem::take(&mut *self.sessions.ends.lock()) {
            end.join().expect("the target's side does not panic");
        }
        self.sessions.wires.lock().clear();
    }

    /// Cuts the connection, as a network does.
    pub(crate) fn cut(&self) {
        for wire in self.sessions.wires.lock().drain(..) {
            let _ = wire.shutdown(Shutdown::Both);
        }
    }

    fn connect(&self) -> Connect {
        let sessions = self.sessions.clone();
        let (dir, states) = (self.target(), self.states());
        let (inbox_cap, inbox_segment) = match self.serving.clone() {
            Serving::Thread { inbox_cap, inbox_segment } => (inbox_cap, inbox_segment),
            Serving::Program { faults, killed } => {
                return Box::new(move || start_program(&dir, &states, faults.lock().take(), (&sessions, &killed)));
            }
        };
        Box::new(move || {
            let (near, far) = UnixStream::pair()?;
            let (dir, states) = (dir.clone(), states.clone());
            let options = ServeOptions {
                dir,
                states,
                adopt: Adopt::Yes,
                guarding: Guarding::Off,
                trust: Trust::Full,
                own_volume: Box::new(|_| None),
                inbox_cap,
                inbox_segment,
            };
            let log = sessions.clone();
            sessions.wires.lock().push(near.try_clone()?);
            let input = far.try_clone()?;
            sessions.ends.lock().push(std::thread::spawn(move || {
                if let Err(error) = serve(input, Half(far), &options) {
                    log.errors.lock().push(format!("serve: {error}"));
                }
            }));
            let (reader, wire) = (Box::new(near.try_clone()?), near.try_clone()?);
            let cut = Breaker::new(move || drop(wire.shutdown(Shutdown::Both)));
            Ok(Connection { reader, writer: Box::new(Half(near)), peer: Peer::none(cut) })
        })
    }

    pub(crate) fn status(&self) -> SenderStatus {
        self.sender.as_ref().expect("the sender runs").status()
    }

    /// Bytes sent by all senders so far.
    pub(crate) fn bytes_sent(&self) -> u64 {
        self.before.0 + self.sender.as_ref().map_or(0, |sender| sender.status().bytes_sent)
    }

    /// State records sent by all senders so far.
    pub(crate) fn objects_read(&self) -> u64 {
        self.before.1 + self.sender.as_ref().map_or(0, |sender| sender.status().objects_read)
    }

    fn is_consistent(&self) -> bool {
        let journal = self.stack().journal();
        let store = journal.store();
        let row = store.target_by_id(self.target).expect("the store").expect("the target");
        let connected = self.sender.as_ref().is_some_and(|sender| sender.status().state == SenderState::Connected);
        let all = row.mirrored && row.applied >= journal.last_tid();
        let settled = self.sender.as_ref().is_some_and(|sender| !sender.status().unsettled);
        connected && all && settled && store.work_count(self.target).expect("the store") == 0
    }

    /// Waits until the target has everything.
    pub(crate) fn wait(&self) {
        let journal = self.stack().journal();
        journal.commit(journal.last_tid()).expect("a commit");
        let sender = self.sender.as_ref().expect("the sender runs");
        if !self.try_wait(self.patience) {
            panic!("the target does not get there:\n{}", self.explain());
        }
        assert_eq!(sender.status().blocked, 0, "objects are blocked: {:?}", sender.status());
    }

    /// Whether the target has everything before `patience` is over.
    pub(crate) fn try_wait(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        self.sender.as_ref().expect("the sender runs").flush();
        while !self.is_consistent() {
            if Instant::now() > until {
                return false;
            }
            std::thread::sleep(POLL);
        }
        true
    }

    /// Waits, and panics unless both trees are equal.
    pub(crate) fn wait_equal(&self, context: &str) {
        self.wait();
        // tmpfs makes data of a range that is reserved twice (mm/shmem.c, shmem_fallocate), so what it says of holes
        // depends on how often a record was performed. Disk filesystems do not.
        let options = CompareOptions { holes: !self.in_memory, ..CompareOptions::default() };
        trees::assert_equal_in(&self.source(), &self.target(), &options, context);
    }

    /// What everybody says, for a test that fails.
    pub(crate) fn explain(&self) -> String {
        let journal = self.stack().journal();
        let store = journal.store();
        let row = store.target_by_id(self.target);
        let work = store.work_next(self.target, 0, 20);
        let last = journal.last_tid();
        let events: Vec<_> =
            store.events(20).map(|rows| rows.into_iter().map(|row| row.text).collect()).unwrap_or_default();
        format!(
            "status {:?}\nlast {last}, target {row:?}\nwork {work:#?}\nerrors {:#?}\nevents {events:#?}",
            self.sender.as_ref().map(SenderThread::status),
            self.sessions.errors.lock()
        )
    }

    /// What the target's sessions ended with, other than by the source's word.
    pub(crate) fn target_errors(&self) -> Vec<String> {
        self.sessions.errors.lock().clone()
    }

    /// Removes everything the target has, as an operator would who begins anew.
    pub(crate) fn wipe_target(&mut self) {
        self.stop();
        super::behind::uncover(&self.target());
        for dir in [self.target(), self.states()] {
            clear_flags(&dir);
            fs::remove_dir_all(&dir).expect("a directory that can be removed");
            fs::create_dir(&dir).expect("a directory");
        }
    }

    /// Copies the target's catalog and inbox; the sender is stopped for that time.
    pub(crate) fn keep_states(&mut self) -> TempDir {
        self.stop();
        let kept = tempfile::Builder::new().prefix("kept-").tempdir_in(self.root.path()).expect("a directory");
        copy_dir(&self.states(), kept.path());
        kept
    }

    /// Puts a kept state back, under a tree that has gone on since.
    pub(crate) fn restore_states(&mut self, kept: &Path) {
        self.stop();
        fs::remove_dir_all(self.states()).expect("a directory that can be removed");
        copy_dir(kept, &self.states());
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if std::thread::panicking() && self.stack.is_some() {
            eprintln!("--- the pair ---\n{}\n---", self.explain());
        }
        self.cut();
        drop(self.sender.take());
        for end in std::mem::take(&mut *self.sessions.ends.lock()) {
            let _ = end.join();
        }
        super::behind::uncover_below(self.root.path());
        super::behind::uncover(&self.target());
        // No small history sets a flag, and a program takes its time.
        if !matches!(self.serving, Serving::Thread { inbox_segment: Some(_), .. }) {
            clear_flags(self.root.path());
        }
    }
}

/// Starts `dtfs serve` on the replica, with its state below `states`.
fn start_program(
    dir: &Path,
    states: &Path,
    faults: Option<String>,
    (sessions, killed): (&Arc<Sessions>, &Arc<AtomicU64>),
) -> io::Result<Connection> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dtfs"));
    command.arg("--root").arg(states).args(["serve", "--adopt", "--stdio"]).arg(dir);
    let log = File::options().create(true).append(true).open(states.join("serve.log"))?;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
    command.env("DTFS_FAULTS", faults.unwrap_or_default());
    let mut child = command.spawn()?;
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    let (stdin, stdout) = (child.stdin.take().expect("a pipe"), child.stdout.take().expect("a pipe"));
    sessions.programs.lock().push(pid.as_raw());
    let (killed, log) = (killed.clone(), (*sessions).clone());
    sessions.ends.lock().push(std::thread::spawn(move || {
        let status = child.wait().expect("a child can be waited for");
        log.programs.lock().retain(|known| *known != pid.as_raw());
        killed.fetch_add(u64::from(status.code().is_none()), Ordering::SeqCst);
    }));
    let cut = Breaker::new(move || {
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
    });
    Ok(Connection { reader: Box::new(stdout), writer: Box::new(stdin), peer: Peer::none(cut) })
}

/// The writing half of a socket: dropping it ends the stream, as closing a pipe does.
struct Half(UnixStream);

impl Write for Half {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        let _ = self.0.shutdown(Shutdown::Write);
    }
}

/// Takes the immutable flag off everything below `dir`, so that it can be removed.
fn clear_flags(dir: &Path) {
    let _ = std::process::Command::new("chattr").args(["-R", "-f", "-i", "-a"]).arg(dir).output();
}

/// Copies plain files and directories.
pub(crate) fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("a readable directory") {
        let entry = entry.expect("an entry");
        let copy = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy_dir(&entry.path(), &copy);
        } else {
            fs::copy(entry.path(), &copy).expect("a copy");
        }
    }
}
