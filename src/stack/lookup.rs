//! From names and node numbers to objects: lookup, forget, getattr.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use super::Stack;
use super::inodes::Inodes;
use super::mutation::Touch;
use super::opens::Handle;
use super::types::{Entry, FileId, NodeId, Object, ObjectFd, kind};
use crate::backing::Found;
use crate::base::{Name, NameError, ObjectKey};
use crate::record::RESERVED_DIR;
use crate::sys::{self, Errno, Result, Stat};

/// More steps from a directory to the root than any real tree has.
const MAX_DEPTH: usize = 1 << 16;

impl Stack {
    /// What `name` in `parent` leads to. `.` and `..` are answered for every kind of node, `..` never leads out of the
    /// root: an NFS server asks so when it holds nothing but a node number.
    ///
    /// # Errors
    /// ENOENT when there is none; ESTALE when `parent` is gone; else as open(2).
    pub fn lookup(&self, parent: NodeId, name: &[u8]) -> Result<Entry> {
        match name {
            b"." => self.lookup_number(parent),
            b".." => self.lookup_parent(parent),
            _ => {
                let dir = self.directory(parent)?;
                let name = name_of(name)?;
                match self.is_reserved(dir.key, name.as_bytes()) {
                    true => Err(Errno::ENOENT),
                    false => self.entry(self.tree.look(dir.fd.as_fd(), &name)?),
                }
            }
        }
    }

    /// The kernel asks for a number alone when it has no inode for it (fs/fuse/inode.c, fuse_get_dentry), so nobody uses the
    /// object. Without a name it is gone, though it may still be held here until the kernel's FORGET or RELEASE arrives.
    fn lookup_number(&self, node: NodeId) -> Result<Entry> {
        let found = self.tree.found(self.object(node)?.fd.as_fd())?;
        match found.stat.nlink {
            0 => Err(Errno::ESTALE),
            _ => self.entry(found),
        }
    }

    fn lookup_parent(&self, node: NodeId) -> Result<Entry> {
        let dir = self.object(node)?;
        if dir.key == self.tree.root_key() {
            return self.entry(self.tree.found(dir.fd.as_fd())?);
        }
        let parent = sys::openat(dir.fd.as_fd(), c"..", libc::O_PATH | libc::O_DIRECTORY, 0)?;
        self.entry(self.tree.found(parent.as_fd())?)
    }

    /// Takes back `lookups` look-ups of `node`.
    pub fn forget(&self, node: NodeId, lookups: u64) {
        self.nodes.forget(node.0, lookups);
    }

    /// The attributes of `node`, by the open file where there is one: it outlives the last name.
    ///
    /// # Errors
    /// ESTALE when it is gone; else as fstat(2).
    pub fn getattr(&self, node: NodeId, file: Option<FileId>) -> Result<Stat> {
        match file.and_then(|id| self.opens.get(id)) {
            Some(Handle::File(open)) if open.node == node => sys::fstat(open.fd()),
            _ => sys::fstat(self.object(node)?.fd.as_fd()),
        }
    }

    /// Answers a look-up of `found` and counts it.
    pub(super) fn entry(&self, found: Found) -> Result<Entry> {
        let root = found.key == self.tree.root_key();
        if !root {
            self.refuse_inode_one(found.key)?;
            let new = self.nodes.count(found.key);
            if let Some(inodes) = self.inodes.get().filter(|_| new) {
                inodes.learn(found.key);
            }
            if self.storm.rages() {
                self.expect(Touch::Attributes(found.key));
            }
        }
        Ok(Entry {
            node: self.node_of(found.key),
            // The kernel insists on 0 for the root (fs/fuse/dir.c, fuse_lookup_name).
            generation: if root { 0 } else { found.key.generation },
            stat: found.stat,
        })
    }

    /// The kernel would take a backing inode 1 for the root of the mount.
    pub(super) fn refuse_inode_one(&self, key: ObjectKey) -> Result<()> {
        match key.ino == NodeId::ROOT.0 {
            false => Ok(()),
            true => {
                tracing::error!(
                    "an object with backing inode number 1 cannot be shown: the kernel keeps 1 for the root"
                );
                Err(Errno::EIO)
            }
        }
    }

    pub(super) fn node_of(&self, key: ObjectKey) -> NodeId {
        match key == self.tree.root_key() {
            true => NodeId::ROOT,
            false => NodeId(key.ino),
        }
    }

    /// Opens `node` for the time of one request: by what is open of it, or by O_PATH.
    ///
    /// # Errors
    /// ESTALE when it is gone or was never in the tree.
    pub(super) fn object(&self, node: NodeId) -> Result<Object> {
        let key = self.key(node)?;
        let fd = if let Some(file) = self.opens.open_of(key) {
            ObjectFd::File(file)
        } else if let Some(fd) = self.directories.get(key) {
            ObjectFd::Kept(fd)
        } else {
            ObjectFd::Opened(self.tree.open_key(key, libc::O_PATH)?)
        };
        Ok(Object { key, fd })
    }

    /// Opens the directory `node`, and keeps it open for the requests that follow.
    ///
    /// # Errors
    /// ENOTDIR for anything else; as [`Stack::object`].
    pub(super) fn directory(&self, node: NodeId) -> Result<Object> {
        let key = self.key(node)?;
        if let Some(fd) = self.directories.get(key) {
            return Ok(Object { key, fd: ObjectFd::Kept(fd) });
        }
        let fd = Arc::new(self.tree.open_key(key, libc::O_PATH | libc::O_DIRECTORY)?);
        self.directories.keep(key, &fd);
        Ok(Object { key, fd: ObjectFd::Kept(fd) })
    }

    /// Which object the kernel means by `node`.
    pub(super) fn key(&self, node: NodeId) -> Result<ObjectKey> {
        if node == NodeId::ROOT {
            return Ok(self.tree.root_key());
        }
        match self.nodes.known(node.0) {
            Some(key) => Ok(key),
            None => self.prove(node),
        }
    }

    /// A node number that no look-up of this process answered: an NFS client kept it, or a daemon before us answered.
    /// A handle opens every inode of the filesystem, so it counts only with proof that it lies in the tree: the way up from
    /// a directory ends at our root, anything else was seen in the tree.
    fn prove(&self, node: NodeId) -> Result<ObjectKey> {
        let remembered = self.inodes.get().and_then(|inodes| inodes.get(node.0));
        let key = match (self.tree.key_of_ino(node.0), remembered) {
            (Ok(key), _) => key,
            (Err(_), Some(remembered)) => remembered.key,
            (Err(_), None) => self.search(node)?,
        };
        let fd = self.tree.open_key(key, libc::O_PATH)?;
        let stat = sys::fstat(fd.as_fd())?;
        if kind(&stat) == libc::S_IFDIR {
            self.walk_up(key, fd)?;
            return Ok(key);
        }
        let trusted =
            remembered.filter(|r| r.key == key && self.inodes.get().is_some_and(|list| list.trusts(*r, &stat)));
        match trusted {
            Some(_) if stat.nlink > 0 => Ok(key),
            Some(_) => Err(Errno::ESTALE),
            None => self.search(node),
        }
    }

    /// Looks for an inode number in the whole tree and remembers everything on the way, so that it is done once. One
    /// request does it; another one that comes meanwhile is told to come again (an NFS server passes that on as a delay).
    fn search(&self, node: NodeId) -> Result<ObjectKey> {
        const PATIENCE: Duration = Duration::from_secs(1);
        let inodes = self.inodes.get().ok_or(Errno::ESTALE)?;
        let _walk = self.walk.try_lock_for(PATIENCE).ok_or(Errno::EAGAIN)?;
        if !inodes.is_complete() {
            self.learn_all(inodes)?;
            inodes.completed();
        }
        inodes.get(node.0).filter(|found| found.is_current()).map(|found| found.key).ok_or(Errno::ESTALE)
    }

    fn learn_all(&self, inodes: &Inodes) -> Result<()> {
        let root = self.tree.root_key();
        let mut todo = vec![root];
        while let Some(key) = todo.pop() {
            let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOATIME;
            let mut dir = match self.tree.open_key(key, flags) {
                Ok(fd) => sys::DirStream::new(fd),
                Err(Errno::ESTALE | Errno::ENOENT) => continue,
                Err(errno) => return Err(errno),
            };
            while let Some(entry) = dir.next_entry()? {
                let Ok(name) = Name::new(&entry.name) else { continue };
                if self.is_reserved(key, name.as_bytes()) {
                    continue;
                }
                // What vanishes meanwhile needs no place in the list.
                let Ok(found) = self.tree.lookup(dir.fd(), &name) else { continue };
                inodes.learn(found.key);
                if kind(&found.stat) == libc::S_IFDIR {
                    todo.push(found.key);
                }
            }
        }
        Ok(())
    }

    fn walk_up(&self, mut key: ObjectKey, mut fd: OwnedFd) -> Result<()> {
        for _ in 0..MAX_DEPTH {
            // Above what the private mount shows the way up ends with ENOENT: not in the tree either.
            let up = sys::openat(fd.as_fd(), c"..", libc::O_PATH | libc::O_DIRECTORY, 0).map_err(|_| Errno::ESTALE)?;
            let parent = self.tree.found(up.as_fd()).map_err(|_| Errno::ESTALE)?.key;
            if parent == self.tree.root_key() {
                return self.refuse_reserved(up.as_fd(), key);
            }
            if parent == key {
                break;
            }
            (key, fd) = (parent, up);
        }
        Err(Errno::ESTALE)
    }

    fn refuse_reserved(&self, root: BorrowedFd<'_>, child: ObjectKey) -> Result<()> {
        let reserved = Name::new(RESERVED_DIR).map_err(|_| Errno::EIO)?;
        match self.tree.lookup(root, &reserved) {
            Ok(found) if found.key == child => Err(Errno::ESTALE),
            _ => Ok(()),
        }
    }

    /// Whether `name` in `dir` belongs to dtfs itself.
    pub(super) fn is_reserved(&self, dir: ObjectKey, name: &[u8]) -> bool {
        name == RESERVED_DIR && dir == self.tree.root_key()
    }

    /// What `name` in `dir` is, held open by O_PATH.
    ///
    /// # Errors
    /// ENOENT also for a reserved name.
    pub(super) fn find(&self, dir: &Object, name: &Name) -> Result<(Found, OwnedFd)> {
        if self.is_reserved(dir.key, name.as_bytes()) {
            return Err(Errno::ENOENT);
        }
        let fd = sys::openat(dir.fd.as_fd(), name.as_cstr(), libc::O_PATH, 0)?;
        Ok((self.tree.found(fd.as_fd())?, fd))
    }

    /// Opens the directory `parent` to make the name `name` in it.
    ///
    /// # Errors
    /// EPERM for a reserved name.
    pub(super) fn place(&self, parent: NodeId, name: &[u8]) -> Result<(Object, Name)> {
        let name = name_of(name)?;
        let dir = self.directory(parent)?;
        match self.is_reserved(dir.key, name.as_bytes()) {
            true => Err(Errno::EPERM),
            false => Ok((dir, name)),
        }
    }
}

/// A key to lock the object with inode number `ino` by, before its generation is known: locks go by the number alone.
pub(super) fn lockable(ino: u64) -> ObjectKey {
    ObjectKey { ino, generation: 0 }
}

/// Checks a name that the kernel sent.
pub(super) fn name_of(bytes: &[u8]) -> Result<Name> {
    Name::new(bytes).map_err(|error| match error {
        NameError::TooLong(_) => Errno::ENAMETOOLONG,
        NameError::Empty => Errno::ENOENT,
        NameError::BadByte | NameError::Dots => Errno::EINVAL,
    })
}
