//! Opening a log: from a directory of files to the place where the next frame goes.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use parking_lot::Mutex;

use super::files::{SegmentDir, SegmentFile, segment_name};
use super::layout::{BLOCK, HeaderError, Link, SegmentHeader};
use super::{ChainEnd, Index, LogOptions, MOST_FREE, Segment, SegmentLog, Writer, scan};
use crate::base::{EpochId, Timespec, VolumeUuid};
use crate::journal::error::JournalError;

impl SegmentLog {
    /// Opens the log in `dir`, which is created when it is missing. New segments belong to `epoch`.
    ///
    /// A torn end is cut off in silence: it was never durable. Whether the log should reach further is for the caller to
    /// know.
    ///
    /// # Errors
    /// [`JournalError::Damaged`] when a segment is missing or has no header: the log cannot be used, see
    /// [`SegmentLog::open_anew`]. [`JournalError::Foreign`] for another volume's, `Format` for a newer program's files.
    pub fn open(
        dir: &Path,
        volume: VolumeUuid,
        epoch: EpochId,
        options: LogOptions,
    ) -> Result<SegmentLog, JournalError> {
        let dir = SegmentDir::open(dir)?;
        let listing = dir.list()?;
        let mut segments = VecDeque::new();
        for no in &listing.segments {
            segments.push_back(open_segment(&dir, *no, volume)?);
        }
        check_sequence(&dir, &segments)?;
        let free = open_free(&dir, &listing.free, &options);
        if segments.is_empty() {
            return begin(dir, volume, epoch, options, free, (1, ChainEnd::default()));
        }
        seal_all_but_last(&mut segments);
        let Some(last) = segments.back_mut() else {
            return begin(dir, volume, epoch, options, free, (1, ChainEnd::default()));
        };
        let link = scan::find_end(&last.file, last.start)?;
        last.last = link.end.tid;
        last.end = link.offset;
        let file = Arc::clone(&last.file);
        // What the last life wrote but did not sync may be in the page cache only.
        file.sync()?;
        let writer = Writer { file, link, free, unsynced: false, failed: None };
        Ok(assemble(dir, volume, epoch, options, writer, segments))
    }

    /// Throws away whatever lies in `dir` and begins an empty log whose first frame follows `base`. The numbers of the
    /// segments go on, so that no left-over frame can be taken for a new one.
    ///
    /// # Errors
    /// `Io`.
    pub fn open_anew(
        dir: &Path,
        volume: VolumeUuid,
        epoch: EpochId,
        options: LogOptions,
        base: ChainEnd,
    ) -> Result<SegmentLog, JournalError> {
        let dir = SegmentDir::open(dir)?;
        let listing = dir.list()?;
        for no in &listing.segments {
            dir.remove_name(&segment_name(*no))?;
        }
        dir.sync()?;
        let no = listing.segments.last().map_or(1, |last| last + 1);
        let free = open_free(&dir, &listing.free, &options);
        begin(dir, volume, epoch, options, free, (no, base))
    }

    /// The header of a segment that begins now.
    pub(super) fn new_header(&self, no: u64, base: ChainEnd) -> SegmentHeader {
        header(self.volume, *self.epoch.lock(), &self.options, no, base)
    }
}

fn header(volume: VolumeUuid, epoch: EpochId, options: &LogOptions, segment: u64, base: ChainEnd) -> SegmentHeader {
    SegmentHeader {
        volume,
        epoch,
        segment,
        base,
        created_ns: options.created_ns.unwrap_or_else(|| Timespec::now().as_nanos()),
        segment_bytes: options.segment_bytes,
    }
}

fn begin(
    dir: SegmentDir,
    volume: VolumeUuid,
    epoch: EpochId,
    options: LogOptions,
    mut free: Vec<SegmentFile>,
    (no, base): (u64, ChainEnd),
) -> Result<SegmentLog, JournalError> {
    let file = match free.pop() {
        Some(file) => file,
        None => dir.create_free(no, options.segment_bytes)?,
    };
    let header = header(volume, epoch, &options, no, base);
    let file = Arc::new(dir.activate(file, &header)?);
    let link = header.link();
    let segment = new_segment(epoch, link, Arc::clone(&file));
    let writer = Writer { file, link, free, unsynced: false, failed: None };
    Ok(assemble(dir, volume, epoch, options, writer, VecDeque::from([segment])))
}

fn assemble(
    dir: SegmentDir,
    volume: VolumeUuid,
    epoch: EpochId,
    options: LogOptions,
    writer: Writer,
    segments: VecDeque<Segment>,
) -> SegmentLog {
    let durable = writer.link.end;
    SegmentLog {
        dir,
        volume,
        epoch: Mutex::new(epoch),
        options,
        writer: Mutex::new(writer),
        index: Arc::new(Mutex::new(Index { segments, durable })),
        calls: AtomicU64::new(0),
        kept_from: AtomicU64::new(u64::MAX),
    }
}

/// The index entry of a segment without frames.
pub(super) fn new_segment(epoch: EpochId, start: Link, file: Arc<SegmentFile>) -> Segment {
    Segment { no: start.segment, epoch, start, last: start.end.tid, end: BLOCK, file }
}

pub(super) fn open_segment(dir: &SegmentDir, no: u64, volume: VolumeUuid) -> Result<Segment, JournalError> {
    let file = dir.open_file(&segment_name(no))?;
    let header = match scan::segment_header(&file)? {
        Ok(header) if header.segment == no => header,
        Ok(header) => return Err(damaged(&file, HeaderError::Segment(header.segment))),
        Err(HeaderError::Version(found)) => {
            return Err(JournalError::Format {
                path: file.path,
                found: u64::from(found),
                known: u64::from(super::layout::VERSION),
            });
        }
        Err(cause) => return Err(damaged(&file, cause)),
    };
    if header.volume != volume {
        return Err(JournalError::Foreign { path: file.path, found: header.volume });
    }
    Ok(new_segment(header.epoch, header.link(), Arc::new(file)))
}

fn damaged(file: &SegmentFile, cause: HeaderError) -> JournalError {
    JournalError::Damaged { path: file.path.clone(), offset: 0, what: cause.to_string() }
}

/// Numbers without a gap, bases that do not go back.
pub(super) fn check_sequence(dir: &SegmentDir, segments: &VecDeque<Segment>) -> Result<(), JournalError> {
    for (before, after) in segments.iter().zip(segments.iter().skip(1)) {
        let what = match after.no == before.no + 1 {
            false => "the segment is missing".to_owned(),
            true if after.start.end.tid < before.start.end.tid => "the segment after it begins before it".to_owned(),
            true => continue,
        };
        return Err(JournalError::Damaged {
            path: dir.segment_path(before.no + u64::from(after.no != before.no + 1)),
            offset: 0,
            what,
        });
    }
    Ok(())
}

/// A sealed segment ends where the next one says that the log was.
pub(super) fn seal_all_but_last(segments: &mut VecDeque<Segment>) {
    for at in 1..segments.len() {
        segments[at - 1].last = segments[at].start.end.tid;
        segments[at - 1].end = segments[at - 1].file.capacity;
    }
}

/// Free files of the right size; the others go. What cannot be opened is no loss.
fn open_free(dir: &SegmentDir, names: &[String], options: &LogOptions) -> Vec<SegmentFile> {
    let mut free = Vec::new();
    for name in names {
        match dir.open_file(name) {
            Ok(file) if file.capacity == options.segment_bytes && free.len() < MOST_FREE => {
                free.push(file);
            }
            _ => {
                let _ = dir.remove_name(name);
            }
        }
    }
    free
}
