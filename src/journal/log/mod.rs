//! The segment log: frames of records in a directory of recycled files. A source's journal and a target's inbox use it.
//!
//! The directory alone is enough to open it: segments follow each other by number, each header names the last TID
//! before it, and the last file is read to its valid end.

mod files;
mod follow;
mod history;
mod layout;
mod open;
mod reader;
mod scan;
mod writer;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::error::JournalError;
use super::store::{Sealed, SegmentRow};
use crate::base::{EpochId, Tid, VolumeUuid};
use files::{SegmentDir, SegmentFile};
use layout::Link;

pub(super) use files::sync_parent;
pub use follow::{FollowedLog, FollowedReader};
pub use layout::ChainEnd;
pub(super) use layout::{FrameKind, frame_bytes};
pub use reader::{Chunk, SegmentReader};

/// Free files that are kept for the next segments.
const MOST_FREE: usize = 4;

/// How a log is laid out.
#[derive(Clone, Copy, Debug)]
pub struct LogOptions {
    /// Size of a segment file in bytes, a multiple of 4096; the headers lie in it too.
    pub segment_bytes: u64,
    /// Time in the headers of new segments, nanoseconds since 1970; `None` takes the clock. (Tests want known bytes.)
    pub created_ns: Option<i64>,
}

impl Default for LogOptions {
    fn default() -> LogOptions {
        LogOptions { segment_bytes: 64 << 20, created_ns: None }
    }
}

/// A place in the log: where a frame begins or the log ends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Position {
    /// Number of the segment.
    pub segment: u64,
    /// Byte in its file.
    pub offset: u64,
}

/// Room for what comes next, on disk and allocated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Room {
    /// Only the open segment's rest, in bytes.
    Rest(u64),
    /// A whole segment waits, which takes this many bytes of frames.
    Segment(u64),
}

/// A log of frames, open for appending. One process at a time; the caller sees to that.
pub struct SegmentLog {
    dir: SegmentDir,
    volume: VolumeUuid,
    /// What segments that are begun belong to. Rank: a leaf; held for a copy.
    epoch: Mutex<EpochId>,
    options: LogOptions,
    /// Protects the end of the log and the free files. Rank: above `index`, below every lock of the caller but the
    /// store's. Held across writes and syncs of the log's files; readers never take it.
    writer: Mutex<Writer>,
    /// Protects the list of segments. Rank: a leaf. Held for look-ups only, never across a system call.
    index: Arc<Mutex<Index>>,
    /// Writes and syncs of frames so far.
    calls: AtomicU64,
    /// Segments from this number on are kept.
    kept_from: AtomicU64,
}

struct Writer {
    file: Arc<SegmentFile>,
    /// What the next frame continues.
    link: Link,
    /// Files that wait to become segments.
    free: Vec<SegmentFile>,
    /// Something was written since the last sync.
    unsynced: bool,
    /// The first write or sync that failed. Nothing is written after it: a second fsync returns success for pages that
    /// the first one lost.
    failed: Option<String>,
}

/// The segments that hold records, oldest first; the last one is open. Never empty.
struct Index {
    segments: VecDeque<Segment>,
    /// What is on the disk.
    durable: ChainEnd,
}

struct Segment {
    no: u64,
    epoch: EpochId,
    start: Link,
    /// Last TID in it, or before it while it is empty.
    last: Tid,
    /// Where its frames end.
    end: u64,
    file: Arc<SegmentFile>,
}

impl SegmentLog {
    /// Last TID that was appended (durable or not), or the base of an empty log.
    pub fn last_tid(&self) -> Tid {
        self.index.lock().last()
    }

    /// Last TID that was appended and the digest of the chain up to it.
    pub fn chain_end(&self) -> ChainEnd {
        self.writer.lock().link.end
    }

    /// Last TID that is on the disk.
    pub fn durable_tid(&self) -> Tid {
        self.index.lock().durable.tid
    }

    /// The end of the chain that is on the disk.
    pub fn durable_end(&self) -> ChainEnd {
        self.index.lock().durable
    }

    /// The oldest place that can be read from: every record after it is there.
    pub fn oldest_kept(&self) -> Tid {
        self.index.lock().oldest()
    }

    /// Size of the files that hold records, in bytes. Free files do not count.
    pub fn bytes_used(&self) -> u64 {
        let index = self.index.lock();
        index.segments.iter().map(|s| s.file.capacity).sum()
    }

    /// About how many bytes of frames hold records after `tid`.
    pub fn bytes_after(&self, tid: Tid) -> u64 {
        let index = self.index.lock();
        index.segments.iter().map(|segment| segment.bytes_after(tid)).sum()
    }

    /// Where the next frame goes.
    pub fn end(&self) -> Position {
        let writer = self.writer.lock();
        Position { segment: writer.link.segment, offset: writer.link.offset }
    }

    /// Why the log takes nothing more, if so.
    pub fn failed(&self) -> Option<String> {
        self.writer.lock().failed.clone()
    }

    /// Reads from the first record after `after`.
    ///
    /// # Errors
    /// [`JournalError::Trimmed`] when records after `after` are gone; `Io` when the place cannot be found.
    pub fn reader(&self, after: Tid) -> Result<SegmentReader, JournalError> {
        SegmentReader::new(Arc::clone(&self.index), after)
    }

    /// From now on no segment from `no` on is freed.
    pub(super) fn keep_from(&self, no: u64) {
        self.kept_from.store(no, Ordering::Relaxed);
    }

    fn may_go(&self, index: &Index) -> bool {
        let kept = self.kept_from.load(Ordering::Relaxed);
        index.segments.len() > 1 && index.segments[0].no < kept
    }

    /// Segments that are begun from now on belong to `epoch`.
    pub(super) fn set_epoch(&self, epoch: EpochId) {
        *self.epoch.lock() = epoch;
    }

    /// Number of the oldest segment.
    pub(super) fn first_segment(&self) -> u64 {
        self.index.lock().segments.front().map_or(0, |s| s.no)
    }

    /// The file of segment `no`.
    pub(super) fn path_of(&self, no: u64) -> PathBuf {
        self.dir.segment_path(no)
    }

    /// The last TID of the sealed segment that is dropped next, when there is one.
    pub fn oldest_sealed_end(&self) -> Option<Tid> {
        let index = self.index.lock();
        self.may_go(&index).then(|| index.segments[0].last)
    }

    /// The last TID of the segment that holds the first record after `place`.
    pub(super) fn segment_end_after(&self, place: Tid) -> Tid {
        let index = self.index.lock();
        let found = index.segments.iter().find(|segment| segment.last > place);
        found.map_or(index.last(), |segment| segment.last)
    }

    /// The segments as the store's index has them.
    pub(super) fn rows(&self) -> Vec<SegmentRow> {
        let index = self.index.lock();
        let open = index.segments.len() - 1;
        let row = |(at, segment): (usize, &Segment)| SegmentRow {
            no: segment.no,
            file: files::segment_name(segment.no),
            epoch: segment.epoch,
            base: segment.start.end,
            last: segment.last,
            bytes: segment.end,
            sealed: match at == open {
                true => Sealed::Open,
                false => Sealed::Sealed,
            },
        };
        index.segments.iter().enumerate().map(row).collect()
    }
}

impl Segment {
    /// Its bytes behind `tid`, by the share of its TIDs that lie there.
    fn bytes_after(&self, tid: Tid) -> u64 {
        let first = self.start.end.tid;
        let all = self.last.0.saturating_sub(first.0);
        let behind = self.last.0.saturating_sub(tid.max(first).0);
        match all {
            0 => 0,
            all => (u128::from(self.end) * u128::from(behind) / u128::from(all)) as u64,
        }
    }
}

impl Index {
    fn last(&self) -> Tid {
        self.segments.back().map_or(Tid::ZERO, |s| s.last)
    }

    fn oldest(&self) -> Tid {
        self.segments.front().map_or(Tid::ZERO, |s| s.start.end.tid)
    }
}
