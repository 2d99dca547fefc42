//! Keeps others out of a target's tree: a mount of the tree over its own path that is read-only, without set-user-ID
//! programs and devices, and over that, until the tree is fit to be seen, one of an empty directory that only root may enter.
//!
//! Both are made whole before they are seen, lie on the path by one system call each, and need no process to stay. The first
//! is put there before the second and stays below it, so there is no moment in which the bare tree is seen. Nothing is
//! remembered about them: they are known by what they show, so that whoever is killed in between leaves nothing that the
//! next one does not understand.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::Tree;
use crate::sys::{self, Errno, Mount, Result};

/// What the table of mounts calls the empty directory.
const CLOSED: &str = "dtfs-closed";

/// What others find at the path of a tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cover {
    /// The tree, as its rights allow.
    Bare,
    /// The tree, which only dtfs changes.
    ReadOnly,
    /// An empty directory.
    Closed,
}

/// What others find at `path`, which must be absolute and without symlinks.
///
/// # Errors
/// When the table of mounts cannot be read.
pub fn cover_at(path: &Path) -> Result<Cover> {
    Ok(top_cover(path, &sys::mounts()?))
}

/// From now on others find `wanted` at `path`, the place of `tree`. Nothing is put there twice. Returns what they found before.
///
/// # Errors
/// ESTALE when something else than the tree lies at the path; else as mount_setattr(2), move_mount(2) and umount2(2).
pub fn set_cover(path: &Path, tree: &Tree, wanted: Cover) -> Result<Cover> {
    let before = cover_at(path)?;
    loop {
        match (cover_at(path)?, wanted) {
            (now, wanted) if now == wanted => return Ok(before),
            (Cover::Bare, _) => cover_read_only(path, tree)?,
            (Cover::ReadOnly, Cover::Closed) => close(path, tree)?,
            (Cover::ReadOnly | Cover::Closed, _) => uncover(path)?,
        }
    }
}

/// Others find the tree at `path` as its rights allow.
///
/// # Errors
/// As umount2(2).
pub fn remove_cover(path: &Path) -> Result<()> {
    while cover_at(path)? != Cover::Bare {
        uncover(path)?;
    }
    Ok(())
}

/// The directory `path` itself, whatever covers it.
///
/// # Errors
/// As open(2) and open_tree(2).
pub fn open_covered(path: &Path) -> Result<OwnedFd> {
    let clone = clone_covered(path)?;
    sys::openat(clone.as_fd(), c".", libc::O_RDONLY | libc::O_DIRECTORY, 0)
}

/// A private clone of the mount that is below the covers at `path`.
pub(super) fn clone_covered(path: &Path) -> Result<OwnedFd> {
    sys::clone_mount_below(&c_path(path)?, |mounts| top_cover(path, mounts) != Cover::Bare)
}

fn top_cover(path: &Path, mounts: &[Mount]) -> Cover {
    // Of several mounts on one point the last is the visible one.
    let Some(top) = mounts.iter().rfind(|mount| mount.point == path) else { return Cover::Bare };
    let below = mounts.iter().find(|mount| mount.id == top.parent);
    match below {
        Some(below) if top.kind == "tmpfs" && top.source == CLOSED && is_read_only(below, mounts) => Cover::Closed,
        _ if is_read_only(top, mounts) => Cover::ReadOnly,
        _ => Cover::Bare,
    }
}

/// Whether it shows, with less rights, the very directory that it lies on.
fn is_read_only(top: &Mount, mounts: &[Mount]) -> bool {
    let has = |option| top.options.split(',').any(|word| word == option);
    let covers_itself = |below: &Mount| {
        let inside = top.point.strip_prefix(&below.point);
        below.device == top.device && inside.is_ok_and(|inside| below.root.join(inside) == top.root)
    };
    ["ro", "nosuid", "nodev"].into_iter().all(has)
        && mounts.iter().find(|mount| mount.id == top.parent).is_some_and(covers_itself)
}

fn cover_read_only(path: &Path, tree: &Tree) -> Result<()> {
    let place = place_of(path, tree)?;
    let mount = sys::clone_mount(place.as_fd())?;
    sys::restrict_mount(mount.as_fd())?;
    sys::attach_mount(mount.as_fd(), place.as_fd())
}

fn close(path: &Path, tree: &Tree) -> Result<()> {
    let place = place_of(path, tree)?;
    let source = std::ffi::CString::new(CLOSED).map_err(|_| Errno::EINVAL)?;
    sys::attach_mount(sys::empty_mount(&source)?.as_fd(), place.as_fd())
}

/// The path may lead elsewhere by now, if somebody can move the directories above it: nothing else is ever covered.
fn place_of(path: &Path, tree: &Tree) -> Result<OwnedFd> {
    let place = open(path)?;
    let (there, root) = (sys::fstat(place.as_fd())?, sys::fstat(tree.root())?);
    if (there.dev, there.ino) == (root.dev, root.ino) { Ok(place) } else { Err(Errno::ESTALE) }
}

/// Takes the topmost cover away. What is taken away is what was looked at.
fn uncover(path: &Path) -> Result<()> {
    let top = open(path)?;
    let (id, mounts) = (sys::mount_id(top.as_fd())?, sys::mounts()?);
    let visible = mounts.iter().rfind(|mount| mount.point == path).map(|mount| mount.id);
    if visible != Some(id) || top_cover(path, &mounts) == Cover::Bare {
        return Err(Errno::ESTALE);
    }
    sys::detach_mount(top.as_fd())
}

fn open(path: &Path) -> Result<OwnedFd> {
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
    sys::openat(nix::fcntl::AT_FDCWD, &c_path(path)?, flags, 0)
}

fn c_path(path: &Path) -> Result<std::ffi::CString> {
    std::ffi::CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)
}
