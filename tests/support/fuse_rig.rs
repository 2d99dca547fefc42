//! What the rigs that are small FUSE servers themselves share.

use std::ffi::{CStr, CString};
use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::UNIX_EPOCH;

use dtfs::sys;
use fuser::{Config, FileAttr, FileType, Filesystem, INodeNo, Session, SessionACL};

/// Mounts `server` as `name` at `point`, with so many threads; whoever runs the session serves.
pub(crate) fn mount<S: Filesystem>(server: S, name: &CStr, point: &Path, threads: usize) -> Session<S> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").expect("/dev/fuse");
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    let text = |text: &[u8]| CString::new(text).expect("no NUL");
    sys::mount_fuse(name, &text(point.as_os_str().as_bytes()), &text(options.as_bytes()))
        .expect("a FUSE mount for a rig");
    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(threads);
    config.clone_fd = true;
    Session::from_fd(server, OwnedFd::from(device), SessionACL::All, config).expect("a FUSE session")
}

/// A file or directory of root's that nothing ever happened to.
pub(crate) fn attr(ino: u64, kind: FileType, size: u64) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino),
        size,
        blocks: size / 512,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm: 0o700,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}
