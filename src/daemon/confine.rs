//! What `dtfs serve` gives up before it reads a byte from its peer. A second line of defence: what a peer sends is checked
//! where it is decoded, and the tree is reached by handles only.
//!
//! It keeps what it needs for one tree: among it CAP_SYS_ADMIN, for a target's objects bear `trusted.*` xattrs, and
//! CAP_DAC_READ_SEARCH, for they are opened by handle. With these two it could leave any confinement by paths (landlock does
//! not see a file that is opened by its handle), so there is none: what is denied are the calls by which a process reaches
//! other processes, the kernel, other programs and the network.

use crate::control::{ExitCode, Failure};
use crate::sys::{self, Errno};

/// CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, LINUX_IMMUTABLE, SYS_ADMIN, SYS_RESOURCE (reserved blocks, quota),
/// MKNOD, SETFCAP (capabilities(7)).
const KEPT: [u32; 10] = [0, 1, 2, 3, 4, 9, 21, 24, 27, 31];

/// A session starts no program, looks into no process, and speaks over the descriptors that it was given.
const DENIED: [libc::c_long; 33] = [
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
];

/// Confines the calling thread and those that it starts.
///
/// # Errors
/// When the kernel refuses, but for a kernel without filters of system calls: then the rest is in force.
pub(super) fn confine() -> Result<(), Failure> {
    let failed = |what: &str, errno: Errno| Failure::new(ExitCode::Failed, format!("cannot {what}: {errno}"));
    sys::give_up_new_rights().map_err(|errno| failed("give up new rights", errno))?;
    sys::keep_capabilities(&KEPT).map_err(|errno| failed("give up capabilities", errno))?;
    match sys::deny_calls(&DENIED) {
        Err(errno @ (Errno::EINVAL | Errno::ENOSYS)) => {
            tracing::warn!(%errno, "this kernel has no filters of system calls: the session runs without one");
            Ok(())
        }
        done => done.map_err(|errno| failed("deny system calls", errno)),
    }
}
