//! What a comparison found.

use std::fmt;

use crate::base::{Name, Timespec};
use crate::sys::{Errno, InodeFlags};

/// One of the two trees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// The first tree.
    A,
    /// The second tree.
    B,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Side::A => "first tree",
            Side::B => "second tree",
        })
    }
}

/// How one object differs; `a` and `b` are the values in the first and in the second tree.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // The fields are the two values; each variant says of what.
pub enum What {
    /// This side has no such name.
    Missing(Side),
    /// File type (S_IFMT bits).
    Type { a: u32, b: u32 },
    /// Permission bits.
    Mode { a: u32, b: u32 },
    /// Owner.
    Uid { a: u32, b: u32 },
    /// Group.
    Gid { a: u32, b: u32 },
    /// Size of a regular file.
    Size { a: u64, b: u64 },
    /// The first byte that differs.
    Content { offset: u64 },
    /// From this offset on, one side has a hole where the other has data (that reads as zeros).
    Holes { offset: u64 },
    /// Modification time.
    Mtime { a: Timespec, b: Timespec },
    /// Access time.
    Atime { a: Timespec, b: Timespec },
    /// Text of a symlink.
    LinkText,
    /// Device number.
    Rdev { a: u64, b: u64 },
    /// The xattr of this name: set on one side only, or with another value.
    Xattr { name: Vec<u8> },
    /// Inode flags, extent size hints or project.
    Flags { a: InodeFlags, b: InodeFlags },
    /// The names that share this inode are not the same names on both sides.
    HardLinks,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            What::Missing(side) => write!(f, "missing in the {side}"),
            What::Type { a, b } => write!(f, "type {} and {}", type_name(*a), type_name(*b)),
            What::Mode { a, b } => write!(f, "mode {a:04o} and {b:04o}"),
            What::Uid { a, b } => write!(f, "uid {a} and {b}"),
            What::Gid { a, b } => write!(f, "gid {a} and {b}"),
            What::Size { a, b } => write!(f, "size {a} and {b}"),
            What::Content { offset } => write!(f, "content at byte {offset}"),
            What::Holes { offset } => write!(f, "hole and data at byte {offset}"),
            What::Mtime { a, b } => write!(f, "mtime {} and {}", time(*a), time(*b)),
            What::Atime { a, b } => write!(f, "atime {} and {}", time(*a), time(*b)),
            What::LinkText => f.write_str("symlink text"),
            What::Rdev { a, b } => write!(f, "device number {a:#x} and {b:#x}"),
            What::Xattr { name } => write!(f, "xattr {}", name.escape_ascii()),
            What::Flags { a, b } => write!(f, "inode flags {} and {}", flags(a), flags(b)),
            What::HardLinks => f.write_str("hard links: other names share this inode"),
        }
    }
}

fn time(time: Timespec) -> String {
    format!("{}.{:09}", time.sec, time.nsec)
}

fn flags(of: &InodeFlags) -> String {
    let InodeFlags { flags, xflags, project, extent_size, cow_extent_size } = of;
    format!("{flags:#x}/{xflags:#x} project {project} extents {extent_size}/{cow_extent_size}")
}

fn type_name(file_type: u32) -> &'static str {
    match file_type {
        libc::S_IFREG => "file",
        libc::S_IFDIR => "directory",
        libc::S_IFLNK => "symlink",
        libc::S_IFIFO => "fifo",
        libc::S_IFSOCK => "socket",
        libc::S_IFBLK => "block device",
        libc::S_IFCHR => "character device",
        _ => "unknown",
    }
}

/// One difference.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// Where, relative to the roots; empty for the roots themselves.
    pub path: Vec<u8>,
    /// How.
    pub what: What,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", show(&self.path), self.what)
    }
}

/// A path for people: control bytes escaped, `.` for the root.
fn show(path: &[u8]) -> String {
    let part = |bytes: &[u8]| Name::new(bytes).map_or_else(|_| bytes.escape_ascii().to_string(), |n| n.to_string());
    match path.is_empty() {
        true => ".".to_owned(),
        false => path.split(|b| *b == b'/').map(part).collect::<Vec<_>>().join("/"),
    }
}

/// The outcome of a comparison.
#[derive(Clone, Debug)]
pub struct CompareReport {
    /// Objects that both sides have.
    pub objects: u64,
    /// Bytes of content read on each side; holes on both sides do not count.
    pub bytes: u64,
    /// All differences found.
    pub found: u64,
    /// The first of them, in the order of the walk.
    pub differences: Vec<Difference>,
    keep: usize,
}

impl CompareReport {
    pub(super) fn new(keep: usize) -> CompareReport {
        CompareReport { objects: 0, bytes: 0, found: 0, differences: Vec::new(), keep }
    }

    pub(super) fn add(&mut self, path: Vec<u8>, what: What) {
        self.found += 1;
        if self.differences.len() < self.keep {
            self.differences.push(Difference { path, what });
        }
    }

    /// Whether nothing differs.
    pub fn is_equal(&self) -> bool {
        self.found == 0
    }
}

impl fmt::Display for CompareReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for difference in &self.differences {
            writeln!(f, "{difference}")?;
        }
        let left_out = self.found - self.differences.len() as u64;
        if left_out > 0 {
            writeln!(f, "... and {left_out} more")?;
        }
        write!(f, "{} objects and {} bytes compared, {} differences", self.objects, self.bytes, self.found)
    }
}

/// Something could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot compare {} in the {side}: {errno}", show(path))]
pub struct CompareError {
    /// In which tree.
    pub side: Side,
    /// Where, relative to its root.
    pub path: Vec<u8>,
    /// What the kernel said.
    pub errno: Errno,
}

impl CompareError {
    pub(super) fn new(side: Side, path: &[u8], errno: Errno) -> CompareError {
        CompareError { side, path: path.to_vec(), errno }
    }
}
