//! The attributes of one object on both sides.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use super::acl;
use super::{CompareOptions, Side, What};
use crate::sys::{self, Errno, InodeFlags, Stat};

/// xattrs that are not part of the tree: dtfs's own, the label that each host's own policy gives, and the second name under
/// which xfs lists an access control list.
const NOT_COMPARED: [&[u8]; 3] = [b"trusted.dtfs.", b"security.selinux", b"trusted.SGI_ACL_"];

/// A failed system call and the side it was made on.
pub(super) type Failure = (Side, Errno);

/// One object, by a descriptor that reads nothing (O_PATH) except for the roots.
pub(super) struct Object {
    pub(super) side: Side,
    pub(super) fd: OwnedFd,
    pub(super) stat: Stat,
}

impl Object {
    pub(super) fn new(side: Side, fd: OwnedFd) -> sys::Result<Object> {
        let stat = sys::fstat(fd.as_fd())?;
        Ok(Object { side, fd, stat })
    }

    pub(super) fn file_type(&self) -> u32 {
        self.stat.mode & libc::S_IFMT
    }

    pub(super) fn is_dir(&self) -> bool {
        self.file_type() == libc::S_IFDIR
    }

    pub(super) fn is_regular(&self) -> bool {
        self.file_type() == libc::S_IFREG
    }

    fn is_symlink(&self) -> bool {
        self.file_type() == libc::S_IFLNK
    }

    fn is_device(&self) -> bool {
        matches!(self.file_type(), libc::S_IFBLK | libc::S_IFCHR)
    }

    fn link_text(&self) -> Result<Vec<u8>, Failure> {
        sys::readlinkat(self.fd.as_fd(), c"").map_err(|errno| (self.side, errno))
    }

    /// Without those flags that only describe a layout.
    fn flags(&self) -> Result<InodeFlags, Failure> {
        let opened = |flags| sys::reopen(self.fd.as_fd(), flags).and_then(|fd| sys::inode_flags_get(fd.as_fd()));
        let flags = match self.file_type() {
            libc::S_IFREG => opened(libc::O_RDONLY | libc::O_NOATIME),
            libc::S_IFDIR => opened(libc::O_RDONLY | libc::O_NOATIME | libc::O_DIRECTORY),
            _ => sys::inode_flags_of_path(self.fd.as_fd()),
        };
        flags.map(InodeFlags::without_layout).map_err(|errno| (self.side, errno))
    }

    fn xattrs(&self) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Failure> {
        let names = match sys::listxattr(self.fd.as_fd()) {
            Err(Errno::EOPNOTSUPP) => Vec::new(),
            other => other.map_err(|errno| (self.side, errno))?,
        };
        let mut values = BTreeMap::new();
        for name in names.into_iter().filter(|name| !NOT_COMPARED.iter().any(|prefix| name.starts_with(prefix))) {
            let c_name = CString::new(name.as_slice()).map_err(|_| (self.side, Errno::EINVAL))?;
            let value = sys::getxattr(self.fd.as_fd(), &c_name).map_err(|errno| (self.side, errno))?;
            let value = if name == acl::ACCESS { acl::by_mode(value, self.stat.mode) } else { value };
            values.insert(name, value);
        }
        Ok(values)
    }
}

/// Compares everything but content, holes and hard links. Both are of one type.
pub(super) fn attributes(
    a: &Object,
    b: &Object,
    options: &CompareOptions,
    found: &mut Vec<What>,
) -> Result<(), Failure> {
    of_stat(a, b, options, found);
    if a.is_symlink() && a.link_text()? != b.link_text()? {
        found.push(What::LinkText);
    }
    let (flags_a, flags_b) = (a.flags()?, b.flags()?);
    if flags_a != flags_b {
        found.push(What::Flags { a: flags_a, b: flags_b });
    }
    let (xattrs_a, xattrs_b) = (a.xattrs()?, b.xattrs()?);
    if xattrs_a != xattrs_b {
        let names = xattrs_a.keys().chain(xattrs_b.keys().filter(|name| !xattrs_a.contains_key(*name)));
        let differ = names.filter(|name| xattrs_a.get(*name) != xattrs_b.get(*name));
        found.extend(differ.map(|name| What::Xattr { name: name.clone() }));
    }
    Ok(())
}

fn of_stat(a: &Object, b: &Object, options: &CompareOptions, found: &mut Vec<What>) {
    let (x, y) = (&a.stat, &b.stat);
    let checks = [
        (x.mode != y.mode, What::Mode { a: x.mode & 0o7777, b: y.mode & 0o7777 }),
        (x.uid != y.uid, What::Uid { a: x.uid, b: y.uid }),
        (x.gid != y.gid, What::Gid { a: x.gid, b: y.gid }),
        (a.is_regular() && x.size != y.size, What::Size { a: x.size, b: y.size }),
        (a.is_device() && x.rdev != y.rdev, What::Rdev { a: x.rdev, b: y.rdev }),
        (x.mtime != y.mtime, What::Mtime { a: x.mtime, b: y.mtime }),
        (options.atime && x.atime != y.atime, What::Atime { a: x.atime, b: y.atime }),
    ];
    found.extend(checks.into_iter().filter(|(differs, _)| *differs).map(|(_, what)| what));
}
