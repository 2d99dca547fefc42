//! A verification: every object is read under its lock, and the target compares the reading at its place in the stream with
//! what it has. At that place its tree is the source's at the stamp, however much is written meanwhile, so what differs was
//! not made through the source.
//!
//! Invariants:
//! - Nothing is compared while rows of work are left: work is what is known to differ.
//! - A difference counts when it is seen twice, the second time byte by byte; what is *pending* is looked at again later.
//! - Mending is a row of work for each object that differs, and what was mended is compared once more.
//! - Progress lives in the thread of the target: a session that ends takes nothing with it but what was under way.
//! - An object that moves while the tree is read is read where it is now, unless it was met where it was.

mod judge;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::moved::{Listed, Moved};
use super::verify_desk::{Found, Repair, VerifyDesk, VerifyProgress, VerifyRequest};
use super::work::{Done, Purpose, Reading};
use crate::base::{Name, Oid, Rules, Tid};
use crate::catchup::{DirReading, DirWalk, Follow, ObjectReading, TreeView, read_check, read_suspect};
use crate::journal::{NewWork, WorkKind, WorkReason};
use crate::record::{Difference, DirItem};
use crate::sys;

/// A directory on the way to an object.
struct Dir {
    oid: Oid,
    place: Place,
}

/// Where a directory is.
enum Place {
    Root,
    In(Arc<Dir>, Name),
    /// By its whole path.
    At(Vec<u8>),
}

impl Dir {
    fn path(&self) -> Vec<u8> {
        match &self.place {
            Place::Root => Vec::new(),
            Place::In(above, name) => join(above.path(), name.as_bytes()),
            Place::At(path) => path.clone(),
        }
    }
}

fn join(mut path: Vec<u8>, name: &[u8]) -> Vec<u8> {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// What is read of an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum What {
    /// A directory, and then what is in it.
    Tree,
    /// A directory alone.
    Listing,
    /// Any other object from this byte on, by digests.
    Object { offset: u64 },
    /// What it is, and a range of it as it is.
    Suspect { offset: u64, len: u64 },
}

#[derive(Clone)]
struct Task {
    oid: Oid,
    /// The directory it is in; itself for a directory.
    dir: Arc<Dir>,
    what: What,
    tries: u32,
    /// How often it differed in nothing but what a single look may be wrong about.
    looks: u32,
}

impl Task {
    /// Whether it was never read.
    fn is_new(&self) -> bool {
        self.tries == 0 && matches!(self.what, What::Tree | What::Object { offset: 0 })
    }
}

/// A directory that is being read in parts.
struct Parts {
    task: Task,
    walk: Box<DirWalk>,
    children: Vec<Task>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    FirstLook,
    SecondLook,
    Mending,
    LookAfterMending,
    LastLook,
}

/// What the session has to do for the verification.
#[derive(Default)]
pub(super) struct Step {
    pub(super) readings: Vec<Reading>,
    /// Rows that mend what differs.
    pub(super) mend: Vec<NewWork>,
    /// The target is to make durable what it has, and by that to say what it needs.
    pub(super) flush: bool,
}

struct Run {
    request: VerifyRequest,
    rules: Arc<Rules>,
    stage: Stage,
    /// A stack: what was found last is read first, so that it stays as short as the tree is deep and wide.
    todo: Vec<Task>,
    /// No other object is read before its last part.
    parts: Option<Parts>,
    /// To be looked at again when the target has had time.
    later: Vec<Task>,
    suspects: Vec<Task>,
    /// What differs for certain.
    confirmed: BTreeMap<Oid, Task>,
    /// Read and not answered, by number.
    open: HashMap<u64, Task>,
    last_number: u64,
    /// Batches that were sent: their numbers, what ends with them, and the bytes that the target reads for them.
    under_way: VecDeque<(u64, Vec<u64>)>,
    /// Differences of readings that are not answered whole.
    heard: HashMap<Oid, Vec<Difference>>,
    seen: HashSet<Found>,
    progress: VerifyProgress,
    ready_at: Instant,
    /// Directories that were read.
    listed: Listed,
}

/// The verification of one target, if one runs.
pub(super) struct Verifier {
    desk: Arc<VerifyDesk>,
    rules: Arc<Rules>,
    run: Option<Run>,
}

/// Bytes of content that the target compares in one go: live changes wait that long.
const SLICE_BYTES: u64 = 4 << 20;
const SLICE_TASKS: usize = 512;
const MOST_BATCHES: usize = 4;
const RETRY_STEP: Duration = Duration::from_millis(100);
impl Verifier {
    pub(super) fn new(desk: Arc<VerifyDesk>, rules: Arc<Rules>) -> Verifier {
        Verifier { desk, rules, run: None }
    }

    /// One begins when no work is left, unless one is wanted already.
    pub(super) fn ask(&self, request: VerifyRequest) {
        self.desk.ask(request);
    }

    /// A session begins: what was under way in the last one is read again.
    pub(super) fn begin_session(&mut self) {
        if let Some(run) = &mut self.run {
            run.todo.extend(run.parts.take().map(|parts| parts.task));
            run.todo.extend(run.open.drain().map(|(_, task)| task));
            run.under_way.clear();
            run.heard.clear();
        }
    }

    /// How long until there is something to do, when only time has to pass.
    pub(super) fn due_in(&self) -> Option<Duration> {
        let left = self.run.as_ref()?.ready_at.saturating_duration_since(Instant::now());
        (left > Duration::ZERO).then_some(left)
    }

    /// How it stands.
    pub(super) fn progress(&self) -> Option<VerifyProgress> {
        self.run.as_ref().map(|run| run.progress.clone())
    }

    /// The next step; called when no work is left. Without a view nothing is read. What ended is returned once.
    pub(super) fn step(&mut self, view: Option<&dyn TreeView>) -> (Step, Option<VerifyProgress>) {
        if let Some((id, request)) = self.desk.take() {
            self.run = Some(Run::new(id, request, self.rules.clone()));
        }
        let Some(run) = &mut self.run else { return Default::default() };
        if run.under_way.len() >= MOST_BATCHES || run.ready_at > Instant::now() {
            return Default::default();
        }
        if !run.todo.is_empty() || run.parts.is_some() {
            let readings = view.map(|view| run.read(view)).unwrap_or_default();
            return (Step { readings, ..Step::default() }, None);
        }
        if !run.open.is_empty() {
            return Default::default();
        }
        match run.next_stage() {
            Some(step) => (step, None),
            None => {
                let mut progress = self.run.take().map(|run| run.progress).unwrap_or_default();
                progress.is_done = true;
                self.desk.end();
                (Step::default(), Some(progress))
            }
        }
    }

    /// Whether the next step reads the tree.
    pub(super) fn may_read(&self) -> bool {
        match &self.run {
            None => self.desk.is_wanted(),
            Some(run) => {
                let has_room = run.under_way.len() < MOST_BATCHES && run.ready_at <= Instant::now();
                has_room && (!run.todo.is_empty() || run.parts.is_some())
            }
        }
    }

    /// Whether the tree is being read.
    pub(super) fn is_reading(&self) -> bool {
        self.run.as_ref().is_some_and(|run| run.stage == Stage::FirstLook)
    }

    /// These moved: what may be met nowhere is read for itself.
    pub(super) fn moved(&mut self, view: &dyn TreeView, moved: &[Moved]) {
        let Some(run) = self.run.as_mut().filter(|run| run.stage == Stage::FirstLook) else { return };
        for moved in moved {
            if run.listed.may_miss(moved) {
                run.todo.push(task_of(view, moved));
            }
        }
    }

    /// A batch with the ends of these readings was sent.
    pub(super) fn sent(&mut self, batch: u64, done: Vec<Done>) {
        let Some(run) = &mut self.run else { return };
        let numbers = done.into_iter().filter_map(|done| match done {
            Done::Check(number) => Some(number),
            Done::Nothing | Done::Row(_) | Done::Upto(..) => None,
        });
        run.under_way.push_back((batch, numbers.collect()));
    }

    /// The target has compared a batch. False when it was not sent such a one.
    pub(super) fn checked(&mut self, view: &dyn TreeView, batch: u64, more: u64, found: Vec<Difference>) -> bool {
        let Some(run) = &mut self.run else { return false };
        let Some((sent, numbers)) = run.under_way.pop_front().filter(|(sent, _)| *sent == batch) else { return false };
        debug_assert_eq!(sent, batch);
        for difference in found {
            run.heard.entry(difference.oid).or_default().push(difference);
        }
        for number in numbers {
            if let Some(task) = run.open.remove(&number) {
                let heard = run.heard.remove(&task.oid).unwrap_or_default();
                match heard.is_empty() && more > 0 {
                    // What was found of it may be among what found no place.
                    true => run.look_again(task),
                    false => run.judge(view, task, &heard),
                }
            }
        }
        true
    }
}

impl Run {
    fn new(id: u64, request: VerifyRequest, rules: Arc<Rules>) -> Run {
        let root = Arc::new(Dir { oid: Oid::ROOT, place: Place::Root });
        Run {
            request,
            rules,
            stage: Stage::FirstLook,
            parts: None,
            todo: vec![Task { oid: Oid::ROOT, dir: root, what: What::Tree, tries: 0, looks: 0 }],
            later: Vec::new(),
            suspects: Vec::new(),
            confirmed: BTreeMap::new(),
            open: HashMap::new(),
            last_number: 0,
            under_way: VecDeque::new(),
            heard: HashMap::new(),
            seen: HashSet::new(),
            progress: VerifyProgress { id, ..VerifyProgress::default() },
            ready_at: Instant::now(),
            listed: Listed::default(),
        }
    }

    fn read(&mut self, view: &dyn TreeView) -> Vec<Reading> {
        let (mut readings, mut bytes) = (Vec::new(), 0);
        while bytes < SLICE_BYTES && readings.len() < SLICE_TASKS {
            let Some(read) = self.read_next(view) else { break };
            match read {
                Ok((reading, covered)) => {
                    bytes += covered + reading.bytes() as u64;
                    self.progress.bytes += covered;
                    readings.push(reading);
                }
                Err(errno) => {
                    tracing::warn!(%errno, "an object cannot be read, and is not verified");
                    self.progress.unreadable += 1;
                }
            }
        }
        if let Some(rate) = self.request.bandwidth_bytes {
            let cost = Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
            self.ready_at = self.ready_at.max(Instant::now()) + cost;
        }
        readings
    }

    fn read_next(&mut self, view: &dyn TreeView) -> Option<sys::Result<(Reading, u64)>> {
        if let Some(parts) = self.parts.take() {
            return Some(self.next_part(view, parts).map(|reading| (reading, 0)));
        }
        let task = self.todo.pop()?;
        if self.stage == Stage::FirstLook && task.is_new() {
            self.progress.objects += 1;
        }
        Some(match task.what {
            What::Tree | What::Listing => {
                self.progress.current = task.dir.path();
                let walk = Box::new(DirWalk::new(task.oid, Follow::Children));
                self.next_part(view, Parts { task, walk, children: Vec::new() }).map(|reading| (reading, 0))
            }
            What::Object { offset } => read_check(view, task.oid, offset).map(|(reading, covered)| {
                if let Some(offset) = reading.next {
                    self.todo.push(Task { what: What::Object { offset }, tries: 0, ..task.clone() });
                }
                (self.opened(reading, task), covered)
            }),
            What::Suspect { offset, len } => {
                read_suspect(view, task.oid, offset, len).map(|reading| (self.opened(reading, task), len))
            }
        })
    }

    fn next_part(&mut self, view: &dyn TreeView, mut parts: Parts) -> sys::Result<Reading> {
        let DirReading { stamp, records, mut children, more } = parts.walk.next_part(view)?;
        if !self.rules.is_empty() {
            parts.walk.leave_out(&self.rules, &mut children, view);
        }
        if parts.task.what == What::Tree {
            let dir = parts.task.dir.clone();
            parts.children.extend(children.into_iter().map(|entry| child(&dir, entry.item)));
        }
        let reading = ObjectReading { stamp, records, next: None, covered: 0 };
        if more {
            self.parts = Some(parts);
            return Ok(self.reading(reading, Done::Nothing));
        }
        self.todo.append(&mut parts.children);
        if parts.task.what == What::Tree {
            self.listed.add(parts.task.oid, stamp);
        }
        // Its children are known: when it has to be read again, it is for itself.
        Ok(self.opened(reading, Task { what: What::Listing, tries: parts.task.tries.max(1), ..parts.task }))
    }

    /// The reading, whose answer ends with `task`.
    fn opened(&mut self, reading: ObjectReading, task: Task) -> Reading {
        self.last_number += 1;
        // Whoever reads it again does not count it again.
        self.open.insert(self.last_number, Task { tries: task.tries.max(1), ..task });
        self.reading(reading, Done::Check(self.last_number))
    }

    fn reading(&mut self, reading: ObjectReading, done: Done) -> Reading {
        let ObjectReading { stamp, records, .. } = reading;
        let (first, last) = &mut self.progress.position;
        if *first == Tid::ZERO {
            *first = stamp;
        }
        *last = stamp;
        Reading { stamp, records: records.into(), done, objects: 0, covered: 0, purpose: Purpose::Check }
    }

    /// Nothing is left to read and everything is answered. `None` when the run is over.
    fn next_stage(&mut self) -> Option<Step> {
        if !self.later.is_empty() {
            let tries = self.later.iter().map(|task| task.tries + task.looks).max().unwrap_or(1);
            self.todo = std::mem::take(&mut self.later);
            self.ready_at = Instant::now() + RETRY_STEP * tries;
            return Some(Step { flush: true, ..Step::default() });
        }
        match self.stage {
            Stage::FirstLook | Stage::LookAfterMending => {
                let first = self.stage == Stage::FirstLook;
                self.stage = if first { Stage::SecondLook } else { Stage::LastLook };
                self.todo = std::mem::take(&mut self.suspects);
                // Listings are read first: what they say of a name says all of its object.
                self.todo.sort_by_key(|task| task.what == What::Listing);
                Some(Step::default())
            }
            Stage::SecondLook if self.request.repair == Repair::Yes && !self.confirmed.is_empty() => {
                self.stage = Stage::Mending;
                Some(Step { mend: self.confirmed.values().map(mending).collect(), ..Step::default() })
            }
            Stage::SecondLook => {
                self.progress.left = self.progress.found;
                None
            }
            Stage::Mending => {
                self.stage = Stage::LookAfterMending;
                let again = |task: Task| match task.what {
                    What::Suspect { .. } => Task { what: What::Object { offset: 0 }, tries: 0, ..task },
                    _ => Task { tries: 0, ..task },
                };
                self.todo = std::mem::take(&mut self.confirmed).into_values().map(again).collect();
                Some(Step::default())
            }
            Stage::LastLook => None,
        }
    }
}

/// A task for an object that was moved. Its path is what the kernel says of it.
fn task_of(view: &dyn TreeView, moved: &Moved) -> Task {
    let path = |oid| {
        let fd = view.key_of(oid).ok().flatten().and_then(|key| view.tree().open_key(key, libc::O_PATH).ok());
        fd.and_then(|fd| sys::path_of(fd.as_fd())).map(super::work::inside_root).unwrap_or_default()
    };
    let (dir, what) = match moved.is_dir {
        true => (moved.oid, What::Tree),
        false => (moved.to, What::Object { offset: 0 }),
    };
    let dir = Arc::new(Dir { oid: dir, place: Place::At(path(dir)) });
    Task { oid: moved.oid, dir, what, tries: 0, looks: 0 }
}

fn child(dir: &Arc<Dir>, item: DirItem) -> Task {
    let (dir, what) = match item.shape.is_dir() {
        true => (Arc::new(Dir { oid: item.oid, place: Place::In(dir.clone(), item.name) }), What::Tree),
        false => (dir.clone(), What::Object { offset: 0 }),
    };
    Task { oid: item.oid, dir, what, tries: 0, looks: 0 }
}

/// Mending stands against every TID: the target is no past state of the source until it is done.
fn mending(task: &Task) -> NewWork {
    let kind = match task.what {
        What::Tree | What::Listing => WorkKind::Dir,
        What::Object { .. } | What::Suspect { .. } => WorkKind::Object,
    };
    NewWork { oid: task.oid, kind, reason: WorkReason::Verify, offset: 0, len: 0, created_tid: Tid::ZERO }
}
