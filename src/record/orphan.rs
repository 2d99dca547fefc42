//! Orphans: objects that a target's tree held and its source does not have. What the source may ask about them, and what the
//! target answers.

use super::codec::{DecodeError, FieldReader, FieldWriter};
use crate::base::Name;

/// What becomes of orphans.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OrphanAction {
    /// They are told.
    Scan,
    /// They are moved to `.dtfs/NAME`, with the paths that they had.
    Move(Name),
    /// They are removed.
    Delete,
}

/// Which orphans, and what becomes of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OrphanOrder {
    /// Its number; the answer has the same.
    pub number: u64,
    /// What becomes of them.
    pub action: OrphanAction,
    /// Only those that have been set aside for at least so many seconds.
    pub older_than_sec: u64,
}

/// One orphan.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Orphan {
    /// Where it was, relative to the root; the name it is kept under where that is not known.
    pub path: Vec<u8>,
    /// Whether it is a directory, with what is in it.
    pub is_dir: bool,
    /// Size in bytes.
    pub size: u64,
    /// When it was set aside, seconds since 1970.
    pub since_sec: u64,
}

/// What a target says of its orphans.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct OrphanList {
    /// The number of the order.
    pub number: u64,
    /// Orphans that the order was about.
    pub count: u64,
    /// Their sizes together; of a directory its own.
    pub bytes: u64,
    /// Those that could not be moved or removed.
    pub failed: u64,
    /// Orphans that are there afterwards, whatever the order was about.
    pub left: u64,
    /// Why the first of these could not; 0 when none failed.
    pub errno: i32,
    /// The first of them.
    pub orphans: Vec<Orphan>,
}

impl OrphanList {
    /// Most orphans that are told one by one.
    pub const MOST: usize = 1000;
}

const LONGEST_PATH: usize = 4096;

impl OrphanOrder {
    /// Appends it: number, seconds, u8 action, and for a move the short name.
    pub fn encode(&self, out: &mut FieldWriter) {
        out.u64(self.number);
        out.u64(self.older_than_sec);
        match &self.action {
            OrphanAction::Scan => out.u8(0),
            OrphanAction::Move(name) => {
                out.u8(1);
                out.short_bytes(name.as_bytes());
            }
            OrphanAction::Delete => out.u8(2),
        }
    }

    /// The inverse of [`OrphanOrder::encode`].
    ///
    /// # Errors
    /// [`DecodeError`] says what is wrong where.
    pub fn decode(r: &mut FieldReader<'_>) -> Result<OrphanOrder, DecodeError> {
        let (number, older_than_sec) = (r.u64("number")?, r.u64("seconds")?);
        let offset = r.offset();
        let action = match r.u8("action")? {
            0 => OrphanAction::Scan,
            1 => OrphanAction::Move(r.name()?),
            2 => OrphanAction::Delete,
            other => return Err(DecodeError::Value { what: "action", offset, value: u64::from(other) }),
        };
        Ok(OrphanOrder { number, action, older_than_sec })
    }
}

impl OrphanList {
    /// Appends it: number, count, bytes, failed, left, errno, u32 count, then each orphan: path, u8 directory, size, seconds.
    pub fn encode(&self, out: &mut FieldWriter) {
        [self.number, self.count, self.bytes, self.failed, self.left].into_iter().for_each(|number| out.u64(number));
        out.u32(self.errno as u32);
        out.u32(self.orphans.len() as u32);
        for orphan in &self.orphans {
            out.bytes(&orphan.path);
            out.u8(u8::from(orphan.is_dir));
            out.u64(orphan.size);
            out.u64(orphan.since_sec);
        }
    }

    /// The inverse of [`OrphanList::encode`].
    ///
    /// # Errors
    /// [`DecodeError`] says what is wrong where.
    pub fn decode(r: &mut FieldReader<'_>) -> Result<OrphanList, DecodeError> {
        let (number, count, bytes, failed) = (r.u64("number")?, r.u64("orphans")?, r.u64("bytes")?, r.u64("failed")?);
        let left = r.u64("left")?;
        let errno = r.u32("errno")? as i32;
        let told = r.bounded_u32("orphan count", OrphanList::MOST as u32)?;
        let one = |_| -> Result<Orphan, DecodeError> {
            Ok(Orphan {
                path: r.bytes("path", LONGEST_PATH)?.to_vec(),
                is_dir: r.flag("directory")?,
                size: r.u64("size")?,
                since_sec: r.u64("since")?,
            })
        };
        let orphans = (0..told).map(one).collect::<Result<_, _>>()?;
        Ok(OrphanList { number, count, bytes, failed, left, errno, orphans })
    }
}
