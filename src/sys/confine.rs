//! Giving up what a process does not need, for ever.

use super::{Errno, Result, check};

/// No program that this process starts gains rights by its file (PR_SET_NO_NEW_PRIVS), and its memory is in no core file.
///
/// # Errors
/// As prctl(2).
pub fn give_up_new_rights() -> Result<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    // SAFETY: as above.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) }).map(drop)
}

/// Only the capabilities of `kept` (numbers of capabilities(7)) remain to the calling thread, and to the threads that it
/// starts from now on: those of the bounding set first, then those that it has.
///
/// # Errors
/// As prctl(2) and capset(2).
pub fn keep_capabilities(kept: &[u32]) -> Result<()> {
    for cap in 0..64u32 {
        if kept.contains(&cap) {
            continue;
        }
        // SAFETY: plain integers.
        match check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(cap), 0, 0, 0) }) {
            // Past the last one that this kernel knows.
            Err(Errno::EINVAL) => break,
            Ok(_) => {}
            Err(errno) => return Err(errno),
        }
    }
    super::creds::limit_capabilities(kept)
}

/// From now on these system calls answer EPERM to the calling thread and to those that it starts; so do sockets but for
/// those of this host. Calls of another architecture's table end the process.
///
/// # Errors
/// As seccomp(2); EINVAL where the kernel has no filters.
pub fn deny_calls(denied: &[libc::c_long]) -> Result<()> {
    let program = filter(denied);
    let fprog = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    const SECCOMP_SET_MODE_FILTER: libc::c_long = 1;
    // SAFETY: the program lives until the kernel has copied it.
    let done = unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &raw const fprog) };
    check(done as libc::c_int).map(drop)
}

/// Offsets in struct seccomp_data (linux/seccomp.h).
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;

#[cfg(target_arch = "x86_64")]
const THIS_ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const THIS_ARCHITECTURE: u32 = 0xc000_00b7;

/// x32 calls have this bit on the table of x86-64 (linux/unistd.h); no call of another table reaches as high.
const X32: u32 = 0x4000_0000;

fn filter(denied: &[libc::c_long]) -> Vec<libc::sock_filter> {
    let load = |at| op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at, (0, 0));
    let equals = |value, jumps| op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, jumps);
    let answer = |value| op(libc::BPF_RET | libc::BPF_K, value, (0, 0));
    let deny = answer(libc::SECCOMP_RET_ERRNO | libc::EPERM as u32);
    let mut program = vec![
        load(ARCHITECTURE),
        equals(THIS_ARCHITECTURE, (1, 0)),
        answer(libc::SECCOMP_RET_KILL_PROCESS),
        load(NUMBER),
        op(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, X32, (0, 1)),
        deny,
        equals(libc::SYS_socket as u32, (0, 3)),
        load(FIRST_ARGUMENT),
        equals(libc::AF_UNIX as u32, (1, 0)),
        deny,
        load(NUMBER),
    ];
    for number in denied {
        program.extend([equals(*number as u32, (0, 1)), deny]);
    }
    program.push(answer(libc::SECCOMP_RET_ALLOW));
    program
}

fn op(code: u32, k: u32, (jt, jf): (u8, u8)) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}
