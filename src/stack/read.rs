//! Reading without a change: read, readlink, lseek.

use std::os::fd::AsFd;

use super::Stack;
use super::types::{AtimeMode, FileId, NodeId};
use crate::sys::{self, Errno, Result};

impl Stack {
    /// pread(2): fills `buffer` unless the file ends before.
    ///
    /// # Errors
    /// As pread(2).
    pub fn read(&self, node: NodeId, id: FileId, flags: i32, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let file = self.file(id, node, flags)?;
        // The kernel asks for whole pages, also where no offset can say their end.
        let most = (i64::MAX as u64).saturating_sub(offset).min(buffer.len() as u64) as usize;
        let buffer = &mut buffer[..most];
        let mut done = 0;
        // The kernel takes a short answer for the end of the file (fs/fuse/file.c, fuse_short_read).
        while done < buffer.len() {
            match sys::pread(file.fd(), &mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(_) if done > 0 => break,
                Err(errno) => return Err(errno),
            }
        }
        if self.options.atime == AtimeMode::EachRead {
            self.record_moved_atime(&file);
        }
        Ok(done)
    }

    /// readlink(2).
    ///
    /// # Errors
    /// As readlink(2).
    pub fn readlink(&self, node: NodeId) -> Result<Vec<u8>> {
        sys::readlinkat(self.object(node)?.fd.as_fd(), c"")
    }

    /// lseek(2) with SEEK_DATA or SEEK_HOLE; the kernel answers the others itself.
    ///
    /// # Errors
    /// As lseek(2).
    pub fn lseek(&self, node: NodeId, id: FileId, offset: i64, whence: i32) -> Result<i64> {
        if !matches!(whence, libc::SEEK_DATA | libc::SEEK_HOLE) {
            return Err(Errno::EINVAL);
        }
        let file = self.file(id, node, libc::O_RDONLY)?;
        sys::lseek(file.fd(), offset, whence).map(|at| at as i64)
    }
}
