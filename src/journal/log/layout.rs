//! The bytes of segment and frame headers. SEGMENTS.md has the tables.

use zerocopy::little_endian::{I64, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::base::{ChainDigest, EpochId, Tid, VolumeUuid};

/// Everything in a segment begins at a multiple of this, so that no durable block is ever written again.
pub(super) const BLOCK: u64 = 4096;
/// Version of the segment format.
pub(super) const VERSION: u32 = 2;
/// Length of a frame's header; the body follows it.
pub(super) const FRAME_HEADER: usize = size_of::<RawFrame>();
/// Longest body of one frame.
pub(super) const MAX_BODY: usize = 8 << 20;

const SEGMENT_MAGIC: [u8; 8] = *b"DTFSSEG\n";
const FRAME_MAGIC: [u8; 4] = *b"DTFR";

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawSegment {
    magic: [u8; 8],
    version: U32,
    header_bytes: U32,
    volume: [u8; 16],
    epoch: [u8; 16],
    segment: U64,
    base_tid: U64,
    base_digest: [u8; ChainDigest::LEN],
    created_ns: I64,
    segment_bytes: U64,
    reserved: U32,
    header_crc: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawFrame {
    magic: [u8; 4],
    flags: U32,
    segment: U64,
    prev_tid: U64,
    first_tid: U64,
    last_tid: U64,
    digest: [u8; ChainDigest::LEN],
    frame: U32,
    count: U32,
    body_bytes: U32,
    chain: U32,
    body_crc: U32,
    header_crc: U32,
}

/// Where a chain of records ends: its last TID, and the digest of all records up to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ChainEnd {
    /// The last TID.
    pub tid: Tid,
    /// Digest of the records up to it.
    pub digest: ChainDigest,
}

/// What a frame holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::journal) enum FrameKind {
    /// Changes, each with its TID.
    Records,
    /// What concerns this journal only, without TIDs: intents, checkpoints, gaps.
    Local,
}

impl FrameKind {
    fn flags(self) -> u32 {
        match self {
            FrameKind::Records => 0,
            FrameKind::Local => 1,
        }
    }

    fn from_flags(flags: u32) -> Option<FrameKind> {
        match flags {
            0 => Some(FrameKind::Records),
            1 => Some(FrameKind::Local),
            _ => None,
        }
    }

    /// Whether a frame behind `prev` may say that it has the TIDs from `first` to `last`.
    fn allows(self, prev: Tid, first: Tid, last: Tid) -> bool {
        match self {
            FrameKind::Records => first > prev && last >= first,
            FrameKind::Local => first == prev && last == prev,
        }
    }
}

/// What the first block of a segment says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SegmentHeader {
    pub(super) volume: VolumeUuid,
    pub(super) epoch: EpochId,
    pub(super) segment: u64,
    /// The end of the log before this segment.
    pub(super) base: ChainEnd,
    pub(super) created_ns: i64,
    pub(super) segment_bytes: u64,
}

/// What stands before a frame's body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FrameHeader {
    pub(super) segment: u64,
    /// Its number in the segment, from 0.
    pub(super) frame: u32,
    pub(super) kind: FrameKind,
    /// Last TID of the log before this frame.
    pub(super) prev: Tid,
    pub(super) first: Tid,
    pub(super) last: Tid,
    /// Digest of the chain of records behind this frame.
    pub(super) digest: ChainDigest,
    pub(super) count: u32,
    pub(super) body_bytes: u32,
    /// Checksum of the header before: of the frame, or of the segment for the first frame.
    pub(super) chain: u32,
    pub(super) body_crc: u32,
}

/// Why a block is not the header it should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum HeaderError {
    #[error("no header (magic number)")]
    Magic,
    #[error("header checksum is wrong")]
    Checksum,
    #[error("format version {0} is not known")]
    Version(u32),
    #[error("header of segment {0}")]
    Segment(u64),
    #[error("frame number {0} is out of order")]
    Number(u32),
    #[error("does not continue the frame before (chain)")]
    Chain,
    #[error("its TIDs do not continue the frame before")]
    Tids,
    #[error("body length {0} is not allowed")]
    Length(u32),
    #[error("body checksum is wrong")]
    Body,
}

/// Where a reader or writer stands in a segment: what the next frame must continue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Link {
    pub(super) segment: u64,
    pub(super) frame: u32,
    pub(super) chain: u32,
    pub(super) end: ChainEnd,
    pub(super) offset: u64,
}

impl SegmentHeader {
    /// The whole first block.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut raw = RawSegment {
            magic: SEGMENT_MAGIC,
            version: U32::new(VERSION),
            header_bytes: U32::new(BLOCK as u32),
            volume: self.volume.0,
            epoch: self.epoch.0,
            segment: U64::new(self.segment),
            base_tid: U64::new(self.base.tid.0),
            base_digest: self.base.digest.0,
            created_ns: I64::new(self.created_ns),
            segment_bytes: U64::new(self.segment_bytes),
            reserved: U32::new(0),
            header_crc: U32::new(0),
        };
        raw.header_crc = U32::new(crc_before_last_word(raw.as_bytes()));
        let mut block = raw.as_bytes().to_vec();
        block.resize(BLOCK as usize, 0);
        block
    }

    /// Reads the first block; `Magic` when it is none.
    pub(super) fn parse(block: &[u8]) -> Result<SegmentHeader, HeaderError> {
        let (raw, _) = RawSegment::read_from_prefix(block).map_err(|_| HeaderError::Magic)?;
        if raw.magic != SEGMENT_MAGIC {
            return Err(HeaderError::Magic);
        }
        if raw.header_crc.get() != crc_before_last_word(raw.as_bytes()) {
            return Err(HeaderError::Checksum);
        }
        if raw.version.get() != VERSION || u64::from(raw.header_bytes.get()) != BLOCK {
            return Err(HeaderError::Version(raw.version.get()));
        }
        Ok(SegmentHeader {
            volume: VolumeUuid(raw.volume),
            epoch: EpochId(raw.epoch),
            segment: raw.segment.get(),
            base: ChainEnd { tid: Tid(raw.base_tid.get()), digest: ChainDigest(raw.base_digest) },
            created_ns: raw.created_ns.get(),
            segment_bytes: raw.segment_bytes.get(),
        })
    }

    /// Where the first frame goes. Its chain is this header's checksum, which no other use of the file shares: number
    /// and creation time are in it.
    pub(super) fn link(&self) -> Link {
        Link {
            segment: self.segment,
            frame: 0,
            chain: own_checksum(&self.encode()[..size_of::<RawSegment>()]),
            end: self.base,
            offset: BLOCK,
        }
    }
}

impl FrameHeader {
    pub(super) fn encode(&self) -> [u8; FRAME_HEADER] {
        let mut raw = RawFrame {
            magic: FRAME_MAGIC,
            flags: U32::new(self.kind.flags()),
            segment: U64::new(self.segment),
            prev_tid: U64::new(self.prev.0),
            first_tid: U64::new(self.first.0),
            last_tid: U64::new(self.last.0),
            digest: self.digest.0,
            frame: U32::new(self.frame),
            count: U32::new(self.count),
            body_bytes: U32::new(self.body_bytes),
            chain: U32::new(self.chain),
            body_crc: U32::new(self.body_crc),
            header_crc: U32::new(0),
        };
        raw.header_crc = U32::new(crc_before_last_word(raw.as_bytes()));
        zerocopy::transmute!(raw)
    }

    /// Reads a header and checks that it continues `link`: a frame left over from the file's former use never does.
    pub(super) fn parse(bytes: &[u8], link: &Link) -> Result<FrameHeader, HeaderError> {
        let (raw, _) = RawFrame::read_from_prefix(bytes).map_err(|_| HeaderError::Magic)?;
        if raw.magic != FRAME_MAGIC {
            return Err(HeaderError::Magic);
        }
        if raw.header_crc.get() != crc_before_last_word(raw.as_bytes()) {
            return Err(HeaderError::Checksum);
        }
        let kind = FrameKind::from_flags(raw.flags.get()).ok_or(HeaderError::Version(raw.flags.get()))?;
        let header = FrameHeader {
            segment: raw.segment.get(),
            frame: raw.frame.get(),
            kind,
            prev: Tid(raw.prev_tid.get()),
            first: Tid(raw.first_tid.get()),
            last: Tid(raw.last_tid.get()),
            digest: ChainDigest(raw.digest),
            count: raw.count.get(),
            body_bytes: raw.body_bytes.get(),
            chain: raw.chain.get(),
            body_crc: raw.body_crc.get(),
        };
        header.check(link)?;
        Ok(header)
    }

    fn check(&self, link: &Link) -> Result<(), HeaderError> {
        if self.segment != link.segment {
            return Err(HeaderError::Segment(self.segment));
        }
        if self.frame != link.frame {
            return Err(HeaderError::Number(self.frame));
        }
        if self.chain != link.chain {
            return Err(HeaderError::Chain);
        }
        if self.prev != link.end.tid || !self.kind.allows(self.prev, self.first, self.last) {
            return Err(HeaderError::Tids);
        }
        if self.body_bytes as usize > MAX_BODY {
            return Err(HeaderError::Length(self.body_bytes));
        }
        Ok(())
    }

    /// What the frame after this one, which begins at `offset`, must continue.
    pub(super) fn link(&self, offset: u64) -> Link {
        Link {
            segment: self.segment,
            frame: self.frame + 1,
            chain: own_checksum(&self.encode()),
            end: ChainEnd { tid: self.last, digest: self.digest },
            offset: offset + frame_bytes(self.body_bytes as usize),
        }
    }
}

/// Bytes that a frame with a body of `body` bytes takes in its segment.
pub(in crate::journal) fn frame_bytes(body: usize) -> u64 {
    ((FRAME_HEADER + body) as u64).next_multiple_of(BLOCK)
}

/// The checksum that a header carries in its last word. (A checksum over the whole header would be the same number for
/// all headers: a CRC over data followed by its own CRC is a constant.)
fn own_checksum(header: &[u8]) -> u32 {
    crc_before_last_word(header)
}

fn crc_before_last_word(header: &[u8]) -> u32 {
    crc32c::crc32c(&header[..header.len() - 4])
}
