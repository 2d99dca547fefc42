//! Changes of a tree through its stack, by path, as the kernel would ask for them.

use std::sync::Arc;

use dtfs::stack::{
    AttrChange, Caller, Entry, Errno, FileId, NodeId, Opened, Privileges, Result, Stack, WriteMode, Writer,
};

/// FS_IOC_SETFLAGS and the immutable flag (ioctl_iflags(2)).
const SET_FLAGS: u32 = 0x4008_6602;
pub(crate) const IMMUTABLE: u32 = 0x10;

/// A user of the stack who names things by path.
#[derive(Clone)]
pub(crate) struct Hand {
    pub(crate) stack: Arc<Stack>,
    pub(crate) caller: Caller,
}

/// An open file.
#[derive(Clone, Copy)]
pub(crate) struct Open {
    pub(crate) node: NodeId,
    pub(crate) file: FileId,
}

fn mode() -> WriteMode {
    WriteMode { flags: libc::O_RDWR, privileges: Privileges::Keep, writer: Writer::Caller }
}

impl Hand {
    pub(crate) fn new(stack: &Arc<Stack>) -> Hand {
        Hand { stack: stack.clone(), caller: Caller::daemon() }
    }

    pub(crate) fn node(&self, path: &str) -> Result<NodeId> {
        let mut node = NodeId::ROOT;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            node = self.stack.lookup(node, name.as_bytes())?.node;
        }
        Ok(node)
    }

    pub(crate) fn is_dir(&self, path: &str) -> bool {
        let stat = self.node(path).and_then(|node| self.stack.getattr(node, None));
        stat.is_ok_and(|stat| stat.mode & libc::S_IFMT == libc::S_IFDIR)
    }

    fn slot<'p>(&self, path: &'p str) -> Result<(NodeId, &'p [u8])> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.node(dir)?, name.as_bytes()))
    }

    pub(crate) fn mkdir(&self, path: &str) -> Result<Entry> {
        let (dir, name) = self.slot(path)?;
        self.stack.mkdir(&self.caller, dir, name, 0o755)
    }

    /// A new file, left open.
    pub(crate) fn create(&self, path: &str) -> Result<Open> {
        let (dir, name) = self.slot(path)?;
        let (entry, Opened { file, .. }) =
            self.stack.create(&self.caller, dir, name, 0o100_644, libc::O_RDWR | libc::O_EXCL)?;
        Ok(Open { node: entry.node, file })
    }

    pub(crate) fn open(&self, path: &str) -> Result<Open> {
        let node = self.regular(path)?;
        Ok(Open { node, file: self.stack.open(&self.caller, node, libc::O_RDWR)?.file })
    }

    /// The kernel opens and truncates regular files only through a mount.
    fn regular(&self, path: &str) -> Result<NodeId> {
        let node = self.node(path)?;
        match self.stack.getattr(node, None)?.mode & libc::S_IFMT {
            libc::S_IFREG => Ok(node),
            _ => Err(Errno::EINVAL),
        }
    }

    pub(crate) fn write_at(&self, open: Open, offset: u64, data: &[u8]) -> Result<()> {
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            done += self.stack.write(&self.caller, open.node, open.file, at, &data[done..], mode())?;
        }
        Ok(())
    }

    pub(crate) fn close(&self, open: Open) {
        self.stack.release(open.file);
    }

    /// A file with this content, closed.
    pub(crate) fn file(&self, path: &str, data: &[u8]) -> Result<()> {
        let open = self.create(path)?;
        let done = self.write_at(open, 0, data);
        self.close(open);
        done
    }

    /// Opens, writes, closes.
    pub(crate) fn patch(&self, path: &str, offset: u64, data: &[u8]) -> Result<()> {
        let open = self.open(path)?;
        let done = self.write_at(open, offset, data);
        self.close(open);
        done
    }

    pub(crate) fn allocate(&self, path: &str, how: i32, offset: u64, len: u64) -> Result<()> {
        let open = self.open(path)?;
        let done = self.stack.fallocate(&self.caller, open.node, open.file, how, offset, len);
        self.close(open);
        done
    }

    pub(crate) fn truncate(&self, path: &str, size: u64) -> Result<()> {
        self.regular(path)?;
        self.setattr(path, &AttrChange { size: Some(size), ..AttrChange::default() })
    }

    pub(crate) fn chmod(&self, path: &str, mode: u32) -> Result<()> {
        self.setattr(path, &AttrChange { mode: Some(mode), ..AttrChange::default() })
    }

    pub(crate) fn chown(&self, path: &str, uid: u32, gid: u32) -> Result<()> {
        self.setattr(path, &AttrChange { uid: Some(uid), gid: Some(gid), ..AttrChange::default() })
    }

    pub(crate) fn setattr(&self, path: &str, change: &AttrChange) -> Result<()> {
        self.stack.setattr(&self.caller, self.node(path)?, None, change).map(drop)
    }

    pub(crate) fn link(&self, path: &str, new: &str) -> Result<()> {
        let node = self.node(path)?;
        let (dir, name) = self.slot(new)?;
        self.stack.link(&self.caller, node, dir, name).map(drop)
    }

    pub(crate) fn unlink(&self, path: &str) -> Result<()> {
        let (dir, name) = self.slot(path)?;
        self.stack.unlink(&self.caller, dir, name)
    }

    pub(crate) fn rmdir(&self, path: &str) -> Result<()> {
        let (dir, name) = self.slot(path)?;
        self.stack.rmdir(&self.caller, dir, name)
    }

    pub(crate) fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.rename_flags(from, to, 0)
    }

    pub(crate) fn exchange(&self, from: &str, to: &str) -> Result<()> {
        self.rename_flags(from, to, libc::RENAME_EXCHANGE)
    }

    fn rename_flags(&self, from: &str, to: &str, flags: u32) -> Result<()> {
        let (from, to) = (self.slot(from)?, self.slot(to)?);
        self.stack.rename(&self.caller, from, to, flags)
    }

    pub(crate) fn symlink(&self, path: &str, text: &[u8]) -> Result<()> {
        let (dir, name) = self.slot(path)?;
        self.stack.symlink(&self.caller, dir, name, text).map(drop)
    }

    pub(crate) fn mknod(&self, path: &str, mode: u32, rdev: u64) -> Result<()> {
        let (dir, name) = self.slot(path)?;
        self.stack.mknod(&self.caller, dir, name, mode, rdev).map(drop)
    }

    pub(crate) fn set_xattr(&self, path: &str, name: &str, value: &[u8]) -> Result<()> {
        self.stack.setxattr(&self.caller, self.node(path)?, name.as_bytes(), value, 0)
    }

    pub(crate) fn remove_xattr(&self, path: &str, name: &str) -> Result<()> {
        self.stack.removexattr(&self.caller, self.node(path)?, name.as_bytes())
    }

    pub(crate) fn set_flags(&self, path: &str, flags: u32) -> Result<()> {
        let node = self.node(path)?;
        self.stack.ioctl(&self.caller, node, FileId(0), SET_FLAGS, &flags.to_ne_bytes()).map(drop)
    }
}

/// A POSIX ACL as the kernel keeps it: owner, one named user, group, mask, others.
pub(crate) fn acl(uid: u32) -> Vec<u8> {
    const NOBODY: u32 = u32::MAX;
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, rights, id) in [(1u16, 7u16, NOBODY), (2, 6, uid), (4, 5, NOBODY), (16, 7, NOBODY), (32, 4, NOBODY)] {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(rights.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}
