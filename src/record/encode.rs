//! From an [`Op`] to bytes.

use super::codec::FieldWriter;
use super::decode::{FILTERED, HEADER_BYTES, header_offset};
use super::op::{Attrs, DirItem, Fate, Instead, Op, Shape, Slot, Xattr};
use crate::base::{Oid, Tid};
use crate::sys::InodeFlags;

/// An encoded record that has no TID yet. Encoding needs no lock; [`Draft::finish`] does little. The payload is not copied.
pub struct Draft<'a> {
    /// Header and fields.
    head: Vec<u8>,
    payload: &'a [u8],
    padding: usize,
}

/// A finished record: the bytes that go to disk and wire.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Encoded(Vec<u8>);

impl Encoded {
    /// The bytes, a multiple of 8.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl<'a> Draft<'a> {
    /// Encodes `op` on `oid` with `payload` (empty for all but `Write` and `StateData`).
    pub fn new(oid: Oid, op: &Op, payload: &'a [u8]) -> Draft<'a> {
        let mut out = FieldWriter(Vec::with_capacity(HEADER_BYTES + 256));
        out.0.resize(HEADER_BYTES, 0);
        let kind = put_op(&mut out, op);
        let mut bytes = out.0;
        let fields_len = bytes.len() - HEADER_BYTES;
        let unpadded = bytes.len() + payload.len();
        let total = unpadded.next_multiple_of(8) as u32;
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(header_offset::LENGTH, &total.to_le_bytes());
        put(header_offset::KIND, &kind.to_le_bytes());
        let payload_kind: u16 = if payload.is_empty() { 0 } else { super::decode::PAYLOAD_INLINE };
        put(header_offset::FLAGS, &payload_kind.to_le_bytes());
        put(header_offset::OID, &oid.to_bytes());
        put(header_offset::FIELDS_LEN, &(fields_len as u32).to_le_bytes());
        put(header_offset::PAYLOAD_LEN, &(payload.len() as u32).to_le_bytes());
        put(header_offset::PAYLOAD_CRC, &crc32c::crc32c(payload).to_le_bytes());
        Draft { head: bytes, payload, padding: total as usize - unpadded }
    }

    /// Length of the record in bytes.
    pub fn len_bytes(&self) -> usize {
        self.head.len() + self.payload.len() + self.padding
    }

    /// The finished record as bytes of its own.
    pub fn seal(mut self, tid: Tid, time_ns: i64) -> Encoded {
        self.finish(tid, time_ns);
        Encoded(self.parts().concat())
    }

    /// What the record consists of, once it is finished.
    pub fn parts(&self) -> [&[u8]; 3] {
        [&self.head, self.payload, &[0; 8][..self.padding]]
    }

    /// Gives the record its TID and time (nanoseconds since 1970) and closes its checksum.
    pub fn finish(&mut self, tid: Tid, time_ns: i64) {
        let bytes = &mut self.head;
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(header_offset::TID, &tid.0.to_le_bytes());
        put(header_offset::TIME, &time_ns.to_le_bytes());
        let crc = super::decode::header_crc(bytes);
        bytes[header_offset::HEADER_CRC..header_offset::HEADER_CRC + 4].copy_from_slice(&crc.to_le_bytes());
    }
}

fn put_op(out: &mut FieldWriter, op: &Op) -> u16 {
    match op {
        Op::Create { .. } | Op::Link { .. } | Op::Unlink { .. } | Op::Rename { .. } | Op::Exchange { .. } => {
            put_namespace_op(out, op)
        }
        Op::StateDir { .. }
        | Op::StateObject { .. }
        | Op::StateAttrs { .. }
        | Op::StateAlike { .. }
        | Op::StateHash { .. } => put_state_op(out, op),
        _ => put_object_op(out, op),
    }
}

fn put_namespace_op(out: &mut FieldWriter, op: &Op) -> u16 {
    match op {
        Op::Create { slot, shape, attrs, xattrs, flags, parent_after } => {
            put_slot(out, slot);
            put_shape(out, shape);
            put_attrs(out, attrs);
            put_xattrs(out, xattrs);
            put_flags(out, flags);
            put_attrs(out, parent_after);
            1
        }
        Op::Link { slot, shape, attrs, parent_after } => {
            put_slot(out, slot);
            put_shape(out, shape);
            put_attrs(out, attrs);
            put_attrs(out, parent_after);
            2
        }
        Op::Unlink { slot, fate, parent_after } => {
            put_slot(out, slot);
            out.u8(fate_byte(*fate));
            put_attrs(out, parent_after);
            3
        }
        Op::Rename { from, to, shape, attrs, replaced, from_after, to_after } => {
            put_slot(out, from);
            put_slot(out, to);
            put_shape(out, shape);
            put_attrs(out, attrs);
            match replaced {
                None => out.u8(0),
                Some(replaced) => {
                    out.u8(1);
                    out.oid(replaced.oid);
                    out.u8(fate_byte(replaced.fate));
                }
            }
            put_attrs(out, from_after);
            put_attrs(out, to_after);
            4
        }
        Op::Exchange { from, to, shape, attrs, other, other_shape, other_attrs, from_after, to_after } => {
            put_slot(out, from);
            put_slot(out, to);
            put_shape(out, shape);
            put_attrs(out, attrs);
            out.oid(*other);
            put_shape(out, other_shape);
            put_attrs(out, other_attrs);
            put_attrs(out, from_after);
            put_attrs(out, to_after);
            5
        }
        _ => 0,
    }
}

fn put_object_op(out: &mut FieldWriter, op: &Op) -> u16 {
    let (kind, attrs) = match op {
        Op::Write { offset, attrs } => {
            out.u64(*offset);
            (16, attrs)
        }
        Op::Truncate { attrs } => (17, attrs),
        Op::Allocate { mode, offset, len, attrs } => {
            out.u32(*mode as u32);
            out.u64(*offset);
            out.u64(*len);
            (18, attrs)
        }
        Op::SetAttr { attrs } => (19, attrs),
        Op::SetXattr { xattr, attrs } => {
            out.short_bytes(&xattr.name);
            out.bytes(&xattr.value);
            (20, attrs)
        }
        Op::RemoveXattr { name, attrs } => {
            out.short_bytes(name);
            (21, attrs)
        }
        Op::SetFlags { flags, attrs } => {
            put_flags(out, flags);
            (22, attrs)
        }
        Op::StateData { offset, attrs } => {
            out.u64(*offset);
            (34, attrs)
        }
        Op::StateHole { offset, len, attrs } => {
            out.u64(*offset);
            out.u64(*len);
            (35, attrs)
        }
        Op::StateEnd { attrs } => (37, attrs),
        Op::Gone => return 23,
        Op::Filtered { original, instead } => {
            out.0.extend_from_slice(original);
            if let Some(Instead { oid, op }) = instead {
                out.oid(*oid);
                let at = out.0.len();
                out.u16(0);
                let kind = put_op(out, op);
                out.0[at..at + 2].copy_from_slice(&kind.to_le_bytes());
            }
            return FILTERED;
        }
        Op::StateOutside => return 41,
        _ => return 38,
    };
    put_attrs(out, attrs);
    kind
}

fn put_state_op(out: &mut FieldWriter, op: &Op) -> u16 {
    match op {
        Op::StateDir { attrs, xattrs, flags, first, last, items } => {
            put_attrs(out, attrs);
            put_xattrs(out, xattrs);
            put_flags(out, flags);
            out.u8(u8::from(*first));
            out.u8(u8::from(*last));
            out.u32(items.len() as u32);
            items.iter().for_each(|item| put_item(out, item));
            32
        }
        Op::StateObject { shape, attrs, xattrs, flags } => {
            put_shape(out, shape);
            put_attrs(out, attrs);
            put_xattrs(out, xattrs);
            put_flags(out, flags);
            33
        }
        Op::StateAttrs { attrs, xattrs, flags } => {
            put_attrs(out, attrs);
            put_xattrs(out, xattrs);
            put_flags(out, flags);
            39
        }
        Op::StateAlike { shape, attrs, xattrs, flags } => {
            put_shape(out, shape);
            put_attrs(out, attrs);
            put_xattrs(out, xattrs);
            put_flags(out, flags);
            40
        }
        Op::StateHash { offset, len, digests, attrs } => {
            out.u64(*offset);
            out.u64(*len);
            out.u32(digests.len() as u32);
            digests.iter().for_each(|digest| out.0.extend_from_slice(digest));
            put_attrs(out, attrs);
            36
        }
        _ => 0,
    }
}

fn put_slot(out: &mut FieldWriter, slot: &Slot) {
    out.oid(slot.parent);
    out.short_bytes(slot.name.as_bytes());
}

fn put_item(out: &mut FieldWriter, item: &DirItem) {
    out.oid(item.oid);
    out.short_bytes(item.name.as_bytes());
    put_shape(out, &item.shape);
}

fn put_shape(out: &mut FieldWriter, shape: &Shape) {
    out.u32(shape.kind);
    match shape.kind {
        libc::S_IFLNK => out.short_bytes(&shape.link_text),
        libc::S_IFCHR | libc::S_IFBLK => out.u64(shape.rdev),
        _ => {}
    }
}

fn put_attrs(out: &mut FieldWriter, attrs: &Attrs) {
    out.u32(attrs.mode);
    out.u32(attrs.uid);
    out.u32(attrs.gid);
    out.u64(attrs.size);
    out.time(attrs.atime);
    out.time(attrs.mtime);
}

fn put_xattrs(out: &mut FieldWriter, xattrs: &[Xattr]) {
    out.u16(xattrs.len() as u16);
    for xattr in xattrs {
        out.short_bytes(&xattr.name);
        out.bytes(&xattr.value);
    }
}

/// A byte that says which words are not zero, and those.
fn put_flags(out: &mut FieldWriter, flags: &InodeFlags) {
    let words = [flags.flags, flags.xflags, flags.project, flags.extent_size, flags.cow_extent_size];
    let there = words.iter().enumerate().fold(0, |all, (at, word)| all | u8::from(*word != 0) << at);
    out.u8(there);
    words.into_iter().filter(|word| *word != 0).for_each(|word| out.u32(word));
}

fn fate_byte(fate: Fate) -> u8 {
    match fate {
        Fate::Kept => 0,
        Fate::Gone => 1,
    }
}
