//! Who runs first.

use super::{Result, check};

/// Niceness of what may wait: a tenth of the share of one that may not, when both want the processor.
const NICE_BEHIND: libc::c_int = 10;
const NICE_BESIDE: libc::c_int = 0;

/// Puts the process `pid`, which has begun no threads yet, behind others: less of a busy processor, and no preemption of
/// another when it wakes up (SCHED_BATCH, sched(7)). Threads that it begins inherit both.
///
/// # Errors
/// As setpriority(2) and sched_setscheduler(2).
pub fn put_behind(pid: u32) -> Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS, pid, NICE_BEHIND) })?;
    let param = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameter lives.
    check(unsafe { libc::sched_setscheduler(pid as libc::pid_t, libc::SCHED_BATCH, &raw const param) }).map(drop)
}

/// How a process stands to others that want the processor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Share {
    /// It may wait.
    Behind,
    /// As any other.
    Beside,
}

/// Gives all threads of the process `pid` that share. Niceness belongs to a thread and is inherited, so the first one is
/// set before the others are looked for: what it begins later has it already (sched(7), "The nice value").
///
/// # Errors
/// As setpriority(2), or when /proc cannot be read.
pub fn set_share(pid: u32, share: Share) -> Result<()> {
    let nice = if share == Share::Behind { NICE_BEHIND } else { NICE_BESIDE };
    // SAFETY: no pointers.
    let set = |thread: u32| check(unsafe { libc::setpriority(libc::PRIO_PROCESS, thread, nice) }).map(drop);
    set(pid)?;
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"))
        .map_err(|cause| super::Errno::from_raw(cause.raw_os_error().unwrap_or(libc::EIO)))?;
    for thread in tasks.flatten().filter_map(|task| task.file_name().to_str()?.parse().ok()) {
        match set(thread) {
            Err(super::Errno::ESRCH) | Ok(()) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
