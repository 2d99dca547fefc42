//! A life in a process of its own, forked from one that has no other thread: it ends by kill -9, at a fault point or at its
//! end, and what it leaves is exactly what a kill leaves.
#![allow(unsafe_code, reason = "fork cannot be had without")]

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use nix::sys::signal::{Signal, raise};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, alarm, fork};

/// Longer than any life takes on any machine: a life that hangs is a failure and not a test without end.
const LIMIT_SECONDS: u32 = 300;

/// Lives through `body` in another process and returns when that was killed. A panic there is a panic here; `report` is a
/// file for its text.
pub(crate) fn live(report: &Path, body: impl FnOnce()) {
    // SAFETY: no other thread of this process is at work, so that nothing is half done in what the child gets.
    match unsafe { fork() }.expect("a process can be forked") {
        ForkResult::Parent { child } => match waitpid(child, None).expect("a child can be waited for") {
            WaitStatus::Signaled(_, Signal::SIGKILL, _) => {}
            end => panic!("a life ended with {end:?}: {}", fs::read_to_string(report).unwrap_or_default()),
        },
        ForkResult::Child => end(report, body),
    }
}

fn end(report: &Path, body: impl FnOnce()) -> ! {
    alarm::set(LIMIT_SECONDS);
    let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
    let path = report.to_owned();
    // Of any thread of this life.
    std::panic::set_hook(Box::new(move |panic| {
        let _ = fs::write(&path, panic.to_string());
        // SAFETY: ends the process at once; nothing of the parent's is cleaned up here.
        unsafe { libc::_exit(1) }
    }));
    let _ = catch_unwind(AssertUnwindSafe(body));
    let _ = raise(Signal::SIGKILL);
    unreachable!("nobody survives a kill");
}
