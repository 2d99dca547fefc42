//! What the log says of its own past: digests at places, and everything behind a place for a recovery.

use std::sync::Arc;

use parking_lot::Mutex;

use super::files::SegmentFile;
use super::layout::{BLOCK, ChainEnd, FrameHeader, FrameKind, HeaderError, Link};
use super::{Index, Position, SegmentLog, scan};
use crate::base::{ChainDigest, Tid};
use crate::journal::error::JournalError;
use crate::record::{Header, chain};

/// A frame that a walk came to.
struct Met {
    file: Arc<SegmentFile>,
    /// What it continues; also where it begins.
    link: Link,
    header: FrameHeader,
}

/// Whether a walk goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Walk {
    On,
    Done,
}

impl SegmentLog {
    /// Digest of the chain of records up to `tid`; `None` outside of what is kept. The TIDs of a jump belong to the record
    /// before them.
    ///
    /// # Errors
    /// `Io`, `Damaged` or `Record` when the place cannot be read.
    pub fn digest_at(&self, tid: Tid) -> Result<Option<ChainDigest>, JournalError> {
        digest_at(&self.index, tid)
    }

    /// Shows every frame from `from` on to `visit`: where it begins, what it holds, its body.
    ///
    /// # Errors
    /// Those of `visit`; `Io` and `Damaged` when a frame cannot be read; `Trimmed` when `from` is gone.
    pub(in crate::journal) fn scan(
        &self,
        from: Position,
        mut visit: impl FnMut(Position, FrameKind, &[u8]) -> Result<(), JournalError>,
    ) -> Result<(), JournalError> {
        let segments: Vec<_> = {
            let index = self.index.lock();
            if index.segments.front().is_some_and(|oldest| oldest.no > from.segment) {
                return Err(JournalError::Trimmed { oldest: index.oldest() });
            }
            index.segments.iter().filter(|segment| segment.no >= from.segment).map(start_of).collect()
        };
        for (file, link, stop) in segments {
            walk(&file, link, stop, |met| {
                let at = Position { segment: met.link.segment, offset: met.link.offset };
                if at >= from {
                    visit(at, met.header.kind, &body_of(&met)?)?;
                }
                Ok(Walk::On)
            })?;
        }
        Ok(())
    }
}

impl SegmentLog {
    /// Writes everything from `from` on once more and makes it durable. After a sync that failed, pages that never reached
    /// the disk count as clean: only another write gets them there.
    ///
    /// # Errors
    /// `Io`.
    pub(in crate::journal) fn write_again(&self, from: Position) -> Result<(), JournalError> {
        const PIECE: u64 = 1 << 20;
        let segments: Vec<_> = {
            let index = self.index.lock();
            let later = index.segments.iter().filter(|segment| segment.no >= from.segment);
            later.map(|segment| (Arc::clone(&segment.file), segment.no, segment.end)).collect()
        };
        for (file, no, end) in segments {
            let mut at = if no == from.segment { from.offset / BLOCK * BLOCK } else { 0 };
            while at < end {
                let mut piece = vec![0; PIECE.min(end - at) as usize];
                file.read(&mut piece, at)?;
                file.write(&[&piece], at)?;
                at += piece.len() as u64;
            }
            file.sync()?;
        }
        Ok(())
    }
}

/// As [`SegmentLog::digest_at`], by the list of segments.
pub(super) fn digest_at(index: &Mutex<Index>, tid: Tid) -> Result<Option<ChainDigest>, JournalError> {
    let (segments, end) = {
        let index = index.lock();
        if tid < index.oldest() {
            return Ok(None);
        }
        let found = index.segments.iter().rposition(|segment| segment.start.end.tid <= tid);
        let segments: Vec<_> = index.segments.iter().skip(found.unwrap_or(0)).take(1).map(start_of).collect();
        (segments, index.durable)
    };
    if tid >= end.tid {
        return Ok((tid == end.tid).then_some(end.digest));
    }
    let mut found = None;
    for (file, link, stop) in segments {
        found = Some(link.end.digest);
        walk(&file, link, stop, |met| {
            if met.header.first > tid {
                return Ok(Walk::Done);
            }
            let whole = met.header.last <= tid;
            found = Some(if whole { met.header.digest } else { digest_inside(&met, tid)? });
            Ok(if whole { Walk::On } else { Walk::Done })
        })?;
    }
    Ok(found)
}

/// A segment's file, its beginning and its last TID, with its end when that is known exactly.
fn start_of(segment: &super::Segment) -> (Arc<SegmentFile>, Link, Stop) {
    (Arc::clone(&segment.file), segment.start, Stop { last: segment.last, end: segment.end })
}

/// Where the frames of a segment end.
#[derive(Clone, Copy)]
struct Stop {
    /// Last TID in it.
    last: Tid,
    /// No frame begins here or later.
    end: u64,
}

/// Meets the frames of one segment in order. A sealed segment ends with the first place that is no frame, and that must
/// not come before its last TID.
fn walk(
    file: &Arc<SegmentFile>,
    mut link: Link,
    stop: Stop,
    mut meet: impl FnMut(Met) -> Result<Walk, JournalError>,
) -> Result<(), JournalError> {
    while link.offset < stop.end {
        let header = match scan::frame_header(file, &link)? {
            Ok(header) => header,
            Err(_) if link.end.tid >= stop.last => return Ok(()),
            Err(cause) => return Err(damaged(file, link.offset, cause)),
        };
        let next = header.link(link.offset);
        if meet(Met { file: Arc::clone(file), link, header })? == Walk::Done {
            return Ok(());
        }
        link = next;
    }
    Ok(())
}

fn body_of(met: &Met) -> Result<Vec<u8>, JournalError> {
    scan::frame_body(&met.file, &met.header, met.link.offset)?
        .map_err(|cause| damaged(&met.file, met.link.offset, cause))
}

fn damaged(file: &SegmentFile, offset: u64, cause: HeaderError) -> JournalError {
    JournalError::Damaged { path: file.path.clone(), offset, what: cause.to_string() }
}

/// The digest behind the last record of a frame that is not above `tid`.
fn digest_inside(met: &Met, tid: Tid) -> Result<ChainDigest, JournalError> {
    let body = body_of(met)?;
    let record = |cause| JournalError::Record { path: met.file.path.clone(), offset: met.link.offset, cause };
    let mut at = 0;
    while at < body.len() {
        let header = Header::parse(&body[at..]).map_err(record)?;
        if header.tid > tid {
            break;
        }
        at += header.len_bytes;
    }
    chain(met.link.end.digest, &body[..at]).map_err(record)
}

/// The beginning of every history.
impl ChainEnd {
    /// `tid` with nothing known of what came before: where a log begins anew.
    pub fn anew(tid: Tid) -> ChainEnd {
        ChainEnd { tid, digest: ChainDigest::START }
    }
}
