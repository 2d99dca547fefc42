//! Compares what the tree has with state records, and changes nothing. At the place of the stream where a reading stands the
//! tree is the source's at its stamp: what differs was changed by somebody else, or lost.
//!
//! Not compared: access times (reading moves them), ctime, and what is on its way still, which is *pending*.

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::catalog::{Known, Row};
use super::objects::keeps_to_itself;
use super::{Applier, ApplyError, Missing, Outcome};
use crate::backing::{BLOCK_BYTES, DataMap, Extent, block_digest, extents_of_read, forget_cached, next_extent};
use crate::base::{Name, Oid};
use crate::record::{
    Attrs, Difference, DifferenceKind as Kind, DirItem, MAX_PAYLOAD_BYTES, Op, RESERVED_DIR, RESERVED_XATTR_PREFIX,
    Record, Shape, Xattr,
};
use crate::sys::{self, DirStream, Errno, InodeFlags, Stat};

/// Data extents that are named where the source has one hole.
const MOST_EXTENTS: usize = 16;

/// An object that is looked at.
struct Looked {
    fd: OwnedFd,
    stat: Stat,
}

impl Applier {
    /// Compares one state record with the tree; what differs goes to `found`.
    ///
    /// # Errors
    /// [`ApplyError`] when the tree cannot be read.
    pub fn check(&mut self, record: &Record<'_>, found: &mut Vec<Difference>) -> Result<(), ApplyError> {
        let sifted = self.sieve.sift_check(record);
        let record = sifted.as_ref().unwrap_or(record);
        let done = match self.is_settled(record.tid) {
            true => self.check_state(record.oid, &record.op, record.payload, found),
            // After a crash the tree may be newer than its place until the replay has passed everything it could hold.
            false => {
                found.push(Difference::of(record.oid, Kind::Pending));
                Ok(())
            }
        };
        done.map_err(|cause| self.explain("check", record.oid, record.tid, cause))
    }

    fn check_state(&mut self, oid: Oid, op: &Op, payload: &[u8], found: &mut Vec<Difference>) -> Outcome<()> {
        if let Op::StateDir { first, items, .. } = op {
            // Also when nothing can be said of this part: the next one may be looked at.
            self.checked.note(*first, items);
        }
        if matches!(op, Op::StateGone | Op::StateEnd { .. } | Op::StateAttrs { .. } | Op::StateAlike { .. }) {
            return Ok(());
        }
        let Some(row) = self.row_to_check(oid, found)? else { return Ok(()) };
        let Some(looked) = self.look_at(&row)? else {
            found.push(Difference::of(oid, Kind::Missing));
            return Ok(());
        };
        match op {
            Op::StateDir { .. } if row.kind != libc::S_IFDIR => {
                found.push(Difference::of(oid, Kind::Type));
                Ok(())
            }
            Op::StateDir { attrs, xattrs, flags, last, items, .. } => {
                self.check_entries(oid, looked.fd.as_fd(), items, found)?;
                match last {
                    true => {
                        self.check_attributes(oid, &looked, (attrs, xattrs, flags), found)?;
                        self.check_extras(oid, looked.fd.as_fd(), found)
                    }
                    false => Ok(()),
                }
            }
            Op::StateObject { shape, attrs, xattrs, flags } => {
                check_shape(oid, &looked, shape, found)?;
                self.check_attributes(oid, &looked, (attrs, xattrs, flags), found)
            }
            Op::StateHash { .. } | Op::StateData { .. } | Op::StateHole { .. } if row.kind == libc::S_IFREG => {
                check_content(oid, &looked, op, payload, found)
            }
            _ => Ok(()),
        }
    }

    /// The object's row when all of it is here; otherwise `found` says what there is to say.
    fn row_to_check(&mut self, oid: Oid, found: &mut Vec<Difference>) -> Outcome<Option<Row>> {
        let (first, last) = (Missing { oid, offset: 0, len: 0 }, Missing { oid, offset: u64::MAX, len: u64::MAX });
        let asked_for = self.missing.range(first..=last).next().is_some();
        match self.catalog.get(oid)? {
            Some(row) if row.known == Known::Complete && !asked_for => return Ok(Some(row)),
            Some(_) => found.push(Difference::of(oid, Kind::Pending)),
            None if asked_for => found.push(Difference::of(oid, Kind::Pending)),
            None => found.push(Difference::of(oid, Kind::Missing)),
        }
        Ok(None)
    }

    fn look_at(&self, row: &Row) -> Outcome<Option<Looked>> {
        let flags = match row.kind {
            libc::S_IFREG => libc::O_RDONLY | libc::O_NOATIME,
            libc::S_IFDIR => libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOATIME,
            _ => libc::O_PATH,
        };
        let fd = match self.tree.open_key(row.key, flags) {
            Err(Errno::ESTALE | Errno::ENOENT) => return Ok(None),
            fd => fd?,
        };
        let stat = sys::fstat(fd.as_fd())?;
        // Without a name it only lives because somebody holds it open.
        Ok((stat.nlink > 0).then_some(Looked { fd, stat }))
    }

    fn check_attributes(
        &self,
        oid: Oid,
        looked: &Looked,
        (attrs, xattrs, flags): (&Attrs, &[Xattr], &InodeFlags),
        found: &mut Vec<Difference>,
    ) -> Outcome<()> {
        let stat = &looked.stat;
        let kind = stat.mode & libc::S_IFMT;
        let same_time = match self.coarse_times {
            true => stat.mtime.sec == attrs.mtime.sec,
            false => stat.mtime == attrs.mtime,
        };
        let checks = [
            (kind == libc::S_IFREG && stat.size != attrs.size, Kind::Size),
            (kind != libc::S_IFLNK && stat.mode & 0o7777 != attrs.mode & 0o7777, Kind::Mode),
            (stat.uid != attrs.uid || stat.gid != attrs.gid, Kind::Owner),
            (!same_time, Kind::Mtime),
        ];
        found.extend(checks.into_iter().filter(|(differs, _)| *differs).map(|(_, kind)| Difference::of(oid, kind)));
        self.check_xattrs(oid, looked.fd.as_fd(), xattrs, found)?;
        let present = match kind {
            libc::S_IFREG | libc::S_IFDIR => sys::inode_flags_get(looked.fd.as_fd())?,
            _ => sys::inode_flags_of_path(looked.fd.as_fd())?,
        };
        if present.without_layout() != flags.without_layout() {
            found.push(Difference::of(oid, Kind::Flags));
        }
        Ok(())
    }

    fn check_xattrs(&self, oid: Oid, fd: BorrowedFd<'_>, xattrs: &[Xattr], found: &mut Vec<Difference>) -> Outcome<()> {
        let wanted: BTreeMap<&[u8], &[u8]> = xattrs.iter().map(|xattr| (&xattr.name[..], &xattr.value[..])).collect();
        let present = self.tree.xattrs(fd, RESERVED_XATTR_PREFIX)?;
        let present: BTreeMap<&[u8], &[u8]> = present.iter().map(|(name, value)| (&name[..], &value[..])).collect();
        let names = wanted.keys().chain(present.keys().filter(|name| !wanted.contains_key(*name)));
        let differ = names.filter(|name| wanted.get(*name) != present.get(*name) && !keeps_to_itself(name));
        found.extend(differ.map(|name| Difference::named(oid, Kind::Xattr, name)));
        Ok(())
    }

    /// Every name must hold the object that the source has there at the part's stamp.
    fn check_entries(
        &mut self,
        oid: Oid,
        dir: BorrowedFd<'_>,
        items: &[DirItem],
        found: &mut Vec<Difference>,
    ) -> Outcome<()> {
        for item in items {
            let Some(occupant) = self.occupant(dir, &item.name)? else {
                found.push(Difference::named(oid, Kind::Missing, item.name.as_bytes()));
                continue;
            };
            let ours = occupant.is(item.oid) && occupant.kind() == item.shape.kind;
            if !(ours && self.catalog.get(item.oid)?.is_some_and(|row| row.key == occupant.key)) {
                found.push(Difference::named(oid, Kind::Replaced, item.name.as_bytes()));
            }
        }
        Ok(())
    }

    /// No name may be there that no part named. One that came between the parts is named with the next look.
    fn check_extras(&mut self, oid: Oid, dir: BorrowedFd<'_>, found: &mut Vec<Difference>) -> Outcome<()> {
        let mut stream =
            DirStream::new(sys::openat(dir, c".", libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOATIME, 0)?);
        while let Some(entry) = stream.next_entry()? {
            let Ok(name) = Name::new(&entry.name) else { continue };
            let own = oid == Oid::ROOT && name.as_bytes() == RESERVED_DIR;
            if !own && !self.checked.has(&name) {
                found.push(Difference::named(oid, Kind::Extra, name.as_bytes()));
            }
        }
        Ok(())
    }
}

/// The names that the parts of a directory's state named, by their hashes: a million of them take 16 MB. Two names that
/// share one could hide an entry that is too much from one run in 2^40; the keys are random.
#[derive(Default)]
pub(super) struct Names {
    keys: RandomState,
    hashes: HashSet<u64>,
}

impl Names {
    fn note(&mut self, first: bool, items: &[DirItem]) {
        if first {
            *self = Names::default();
        }
        self.hashes.extend(items.iter().map(|item| self.keys.hash_one(item.name.as_bytes())));
    }

    fn has(&self, name: &Name) -> bool {
        self.hashes.contains(&self.keys.hash_one(name.as_bytes()))
    }
}

fn check_shape(oid: Oid, looked: &Looked, shape: &Shape, found: &mut Vec<Difference>) -> Outcome<()> {
    let present = Shape::of(looked.fd.as_fd(), &looked.stat)?;
    let checks = [
        (present.kind != shape.kind, Kind::Type),
        (present.link_text != shape.link_text, Kind::LinkText),
        (present.rdev != shape.rdev, Kind::Device),
    ];
    found.extend(checks.into_iter().filter(|(differs, _)| *differs).map(|(_, kind)| Difference::of(oid, kind)));
    Ok(())
}

fn check_content(oid: Oid, looked: &Looked, op: &Op, payload: &[u8], found: &mut Vec<Difference>) -> Outcome<()> {
    let (fd, size) = (looked.fd.as_fd(), looked.stat.size);
    match op {
        Op::StateHash { offset, len, digests, .. } => check_digests(oid, (fd, size), (*offset, *len), digests, found),
        Op::StateHole { offset, len, .. } => check_hole(oid, (fd, size), (*offset, *len), found),
        Op::StateData { offset, .. } => check_data(oid, (fd, size), *offset, payload, found),
        _ => Ok(()),
    }
}

fn check_digests(
    oid: Oid,
    (fd, size): (BorrowedFd<'_>, u64),
    (start, len): (u64, u64),
    digests: &[[u8; 16]],
    found: &mut Vec<Difference>,
) -> Outcome<()> {
    if start % BLOCK_BYTES != 0 || digests.len() as u64 != len.div_ceil(BLOCK_BYTES) {
        return Err(Errno::EINVAL.into());
    }
    let map = DataMap::of(fd, start, (start + len).min(size))?;
    for (i, digest) in digests.iter().enumerate() {
        let offset = start + i as u64 * BLOCK_BYTES;
        let block = BLOCK_BYTES.min(start + len - offset);
        if offset >= size || block_digest(fd, &map, offset, block, size)? != *digest {
            found.push(Difference::range(oid, Kind::Content, offset, block));
        }
    }
    Ok(())
}

/// The source has a hole: data here is a difference, in content unless it is zeros.
fn check_hole(
    oid: Oid,
    (fd, size): (BorrowedFd<'_>, u64),
    (offset, len): (u64, u64),
    found: &mut Vec<Difference>,
) -> Outcome<()> {
    forget_cached(fd, offset, len)?;
    let (mut at, end) = (offset, (offset + len).min(size));
    let mut named = 0;
    while let Some(extent) = next_extent(fd, at, end)?
        && named < MOST_EXTENTS
    {
        at = extent.end();
        let Extent::Data { offset, len } = extent else { continue };
        let len = len.min(MAX_PAYLOAD_BYTES as u64);
        at = offset + len;
        if let Some(difference) = data_in_hole(oid, fd, (offset, len))? {
            found.push(difference);
            named += 1;
        }
    }
    Ok(())
}

fn data_in_hole(oid: Oid, fd: BorrowedFd<'_>, (offset, len): (u64, u64)) -> Outcome<Option<Difference>> {
    let mut bytes = vec![0; len as usize];
    sys::read_exact_at(fd, &mut bytes, offset)?;
    let kind = if bytes.iter().all(|byte| *byte == 0) { Kind::Holes } else { Kind::Content };
    let extents = extents_of_read(fd, offset, &bytes)?;
    let data = extents.iter().find(|extent| matches!(extent, Extent::Data { .. }));
    Ok(data.map(|_| Difference::range(oid, kind, offset, len)))
}

/// The source has data: the same bytes must be here, and no hole.
fn check_data(
    oid: Oid,
    (fd, size): (BorrowedFd<'_>, u64),
    offset: u64,
    payload: &[u8],
    found: &mut Vec<Difference>,
) -> Outcome<()> {
    forget_cached(fd, offset, payload.len() as u64)?;
    let end = (offset + payload.len() as u64).min(size);
    let mut present = vec![0; end.saturating_sub(offset) as usize];
    sys::read_exact_at(fd, &mut present, offset)?;
    let differs = present.iter().zip(payload).position(|(here, there)| here != there);
    if let Some(index) = differs {
        let len = (payload.len() - index) as u64;
        found.push(Difference::range(oid, Kind::Content, offset + index as u64, len));
    } else if present.len() < payload.len() {
        found.push(Difference::range(oid, Kind::Content, end.max(offset), payload.len() as u64));
    } else {
        let extents = extents_of_read(fd, offset, &present)?;
        let hole = extents.into_iter().find(|extent| matches!(extent, Extent::Hole { .. }));
        found.extend(hole.map(|hole| Difference::range(oid, Kind::Holes, hole.offset(), hole.end() - hole.offset())));
    }
    Ok(())
}
