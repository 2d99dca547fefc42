//! How an object of a target differs from the state it should have; what a check finds, and changes nothing of.

use super::codec::{DecodeError, FieldReader, FieldWriter};
use crate::base::Oid;

/// What differs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum DifferenceKind {
    /// Nothing can be said yet: the object's state is on its way.
    Pending = 0,
    /// The target lacks the object, or the entry of that name in the directory.
    Missing = 1,
    /// The directory has an entry that the source does not have.
    Extra = 2,
    /// The entry is another object: it was replaced, or a hard link is none any more.
    Replaced = 3,
    /// File type.
    Type = 4,
    /// Bytes of a file.
    Content = 5,
    /// A hole where the source has data, or the reverse; it reads the same.
    Holes = 6,
    /// Length of a file.
    Size = 7,
    /// Permission bits.
    Mode = 8,
    /// User or group.
    Owner = 9,
    /// Modification time.
    Mtime = 10,
    /// Text of a symlink.
    LinkText = 11,
    /// Device number.
    Device = 12,
    /// An extended attribute, access control lists among them.
    Xattr = 13,
    /// Inode flags, extent size hints or project.
    Flags = 14,
}

impl DifferenceKind {
    /// The word that reports show.
    pub fn word(self) -> &'static str {
        match self {
            DifferenceKind::Pending => "pending",
            DifferenceKind::Missing => "missing",
            DifferenceKind::Extra => "extra",
            DifferenceKind::Replaced => "replaced",
            DifferenceKind::Type => "type",
            DifferenceKind::Content => "content",
            DifferenceKind::Holes => "holes",
            DifferenceKind::Size => "size",
            DifferenceKind::Mode => "mode",
            DifferenceKind::Owner => "owner",
            DifferenceKind::Mtime => "mtime",
            DifferenceKind::LinkText => "link-text",
            DifferenceKind::Device => "device",
            DifferenceKind::Xattr => "xattr",
            DifferenceKind::Flags => "flags",
        }
    }

    /// Whether it lies with the bytes of a file, of which a range is named.
    pub fn has_range(self) -> bool {
        matches!(self, DifferenceKind::Content | DifferenceKind::Holes)
    }

    fn of(code: u8) -> Option<DifferenceKind> {
        use DifferenceKind::*;
        const ALL: [DifferenceKind; 15] = [
            Pending, Missing, Extra, Replaced, Type, Content, Holes, Size, Mode, Owner, Mtime, LinkText, Device, Xattr,
            Flags,
        ];
        ALL.into_iter().find(|kind| *kind as u8 == code)
    }
}

/// One difference.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Difference {
    /// The object; the directory for an entry that is missing, extra or replaced.
    pub oid: Oid,
    /// What differs.
    pub kind: DifferenceKind,
    /// First byte of the range, where there is one.
    pub offset: u64,
    /// Length of the range.
    pub len: u64,
    /// Name of the entry or of the xattr; empty otherwise.
    pub name: Vec<u8>,
}

impl Difference {
    /// One of the object itself.
    pub fn of(oid: Oid, kind: DifferenceKind) -> Difference {
        Difference { oid, kind, offset: 0, len: 0, name: Vec::new() }
    }

    /// One of the entry, or the xattr, called `name`.
    pub fn named(oid: Oid, kind: DifferenceKind, name: &[u8]) -> Difference {
        Difference { name: name.to_vec(), ..Difference::of(oid, kind) }
    }

    /// One of a range of bytes.
    pub fn range(oid: Oid, kind: DifferenceKind, offset: u64, len: u64) -> Difference {
        Difference { offset, len, ..Difference::of(oid, kind) }
    }

    /// Appends it: oid, kind, offset, length, name.
    pub fn encode(&self, out: &mut FieldWriter) {
        out.oid(self.oid);
        out.u8(self.kind as u8);
        out.u64(self.offset);
        out.u64(self.len);
        out.short_bytes(&self.name);
    }

    /// The inverse of [`Difference::encode`].
    ///
    /// # Errors
    /// [`DecodeError`] says what is wrong where.
    pub fn decode(r: &mut FieldReader<'_>) -> Result<Difference, DecodeError> {
        const MOST_NAME_BYTES: u64 = 255;
        let oid = r.oid("object")?;
        let at = r.offset();
        let code = r.u8("kind of difference")?;
        let kind = DifferenceKind::of(code).ok_or(DecodeError::Value {
            what: "kind of difference",
            offset: at,
            value: u64::from(code),
        })?;
        let (offset, len) = (r.file_u64("offset")?, r.file_u64("length")?);
        let at = r.offset();
        let name = r.short_bytes("name")?.to_vec();
        match name.len() as u64 {
            0..=MOST_NAME_BYTES => Ok(Difference { oid, kind, offset, len, name }),
            value => Err(DecodeError::Value { what: "length of a name", offset: at, value }),
        }
    }
}
