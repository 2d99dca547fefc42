//! Reading frames one by one, and finding where a segment ends.

use nix::errno::Errno;

use super::files::SegmentFile;
use super::layout::{BLOCK, FRAME_HEADER, FrameHeader, FrameKind, HeaderError, Link, SegmentHeader};
use crate::journal::error::JournalError;
use crate::record::chain;

/// Reads and checks the first block. The inner result tells a wrong block from a disk that cannot be read.
pub(super) fn segment_header(file: &SegmentFile) -> Result<Result<SegmentHeader, HeaderError>, JournalError> {
    let mut block = vec![0; BLOCK as usize];
    match file.read(&mut block, 0) {
        Err(JournalError::Io { errno: Errno::ENODATA, .. }) => Ok(Err(HeaderError::Magic)),
        Err(error) => Err(error),
        Ok(()) => Ok(SegmentHeader::parse(&block)),
    }
}

/// Reads the header of the frame that continues `link`.
pub(super) fn frame_header(file: &SegmentFile, link: &Link) -> Result<Result<FrameHeader, HeaderError>, JournalError> {
    if link.offset + FRAME_HEADER as u64 > file.capacity {
        return Ok(Err(HeaderError::Magic));
    }
    let mut bytes = [0; FRAME_HEADER];
    match file.read(&mut bytes, link.offset) {
        Err(JournalError::Io { errno: Errno::ENODATA, .. }) => Ok(Err(HeaderError::Magic)),
        Err(error) => Err(error),
        Ok(()) => Ok(FrameHeader::parse(&bytes, link)),
    }
}

/// Reads the body of a frame at `offset` and checks it.
pub(super) fn frame_body(
    file: &SegmentFile,
    header: &FrameHeader,
    offset: u64,
) -> Result<Result<Vec<u8>, HeaderError>, JournalError> {
    let start = offset + FRAME_HEADER as u64;
    if start + u64::from(header.body_bytes) > file.capacity {
        return Ok(Err(HeaderError::Length(header.body_bytes)));
    }
    let mut body = vec![0; header.body_bytes as usize];
    match file.read(&mut body, start) {
        Err(JournalError::Io { errno: Errno::ENODATA, .. }) => return Ok(Err(HeaderError::Body)),
        Err(error) => return Err(error),
        Ok(()) => {}
    }
    match crc32c::crc32c(&body) == header.body_crc {
        true => Ok(Ok(body)),
        false => Ok(Err(HeaderError::Body)),
    }
}

/// Whether the records of a frame lead from the digest before it to the one that it names.
fn continues(header: &FrameHeader, link: &Link, body: &[u8]) -> bool {
    match header.kind {
        FrameKind::Local => header.digest == link.end.digest,
        FrameKind::Records => chain(link.end.digest, body) == Ok(header.digest),
    }
}

/// Walks the frames from `link` to the first that is not one: where the segment ends.
pub(super) fn find_end(file: &SegmentFile, mut link: Link) -> Result<Link, JournalError> {
    loop {
        let Ok(header) = frame_header(file, &link)? else {
            return Ok(link);
        };
        match frame_body(file, &header, link.offset)? {
            Ok(body) if continues(&header, &link, &body) => {}
            _ => return Ok(link),
        }
        link = header.link(link.offset);
    }
}
