//! Whose credentials the calling thread acts with.

use std::os::fd::{AsRawFd, BorrowedFd};

use super::{Result, check};

/// The filesystem ids of the calling thread, remembered so that a switch costs nothing when it changes nothing.
///
/// One value belongs to one thread, which is prepared once by [`ThreadCreds::prepare_thread`].
pub struct ThreadCreds {
    uid: u32,
    gid: u32,
}

impl ThreadCreds {
    /// Gives the calling thread its own umask and keeps its capabilities when its filesystem uid changes.
    ///
    /// Without SECBIT_NO_SETUID_FIXUP a setfsuid away from 0 drops CAP_DAC_OVERRIDE, and a directory that the caller may
    /// write only through a supplementary group (which FUSE does not send) would refuse (capabilities(7)).
    ///
    /// # Errors
    /// As unshare(2) and prctl(2).
    pub fn prepare_thread() -> Result<ThreadCreds> {
        // SAFETY: affects only the calling thread's own fs struct and securebits.
        check(unsafe { libc::unshare(libc::CLONE_FS) })?;
        const SECBIT_NO_SETUID_FIXUP: libc::c_ulong = 1 << 2;
        // SAFETY: prctl with plain integers.
        let bits = check(unsafe { libc::prctl(libc::PR_GET_SECUREBITS) })? as libc::c_ulong;
        // SAFETY: as above.
        check(unsafe { libc::prctl(libc::PR_SET_SECUREBITS, bits | SECBIT_NO_SETUID_FIXUP) })?;
        Ok(ThreadCreds { uid: 0, gid: 0 })
    }

    /// From now on new inodes of this thread belong to `uid` and `gid`.
    pub fn act_as(&mut self, uid: u32, gid: u32) {
        // The raw system calls: libc's wrappers are the same here, but act on the thread only by accident of glibc.
        if self.gid != gid {
            // SAFETY: plain integers; setfsgid cannot fail for a process with CAP_SETGID.
            unsafe { libc::syscall(libc::SYS_setfsgid, gid) };
            self.gid = gid;
        }
        if self.uid != uid {
            // SAFETY: as above, with CAP_SETUID.
            unsafe { libc::syscall(libc::SYS_setfsuid, uid) };
            self.uid = uid;
        }
    }
}

/// umask(2) of the calling thread (after [`ThreadCreds::prepare_thread`] it is the thread's own).
pub fn set_umask(umask: u32) {
    // SAFETY: cannot fail.
    unsafe { libc::umask(umask) };
}

/// PR_SET_IO_FLUSHER: the thread takes part in writing dirty pages back, so its own allocations must not wait for that
/// (prctl(2)).
///
/// # Errors
/// EPERM without CAP_SYS_RESOURCE.
pub fn set_io_flusher() -> Result<()> {
    const PR_SET_IO_FLUSHER: libc::c_int = 57;
    // SAFETY: plain integers.
    check(unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) }).map(drop)
}

/// The supplementary groups of the process that connected to `socket`, as they were then (SO_PEERGROUPS, socket(7)).
///
/// # Errors
/// As getsockopt(2).
pub fn peer_groups(socket: BorrowedFd<'_>) -> Result<Vec<u32>> {
    // The kernel keeps at most NGROUPS_MAX.
    let mut groups = vec![0u32; 65_536];
    let mut bytes = size_of_val(groups.as_slice()) as libc::socklen_t;
    // SAFETY: the kernel writes at most `bytes` bytes and says how many.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERGROUPS,
            groups.as_mut_ptr().cast(),
            &raw mut bytes,
        )
    })?;
    groups.truncate(bytes as usize / size_of::<u32>());
    Ok(groups)
}

const CAP_FSETID: u32 = 4;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_SYS_RESOURCE: u32 = 24;

/// Drops (or raises again) CAP_FSETID in the calling thread's effective set. Without it, a write or truncate by this
/// thread clears set-user-id and set-group-id bits as it would for an ordinary user.
///
/// # Errors
/// As capset(2).
pub fn drop_fsetid_thread(dropped: Dropped) -> Result<()> {
    change_effective(CAP_FSETID, dropped)
}

/// Drops (or raises again) CAP_SYS_RESOURCE in the calling thread's effective set, so that quotas and reserved blocks
/// count as for an ordinary user.
///
/// # Errors
/// As capset(2).
pub fn drop_resource_thread(dropped: Dropped) -> Result<()> {
    change_effective(CAP_SYS_RESOURCE, dropped)
}

/// Drops (or raises again) CAP_SYS_ADMIN in the calling thread's effective set: without it a filesystem shows what it
/// shows to ordinary users.
///
/// # Errors
/// As capset(2).
pub fn drop_admin_thread(dropped: Dropped) -> Result<()> {
    change_effective(CAP_SYS_ADMIN, dropped)
}

/// Whether a capability is taken away or given back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dropped {
    /// Not effective from now on.
    Yes,
    /// Effective again (it stays permitted all the time).
    No,
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

fn change_effective(cap: u32, dropped: Dropped) -> Result<()> {
    change_capabilities(|data| {
        let word = &mut data[(cap / 32) as usize];
        let bit = 1 << (cap % 32);
        word.effective = match dropped {
            Dropped::Yes => word.effective & !bit,
            Dropped::No => word.effective | (bit & word.permitted),
        };
    })
}

/// The calling thread has none but those of `kept` from now on, and hands none down to programs.
pub(super) fn limit_capabilities(kept: &[u32]) -> Result<()> {
    change_capabilities(|data| {
        for (at, word) in data.iter_mut().enumerate() {
            let of_word = kept.iter().filter(|cap| **cap as usize / 32 == at);
            let mask = of_word.fold(0, |mask, cap| mask | 1 << (cap % 32));
            *word = CapData { effective: word.effective & mask, permitted: word.permitted & mask, inheritable: 0 };
        }
    })
}

fn change_capabilities(change: impl FnOnce(&mut [CapData; 2])) -> Result<()> {
    const LINUX_CAPABILITY_VERSION_3: u32 = 0x2008_0522;
    let mut header = CapHeader { version: LINUX_CAPABILITY_VERSION_3, pid: 0 };
    let mut data = [CapData::default(); 2];
    // SAFETY: header and two data words have the layout of version 3 (capset(2)).
    check(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) } as libc::c_int)?;
    change(&mut data);
    // SAFETY: as above.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) } as libc::c_int).map(drop)
}
