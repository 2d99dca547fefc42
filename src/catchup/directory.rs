//! The state of a directory: its attributes and its entries, in parts that each are exact at a TID of their own.
//!
//! The directory's lock is held for one part and not for all of it, so that a million entries keep nobody waiting and take
//! no room. What makes the parts exact together: one open directory is read from its beginning to its end, so every name
//! that is there all the time is met (readdir(3)); it is looked up under the lock at the part's stamp; and what changes
//! between the first part and the last has a record, which stands between the parts in the stream. A name that was met
//! and is gone again is no entry at that stamp.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use super::{is_gone, state, xattrs_of};
use crate::backing::{Tree, TreeView};
use crate::base::{Name, ObjectKey, Oid, Rules, Tid};
use crate::record::{Attrs, DirItem, Encoded, Op, RESERVED_DIR, Shape};
use crate::sys::{self, DirStream, Errno, Result};

/// Entries in one part of a directory's state: what is looked up under one lock takes some milliseconds.
const PART_ITEMS: usize = 1024;
/// Bytes of one part, about: names and the texts of symlinks have very different lengths.
const PART_BYTES: usize = 1 << 20;
/// What an entry takes beside its name and text: oid, kind, device, lengths.
const ITEM_BYTES: usize = 32;

/// What comes behind a directory's state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Follow {
    /// The states of its children.
    Children,
    /// Nothing: the last part ends with a record that lets the target ask for the children it lacks.
    Nothing,
}

/// A part of a directory's state as it was at `stamp`.
pub struct DirReading {
    /// TID of the last change it includes.
    pub stamp: Tid,
    /// The state records, in order.
    pub records: Vec<Encoded>,
    /// Its entries, for the rows of its children.
    pub children: Vec<Child>,
    /// Whether further parts follow.
    pub more: bool,
}

/// An entry of a directory.
pub struct Child {
    /// Name, object and kind.
    pub item: DirItem,
    /// Bytes of data that a file has, about; 0 for anything else.
    pub bytes: u64,
}

/// Whether `oid` is a directory; what a target asks for by its oid may be one.
pub fn is_dir(view: &dyn TreeView, oid: Oid) -> bool {
    let stat = || -> Result<sys::Stat> {
        let key = view.key_of(oid)?.ok_or(Errno::ESTALE)?;
        sys::fstat(view.tree().open_key(key, libc::O_PATH)?.as_fd())
    };
    stat().is_ok_and(|stat| stat.mode & libc::S_IFMT == libc::S_IFDIR)
}

/// A directory that is being read in parts. Between two parts it may change; a walk that is given up is begun anew.
pub struct DirWalk {
    oid: Oid,
    follow: Follow,
    part_items: usize,
    /// Where the next part goes on; `None` before the first.
    stream: Option<DirStream>,
    has_ended: bool,
}

impl DirWalk {
    /// A walk over the directory `oid`.
    pub fn new(oid: Oid, follow: Follow) -> DirWalk {
        DirWalk::with_parts(oid, follow, PART_ITEMS)
    }

    /// As [`DirWalk::new`], with at most `part_items` entries in a part.
    pub fn with_parts(oid: Oid, follow: Follow, part_items: usize) -> DirWalk {
        DirWalk { oid, follow, part_items: part_items.max(1), stream: None, has_ended: false }
    }

    /// Whether a part of it was read.
    pub fn has_begun(&self) -> bool {
        self.stream.is_some()
    }

    /// Where the directory was when it was opened, from the tree's root on; for people.
    pub fn path(&self) -> Option<std::path::PathBuf> {
        sys::path_of(self.stream.as_ref()?.fd())
    }

    /// Takes the children away that the rules exclude where the directory is now, if that can be told.
    pub fn leave_out(&self, rules: &Rules, children: &mut Vec<Child>, view: &dyn TreeView) {
        let (Some(root), Some(path)) = (sys::path_of(view.tree().root()), self.path()) else { return };
        let Ok(path) = path.strip_prefix(root) else { return };
        let path = path.as_os_str().as_bytes();
        if rules.excludes_at_any_level(path, true) {
            return children.clear();
        }
        children.retain(|child| {
            let name = child.item.name.as_bytes();
            let path = if path.is_empty() { name.to_vec() } else { [path, name].join(&b'/') };
            !rules.excludes(&path, child.item.shape.is_dir())
        });
    }

    /// What comes behind it.
    pub fn follow(&self) -> Follow {
        self.follow
    }

    /// Reads the next part. A directory that is gone yields a record that says so.
    ///
    /// # Errors
    /// As open(2), getdents64(2) and stat(2).
    pub fn next_part(&mut self, view: &dyn TreeView) -> Result<DirReading> {
        let Some(key) = view.key_of(self.oid)? else {
            return Ok(self.gone(view.stamp()));
        };
        let guard = view.lock(key);
        let stamp = view.stamp();
        let part = self.read(view, key, stamp);
        drop(guard);
        match part {
            Err(errno) if is_gone(errno) => Ok(self.gone(stamp)),
            part => part,
        }
    }

    fn gone(&self, stamp: Tid) -> DirReading {
        let records = vec![state(self.oid, stamp, &Op::StateGone, &[])];
        DirReading { stamp, records, children: Vec::new(), more: false }
    }

    fn read(&mut self, view: &dyn TreeView, key: ObjectKey, stamp: Tid) -> Result<DirReading> {
        let first = self.stream.is_none() || self.has_ended;
        let mut stream = match self.stream.take().filter(|_| !self.has_ended) {
            Some(stream) => stream,
            None => {
                let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOATIME;
                DirStream::new(view.tree().open_key(key, flags)?)
            }
        };
        let stat = sys::fstat(stream.fd())?;
        if stat.nlink == 0 {
            return Err(Errno::ESTALE);
        }
        let Entries { items, bytes, last } = self.entries(view, &mut stream)?;
        // The target has applied what was recorded between the first part and the last; the last part says all of it again.
        let xattrs = if first || last { xattrs_of(view.tree(), stream.fd())? } else { Vec::new() };
        let flags = sys::inode_flags_get(stream.fd())?;
        let attrs = Attrs::of(&stat);
        let op = Op::StateDir { attrs, xattrs, flags, first, last, items };
        let mut records = vec![state(self.oid, stamp, &op, &[])];
        let items = if let Op::StateDir { items, .. } = op { items } else { Vec::new() };
        let children = items.into_iter().zip(bytes).map(|(item, bytes)| Child { item, bytes }).collect();
        if last && self.follow == Follow::Nothing {
            records.push(state(self.oid, stamp, &Op::StateEnd { attrs }, &[]));
        }
        self.has_ended = last;
        self.stream = Some(stream);
        Ok(DirReading { stamp, records, children, more: !last })
    }

    /// The entries of one part. The caller holds the directory's lock.
    fn entries(&self, view: &dyn TreeView, stream: &mut DirStream) -> Result<Entries> {
        let (mut part, mut size) = (Entries::default(), 0);
        while part.items.len() < self.part_items && size < PART_BYTES {
            let Some(entry) = stream.next_entry()? else {
                part.last = true;
                break;
            };
            let Ok(name) = Name::new(&entry.name) else {
                continue;
            };
            if self.oid == Oid::ROOT && name.as_bytes() == RESERVED_DIR {
                continue;
            }
            match item(view, view.tree(), stream.fd(), name) {
                Ok((item, bytes)) => {
                    size += ITEM_BYTES + item.name.as_bytes().len() + item.shape.link_text.len();
                    part.items.push(item);
                    part.bytes.push(bytes);
                }
                // It was met with the part before, and removed since.
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(part)
    }
}

/// The entries of one part.
#[derive(Default)]
struct Entries {
    items: Vec<DirItem>,
    /// For each, its [`Child::bytes`].
    bytes: Vec<u64>,
    /// None is left.
    last: bool,
}

/// One entry, and its [`Child::bytes`].
fn item(view: &dyn TreeView, tree: &Tree, dir: BorrowedFd<'_>, name: Name) -> Result<(DirItem, u64)> {
    let fd = tree.open_child(dir, &name, libc::O_PATH)?;
    let found = tree.found(fd.as_fd())?;
    let shape = Shape::of(fd.as_fd(), &found.stat)?;
    let bytes = if shape.is_file() { found.stat.size.min(found.stat.blocks * 512) } else { 0 };
    Ok((DirItem { name, oid: view.oid_of(found.key)?, shape }, bytes))
}
