//! Appending, syncing, going on to the next segment, trimming.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::files::SegmentFile;
use super::layout::{BLOCK, FRAME_HEADER, FrameHeader, MAX_BODY, frame_bytes};
use super::open::new_segment;
use super::{ChainEnd, FrameKind, MOST_FREE, Position, Room, Segment, SegmentLog, Writer};
use crate::base::Tid;
use crate::journal::error::{JournalError, std_io};
use crate::record::{DecodeError, chain};

const PADDING: [u8; BLOCK as usize] = [0; BLOCK as usize];

/// A frame that is to be appended.
struct NewFrame {
    kind: FrameKind,
    first: Tid,
    /// The chain behind it.
    end: ChainEnd,
    count: u32,
}

impl SegmentLog {
    /// Longest body that one frame of this log takes.
    pub fn max_body(&self) -> usize {
        let room = self.options.segment_bytes - BLOCK - FRAME_HEADER as u64;
        MAX_BODY.min(usize::try_from(room).unwrap_or(MAX_BODY))
    }

    /// Appends one frame: `count` encoded records with TIDs `first` to `last`, `parts` put together. `prev` must be the
    /// log's last TID. Durable after [`SegmentLog::sync`]; nothing of `parts` is copied.
    ///
    /// # Errors
    /// `Order` and `TooLarge` change nothing, nor does a disk that has no space for another segment (`Io` with ENOSPC).
    /// Any other `Io` latches the log: every later call answers `Failed`.
    pub fn append(
        &self,
        prev: Tid,
        first: Tid,
        last: Tid,
        count: u32,
        parts: &[&[u8]],
    ) -> Result<Position, JournalError> {
        let mut writer = self.writer.lock();
        writer.check()?;
        if prev != writer.link.end.tid || first <= prev || last < first {
            return Err(JournalError::Order { prev, expected: writer.link.end.tid });
        }
        self.check_body(parts)?;
        let mut digest = writer.link.end.digest;
        for part in parts {
            digest = chain(digest, part).map_err(|cause| self.refused(&writer, cause))?;
        }
        let frame = NewFrame { kind: FrameKind::Records, first, end: ChainEnd { tid: last, digest }, count };
        self.append_frame(&mut writer, &frame, parts)
    }

    /// Appends one frame of `count` local records, encoded one behind the other in `body`. Where it begins is returned.
    ///
    /// # Errors
    /// As [`SegmentLog::append`].
    pub(in crate::journal) fn append_local(&self, count: u32, body: &[u8]) -> Result<Position, JournalError> {
        let mut writer = self.writer.lock();
        writer.check()?;
        let end = writer.link.end;
        let frame = NewFrame { kind: FrameKind::Local, first: end.tid, end, count };
        self.append_frame(&mut writer, &frame, &[body])
    }

    fn refused(&self, writer: &Writer, cause: DecodeError) -> JournalError {
        JournalError::Record { path: writer.file.path.clone(), offset: writer.link.offset, cause }
    }

    fn check_body(&self, parts: &[&[u8]]) -> Result<usize, JournalError> {
        let body = parts.iter().map(|part| part.len()).sum();
        match self.max_body() {
            most if body > most => Err(JournalError::TooLarge { bytes: body, most }),
            _ => Ok(body),
        }
    }

    fn append_frame(&self, writer: &mut Writer, frame: &NewFrame, parts: &[&[u8]]) -> Result<Position, JournalError> {
        let body = self.check_body(parts)?;
        if writer.link.offset + frame_bytes(body) > writer.file.capacity {
            self.next_segment(writer)?;
        }
        let crc = parts.iter().fold(0, |crc, part| crc32c::crc32c_append(crc, part));
        let header = FrameHeader {
            segment: writer.link.segment,
            frame: writer.link.frame,
            kind: frame.kind,
            prev: writer.link.end.tid,
            first: frame.first,
            last: frame.end.tid,
            digest: frame.end.digest,
            count: frame.count,
            body_bytes: body as u32,
            chain: writer.link.chain,
            body_crc: crc,
        };
        self.write_frame(writer, &header, parts)
    }

    /// Begins to write to the disk what was appended since `from`, where the log ended then. Waits for nothing: what comes of
    /// it, [`SegmentLog::sync`] finds out.
    pub(in crate::journal) fn start_writeback(&self, from: Position) {
        let writer = self.writer.lock();
        let offset = if writer.link.segment == from.segment { from.offset } else { 0 };
        writer.file.start_writeback(offset);
    }

    /// Makes every frame durable; returns the last durable TID.
    ///
    /// # Errors
    /// `Io` latches the log: what was written may be lost although a second sync would say otherwise.
    pub fn sync(&self) -> Result<Tid, JournalError> {
        let mut writer = self.writer.lock();
        writer.check()?;
        self.sync_file(&mut writer)?;
        Ok(writer.link.end.tid)
    }

    /// System calls that wrote or synced frames since the log was opened.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Goes on in a new segment, so that the one that is open now can be trimmed.
    ///
    /// # Errors
    /// As [`SegmentLog::append`].
    pub(in crate::journal) fn seal(&self) -> Result<(), JournalError> {
        let mut writer = self.writer.lock();
        writer.check()?;
        match writer.link.offset > BLOCK {
            true => self.next_segment(&mut writer),
            false => Ok(()),
        }
    }

    /// Sees to it that a free file waits for the next segment.
    ///
    /// # Errors
    /// `Io` with ENOSPC when the disk has no room for one; nothing is changed then.
    pub(in crate::journal) fn prepare(&self) -> Result<(), JournalError> {
        let mut writer = self.writer.lock();
        writer.check()?;
        self.need_free(&mut writer)
    }

    /// Room that is allocated for what comes next.
    pub(in crate::journal) fn room(&self) -> Room {
        let writer = self.writer.lock();
        match writer.free.is_empty() {
            true => Room::Rest(writer.file.capacity.saturating_sub(writer.link.offset)),
            false => Room::Segment(self.options.segment_bytes - BLOCK),
        }
    }

    /// Frees the sealed segments whose records all have TIDs up to `tid`.
    ///
    /// # Errors
    /// `Io`; then some segments are freed, the oldest first, and the others are still there for a later call.
    pub fn trim_upto(&self, tid: Tid) -> Result<(), JournalError> {
        let mut writer = self.writer.lock();
        self.free_oldest(&mut writer, tid)
    }

    /// Throws all records away; the next frame follows `base`.
    ///
    /// # Errors
    /// `Io`; `Failed`.
    pub fn reset(&self, base: ChainEnd) -> Result<(), JournalError> {
        let mut writer = self.writer.lock();
        writer.check()?;
        self.need_free(&mut writer)?;
        // The oldest first: whatever a crash leaves is a shorter log without a gap.
        self.free_oldest(&mut writer, Tid(u64::MAX))?;
        let removed = remove_name(&writer.file.path).and_then(|()| self.dir.sync());
        // What is appended to a file without a name is lost.
        writer.latch(removed)?;
        writer.link.end = base;
        self.begin_segment(&mut writer)?;
        let mut index = self.index.lock();
        index.segments.pop_front();
        index.durable = base;
        Ok(())
    }

    fn write_frame(
        &self,
        writer: &mut Writer,
        header: &FrameHeader,
        parts: &[&[u8]],
    ) -> Result<Position, JournalError> {
        let offset = writer.link.offset;
        let encoded = header.encode();
        let body = header.body_bytes as usize;
        let padding = frame_bytes(body) as usize - FRAME_HEADER - body;
        let mut all = Vec::with_capacity(parts.len() + 3);
        all.push(&encoded[..]);
        all.extend_from_slice(parts);
        all.push(&PADDING[..padding]);
        all.push(writer.file.ahead(offset, offset + frame_bytes(body)));
        self.calls.fetch_add(1, Ordering::Relaxed);
        let written = writer.file.write(&all, offset);
        writer.latch(written)?;
        writer.unsynced = true;
        writer.link = header.link(offset);
        let mut index = self.index.lock();
        if let Some(open) = index.segments.back_mut() {
            open.last = writer.link.end.tid;
            open.end = writer.link.offset;
        }
        Ok(Position { segment: header.segment, offset })
    }

    fn sync_file(&self, writer: &mut Writer) -> Result<(), JournalError> {
        if writer.unsynced {
            self.calls.fetch_add(1, Ordering::Relaxed);
            let synced = writer.file.sync();
            writer.latch(synced)?;
            writer.unsynced = false;
        }
        self.index.lock().durable = writer.link.end;
        Ok(())
    }

    /// The open segment is full: seals it and goes on in the next.
    fn next_segment(&self, writer: &mut Writer) -> Result<(), JournalError> {
        self.need_free(writer)?;
        self.sync_file(writer)?;
        self.begin_segment(writer)
    }

    /// Takes a free file as the next segment. A failure latches: names and headers are in doubt then.
    fn begin_segment(&self, writer: &mut Writer) -> Result<(), JournalError> {
        let file = match writer.free.pop() {
            Some(file) => file,
            None => self.dir.create_free(writer.unused_number(), self.options.segment_bytes)?,
        };
        let header = self.new_header(writer.link.segment + 1, writer.link.end);
        let activated = self.dir.activate(file, &header);
        let file = Arc::new(writer.latch(activated)?);
        writer.file = Arc::clone(&file);
        writer.link = header.link();
        writer.unsynced = false;
        let segment = new_segment(*self.epoch.lock(), writer.link, file);
        self.index.lock().segments.push_back(segment);
        Ok(())
    }

    fn need_free(&self, writer: &mut Writer) -> Result<(), JournalError> {
        if writer.free.is_empty() {
            let bytes = self.options.segment_bytes;
            let file = self.dir.create_free(writer.unused_number(), bytes)?;
            writer.free.push(file);
        }
        Ok(())
    }

    /// Takes the oldest segment out of the index when it is sealed and ends by `tid`. Readers see it no more.
    fn take_oldest(&self, tid: Tid) -> Option<Segment> {
        let mut index = self.index.lock();
        match self.may_go(&index) && index.segments[0].last <= tid {
            true => index.segments.pop_front(),
            false => None,
        }
    }

    /// Frees segments as [`SegmentLog::trim_upto`] does. One that cannot be freed stays where it was: a newer one that went
    /// before it would leave a gap, and a log with a gap is damage.
    fn free_oldest(&self, writer: &mut Writer, tid: Tid) -> Result<(), JournalError> {
        while let Some(segment) = self.take_oldest(tid) {
            if let Err((file, error)) = self.free_file(writer, segment.file) {
                self.index.lock().segments.push_front(Segment { file, ..segment });
                return Err(*error);
            }
        }
        Ok(())
    }

    /// Keeps the file for a later segment. One that a reader still holds is removed instead: it must not see its bytes
    /// change.
    fn free_file(
        &self,
        writer: &mut Writer,
        file: Arc<SegmentFile>,
    ) -> Result<(), (Arc<SegmentFile>, Box<JournalError>)> {
        let usable = writer.free.len() < MOST_FREE && file.capacity == self.options.segment_bytes;
        let file = match Arc::try_unwrap(file) {
            Ok(mut file) if usable => match self.dir.retire(&mut file, writer.unused_number()) {
                Ok(()) => {
                    writer.free.push(file);
                    return Ok(());
                }
                Err(error) => return Err((Arc::new(file), Box::new(error))),
            },
            Ok(file) => Arc::new(file),
            Err(shared) => shared,
        };
        remove_name(&file.path).map_err(|error| (file, Box::new(error)))
    }
}

fn remove_name(path: &Path) -> Result<(), JournalError> {
    std::fs::remove_file(path).map_err(std_io("remove", path))
}

impl Writer {
    /// A number that no free file is named by. Segment numbers would not do: a file that was made for one segment can
    /// become another, and the first one's number then comes back while a free file still has it.
    fn unused_number(&self) -> u64 {
        let taken = |no: &u64| self.free.iter().any(|file| file.is_named_free(*no));
        (0..).find(|no| !taken(no)).unwrap_or_default()
    }

    fn check(&self) -> Result<(), JournalError> {
        match &self.failed {
            None => Ok(()),
            Some(reason) => Err(JournalError::Failed { reason: reason.clone() }),
        }
    }

    fn latch<T>(&mut self, result: Result<T, JournalError>) -> Result<T, JournalError> {
        if let Err(error) = &result {
            self.failed = Some(error.to_string());
        }
        result
    }
}
