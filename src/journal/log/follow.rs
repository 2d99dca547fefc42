//! A log that another process writes: only read here, as far as that process says.
//!
//! The directory tells which segments there are; where the last one that counts ends is what the writer has said. So bytes
//! behind that place, which may be half written, are never looked at. A file that the writer has taken for another segment
//! does not continue what was read before, and is told from damage by looking at the directory once more.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use super::layout::ChainEnd;
use super::open::{check_sequence, open_segment, seal_all_but_last};
use super::{Chunk, Index, Segment, SegmentDir, SegmentReader};
use crate::base::{ChainDigest, Tid, VolumeUuid};
use crate::journal::error::JournalError;
use parking_lot::Mutex;

/// Segments of another process's log.
pub struct FollowedLog {
    dir: SegmentDir,
    volume: VolumeUuid,
    index: Arc<Mutex<Index>>,
}

/// A place in a followed log that moves forward.
pub struct FollowedReader {
    inner: SegmentReader,
}

impl FollowedLog {
    /// The log in `dir`, which ends at `end` as far as its writer says.
    ///
    /// # Errors
    /// As [`FollowedLog::refresh`].
    pub fn open(dir: &Path, volume: VolumeUuid, end: ChainEnd) -> Result<FollowedLog, JournalError> {
        let dir = SegmentDir::open(dir)?;
        let segments = segments_of(&dir, volume, &VecDeque::new(), end)?;
        Ok(FollowedLog { dir, volume, index: Arc::new(Mutex::new(Index { segments, durable: end })) })
    }

    /// The writer says that the log ends at `end`.
    ///
    /// # Errors
    /// `Io` or `Damaged`, also while the writer is taking files into use or away; then the next call may succeed.
    pub fn refresh(&self, end: ChainEnd) -> Result<(), JournalError> {
        let known: VecDeque<Segment> = self.index.lock().segments.iter().map(Segment::again).collect();
        let segments = segments_of(&self.dir, self.volume, &known, end)?;
        let mut index = self.index.lock();
        (index.segments, index.durable) = (segments, end);
        Ok(())
    }

    /// The end that was last said.
    pub fn end(&self) -> ChainEnd {
        self.index.lock().durable
    }

    /// The oldest place that can be read from.
    pub fn oldest_kept(&self) -> Tid {
        self.index.lock().oldest()
    }

    /// About how many bytes of frames hold records after `tid`.
    pub fn bytes_after(&self, tid: Tid) -> u64 {
        self.index.lock().segments.iter().map(|segment| segment.bytes_after(tid)).sum()
    }

    /// Digest of the chain of records up to `tid`; `None` outside of what is kept.
    ///
    /// # Errors
    /// `Io`, `Damaged` or `Record` when the place cannot be read.
    pub fn digest_at(&self, tid: Tid) -> Result<Option<ChainDigest>, JournalError> {
        super::history::digest_at(&self.index, tid)
    }

    /// Reads from the first record after `after`.
    ///
    /// # Errors
    /// [`JournalError::Trimmed`] when that is gone.
    pub fn reader(&self, after: Tid) -> Result<FollowedReader, JournalError> {
        Ok(FollowedReader { inner: SegmentReader::new(Arc::clone(&self.index), after)? })
    }
}

impl FollowedReader {
    /// As [`SegmentReader::next_chunk`]; what looks like damage is `Trimmed` when `log` does not reach back to this place
    /// any more.
    ///
    /// # Errors
    /// As that.
    pub fn next_chunk(
        &mut self,
        log: &FollowedLog,
        upto: Tid,
        max_bytes: usize,
    ) -> Result<Option<Chunk>, JournalError> {
        let result = self.inner.next_chunk(upto, max_bytes);
        if let Err(JournalError::Damaged { .. } | JournalError::Record { .. }) = &result {
            log.refresh(log.end())?;
            let oldest = log.oldest_kept();
            if self.inner.at() < oldest {
                return Err(JournalError::Trimmed { oldest });
            }
        }
        result
    }
}

impl Segment {
    /// The same segment, for another list.
    fn again(&self) -> Segment {
        Segment { file: Arc::clone(&self.file), ..*self }
    }
}

/// The segments in `dir` up to the one that holds `end`; files of `known` are not opened again.
fn segments_of(
    dir: &SegmentDir,
    volume: VolumeUuid,
    known: &VecDeque<Segment>,
    end: ChainEnd,
) -> Result<VecDeque<Segment>, JournalError> {
    let mut segments = VecDeque::new();
    for no in dir.list()?.segments {
        let open = known.iter().find(|segment| segment.no == no);
        segments.push_back(match open {
            Some(open) => open.again(),
            None => open_segment(dir, no, volume)?,
        });
    }
    check_sequence(dir, &segments)?;
    seal_all_but_last(&mut segments);
    while segments.len() > 1 && segments.back().is_some_and(|segment| segment.start.end.tid > end.tid) {
        segments.pop_back();
    }
    let Some(last) = segments.back_mut() else {
        let what = "the log has no segment".to_owned();
        return Err(JournalError::Damaged { path: dir.segment_path(0), offset: 0, what });
    };
    last.last = end.tid.max(last.start.end.tid);
    last.end = last.file.capacity;
    Ok(segments)
}
