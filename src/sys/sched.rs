//! Who runs first.

use super::{Result, check};

/// Niceness of what may wait: a tenth of the share of one that may not, when both want the processor.
const NICE: libc::c_int = 10;

/// Puts the process `pid`, which has begun no threads yet, behind others: less of a busy processor, and no preemption of
/// another when it wakes up (SCHED_BATCH, sched(7)). Threads that it begins inherit both.
///
/// # Errors
/// As setpriority(2) and sched_setscheduler(2).
pub fn put_behind(pid: u32) -> Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS, pid, NICE) })?;
    let param = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameter lives.
    check(unsafe { libc::sched_setscheduler(pid as libc::pid_t, libc::SCHED_BATCH, &raw const param) }).map(drop)
}
