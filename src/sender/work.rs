//! Walks a target's work: takes rows in order, reads their objects.
//!
//! A directory's row stands for the small files in it too: they are read right behind its listing, in the order of their inode
//! numbers, which is how they lie on the disk, and the row ends with the last of them. So a tree costs a row a directory.
//! The row's offset says up to which inode number they are durable at the target: a session that begins there lists the
//! directory again and goes on behind it. Nothing that the listing queues ends before the directory's own row, so what is
//! queued once more is there still. Large files, and the files of a large directory, get rows of their own.

use std::collections::{HashMap, VecDeque};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::SessionError;
use super::mirror::Hold;
use super::moved::{Listed, Moved};
use super::session::Parts;
use crate::base::{Oid, Rules, Tid, faults};
use crate::catchup::TreeView;
use crate::catchup::{
    CHUNK_BYTES, Child, Compare, DirReading, DirWalk, Follow, ObjectReading, is_dir, read_changed, read_object,
    read_range,
};
use crate::journal::{Level, NewWork, Replay, TargetId, WorkKind, WorkReason, WorkRow};
use crate::record::Encoded;
use crate::sys::{self, Errno};

/// What is done with a row once a batch is durable at the target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Done {
    /// Nothing: a part of a directory, or an object in it, which is read again when this session ends before its row does.
    Nothing,
    /// The row ends.
    Row(i64),
    /// The row's object is there up to this byte; the files in a directory up to this inode number.
    Upto(i64, u64),
    /// A reading of a verification, by its number.
    Check(u64),
}

/// What a target does with a reading.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    /// It takes it over.
    Apply,
    /// It compares it.
    Check,
}

/// A reading that waits to be sent.
pub(super) struct Reading {
    pub(super) stamp: Tid,
    pub(super) records: VecDeque<Encoded>,
    /// What its last record ends.
    pub(super) done: Done,
    /// Objects that are read whole with it.
    pub(super) objects: u64,
    /// Bytes of their content that it stands for.
    pub(super) covered: u64,
    pub(super) purpose: Purpose,
}

impl Reading {
    /// Nothing, at its place in the stream.
    fn empty(stamp: Tid) -> Reading {
        Reading {
            stamp,
            records: VecDeque::new(),
            done: Done::Nothing,
            objects: 0,
            covered: 0,
            purpose: Purpose::Apply,
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.records.iter().map(|record| record.bytes().len()).sum()
    }

    /// Moves records into a batch until it has `limit` bytes, at least one into an empty one. True when none is left.
    pub(super) fn give(&mut self, body: &mut Vec<u8>, limit: usize) -> bool {
        while let Some(record) = self.records.front() {
            if !body.is_empty() && body.len() + record.bytes().len() > limit {
                return false;
            }
            body.extend_from_slice(record.bytes());
            self.records.pop_front();
        }
        true
    }
}

pub(super) struct Walk<'a> {
    view: &'a dyn TreeView,
    journal: &'a Arc<dyn Replay>,
    target: TargetId,
    rules: &'a Rules,
    /// Rows that were fetched.
    page: VecDeque<WorkRow>,
    /// The last row that was fetched.
    after: i64,
    /// The row whose object is being read.
    current: Option<(WorkRow, Rest)>,
    /// Whether rows may be there that were not fetched.
    maybe_more: bool,
    /// Rows whose object could not be read, and since when the first of them waits.
    aside: Vec<WorkRow>,
    aside_since: Instant,
    hold: Hold,
    /// The directory or file that is being read, for people.
    current_path: Vec<u8>,
    /// The whole tree has begun to be read.
    begins_tree: bool,
    /// Why directories are read with what is in them, if any is or may be.
    tree: Option<WorkReason>,
    /// Those that this walk has read and the target has, with what is read under their rows.
    listed: Listed,
    /// Those that were read and whose rows have not ended, by the rows.
    listing: HashMap<i64, (Oid, Tid)>,
}

/// What is still to be read of a row's object.
enum Rest {
    /// From this byte on.
    From(u64),
    /// The parts of a directory that are left.
    Parts(Box<DirWalk>),
    /// The objects in a directory that are read under its row.
    Inside(Inside),
}

/// Objects in a directory that are left to be read under its row.
struct Inside {
    oids: VecDeque<Oid>,
    /// Bytes read since progress was last noted.
    unnoted_bytes: usize,
}

/// How long a row waits whose object could not be read.
const RETRY_ASIDE: Duration = Duration::from_secs(60);

const PAGE_ROWS: usize = 1024;
/// Readings taken at a time: enough for one commit to serve many, little enough to keep live changes flowing.
const SLICE_BYTES: usize = 2 << 20;
const SLICE_READINGS: usize = 1024;
/// Most data of the files that are read under the row of their directory.
const INSIDE_BYTES: u64 = 32 << 20;
/// After so many bytes it is noted how far they are read: that much is sent once more when the session ends badly.
const NOTE_BYTES: usize = 1 << 20;

impl<'a> Walk<'a> {
    pub(super) fn new(parts: &Parts<'a>, hold: Hold) -> Result<Walk<'a>, SessionError> {
        Walk::of((parts.view, &parts.options.rules), parts.journal, parts.options.target, hold)
    }

    fn of(
        (view, rules): (&'a dyn TreeView, &'a Rules),
        journal: &'a Arc<dyn Replay>,
        target: TargetId,
        hold: Hold,
    ) -> Result<Walk<'a>, SessionError> {
        let tree = journal.store().tree_work(target)?;
        Ok(Walk {
            view,
            journal,
            target,
            rules,
            page: VecDeque::new(),
            after: 0,
            current: None,
            maybe_more: true,
            aside: Vec::new(),
            aside_since: Instant::now(),
            hold,
            current_path: Vec::new(),
            begins_tree: false,
            tree,
            listed: Listed::default(),
            listing: HashMap::new(),
        })
    }

    /// Rows may have been added.
    pub(super) fn look_again(&mut self) {
        self.maybe_more = true;
        if self.aside_since.elapsed() >= RETRY_ASIDE {
            self.page.extend(self.aside.drain(..));
        }
    }

    /// Rows went, or are not to be worked on any more, or are again: begins with the first that is there.
    pub(super) fn begin_again(&mut self, hold: Hold) -> Result<(), SessionError> {
        // What is only paused and goes on keeps its place.
        if hold == Hold::Stopped || hold == Hold::Running && self.hold != Hold::Paused {
            *self = Walk::of((self.view, self.rules), self.journal, self.target, hold)?;
        }
        self.hold = hold;
        Ok(())
    }

    /// Rows for what `moved` from where it was not read to where it may never be: none when no tree is being read.
    pub(super) fn missed(&self, moved: &[Moved]) -> Vec<NewWork> {
        let Some(reason) = self.tree else { return Vec::new() };
        let row = |moved: &Moved| NewWork {
            oid: moved.oid,
            kind: if moved.is_dir { WorkKind::Tree } else { WorkKind::Object },
            reason,
            offset: 0,
            len: 0,
            created_tid: Tid::ZERO,
        };
        moved.iter().filter(|moved| self.listed.may_miss(moved)).map(row).collect()
    }

    /// These rows have ended: what was read under them is durable at the target. Only now may what leaves a directory go
    /// without a row of its own: what was sent is read again when the session ends before, and then it is not there.
    pub(super) fn ended(&mut self, rows: &[i64]) {
        for row in rows {
            if let Some((dir, stamp)) = self.listing.remove(row).filter(|_| self.tree.is_some()) {
                self.listed.add(dir, stamp);
            }
        }
    }

    /// Why a tree is being read, if one is.
    pub(super) fn tree(&self) -> Option<WorkReason> {
        self.tree
    }

    /// Whether there may be something to read now.
    pub(super) fn may_read(&self) -> bool {
        !self.is_held() && (self.maybe_more || self.current.is_some() || !self.page.is_empty())
    }

    /// Whether nothing is read although there may be work.
    pub(super) fn is_held(&self) -> bool {
        self.hold != Hold::Running
    }

    /// What is being read.
    pub(super) fn current_path(&self) -> &[u8] {
        &self.current_path
    }

    /// Whether the whole tree has begun to be read since this was last asked.
    pub(super) fn begins_tree(&mut self) -> bool {
        std::mem::take(&mut self.begins_tree)
    }

    /// Reads the next objects; nothing when there is no work.
    pub(super) fn read_some(&mut self) -> Result<Vec<Reading>, SessionError> {
        if self.is_held() {
            return Ok(Vec::new());
        }
        let mut readings = Vec::new();
        let mut bytes = 0;
        let mut children = Vec::new();
        while bytes < SLICE_BYTES && readings.len() < SLICE_READINGS {
            let Some((row, rest)) = self.next_row()? else {
                // What is put aside has been read in part only.
                if self.aside.is_empty() && children.is_empty() && self.listing.is_empty() {
                    (self.tree, self.listed) = (None, Listed::default());
                }
                break;
            };
            match self.read(&row, rest, &mut children) {
                Ok(reading) => {
                    bytes += reading.bytes();
                    readings.push(reading);
                }
                Err(errno) => self.put_aside(row, errno)?,
            }
        }
        if !children.is_empty() {
            // Queued before the listing can be acknowledged, so that no child is ever forgotten.
            let store = self.journal.store();
            match self.rules.is_empty() || faults::skipped("sender.listed_again") {
                true => drop(store.work_insert_soon(self.target, &children)?),
                // One that was sent before the listing may be given up by then: it had no name inside that the target knew.
                false => store.work_insert_unread(self.target, &children, self.after)?,
            }
            self.maybe_more = true;
        }
        Ok(readings)
    }

    fn next_row(&mut self) -> Result<Option<(WorkRow, Rest)>, SessionError> {
        if let Some(current) = self.current.take() {
            return Ok(Some(current));
        }
        if self.page.is_empty() && self.maybe_more {
            let rows = self.journal.store().work_next(self.target, self.after, PAGE_ROWS)?;
            self.maybe_more = !rows.is_empty();
            self.after = rows.last().map_or(self.after, |row| row.id);
            self.page = rows.into();
        }
        Ok(self.page.pop_front().map(|row| (row, Rest::From(row.offset))))
    }

    /// An object that cannot be read stands against the target's being consistent, and against nothing else: its row stays
    /// and is tried again in a while.
    fn put_aside(&mut self, row: WorkRow, errno: Errno) -> Result<(), SessionError> {
        if self.aside.is_empty() {
            self.aside_since = Instant::now();
        }
        let text = format!("object {} cannot be read: {errno}; it is tried again", row.oid);
        tracing::warn!(oid = %row.oid, %errno, "an object cannot be read");
        self.journal.store().event(Level::Warning, Some(self.target), &text)?;
        self.aside.push(row);
        Ok(())
    }

    fn read(&mut self, row: &WorkRow, rest: Rest, children: &mut Vec<NewWork>) -> sys::Result<Reading> {
        let offset = match rest {
            Rest::From(offset) => offset,
            Rest::Parts(walk) => return self.part(row, walk, children),
            Rest::Inside(inside) => return Ok(self.inside(row, inside, children)),
        };
        match row.kind {
            WorkKind::Tree => self.begin_dir(row, Follow::Children, children),
            WorkKind::Dir => self.begin_dir(row, Follow::Nothing, children),
            WorkKind::Object if row.reason != WorkReason::Mirror && offset == 0 && is_dir(self.view, row.oid) => {
                // What a crash left in doubt may be a directory: its entries are compared, what is in them is not.
                let follow = if row.reason == WorkReason::Need { Follow::Children } else { Follow::Nothing };
                self.begin_dir(row, follow, children)
            }
            WorkKind::Object => {
                let reading = read_object(self.view, row.oid, offset, compare(row))?;
                Ok(self.piece(row, reading))
            }
            WorkKind::Range => {
                let len = (row.offset + row.len).saturating_sub(offset);
                let read = if row.reason == WorkReason::Need { read_range } else { read_changed };
                let reading = read(self.view, row.oid, offset, len)?;
                Ok(self.piece(row, reading))
            }
        }
    }

    fn piece(&mut self, row: &WorkRow, reading: ObjectReading) -> Reading {
        let ObjectReading { stamp, records, next, covered } = reading;
        let done = match next {
            None => Done::Row(row.id),
            Some(next) => {
                self.note_path(row.oid);
                self.current = Some((*row, Rest::From(next)));
                Done::Upto(row.id, next)
            }
        };
        Reading {
            stamp,
            records: records.into(),
            done,
            objects: u64::from(next.is_none()),
            covered,
            purpose: Purpose::Apply,
        }
    }

    /// A file that takes a while is being read.
    fn note_path(&mut self, oid: Oid) {
        let fd = self.view.key_of(oid).ok().flatten().and_then(|key| self.view.tree().open_key(key, libc::O_PATH).ok());
        if let Some(path) = fd.and_then(|fd| sys::path_of(fd.as_fd())) {
            self.current_path = inside_root(path);
        }
    }

    fn begin_dir(&mut self, row: &WorkRow, follow: Follow, children: &mut Vec<NewWork>) -> sys::Result<Reading> {
        self.part(row, Box::new(DirWalk::new(row.oid, follow)), children)
    }

    /// The next part of a directory. No other object is read before its last part: a target takes one listing at a time.
    fn part(&mut self, row: &WorkRow, mut walk: Box<DirWalk>, queue: &mut Vec<NewWork>) -> sys::Result<Reading> {
        let is_begun = walk.has_begun();
        if walk.follow() == Follow::Children {
            self.tree = Some(row.reason);
        }
        self.begins_tree |= !is_begun && (row.oid, row.kind) == (Oid::ROOT, WorkKind::Tree);
        let DirReading { stamp, records, mut children, more } = walk.next_part(self.view)?;
        if !self.rules.is_empty() {
            // Only what need not be read: what is sent is decided at the stamp's place in the stream.
            walk.leave_out(self.rules, &mut children, self.view);
        }
        self.current_path = walk.path().map(inside_root).unwrap_or_default();
        let mut oids = VecDeque::new();
        if walk.follow() == Follow::Children {
            if !more {
                self.listing.insert(row.id, (row.oid, stamp));
            }
            let room = if more || is_begun { 0 } else { INSIDE_BYTES };
            oids = divide(row, &children, room, queue);
        }
        let rest = match more {
            true => Some(Rest::Parts(walk)),
            false => (!oids.is_empty()).then_some(Rest::Inside(Inside { oids, unnoted_bytes: 0 })),
        };
        let done = if rest.is_some() { Done::Nothing } else { Done::Row(row.id) };
        self.current = rest.map(|rest| (*row, rest));
        Ok(Reading {
            stamp,
            records: records.into(),
            done,
            objects: u64::from(!more),
            covered: 0,
            purpose: Purpose::Apply,
        })
    }

    /// The next object in a directory. One that has grown, or cannot be read, gets a row of its own.
    fn inside(&mut self, row: &WorkRow, mut inside: Inside, queue: &mut Vec<NewWork>) -> Reading {
        let mut reading = Reading::empty(self.view.stamp());
        let mut last = 0;
        while let Some(oid) = inside.oids.pop_front() {
            last = oid.ino;
            match read_object(self.view, oid, 0, compare(row)) {
                Ok(ObjectReading { stamp, records, next: None, covered }) => {
                    reading = Reading { stamp, records: records.into(), objects: 1, covered, ..reading };
                    break;
                }
                Ok(_) | Err(_) => queue.push(row_of(row, oid, WorkKind::Object)),
            }
        }
        inside.unnoted_bytes += reading.bytes();
        if inside.oids.is_empty() {
            reading.done = Done::Row(row.id);
            return reading;
        }
        // What a target asked for is read again from its beginning: its row does not say that it is a directory.
        if inside.unnoted_bytes >= NOTE_BYTES && row.kind == WorkKind::Tree {
            inside.unnoted_bytes = 0;
            reading.done = Done::Upto(row.id, last);
        }
        self.current = Some((*row, Rest::Inside(inside)));
        reading
    }
}

/// What of a directory's entries is read under its row and is not there yet, at most `room_bytes` of data; the others are
/// queued.
fn divide(row: &WorkRow, children: &[Child], room_bytes: u64, queue: &mut Vec<NewWork>) -> VecDeque<Oid> {
    let (mut inside, mut left) = (Vec::new(), room_bytes);
    for Child { item, bytes } in children {
        let kind = if item.shape.is_dir() { WorkKind::Tree } else { WorkKind::Object };
        match kind {
            // Where attributes are believed no content is read.
            WorkKind::Object if room_bytes > 0 && row.reason == WorkReason::Difference => inside.push(item.oid),
            WorkKind::Object if room_bytes > 0 && *bytes <= CHUNK_BYTES.min(left) => {
                left -= bytes;
                inside.push(item.oid);
            }
            kind => queue.push(row_of(row, item.oid, kind)),
        }
    }
    inside.retain(|oid| row.kind != WorkKind::Tree || oid.ino > row.offset);
    // All are of one filesystem and there at once, so no two have one number; a file may have two names here.
    inside.sort_unstable_by_key(|oid| oid.ino);
    inside.dedup();
    inside.into()
}

/// The kernel tells paths from the root of the tree's own mount on.
pub(super) fn inside_root(path: PathBuf) -> Vec<u8> {
    let path = path.into_os_string().into_vec();
    path.strip_prefix(b"/").map(<[u8]>::to_vec).unwrap_or(path)
}

fn compare(row: &WorkRow) -> Compare {
    match row.reason {
        WorkReason::Mirror => Compare::No,
        WorkReason::Difference => Compare::Attributes,
        WorkReason::Verify | WorkReason::Need => Compare::Digests,
    }
}

/// A row for an object in the directory of row `parent`.
fn row_of(parent: &WorkRow, oid: Oid, kind: WorkKind) -> NewWork {
    NewWork { oid, kind, reason: parent.reason, offset: 0, len: 0, created_tid: parent.created_tid }
}
