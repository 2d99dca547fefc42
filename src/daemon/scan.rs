//! After a mount: what was changed while the volume was not mounted becomes work, in the background.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::watched::{Moment, Unwatched};
use crate::base::{Oid, Tid, faults};
use crate::catchup::{Changed, ChangedSince};
use crate::config::VolumeName;
use crate::journal::{Journal, JournalError, Level, NewWork, TargetId, WorkKind, WorkReason};
use crate::record::{DecodeError, Op, RecordIter};
use crate::sender::SenderHandle;
use crate::stack::Stack;
use crate::sys::Errno;

/// A scan that runs or has ended. Dropping it stops it.
pub(super) struct Scan {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What a scan works with.
pub(super) struct ScanJob {
    pub(super) name: VolumeName,
    pub(super) journal: Arc<Journal>,
    pub(super) stack: Arc<Stack>,
    /// Where to look.
    pub(super) unwatched: Unwatched,
    /// When the mount was in place: once every row is queued, the next scan starts here.
    pub(super) mounted: Moment,
    /// Objects that are compared whatever their ctime says.
    pub(super) suspects: Vec<Oid>,
    pub(super) senders: Vec<SenderHandle>,
}

#[derive(Debug, thiserror::Error)]
enum ScanError {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("read the tree: {0}")]
    Tree(#[from] Errno),
    #[error(transparent)]
    Record(#[from] DecodeError),
}

/// Rows that are written together.
const ROWS: usize = 1024;
/// Records read at a time.
const CHUNK_BYTES: usize = 1 << 20;

impl Scan {
    /// Starts `job` on a thread of its own.
    pub(super) fn start(job: ScanJob) -> std::io::Result<Scan> {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (stopped, finished) = (stop.clone(), done.clone());
        let thread = std::thread::Builder::new()
            .name("dtfs-scan".into())
            .spawn(move || finished.store(job.run(&stopped), Ordering::Release))?;
        Ok(Scan { stop, done, thread: Some(thread) })
    }

    /// Whether everything that it found is queued.
    pub(super) fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }
}

impl Scan {
    /// Whether it ended without having queued everything.
    pub(super) fn has_failed(&self) -> bool {
        !self.is_done() && self.thread.as_ref().is_none_or(JoinHandle::is_finished) && !self.is_done()
    }
}

impl Drop for Scan {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl ScanJob {
    /// True when everything is queued.
    fn run(&self, stop: &AtomicBool) -> bool {
        let outcome = self.queue(stop).or_else(|error| {
            tracing::warn!(volume = %self.name, %error, "the scan for changes failed: everything is compared");
            self.compare_all("the scan for changes made while not mounted failed").map(|()| true)
        });
        let queued = outcome.and_then(|queued| match queued {
            true => self.mounted.store(self.journal.store()).map(|()| true),
            false => Ok(false),
        });
        self.senders.iter().for_each(SenderHandle::work_added);
        queued.unwrap_or_else(|error| {
            tracing::error!(volume = %self.name, %error, "changes made while not mounted are not known");
            false
        })
    }

    /// False when it was stopped before the end.
    fn queue(&self, stop: &AtomicBool) -> Result<bool, ScanError> {
        // A target that gets its place from now on reads the tree behind the mount.
        let targets = self.journal.store().targets()?;
        let targets: Vec<TargetId> = targets.iter().filter(|target| target.mirrored).map(|target| target.id).collect();
        match &self.unwatched {
            _ if targets.is_empty() || faults::skipped("daemon.scan") => Ok(true),
            Unwatched::Anywhere(why) => Ok(self.compare_all(why).map(|()| true)?),
            Unwatched::Since(since) => {
                let start = self.journal.last_tid();
                let mut rows = Rows { journal: &self.journal, targets, created: start, waiting: Vec::new(), count: 0 };
                self.suspects.iter().try_for_each(|oid| rows.add(*oid, WorkKind::Object))?;
                let mut walk = ChangedSince::new(&*self.stack, *since);
                let whole = self.follow(&mut walk, &mut rows, start, stop)?;
                self.tell(rows.count)?;
                Ok(whole)
            }
        }
    }

    fn compare_all(&self, why: &str) -> Result<(), JournalError> {
        tracing::warn!(volume = %self.name, why, "every target is compared");
        self.journal.store().work_compare_all(self.journal.last_tid(), why)
    }

    fn tell(&self, objects: usize) -> Result<(), JournalError> {
        if objects == 0 {
            return Ok(());
        }
        let text = format!("{objects} objects may have changed while the volume was not mounted: they are compared");
        tracing::info!(volume = %self.name, "{text}");
        self.journal.store().event(Level::Info, None, &text)
    }

    /// Walks the tree, and then whatever was moved meanwhile: it may have gone from where the walk had not been to where
    /// it had been already.
    ///
    /// Directories come last and children before parents: a target that is told of a new entry then has the object.
    fn follow(
        &self,
        walk: &mut ChangedSince<'_>,
        rows: &mut Rows<'_>,
        mut seen: Tid,
        stop: &AtomicBool,
    ) -> Result<bool, ScanError> {
        let mut dirs = Vec::new();
        loop {
            if !self.walk(walk, rows, &mut dirs, stop)? {
                return Ok(false);
            }
            let now = self.journal.last_tid();
            if !self.moved(seen, now, walk, rows)? {
                break;
            }
            seen = now;
        }
        let mut queued = HashSet::new();
        for oid in dirs.into_iter().rev().filter(|oid| queued.insert(*oid)) {
            rows.add(oid, WorkKind::Dir)?;
        }
        rows.write()?;
        Ok(true)
    }

    fn walk(
        &self,
        walk: &mut ChangedSince<'_>,
        rows: &mut Rows<'_>,
        dirs: &mut Vec<Oid>,
        stop: &AtomicBool,
    ) -> Result<bool, ScanError> {
        let mut written = Ok(());
        while !stop.load(Ordering::Relaxed) {
            let more = walk.step(&mut |changed| {
                match changed {
                    Changed::Dir(oid) => dirs.push(oid),
                    Changed::Object(oid) => written = rows.add(oid, WorkKind::Object),
                }
                written.is_ok() && !stop.load(Ordering::Relaxed)
            })?;
            std::mem::replace(&mut written, Ok(()))?;
            if !more && !stop.load(Ordering::Relaxed) {
                rows.write()?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes what was moved or linked between two TIDs; true when a directory has to be walked.
    fn moved(
        &self,
        after: Tid,
        upto: Tid,
        walk: &mut ChangedSince<'_>,
        rows: &mut Rows<'_>,
    ) -> Result<bool, ScanError> {
        let mut again = false;
        self.journal.commit(upto)?;
        let mut reader = self.journal.reader(after)?;
        while let Some(chunk) = reader.next_chunk(upto, CHUNK_BYTES)? {
            for record in RecordIter::new(&chunk.body) {
                let record = record?;
                let (a, b) = match &record.op {
                    Op::Rename { shape, .. } | Op::Link { shape, .. } => (Some((record.oid, shape)), None),
                    Op::Exchange { shape, other, other_shape, .. } => {
                        (Some((record.oid, shape)), Some((*other, other_shape)))
                    }
                    _ => (None, None),
                };
                for (oid, shape) in a.into_iter().chain(b) {
                    if shape.is_dir() {
                        walk.also(oid);
                        again = true;
                    } else {
                        rows.add(oid, WorkKind::Object)?;
                    }
                }
            }
        }
        rows.write()?;
        Ok(again)
    }
}

/// Rows on their way to the store, the same for every target.
struct Rows<'a> {
    journal: &'a Journal,
    targets: Vec<TargetId>,
    created: Tid,
    waiting: Vec<NewWork>,
    count: usize,
}

impl Rows<'_> {
    fn add(&mut self, oid: Oid, kind: WorkKind) -> Result<(), JournalError> {
        self.waiting.push(compare(oid, kind, self.created));
        self.count += 1;
        if self.waiting.len() < ROWS {
            return Ok(());
        }
        self.write()
    }

    fn write(&mut self) -> Result<(), JournalError> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        for target in &self.targets {
            self.journal.store().work_renew(*target, &self.waiting)?;
        }
        self.waiting.clear();
        Ok(())
    }
}

/// A row that compares one object.
pub(super) fn compare(oid: Oid, kind: WorkKind, created_tid: Tid) -> NewWork {
    NewWork { oid, kind, reason: WorkReason::Verify, offset: 0, len: 0, created_tid }
}
