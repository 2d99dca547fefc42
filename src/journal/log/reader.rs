//! Reading the records after a place, in order, durable ones only.

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use super::files::SegmentFile;
use super::layout::{FrameHeader, HeaderError, Link};
use super::{FrameKind, Index, scan};
use crate::base::{Tid, faults};
use crate::journal::error::JournalError;
use crate::record::Header;

/// Records that follow each other in the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chunk {
    /// The reader's place before: nothing lies between it and the first record.
    pub prev_tid: Tid,
    /// TID of the first record.
    pub first: Tid,
    /// TID of the last record.
    pub last: Tid,
    /// Number of records.
    pub count: u32,
    /// The encoded records, one behind the other.
    pub body: Vec<u8>,
}

impl Index {
    /// Up to here records may be read: what is not durable may never have happened after a crash.
    fn readable(&self) -> Tid {
        match (faults::skipped("journal.durable_only"), self.segments.back()) {
            (true, Some(open)) => open.last,
            _ => self.durable.tid,
        }
    }
}

/// A place in a log that moves forward. Holds no lock between calls; trimming may overtake it.
pub struct SegmentReader {
    index: Arc<Mutex<Index>>,
    /// Records up to here are not wanted.
    after: Tid,
    /// Last TID handed out, at first `after`.
    at: Tid,
    place: Option<Place>,
    held: Option<Held>,
}

/// Where the next frame begins.
struct Place {
    file: Arc<SegmentFile>,
    link: Link,
}

/// A frame that was read and is not yet handed out, or not to its end.
struct Held {
    header: FrameHeader,
    body: Vec<u8>,
    /// First byte of `body` that is still wanted.
    from: usize,
    path: PathBuf,
    /// Where the frame begins in the file.
    offset: u64,
}

/// Whether a frame's records all went into the chunk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Taken {
    All,
    Part,
}

impl SegmentReader {
    pub(super) fn new(index: Arc<Mutex<Index>>, after: Tid) -> Result<SegmentReader, JournalError> {
        let oldest = index.lock().oldest();
        if after < oldest {
            return Err(JournalError::Trimmed { oldest });
        }
        Ok(SegmentReader { index, after, at: after, place: None, held: None })
    }

    /// Last TID handed out, or where the reader began.
    pub fn at(&self) -> Tid {
        self.at
    }

    /// The next durable records with TIDs up to `upto`: at most `max_bytes` of them, but at least one record. `None`
    /// when there is none yet.
    ///
    /// # Errors
    /// [`JournalError::Trimmed`] when trimming has overtaken the reader; `Damaged` or `Record` when durable bytes are
    /// not what was written. The reader stays where it was.
    pub fn next_chunk(&mut self, upto: Tid, max_bytes: usize) -> Result<Option<Chunk>, JournalError> {
        let chunk = self.fill(upto, max_bytes);
        if chunk.is_err() {
            // Part of a frame may have been taken into a chunk that nobody got.
            self.held = None;
            self.place = None;
            self.after = self.at;
        }
        chunk
    }

    fn fill(&mut self, upto: Tid, max_bytes: usize) -> Result<Option<Chunk>, JournalError> {
        let limit = upto.min(self.index.lock().readable());
        let mut chunk = Chunk { prev_tid: self.at, first: Tid::ZERO, last: self.at, count: 0, body: Vec::new() };
        while chunk.body.len() < max_bytes.max(1) && self.load(chunk.last, limit)? {
            let Some(held) = &mut self.held else { break };
            let taken = held.give(&mut chunk, self.after, limit, max_bytes)?;
            match taken {
                Taken::All => self.held = None,
                Taken::Part => break,
            }
        }
        if chunk.count == 0 {
            return Ok(None);
        }
        self.at = chunk.last;
        Ok(Some(chunk))
    }

    /// Sees to it that a frame is held; false when none is there up to `limit`.
    fn load(&mut self, at: Tid, limit: Tid) -> Result<bool, JournalError> {
        while self.held.is_none() {
            if at >= limit || !self.find_place(at)? {
                return Ok(false);
            }
            self.read_frame()?;
        }
        Ok(true)
    }

    /// Moves to the segment in which the next frame lies; false at the end of the log.
    fn find_place(&mut self, at: Tid) -> Result<bool, JournalError> {
        let index = self.index.lock();
        let trimmed = JournalError::Trimmed { oldest: index.oldest() };
        let Some(place) = &mut self.place else {
            let found = index.segments.iter().rev().find(|s| s.start.end.tid <= at);
            let segment = found.ok_or(trimmed)?;
            self.place = Some(Place { file: Arc::clone(&segment.file), link: segment.start });
            return Ok(segment.last > segment.start.end.tid);
        };
        let no = place.link.segment;
        let Some(here) = index.segments.iter().position(|s| s.no == no) else {
            return Err(trimmed);
        };
        if place.link.end.tid < index.segments[here].last {
            return Ok(true);
        }
        let Some(next) = index.segments.get(here + 1) else {
            return Ok(false);
        };
        place.file = Arc::clone(&next.file);
        place.link = next.start;
        Ok(next.last > next.start.end.tid)
    }

    /// Reads the frame at the place, or steps over it when it is not wanted.
    fn read_frame(&mut self) -> Result<(), JournalError> {
        let Some(place) = &mut self.place else {
            return Ok(());
        };
        let offset = place.link.offset;
        let damaged = |cause: HeaderError| JournalError::Damaged {
            path: place.file.path.clone(),
            offset,
            what: cause.to_string(),
        };
        let header = scan::frame_header(&place.file, &place.link)?.map_err(damaged)?;
        if header.kind == FrameKind::Records && header.last > self.after {
            let body = scan::frame_body(&place.file, &header, offset)?.map_err(damaged)?;
            self.held = Some(Held { header, body, from: 0, path: place.file.path.clone(), offset });
        }
        place.link = header.link(offset);
        Ok(())
    }
}

impl Held {
    /// Moves records into `chunk`: the whole frame at once where it fits, else record by record.
    fn give(&mut self, chunk: &mut Chunk, after: Tid, limit: Tid, max_bytes: usize) -> Result<Taken, JournalError> {
        let whole = self.from == 0 && self.header.first > after && self.header.last <= limit;
        if !whole || chunk.body.len() + self.body.len() > max_bytes {
            return self.give_records(chunk, after, limit, max_bytes);
        }
        if chunk.count == 0 {
            chunk.first = self.header.first;
        }
        chunk.last = self.header.last;
        chunk.count += self.header.count;
        match chunk.body.is_empty() {
            true => chunk.body = std::mem::take(&mut self.body),
            false => chunk.body.extend_from_slice(&self.body),
        }
        Ok(Taken::All)
    }

    fn give_records(
        &mut self,
        chunk: &mut Chunk,
        after: Tid,
        limit: Tid,
        max_bytes: usize,
    ) -> Result<Taken, JournalError> {
        while self.from < self.body.len() {
            let rest = &self.body[self.from..];
            let record = Header::parse(rest).map_err(|cause| JournalError::Record {
                path: self.path.clone(),
                offset: self.offset,
                cause,
            })?;
            let full = chunk.count > 0 && chunk.body.len() + record.len_bytes > max_bytes;
            if record.tid > limit || (full && record.tid > after) {
                return Ok(Taken::Part);
            }
            if record.tid > after {
                if chunk.count == 0 {
                    chunk.first = record.tid;
                }
                chunk.last = record.tid;
                chunk.count += 1;
                chunk.body.extend_from_slice(&rest[..record.len_bytes]);
            }
            self.from += record.len_bytes;
        }
        Ok(Taken::All)
    }
}
