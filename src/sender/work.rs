//! Walks a target's work: takes rows in order, reads their objects.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::SessionError;
use crate::base::Tid;
use crate::catchup::TreeView;
use crate::catchup::{
    Compare, DirReading, DirWalk, Follow, ObjectReading, is_dir, read_changed, read_object, read_range,
};
use crate::journal::{Journal, Level, NewWork, TargetId, WorkKind, WorkReason, WorkRow};
use crate::record::{DirItem, Encoded};
use crate::sys::{self, Errno};

/// What is done with a row once a batch is durable at the target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Done {
    /// Nothing: a part of a directory, which is read from its beginning again when this session ends before its last part.
    Nothing,
    /// The row ends.
    Row(i64),
    /// The row's object is there up to this byte.
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
    pub(super) purpose: Purpose,
}

impl Reading {
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
    journal: &'a Arc<Journal>,
    target: TargetId,
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
}

/// What is still to be read of a row's object.
enum Rest {
    /// From this byte on.
    From(u64),
    /// The parts of a directory that are left.
    Parts(Box<DirWalk>),
}

/// How long a row waits whose object could not be read.
const RETRY_ASIDE: Duration = Duration::from_secs(60);

const PAGE_ROWS: usize = 1024;
/// Readings taken at a time: enough for one commit to serve many, little enough to keep live changes flowing.
const SLICE_BYTES: usize = 2 << 20;
const SLICE_READINGS: usize = 1024;

impl<'a> Walk<'a> {
    pub(super) fn new(view: &'a dyn TreeView, journal: &'a Arc<Journal>, target: TargetId) -> Walk<'a> {
        Walk {
            view,
            journal,
            target,
            page: VecDeque::new(),
            after: 0,
            current: None,
            maybe_more: true,
            aside: Vec::new(),
            aside_since: Instant::now(),
        }
    }

    /// Rows may have been added.
    pub(super) fn look_again(&mut self) {
        self.maybe_more = true;
        if self.aside_since.elapsed() >= RETRY_ASIDE {
            self.page.extend(self.aside.drain(..));
        }
    }

    /// Reads the next objects; nothing when there is no work.
    pub(super) fn read_some(&mut self) -> Result<Vec<Reading>, SessionError> {
        let mut readings = Vec::new();
        let mut bytes = 0;
        let mut children = Vec::new();
        while bytes < SLICE_BYTES && readings.len() < SLICE_READINGS {
            let Some((row, rest)) = self.next_row()? else { break };
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
            self.journal.store().work_insert(self.target, &children)?;
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
                let compare = if row.reason == WorkReason::Mirror { Compare::No } else { Compare::Digests };
                let reading = read_object(self.view, row.oid, offset, compare)?;
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
        let ObjectReading { stamp, records, next } = reading;
        let done = match next {
            None => Done::Row(row.id),
            Some(next) => {
                self.current = Some((*row, Rest::From(next)));
                Done::Upto(row.id, next)
            }
        };
        Reading { stamp, records: records.into(), done, purpose: Purpose::Apply }
    }

    fn begin_dir(&mut self, row: &WorkRow, follow: Follow, children: &mut Vec<NewWork>) -> sys::Result<Reading> {
        self.part(row, Box::new(DirWalk::new(row.oid, follow)), children)
    }

    /// The next part of a directory. No other object is read before its last part: a target takes one listing at a time.
    fn part(&mut self, row: &WorkRow, mut walk: Box<DirWalk>, queue: &mut Vec<NewWork>) -> sys::Result<Reading> {
        let DirReading { stamp, records, children, more } = walk.next_part(self.view)?;
        if walk.follow() == Follow::Children {
            queue.extend(children.iter().map(|item| child_row(row, item)));
        }
        let done = if more { Done::Nothing } else { Done::Row(row.id) };
        self.current = more.then_some((*row, Rest::Parts(walk)));
        Ok(Reading { stamp, records: records.into(), done, purpose: Purpose::Apply })
    }
}

fn child_row(parent: &WorkRow, item: &DirItem) -> NewWork {
    NewWork {
        oid: item.oid,
        kind: if item.shape.is_dir() { WorkKind::Tree } else { WorkKind::Object },
        reason: parent.reason,
        offset: 0,
        len: 0,
        created_tid: parent.created_tid,
    }
}
