//! Inode flags, extent size hints and project ids: ioctl_iflags(2), ioctl_xfs_fsgetxattr(2), and file_getattr (Linux
//! 6.17, fs/file_attr.c) for objects that cannot be opened.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::{Errno, Result, check, proc_path, retry};

/// Inode flags as FS_IOC_GETFLAGS gives them (immutable, append-only, ...; ioctl_iflags(2)).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FileFlags(pub u32);

impl FileFlags {
    /// No change of any kind is allowed (FS_IMMUTABLE_FL).
    pub const IMMUTABLE: u32 = 0x10;
    /// Only appending is allowed (FS_APPEND_FL).
    pub const APPEND: u32 = 0x20;
    /// A directory that hands its project id down, and takes no object of another project (FS_PROJINHERIT_FL).
    pub const PROJECT_INHERIT: u32 = 0x2000_0000;
    /// What stands in the way of a change that a target must make.
    pub const LOCKS: u32 = Self::IMMUTABLE | Self::APPEND | Self::PROJECT_INHERIT;
}

const FS_IOC_GETFLAGS: libc::c_ulong = 0x8008_6601;
const FS_IOC_SETFLAGS: libc::c_ulong = 0x4008_6602;

/// FS_IOC_GETFLAGS; `fd` must be open for reading (not O_PATH).
///
/// # Errors
/// ENOTTY or EOPNOTSUPP where the filesystem has no flags.
pub fn file_flags_get(fd: BorrowedFd<'_>) -> Result<FileFlags> {
    let mut flags: libc::c_long = 0;
    // SAFETY: the kernel writes an int into a live long.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_GETFLAGS, &raw mut flags) })?;
    Ok(FileFlags(flags as u32))
}

/// FS_IOC_SETFLAGS; `fd` must be open for reading (not O_PATH).
///
/// # Errors
/// As ioctl_iflags(2).
pub fn file_flags_set(fd: BorrowedFd<'_>, flags: FileFlags) -> Result<()> {
    let flags = libc::c_long::from(flags.0);
    // SAFETY: the kernel reads an int from a live long.
    retry(|| check(unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_SETFLAGS, &raw const flags) })).map(drop)
}

/// Size of the kernel's `struct fsxattr`.
pub const FSXATTR_BYTES: usize = 28;

/// The kernel's `struct fsxattr`, without the number of extents.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FsXattr {
    /// FS_XFLAG_* bits.
    pub xflags: u32,
    /// Extent size hint in bytes.
    pub extent_size: u32,
    /// Project id.
    pub project: u32,
    /// Extent size hint for copies on write, in bytes.
    pub cow_extent_size: u32,
}

impl FsXattr {
    /// From the bytes of the kernel's struct.
    pub fn from_bytes(raw: &[u8; FSXATTR_BYTES]) -> FsXattr {
        let word = |at: usize| u32::from_ne_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]]);
        FsXattr { xflags: word(0), extent_size: word(4), project: word(12), cow_extent_size: word(16) }
    }

    /// The bytes of the kernel's struct.
    pub fn to_bytes(self) -> [u8; FSXATTR_BYTES] {
        let mut raw = [0; FSXATTR_BYTES];
        for (at, word) in [(0, self.xflags), (4, self.extent_size), (12, self.project), (16, self.cow_extent_size)] {
            raw[at..at + 4].copy_from_slice(&word.to_ne_bytes());
        }
        raw
    }
}

/// FS_IOC_FSGETXATTR; `fd` must be open for reading (not O_PATH).
///
/// # Errors
/// ENOTTY or EOPNOTSUPP where the filesystem has none.
pub fn fsxattr_get(fd: BorrowedFd<'_>) -> Result<[u8; FSXATTR_BYTES]> {
    const FS_IOC_FSGETXATTR: libc::c_ulong = 0x801c_581f;
    let mut raw = [0u8; FSXATTR_BYTES];
    // SAFETY: the command carries the size of the struct, 28 bytes, and the buffer has them.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_FSGETXATTR, raw.as_mut_ptr()) })?;
    Ok(raw)
}

/// FS_IOC_FSSETXATTR; `fd` must be open for reading (not O_PATH).
///
/// # Errors
/// As ioctl_xfs_fsgetxattr(2).
pub fn fsxattr_set(fd: BorrowedFd<'_>, raw: &[u8; FSXATTR_BYTES]) -> Result<()> {
    const FS_IOC_FSSETXATTR: libc::c_ulong = 0x401c_5820;
    // SAFETY: as above; the kernel only reads.
    retry(|| check(unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_FSSETXATTR, raw.as_ptr()) })).map(drop)
}

/// What chattr(1) and xfs_io(8) set of an inode, as far as it means the same on every filesystem that has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct InodeFlags {
    /// FS_*_FL bits, of [`InodeFlags::EXACT`] and [`InodeFlags::LAYOUT`].
    pub flags: u32,
    /// FS_XFLAG_* bits that have no FS_*_FL twin or need one more word, of [`InodeFlags::XFLAGS`].
    pub xflags: u32,
    /// Project id.
    pub project: u32,
    /// Extent size hint in bytes; 0 without a flag in `xflags` that says that it counts.
    pub extent_size: u32,
    /// Extent size hint for copies on write, in bytes; 0 as above.
    pub cow_extent_size: u32,
}

const XFLAG_PROJECT_INHERIT: u32 = 0x200;
const XFLAG_EXTENT_SIZE: u32 = 0x800;
const XFLAG_EXTENT_SIZE_INHERIT: u32 = 0x1000;
const XFLAG_COW_EXTENT_SIZE: u32 = 0x1_0000;
/// FS_XFLAG_* and the FS_*_FL that says the same: immutable, append, sync, noatime, nodump.
const TWINS: [(u32, u32); 5] = [(0x08, 0x10), (0x10, 0x20), (0x20, 0x08), (0x40, 0x80), (0x80, 0x40)];

impl InodeFlags {
    /// A user sets them and every filesystem means the same: append, immutable, nodump, noatime, sync, dirsync, topdir.
    pub const EXACT: u32 = 0x20 | 0x10 | 0x40 | 0x80 | 0x08 | 0x0001_0000 | 0x0002_0000;
    /// How one filesystem lays data out: no copy on write, compressed, never compressed. Set where it can be.
    pub const LAYOUT: u32 = 0x0080_0000 | 0x04 | 0x400;
    /// Project inheritance, no symlinks, extent size, its inheritance, no defragmentation, extent size of copies. Left out
    /// are those of a device that the target may not have (realtime, filestream, DAX).
    pub const XFLAGS: u32 =
        XFLAG_PROJECT_INHERIT | 0x400 | XFLAG_EXTENT_SIZE | XFLAG_EXTENT_SIZE_INHERIT | 0x2000 | XFLAG_COW_EXTENT_SIZE;

    fn new(flags: FileFlags, fsx: FsXattr) -> InodeFlags {
        let counts = |mask, bytes| if fsx.xflags & mask == 0 { 0 } else { bytes };
        InodeFlags {
            flags: flags.0 & (Self::EXACT | Self::LAYOUT),
            xflags: fsx.xflags & Self::XFLAGS,
            project: fsx.project,
            extent_size: counts(XFLAG_EXTENT_SIZE | XFLAG_EXTENT_SIZE_INHERIT, fsx.extent_size),
            cow_extent_size: counts(XFLAG_COW_EXTENT_SIZE, fsx.cow_extent_size),
        }
    }

    /// Whether nothing is set.
    pub fn is_plain(&self) -> bool {
        *self == InodeFlags::default()
    }

    /// Without what only describes a layout: this must be equal on source and target.
    pub fn without_layout(self) -> InodeFlags {
        InodeFlags { flags: self.flags & Self::EXACT, ..self }
    }

    fn fsx(&self, present: FsXattr) -> FsXattr {
        FsXattr {
            xflags: present.xflags & !Self::XFLAGS | self.xflags,
            extent_size: self.extent_size,
            project: self.project,
            cow_extent_size: self.cow_extent_size,
        }
    }
}

/// What a filesystem says that has nothing of the kind.
fn is_unknown(errno: Errno) -> bool {
    matches!(errno, Errno::ENOTTY | Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENOSYS)
}

fn known<T: Default>(outcome: Result<T>) -> Result<T> {
    match outcome {
        Err(errno) if is_unknown(errno) => Ok(T::default()),
        outcome => outcome,
    }
}

fn fsx_of(fd: BorrowedFd<'_>) -> Result<FsXattr> {
    fsxattr_get(fd).map(|raw| FsXattr::from_bytes(&raw))
}

/// Flags, hints and project of a file or directory; nothing where the filesystem knows of none. `fd` must be open for
/// reading (not O_PATH).
///
/// # Errors
/// As ioctl_iflags(2).
pub fn inode_flags_get(fd: BorrowedFd<'_>) -> Result<InodeFlags> {
    Ok(InodeFlags::new(known(file_flags_get(fd))?, known(fsx_of(fd))?))
}

/// Makes the flags of a file or directory `wanted`. `fd` must be open for reading (not O_PATH). Flags that describe a
/// layout are set if the filesystem takes them.
///
/// # Errors
/// EOPNOTSUPP when the filesystem lacks something that is wanted; EINVAL for an extent size hint that comes too late, because
/// the file has extents; else as ioctl_iflags(2).
pub fn set_inode_flags(fd: BorrowedFd<'_>, wanted: &InodeFlags) -> Result<()> {
    set_hints(fd, wanted)?;
    let present = match file_flags_get(fd) {
        Err(errno) if is_unknown(errno) => return lacking(wanted.flags & InodeFlags::EXACT),
        present => present?,
    };
    let exact = FileFlags(present.0 & !InodeFlags::EXACT | wanted.flags & InodeFlags::EXACT);
    if exact != present { file_flags_set(fd, exact) } else { Ok(()) }
}

/// The part of [`set_inode_flags`] that must come before a file has data: project, hints and layout.
///
/// # Errors
/// As [`set_inode_flags`].
pub fn set_hints(fd: BorrowedFd<'_>, wanted: &InodeFlags) -> Result<()> {
    let all = wanted.xflags | wanted.project | wanted.extent_size | wanted.cow_extent_size;
    match fsx_of(fd) {
        Err(errno) if is_unknown(errno) => lacking(all)?,
        present => {
            let present = present?;
            if InodeFlags::new(FileFlags(wanted.flags), present) != *wanted {
                fsxattr_set(fd, &wanted.fsx(present).to_bytes())?;
            }
        }
    }
    set_layout(fd, wanted)
}

fn lacking(wanted: u32) -> Result<()> {
    if wanted == 0 { Ok(()) } else { Err(Errno::EOPNOTSUPP) }
}

fn set_layout(fd: BorrowedFd<'_>, wanted: &InodeFlags) -> Result<()> {
    let Ok(present) = file_flags_get(fd) else {
        return Ok(());
    };
    let layout = FileFlags(present.0 & !InodeFlags::LAYOUT | wanted.flags & InodeFlags::LAYOUT);
    match layout != present {
        true => known(file_flags_set(fd, layout)),
        false => Ok(()),
    }
}

/// The kernel's `struct file_attr`.
#[repr(C)]
#[derive(Default)]
struct FileAttr {
    xflags: u64,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
}

// Not in the C library's headers yet; the numbers are the same on all architectures.
const SYS_FILE_GETATTR: libc::c_long = 468;
const SYS_FILE_SETATTR: libc::c_long = 469;

fn file_getattr(dir: libc::c_int, name: &CStr, at_flags: libc::c_int) -> Result<FileAttr> {
    let mut attr = FileAttr::default();
    let size = size_of::<FileAttr>();
    // SAFETY: the name lives, and the kernel writes at most `size` bytes into the struct.
    let done = unsafe { libc::syscall(SYS_FILE_GETATTR, dir, name.as_ptr(), &raw mut attr, size, at_flags) };
    check(done as libc::c_int)?;
    Ok(attr)
}

fn from_attr(attr: &FileAttr) -> InodeFlags {
    let xflags = attr.xflags as u32;
    let flags = TWINS.iter().filter(|(xflag, _)| xflags & xflag != 0).fold(0, |all, (_, flag)| all | flag);
    let (extent_size, cow_extent_size) = (attr.extent_size, attr.cow_extent_size);
    InodeFlags::new(FileFlags(flags), FsXattr { xflags, extent_size, project: attr.project, cow_extent_size })
}

/// As [`inode_flags_get`] for the entry `name` of `dir` that is neither file nor directory (which file_getattr would tell
/// less of). Nothing before Linux 6.17.
///
/// # Errors
/// ENOENT when there is none; else as openat(2).
pub fn inode_flags_at(dir: BorrowedFd<'_>, name: &CStr) -> Result<InodeFlags> {
    known(file_getattr(dir.as_raw_fd(), name, libc::AT_SYMLINK_NOFOLLOW).map(|attr| from_attr(&attr)))
}

/// As [`inode_flags_at`] for an object that is open by O_PATH.
///
/// # Errors
/// As [`inode_flags_at`].
pub fn inode_flags_of_path(fd: BorrowedFd<'_>) -> Result<InodeFlags> {
    known(file_getattr(libc::AT_FDCWD, &proc_path(fd), 0).map(|attr| from_attr(&attr)))
}

/// Makes `project` the project id of what is open by O_PATH and is neither file nor directory.
///
/// # Errors
/// EOPNOTSUPP where it cannot be set; else as ioctl_xfs_fsgetxattr(2).
pub fn set_project_of_path(fd: BorrowedFd<'_>, project: u32) -> Result<()> {
    let path = proc_path(fd);
    let mut attr = match file_getattr(libc::AT_FDCWD, &path, 0) {
        Err(errno) if is_unknown(errno) => return lacking(project),
        attr => attr?,
    };
    if attr.project == project {
        return Ok(());
    }
    attr.project = project;
    let size = size_of::<FileAttr>();
    // SAFETY: the path lives, and the kernel reads at most `size` bytes of the struct.
    let done = unsafe { libc::syscall(SYS_FILE_SETATTR, libc::AT_FDCWD, path.as_ptr(), &raw const attr, size, 0) };
    check(done as libc::c_int).map(drop)
}
