//! Events of files that are written through one mount (fanotify(7)).

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use super::{Errno, Result, check, check_size, own_fd, retry};

/// A file that was written.
#[derive(Debug)]
pub struct Written {
    /// The file, open for reading; `None` when events were lost.
    pub file: Option<OwnedFd>,
    /// Process that wrote it.
    pub pid: i32,
}

/// Tells from now on of every file that is written, or closed after it was open for writing, through the mount that `dir`
/// (not O_PATH) was reached by. Reading the events never waits.
///
/// # Errors
/// ENOSYS when the kernel has no fanotify, EPERM without CAP_SYS_ADMIN; else as fanotify_mark(2).
pub fn watch_mount(dir: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = libc::FAN_CLASS_NOTIF | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK;
    let file_flags = (libc::O_RDONLY | libc::O_CLOEXEC | libc::O_LARGEFILE | libc::O_NOATIME) as libc::c_uint;
    // SAFETY: no pointers.
    let group = own_fd(unsafe { libc::fanotify_init(flags, file_flags) })?;
    let how = libc::FAN_MARK_ADD | libc::FAN_MARK_MOUNT;
    let events = libc::FAN_MODIFY | libc::FAN_CLOSE_WRITE;
    // SAFETY: a null path means the directory itself (fanotify_mark(2)).
    check(unsafe { libc::fanotify_mark(group.as_raw_fd(), how, events, dir.as_raw_fd(), std::ptr::null()) })?;
    Ok(group)
}

/// The events that wait now, at most a bufferful; none when there are none.
///
/// # Errors
/// As read(2). What the kernel could not open is left out.
pub fn read_written(group: BorrowedFd<'_>) -> Result<Vec<Written>> {
    const EVENT: usize = size_of::<libc::fanotify_event_metadata>();
    let mut buffer = [0_u8; EVENT * 64];
    // SAFETY: the kernel writes at most the buffer's length.
    let read = || check_size(unsafe { libc::read(group.as_raw_fd(), buffer.as_mut_ptr().cast(), EVENT * 64) });
    let len = match retry(read) {
        Err(Errno::EAGAIN) => 0,
        len => len?,
    };
    Ok(buffer[..len].chunks_exact(EVENT).filter_map(parse).collect())
}

/// One event; the fields that are used stand behind its length, version and mask (linux/fanotify.h).
fn parse(event: &[u8]) -> Option<Written> {
    let word = |at: usize| i32::from_ne_bytes([event[at], event[at + 1], event[at + 2], event[at + 3]]);
    let mask = u64::from(word(8) as u32);
    let (fd, pid) = (word(16), word(20));
    match (mask & libc::FAN_Q_OVERFLOW, fd) {
        (0, 0..) => Some(Written { file: own_fd(fd).ok(), pid }),
        (0, _) => None,
        _ => Some(Written { file: None, pid }),
    }
}
