//! From bytes to a [`Record`], trusting nothing.

use super::codec::{DecodeError, FieldReader};
use super::op::{Attrs, DirItem, Fate, Instead, Op, Replaced, Shape, Slot, Xattr};
use super::{MAX_PAYLOAD_BYTES, MAX_RECORD_BYTES, RESERVED_DIR, RESERVED_XATTR_PREFIX};
use crate::base::{ChainDigest, Oid, Tid};
use crate::sys::InodeFlags;

/// Length of a record's header.
pub(super) const HEADER_BYTES: usize = 56;
/// Payload kind: the bytes follow the fields. Other kinds are reserved for payloads kept elsewhere.
pub(super) const PAYLOAD_INLINE: u16 = 1;
/// Kind of a change that rules keep from a target.
pub(super) const FILTERED: u16 = 24;

/// Where the header's fields are; FORMAT.md has the table.
pub(super) mod header_offset {
    pub(in super::super) const LENGTH: usize = 0;
    pub(in super::super) const KIND: usize = 4;
    pub(in super::super) const FLAGS: usize = 6;
    pub(in super::super) const TID: usize = 8;
    pub(in super::super) const TIME: usize = 16;
    pub(in super::super) const OID: usize = 24;
    pub(in super::super) const FIELDS_LEN: usize = 40;
    pub(in super::super) const PAYLOAD_LEN: usize = 44;
    pub(in super::super) const PAYLOAD_CRC: usize = 48;
    pub(in super::super) const HEADER_CRC: usize = 52;
}

/// The fixed part of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Length of the whole record in bytes.
    pub len_bytes: usize,
    /// Number of the kind (FORMAT.md).
    pub kind: u16,
    /// The change's TID, or the stamp of a state record.
    pub tid: Tid,
    /// When it was made, nanoseconds since 1970.
    pub time_ns: i64,
    /// The object it is about.
    pub oid: Oid,
    fields_len: usize,
    payload_len: usize,
    payload_crc: u32,
}

/// One decoded record. The payload still lies in the bytes it was read from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record<'a> {
    /// The change's TID, or the stamp of a state record.
    pub tid: Tid,
    /// When it was made, nanoseconds since 1970.
    pub time_ns: i64,
    /// The object it is about.
    pub oid: Oid,
    /// What happened.
    pub op: Op,
    /// The bytes of a write.
    pub payload: &'a [u8],
}

pub(super) fn header_crc(record: &[u8]) -> u32 {
    let fields_len = u32::from_le_bytes(array(record, header_offset::FIELDS_LEN)) as usize;
    let crc = crc32c::crc32c(&record[..header_offset::HEADER_CRC]);
    crc32c::crc32c_append(crc, &record[HEADER_BYTES..HEADER_BYTES + fields_len])
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

impl Header {
    /// Whether this can be the end of an object: unlink, rename or gone.
    pub fn may_end_an_object(&self) -> bool {
        matches!(self.kind, 3 | 4 | 23 | FILTERED)
    }

    /// What the digest of the chain goes on with: the record's header, or that of the change which was kept back.
    fn digested(&self, record: &[u8]) -> Result<[u8; HEADER_BYTES], DecodeError> {
        match self.kind {
            FILTERED => {
                FieldReader::new(&record[HEADER_BYTES..HEADER_BYTES + self.fields_len]).fixed("original header")
            }
            _ => Ok(array(record, 0)),
        }
    }

    /// Reads and checks the header (and the fields' checksum) of the record at the start of `bytes`.
    ///
    /// # Errors
    /// [`DecodeError`] when the record is cut, too long, inconsistent or damaged.
    pub fn parse(bytes: &[u8]) -> Result<Header, DecodeError> {
        let mut reader = FieldReader::new(bytes);
        reader.take("record header", HEADER_BYTES)?;
        let len_bytes = u32::from_le_bytes(array(bytes, header_offset::LENGTH)) as usize;
        let fields_len = u32::from_le_bytes(array(bytes, header_offset::FIELDS_LEN)) as usize;
        let payload_len = u32::from_le_bytes(array(bytes, header_offset::PAYLOAD_LEN)) as usize;
        let bad = |what, offset, value: usize| DecodeError::Value { what, offset, value: value as u64 };
        if len_bytes > MAX_RECORD_BYTES {
            return Err(bad("record length", header_offset::LENGTH, len_bytes));
        }
        if payload_len > MAX_PAYLOAD_BYTES {
            return Err(bad("payload length", header_offset::PAYLOAD_LEN, payload_len));
        }
        if fields_len > MAX_RECORD_BYTES || (HEADER_BYTES + fields_len + payload_len).next_multiple_of(8) != len_bytes {
            return Err(bad("fields length", header_offset::FIELDS_LEN, fields_len));
        }
        if len_bytes > bytes.len() {
            return Err(DecodeError::Short { what: "record", offset: 0, needed: len_bytes, left: bytes.len() });
        }
        let expected = header_crc(bytes);
        let found = u32::from_le_bytes(array(bytes, header_offset::HEADER_CRC));
        if expected != found {
            return Err(DecodeError::Checksum { what: "record", expected, found });
        }
        let flags = u16::from_le_bytes(array(bytes, header_offset::FLAGS));
        if flags != if payload_len == 0 { 0 } else { PAYLOAD_INLINE } {
            return Err(bad("payload kind", header_offset::FLAGS, usize::from(flags)));
        }
        Ok(Header {
            len_bytes,
            kind: u16::from_le_bytes(array(bytes, header_offset::KIND)),
            tid: Tid(u64::from_le_bytes(array(bytes, header_offset::TID))),
            time_ns: i64::from_le_bytes(array(bytes, header_offset::TIME)),
            oid: Oid::from_bytes(array(bytes, header_offset::OID)),
            fields_len,
            payload_len,
            payload_crc: u32::from_le_bytes(array(bytes, header_offset::PAYLOAD_CRC)),
        })
    }
}

/// The digest behind all records in `body`, encoded one behind the other, when it is `digest` before them.
///
/// # Errors
/// [`DecodeError`] when one of them is cut or damaged.
pub fn chain(mut digest: ChainDigest, mut body: &[u8]) -> Result<ChainDigest, DecodeError> {
    while !body.is_empty() {
        let header = Header::parse(body)?;
        digest = digest.then(&header.digested(body)?);
        body = &body[header.len_bytes..];
    }
    Ok(digest)
}

impl<'a> Record<'a> {
    /// Decodes the record at the start of `bytes`; also says how many bytes it has.
    ///
    /// # Errors
    /// [`DecodeError`] when anything about it is not as it should be.
    pub fn parse(bytes: &'a [u8]) -> Result<(Record<'a>, usize), DecodeError> {
        let header = Header::parse(bytes)?;
        let fields = &bytes[HEADER_BYTES..HEADER_BYTES + header.fields_len];
        let payload = &bytes[HEADER_BYTES + header.fields_len..][..header.payload_len];
        let found = crc32c::crc32c(payload);
        if found != header.payload_crc {
            return Err(DecodeError::Checksum { what: "payload", expected: header.payload_crc, found });
        }
        let padding = &bytes[HEADER_BYTES + header.fields_len + header.payload_len..header.len_bytes];
        if let Some(byte) = padding.iter().find(|byte| **byte != 0) {
            let offset = header.len_bytes - padding.len();
            return Err(DecodeError::Value { what: "padding", offset, value: u64::from(*byte) });
        }
        let mut reader = FieldReader::new(fields);
        let op = take_op(&mut reader, header.kind)?;
        reader.end()?;
        let carries = matches!(op, Op::Write { .. } | Op::StateData { .. });
        if !carries && !payload.is_empty() {
            return Err(DecodeError::Value { what: "payload length", offset: 0, value: payload.len() as u64 });
        }
        check_range(&op, payload.len())?;
        Ok((Record { tid: header.tid, time_ns: header.time_ns, oid: header.oid, op, payload }, header.len_bytes))
    }
}

/// A write must end where a file can end.
fn check_range(op: &Op, payload_len: usize) -> Result<(), DecodeError> {
    let (offset, len) = match op {
        Op::Write { offset, .. } | Op::StateData { offset, .. } => (*offset, payload_len as u64),
        Op::Allocate { offset, len, .. } | Op::StateHole { offset, len, .. } | Op::StateHash { offset, len, .. } => {
            (*offset, *len)
        }
        _ => return Ok(()),
    };
    match offset.checked_add(len).is_some_and(|end| i64::try_from(end).is_ok()) {
        true => Ok(()),
        false => Err(DecodeError::Value { what: "end of range", offset: 0, value: offset }),
    }
}

/// Walks the records that lie one behind the other in a frame's body.
pub struct RecordIter<'a> {
    rest: &'a [u8],
}

impl<'a> RecordIter<'a> {
    /// Starts at the first byte of `body`.
    pub fn new(body: &'a [u8]) -> RecordIter<'a> {
        RecordIter { rest: body }
    }
}

impl<'a> Iterator for RecordIter<'a> {
    type Item = Result<Record<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        match Record::parse(self.rest) {
            Ok((record, len)) => {
                self.rest = &self.rest[len..];
                Some(Ok(record))
            }
            Err(error) => {
                self.rest = &[];
                Some(Err(error))
            }
        }
    }
}

fn take_op(r: &mut FieldReader<'_>, kind: u16) -> Result<Op, DecodeError> {
    match kind {
        1..=5 => take_namespace_op(r, kind),
        16..=23 => take_object_op(r, kind),
        FILTERED => take_filtered(r),
        32..=41 => take_state_op(r, kind),
        _ => Err(DecodeError::Value { what: "record kind", offset: 0, value: u64::from(kind) }),
    }
}

fn take_namespace_op(r: &mut FieldReader<'_>, kind: u16) -> Result<Op, DecodeError> {
    let from = take_slot(r)?;
    Ok(match kind {
        1 => Op::Create {
            slot: from,
            shape: take_shape(r)?,
            attrs: take_attrs(r)?,
            xattrs: take_xattrs(r)?,
            flags: take_flags(r)?,
            parent_after: take_attrs(r)?,
        },
        2 => Op::Link { slot: from, shape: take_shape(r)?, attrs: take_attrs(r)?, parent_after: take_attrs(r)? },
        3 => Op::Unlink { slot: from, fate: take_fate(r)?, parent_after: take_attrs(r)? },
        4 => Op::Rename {
            from,
            to: take_slot(r)?,
            shape: take_shape(r)?,
            attrs: take_attrs(r)?,
            replaced: match r.flag("replaced")? {
                false => None,
                true => Some(Replaced { oid: r.oid("replaced")?, fate: take_fate(r)? }),
            },
            from_after: take_attrs(r)?,
            to_after: take_attrs(r)?,
        },
        _ => Op::Exchange {
            from,
            to: take_slot(r)?,
            shape: take_shape(r)?,
            attrs: take_attrs(r)?,
            other: r.oid("other object")?,
            other_shape: take_shape(r)?,
            other_attrs: take_attrs(r)?,
            from_after: take_attrs(r)?,
            to_after: take_attrs(r)?,
        },
    })
}

fn take_object_op(r: &mut FieldReader<'_>, kind: u16) -> Result<Op, DecodeError> {
    Ok(match kind {
        16 => Op::Write { offset: r.file_u64("offset")?, attrs: take_attrs(r)? },
        17 => Op::Truncate { attrs: take_attrs(r)? },
        18 => Op::Allocate {
            mode: r.u32("mode")? as i32,
            offset: r.file_u64("offset")?,
            len: r.file_u64("length")?,
            attrs: take_attrs(r)?,
        },
        19 => Op::SetAttr { attrs: take_attrs(r)? },
        20 => Op::SetXattr { xattr: take_xattr(r)?, attrs: take_attrs(r)? },
        21 => Op::RemoveXattr { name: take_xattr_name(r)?, attrs: take_attrs(r)? },
        22 => Op::SetFlags { flags: take_flags(r)?, attrs: take_attrs(r)? },
        _ => Op::Gone,
    })
}

fn take_state_op(r: &mut FieldReader<'_>, kind: u16) -> Result<Op, DecodeError> {
    Ok(match kind {
        32 => Op::StateDir {
            attrs: take_attrs(r)?,
            xattrs: take_xattrs(r)?,
            flags: take_flags(r)?,
            first: r.flag("first part")?,
            last: r.flag("last part")?,
            items: take_items(r)?,
        },
        33 => Op::StateObject {
            shape: take_shape(r)?,
            attrs: take_attrs(r)?,
            xattrs: take_xattrs(r)?,
            flags: take_flags(r)?,
        },
        34 => Op::StateData { offset: r.file_u64("offset")?, attrs: take_attrs(r)? },
        35 => Op::StateHole { offset: r.file_u64("offset")?, len: r.file_u64("length")?, attrs: take_attrs(r)? },
        36 => take_hash(r)?,
        37 => Op::StateEnd { attrs: take_attrs(r)? },
        39 => Op::StateAttrs { attrs: take_attrs(r)?, xattrs: take_xattrs(r)?, flags: take_flags(r)? },
        40 => Op::StateAlike {
            shape: take_shape(r)?,
            attrs: take_attrs(r)?,
            xattrs: take_xattrs(r)?,
            flags: take_flags(r)?,
        },
        41 => Op::StateOutside,
        _ => Op::StateGone,
    })
}

fn take_filtered(r: &mut FieldReader<'_>) -> Result<Op, DecodeError> {
    let original = r.fixed("original header")?;
    if r.end().is_ok() {
        return Ok(Op::Filtered { original, instead: None });
    }
    let oid = r.oid("object")?;
    let offset = r.offset();
    let op = match r.u16("kind")? {
        kind @ (3 | 4) => take_namespace_op(r, kind)?,
        23 => Op::Gone,
        kind => return Err(DecodeError::Value { what: "kind", offset, value: u64::from(kind) }),
    };
    Ok(Op::Filtered { original, instead: Some(Instead { oid, op: Box::new(op) }) })
}

fn take_hash(r: &mut FieldReader<'_>) -> Result<Op, DecodeError> {
    let offset = r.file_u64("offset")?;
    let len = r.file_u64("length")?;
    let count = r.bounded_u32("digest count", (MAX_RECORD_BYTES / 16) as u32)?;
    let digests = r.take("digests", count as usize * 16)?.chunks_exact(16).map(|c| array(c, 0)).collect();
    Ok(Op::StateHash { offset, len, digests, attrs: take_attrs(r)? })
}

fn take_slot(r: &mut FieldReader<'_>) -> Result<Slot, DecodeError> {
    let parent = r.oid("parent")?;
    let offset = r.offset();
    let name = r.name()?;
    if parent == Oid::ROOT && name.as_bytes() == RESERVED_DIR {
        return Err(DecodeError::Reserved { offset });
    }
    Ok(Slot { parent, name })
}

fn take_items(r: &mut FieldReader<'_>) -> Result<Vec<DirItem>, DecodeError> {
    // Each item has at least 23 bytes, so the count is bounded by the record's length before anything is allocated.
    let count = r.bounded_u32("entry count", (MAX_RECORD_BYTES / 23) as u32)?;
    (0..count).map(|_| Ok(DirItem { oid: r.oid("entry")?, name: r.name()?, shape: take_shape(r)? })).collect()
}

fn take_shape(r: &mut FieldReader<'_>) -> Result<Shape, DecodeError> {
    let offset = r.offset();
    let kind = r.u32("type")?;
    let mut shape = Shape { kind, rdev: 0, link_text: Vec::new() };
    match kind {
        libc::S_IFLNK => shape.link_text = take_link_text(r)?,
        libc::S_IFCHR | libc::S_IFBLK => shape.rdev = r.u64("device number")?,
        libc::S_IFREG | libc::S_IFDIR | libc::S_IFIFO | libc::S_IFSOCK => {}
        _ => {
            return Err(DecodeError::Value { what: "type", offset, value: u64::from(kind) });
        }
    }
    Ok(shape)
}

fn take_link_text(r: &mut FieldReader<'_>) -> Result<Vec<u8>, DecodeError> {
    let offset = r.offset();
    let text = r.short_bytes("symlink text")?;
    if text.is_empty() || text.len() >= libc::PATH_MAX as usize || text.contains(&0) {
        return Err(DecodeError::Value { what: "symlink text", offset, value: text.len() as u64 });
    }
    Ok(text.to_vec())
}

fn take_attrs(r: &mut FieldReader<'_>) -> Result<Attrs, DecodeError> {
    Ok(Attrs {
        mode: r.u32("mode")?,
        uid: r.u32("uid")?,
        gid: r.u32("gid")?,
        size: r.file_u64("size")?,
        atime: r.time("atime")?,
        mtime: r.time("mtime")?,
    })
}

fn take_xattrs(r: &mut FieldReader<'_>) -> Result<Vec<Xattr>, DecodeError> {
    let count = r.u16("xattr count")?;
    (0..count).map(|_| take_xattr(r)).collect()
}

fn take_xattr(r: &mut FieldReader<'_>) -> Result<Xattr, DecodeError> {
    const XATTR_SIZE_MAX: usize = 65536;
    Ok(Xattr { name: take_xattr_name(r)?, value: r.bytes("xattr value", XATTR_SIZE_MAX)?.to_vec() })
}

fn take_xattr_name(r: &mut FieldReader<'_>) -> Result<Vec<u8>, DecodeError> {
    let offset = r.offset();
    let name = r.short_bytes("xattr name")?;
    if name.is_empty() || name.len() > 255 || name.contains(&0) {
        return Err(DecodeError::Value { what: "xattr name", offset, value: name.len() as u64 });
    }
    match name.starts_with(RESERVED_XATTR_PREFIX) {
        true => Err(DecodeError::Reserved { offset }),
        false => Ok(name.to_vec()),
    }
}

fn take_flags(r: &mut FieldReader<'_>) -> Result<InodeFlags, DecodeError> {
    let offset = r.offset();
    let there = r.u8("inode flags")?;
    let bad = |value| DecodeError::Value { what: "inode flags", offset, value: u64::from(value) };
    if there >= 1 << 5 {
        return Err(bad(u32::from(there)));
    }
    let mut word = |at: u32| match there & 1 << at {
        0 => Ok(0),
        _ => r.u32("inode flags").and_then(|word| if word == 0 { Err(bad(0)) } else { Ok(word) }),
    };
    let flags = InodeFlags {
        flags: word(0)?,
        xflags: word(1)?,
        project: word(2)?,
        extent_size: word(3)?,
        cow_extent_size: word(4)?,
    };
    match (flags.flags & !(InodeFlags::EXACT | InodeFlags::LAYOUT), flags.xflags & !InodeFlags::XFLAGS) {
        (0, 0) => Ok(flags),
        (flag, xflag) => Err(bad(flag.max(xflag))),
    }
}

fn take_fate(r: &mut FieldReader<'_>) -> Result<Fate, DecodeError> {
    Ok(if r.flag("fate")? { Fate::Gone } else { Fate::Kept })
}
