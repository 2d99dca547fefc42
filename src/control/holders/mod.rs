//! Who holds files below a path: by open descriptors, mappings, working and root directories, as /proc shows them.
//!
//! A process may keep whoever looks into it waiting for as long as it likes: what would show its mappings waits for locks
//! that it holds while it is in exec(2), and that may itself be waiting for a server (`exec_update_lock`, proc_mem_open in
//! fs/proc/base.c). So the look is done by threads that can be left behind: each process has a time to be looked into, after
//! which it is named as not seen. Such a thread ends when the process goes on or ends, or with this process, because the
//! waits are killable; until then nobody looks into that process again. At most [`MOST_WORKERS`] are left behind.
//!
//! What is never seen here: files open through another mount of the same filesystem (another path), in the tables of
//! threads that share none with their process, and what the kernel itself holds (loop devices, swap, an NFS server).

mod process;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use process::{Process, Short, Wanted, unseen};

/// How long one process may take to be looked into.
const PATIENCE: Duration = Duration::from_secs(10);
/// Without news for so long, one more thread goes on with the processes that are left.
const NEXT_WORKER: Duration = Duration::from_millis(500);
/// Threads that look, those included that were left behind.
const MOST_WORKERS: usize = 16;
/// Their name.
const WORKER: &str = "dtfs-holders";

/// One look at a time, so that no two wait for the same process. Rank: above [`UNDER_WAY`]; held for a look, which ends
/// by itself. Never taken with a volume's lock held.
static LOOKING: Mutex<()> = Mutex::new(());
/// The processes that a thread looks into now, with the number of the attempt; between looks those that one was left behind in. Rank: a leaf.
static UNDER_WAY: Mutex<BTreeMap<u32, u64>> = Mutex::new(BTreeMap::new());
/// Numbers the attempts to look into a process.
static ATTEMPTS: AtomicU64 = AtomicU64::new(1);

/// A process that holds a file open.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Opener {
    /// Its process id.
    pub pid: u32,
    /// Its command name.
    pub command: String,
    /// It can write to the file.
    pub writes: bool,
    /// One of the files.
    pub path: String,
}

impl std::fmt::Display for Opener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let how = if self.writes { "writes" } else { "reads" };
        write!(f, "pid {} ({}) {how} {}", self.pid, self.command, self.path)
    }
}

/// A process that could not be looked into in time: it may hold anything.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Unseen {
    /// Its process id.
    pub pid: u32,
    /// Its command name.
    pub command: String,
    /// Which attempt to look into it has not ended. None survives its process, so the same attempt means the same process.
    #[serde(skip)]
    attempt: u64,
}

impl Unseen {
    /// Whether it is the same process, and was unseen without a break.
    pub fn is(&self, other: &Unseen) -> bool {
        (self.pid, self.attempt) == (other.pid, other.attempt)
    }
}

impl std::fmt::Display for Unseen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "could not look into pid {} ({}) in time", self.pid, self.command)
    }
}

/// Who holds files below a path, for people and programs.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Holders {
    /// Who does, as far as it matters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub openers: Vec<Opener>,
    /// Of whom it is not known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unseen: Vec<Unseen>,
}

impl Holders {
    /// Whether somebody writes below the path, or may.
    pub fn may_write(&self) -> bool {
        !self.unseen.is_empty() || self.openers.iter().any(|opener| opener.writes)
    }

    /// One line each.
    pub fn lines(&self) -> impl Iterator<Item = String> + '_ {
        self.openers.iter().map(Opener::to_string).chain(self.unseen.iter().map(Unseen::to_string))
    }
}

/// One object that one process holds.
#[derive(Debug)]
pub struct Hold {
    /// Who, how and what, for people.
    pub opener: Opener,
    /// The object's number on the device that was asked for.
    ino: u64,
    /// The object itself (O_PATH), when it is written and was asked for.
    pub object: Option<OwnedFd>,
}

/// Whether objects that are written are opened, so that they can be told apart for ever.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Objects {
    /// Their paths are enough.
    Named,
    /// Each is opened (O_PATH), which keeps its mount busy until the answer is dropped.
    Opened,
}

/// What a look found.
#[derive(Debug, Default)]
pub struct Look {
    /// One for each object of each process.
    pub holds: Vec<Hold>,
    /// Who could not be looked into in time, or not at all for want of descriptors or threads.
    pub unseen: Vec<Unseen>,
}

impl Look {
    /// Whether nobody holds anything, for certain.
    pub fn is_empty(&self) -> bool {
        self.holds.is_empty() && self.unseen.is_empty()
    }

    /// What people are told.
    pub fn holders(&self) -> Holders {
        let openers = self.holds.iter().map(|hold| hold.opener.clone()).collect();
        Holders { openers, unseen: self.unseen.clone() }
    }
}

/// Every object on the device `dev` whose path lies at or below `path`, with the process that holds it; not those of this
/// process. Processes come and go meanwhile: what vanishes is left out. Takes as long as one process may take, when one
/// does not answer, and a little more.
pub fn look_below(dev: u64, path: &Path, objects: Objects) -> Look {
    let _one_at_a_time = LOOKING.lock();
    let own = std::process::id();
    let names = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.file_name());
    let pids: BTreeSet<u32> = names.filter_map(|name| name.to_str()?.parse().ok()).filter(|pid| *pid != own).collect();
    let stuck: BTreeSet<u32> = UNDER_WAY.lock().keys().copied().collect();
    let wanted = Arc::new(Wanted { dev, path: path.to_owned(), objects });
    let mut round = Round::new(pids.difference(&stuck).copied().collect(), stuck.len(), wanted);
    round.run();
    round.look.unseen.extend(stuck.intersection(&pids).filter_map(|pid| not_seen(*pid)));
    round.look
}

/// What is said of a process that could not be looked into; `None` when it has ended.
fn not_seen(pid: u32) -> Option<Unseen> {
    let attempt = UNDER_WAY.lock().get(&pid).copied().unwrap_or_default();
    unseen(pid, attempt)
}

/// What a worker says.
enum News {
    Begun(u32),
    Holds(Vec<Hold>),
    /// It could not look for want of something of its own.
    Unclear(u32),
    Done(u32),
    /// There is nothing left to begin.
    Ended,
}

/// A look under way.
struct Round {
    todo: (Sender<u32>, Receiver<u32>),
    news: (Sender<News>, Receiver<News>),
    wanted: Arc<Wanted>,
    /// Not done yet.
    left: BTreeSet<u32>,
    /// Of these, what a worker is at, and since when.
    begun: BTreeMap<u32, Instant>,
    unclear: BTreeSet<u32>,
    workers: usize,
    most_workers: usize,
    held: BTreeMap<(u32, u64), Hold>,
    look: Look,
}

impl Round {
    fn new(left: BTreeSet<u32>, left_behind: usize, wanted: Arc<Wanted>) -> Round {
        let todo = unbounded();
        for pid in &left {
            // Its other end lives as long as it does.
            let _ = todo.0.send(*pid);
        }
        Round {
            todo,
            news: unbounded(),
            wanted,
            left,
            begun: BTreeMap::new(),
            unclear: BTreeSet::new(),
            workers: 0,
            most_workers: MOST_WORKERS.saturating_sub(left_behind),
            held: BTreeMap::new(),
            look: Look::default(),
        }
    }

    fn run(&mut self) {
        self.add_worker();
        while self.goes_on() {
            match self.news.1.recv_timeout(NEXT_WORKER) {
                Ok(news) => self.take(news),
                Err(RecvTimeoutError::Timeout) if self.todo.1.is_empty() => {}
                Err(_) => self.add_worker(),
            }
        }
        // Whoever is left behind has nothing more to begin when it comes back.
        self.todo.1.try_iter().for_each(drop);
        let unknown: BTreeSet<u32> = self.left.union(&self.unclear).copied().collect();
        self.look.unseen = unknown.into_iter().filter_map(not_seen).collect();
        self.look.holds = std::mem::take(&mut self.held).into_values().collect();
    }

    /// Whether something of what is left may still be seen.
    fn goes_on(&self) -> bool {
        let overdue = self.begun.values().filter(|since| since.elapsed() >= PATIENCE).count();
        let waiting = self.begun.len() > overdue;
        let others = !self.todo.1.is_empty() && (self.workers > overdue || self.workers < self.most_workers);
        !self.left.is_empty() && (waiting || others || self.begun.len() < self.workers)
    }

    fn take(&mut self, news: News) {
        match news {
            News::Begun(pid) => drop(self.begun.insert(pid, Instant::now())),
            News::Holds(holds) => holds.into_iter().for_each(|hold| self.add(hold)),
            News::Unclear(pid) => drop(self.unclear.insert(pid)),
            News::Done(pid) => {
                self.begun.remove(&pid);
                self.left.remove(&pid);
            }
            News::Ended => self.workers -= 1,
        }
    }

    fn add(&mut self, hold: Hold) {
        match self.held.get_mut(&(hold.opener.pid, hold.ino)) {
            Some(known) => {
                known.opener.writes |= hold.opener.writes;
                known.object = known.object.take().or(hold.object);
            }
            None => drop(self.held.insert((hold.opener.pid, hold.ino), hold)),
        }
    }

    /// One more thread, where that is allowed and the system has one.
    fn add_worker(&mut self) {
        if self.workers >= self.most_workers {
            return;
        }
        let worker = Worker { todo: self.todo.1.clone(), news: self.news.0.clone(), wanted: self.wanted.clone() };
        match std::thread::Builder::new().name(WORKER.into()).spawn(move || worker.run()) {
            Ok(_) => self.workers += 1,
            Err(_) => self.most_workers = self.workers,
        }
    }
}

/// Looks into one process after the other. It owns nothing that anybody would miss: it may never come back.
struct Worker {
    todo: Receiver<u32>,
    news: Sender<News>,
    wanted: Arc<Wanted>,
}

impl Worker {
    fn run(self) {
        // Nobody listens any more to whoever was left behind.
        let say = |news| {
            let _ = self.news.send(news);
        };
        for pid in self.todo.try_iter() {
            let under_way = UnderWay::begin(pid);
            say(News::Begun(pid));
            for part in (Process { pid, wanted: &self.wanted }).parts() {
                say(match part {
                    Ok(holds) => News::Holds(holds),
                    Err(Short) => News::Unclear(pid),
                });
            }
            // First, so that the next look does not take it for one that somebody was left behind in.
            drop(under_way);
            say(News::Done(pid));
        }
        say(News::Ended);
    }
}

/// A process in [`UNDER_WAY`].
struct UnderWay(u32);

impl UnderWay {
    fn begin(pid: u32) -> UnderWay {
        UNDER_WAY.lock().insert(pid, ATTEMPTS.fetch_add(1, Ordering::Relaxed));
        UnderWay(pid)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        UNDER_WAY.lock().remove(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::MetadataExt;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_reader_and_a_writer_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        let dev = fs::metadata(&path).unwrap().dev();
        let (read, written) = (path.join("read"), path.join("written"));
        fs::write(&read, b"").unwrap();
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(File::create(&written).unwrap())
            .stderr(File::open(&read).unwrap())
            .current_dir(&path)
            .spawn()
            .unwrap();
        let look = look_below(dev, &path, Objects::Opened);
        drop(child.stdin.take());
        child.wait().unwrap();
        let mut found: Vec<_> = look.holds.iter().filter(|hold| hold.opener.pid == child.id()).collect();
        found.sort_by(|a, b| a.opener.path.cmp(&b.opener.path));
        let seen: Vec<_> = found
            .iter()
            .map(|hold| (Path::new(&hold.opener.path), hold.opener.writes, hold.object.is_some()))
            .collect();
        let expected =
            [(path.as_path(), false, false), (read.as_path(), false, false), (written.as_path(), true, true)];
        assert_eq!(seen, expected);
        assert_eq!(found[0].opener.command, "cat");
    }

    #[test]
    fn a_process_that_somebody_was_left_behind_in_is_not_waited_for_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new("cat").stdin(Stdio::piped()).current_dir(dir.path()).spawn().unwrap();
        let under_way = UnderWay::begin(child.id());
        let dev = fs::metadata(dir.path()).unwrap().dev();
        let look = look_below(dev, &dir.path().canonicalize().unwrap(), Objects::Named);
        assert!(look.unseen.iter().any(|unseen| unseen.pid == child.id()), "{look:?}");
        assert!(look.holds.iter().all(|hold| hold.opener.pid != child.id()), "{look:?}");
        assert!(look.holders().may_write());
        drop(under_way);
        let look = look_below(dev, &dir.path().canonicalize().unwrap(), Objects::Named);
        assert!(look.holds.iter().any(|hold| hold.opener.pid == child.id()), "{look:?}");
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}
