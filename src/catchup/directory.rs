//! The state of a directory: its attributes and all its entries at one TID.

use std::os::fd::{AsFd, BorrowedFd};

use super::{is_gone, state, xattrs_of};
use crate::backing::{Tree, TreeView};
use crate::base::{Name, Oid, Tid};
use crate::record::{Attrs, DirItem, Encoded, Op, RESERVED_DIR, Shape, Xattr};
use crate::sys::{self, Errno, InodeFlags, Result};

/// Entries in one part of a directory's state.
const PART_ITEMS: usize = 4096;
/// Bytes of one part, about: names and the texts of symlinks have very different lengths.
const PART_BYTES: usize = 1 << 20;
/// What an entry takes beside its name and text: oid, kind, device, lengths.
const ITEM_BYTES: usize = 32;

/// A directory as it was at `stamp`.
pub struct DirReading {
    /// TID of the last change it includes.
    pub stamp: Tid,
    /// The state records, in order.
    pub records: Vec<Encoded>,
    /// Its entries, for the rows of its children.
    pub children: Vec<DirItem>,
}

/// Whether `oid` is a directory; what a target asks for by its oid may be one.
pub fn is_dir(view: &dyn TreeView, oid: Oid) -> bool {
    let stat = || -> Result<sys::Stat> {
        let key = view.key_of(oid).ok_or(Errno::ESTALE)?;
        sys::fstat(view.tree().open_key(key, libc::O_PATH)?.as_fd())
    };
    stat().is_ok_and(|stat| stat.mode & libc::S_IFMT == libc::S_IFDIR)
}

struct Listing {
    attrs: Attrs,
    xattrs: Vec<Xattr>,
    flags: InodeFlags,
    children: Vec<DirItem>,
}

/// Reads the directory `oid`. One that is gone yields a record that says so.
///
/// # Errors
/// As open(2), getdents64(2) and stat(2).
pub fn read_dir(view: &dyn TreeView, oid: Oid) -> Result<DirReading> {
    read(view, oid, Follow::Children)
}

/// As [`read_dir`], for a directory whose children do not follow: the reading ends with a record that lets the target
/// ask for those it lacks.
///
/// # Errors
/// As [`read_dir`].
pub fn read_listing(view: &dyn TreeView, oid: Oid) -> Result<DirReading> {
    read(view, oid, Follow::Nothing)
}

/// What comes behind a directory's state.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Follow {
    Children,
    Nothing,
}

fn read(view: &dyn TreeView, oid: Oid, follow: Follow) -> Result<DirReading> {
    let gone =
        |stamp| DirReading { stamp, records: vec![state(oid, stamp, &Op::StateGone, &[])], children: Vec::new() };
    let Some(key) = view.key_of(oid) else {
        return Ok(gone(view.stamp()));
    };
    let guard = view.lock(key);
    let stamp = view.stamp();
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOATIME;
    let listing = view.tree().open_key(key, flags).and_then(|fd| list(view, oid, fd.as_fd()));
    drop(guard);
    match listing {
        Ok(listing) => {
            let mut records = parts(oid, stamp, &listing);
            if follow == Follow::Nothing {
                records.push(state(oid, stamp, &Op::StateEnd { attrs: listing.attrs }, &[]));
            }
            Ok(DirReading { stamp, records, children: listing.children })
        }
        Err(errno) if is_gone(errno) => Ok(gone(stamp)),
        Err(errno) => Err(errno),
    }
}

fn list(view: &dyn TreeView, oid: Oid, fd: BorrowedFd<'_>) -> Result<Listing> {
    let tree = view.tree();
    let stat = sys::fstat(fd)?;
    if stat.nlink == 0 {
        return Err(Errno::ESTALE);
    }
    let mut children = Vec::new();
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOATIME;
    let mut stream = sys::DirStream::new(sys::reopen(fd, flags)?);
    while let Some(entry) = stream.next_entry()? {
        let Ok(name) = Name::new(&entry.name) else {
            continue;
        };
        if oid == Oid::ROOT && name.as_bytes() == RESERVED_DIR {
            continue;
        }
        children.push(item(view, tree, fd, name)?);
    }
    let (attrs, xattrs) = (Attrs::of(&stat), xattrs_of(tree, fd)?);
    Ok(Listing { attrs, xattrs, flags: sys::inode_flags_get(fd)?, children })
}

fn item(view: &dyn TreeView, tree: &Tree, dir: BorrowedFd<'_>, name: Name) -> Result<DirItem> {
    let fd = tree.open_child(dir, &name, libc::O_PATH)?;
    let found = tree.found(fd.as_fd())?;
    let shape = Shape::of(fd.as_fd(), &found.stat)?;
    Ok(DirItem { name, oid: view.oid_of(found.key), shape })
}

fn parts(oid: Oid, stamp: Tid, listing: &Listing) -> Vec<Encoded> {
    let parts = cut(&listing.children);
    let last = parts.len() - 1;
    let record = |(part, items): (usize, &[DirItem])| {
        let op = Op::StateDir {
            attrs: listing.attrs,
            // Once is enough: the target keeps what the first part said.
            xattrs: if part == 0 { listing.xattrs.clone() } else { Vec::new() },
            flags: listing.flags,
            first: part == 0,
            last: part == last,
            items: items.to_vec(),
        };
        state(oid, stamp, &op, &[])
    };
    parts.into_iter().enumerate().map(record).collect()
}

/// Cuts entries into parts that each fit a record; at least one part.
fn cut(mut items: &[DirItem]) -> Vec<&[DirItem]> {
    let mut parts = Vec::new();
    loop {
        let mut bytes = 0;
        let fits = |item: &&DirItem| {
            bytes += ITEM_BYTES + item.name.as_bytes().len() + item.shape.link_text.len();
            bytes <= PART_BYTES
        };
        let (part, rest) = items.split_at(items.iter().take(PART_ITEMS).take_while(fits).count());
        parts.push(part);
        items = rest;
        if items.is_empty() {
            return parts;
        }
    }
}
