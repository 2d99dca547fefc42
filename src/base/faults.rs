//! Named fault points: places where a test makes a step fail, or the process die, on purpose.
//!
//! A point that is not armed costs one relaxed load. Points are armed by a test in process ([`arm`]) or for a child
//! process by the environment: `DTFS_FAULTS=name=abort@3,other=errno:28@1` (fire at the third hit, at the first).

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use parking_lot::Mutex;

/// What an armed point does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process ends at once, as by kill -9: nothing is flushed, no destructor runs.
    Abort,
    /// The step reports this errno instead of being done.
    Fail(Errno),
}

struct Armed {
    fault: Fault,
    /// Hits left before it fires; it fires once.
    countdown: u64,
}

static ANY_ARMED: AtomicBool = AtomicBool::new(false);
/// Protects the armed points. Rank: a leaf. Held only for a look-up.
static POINTS: Mutex<Option<HashMap<String, Armed>>> = Mutex::new(None);

/// Passes the point `name`.
///
/// # Errors
/// The errno that a test asked for; never in production, where nothing is armed.
#[inline]
pub fn point(name: &str) -> Result<(), Errno> {
    match ANY_ARMED.load(Ordering::Relaxed) {
        false => Ok(()),
        true => hit(name),
    }
}

/// Arms `name` to do `fault` at its `nth` hit (1 is the next one).
pub fn arm(name: &str, fault: Fault, nth: u64) {
    let mut points = POINTS.lock();
    points.get_or_insert_default().insert(name.to_owned(), Armed { fault, countdown: nth.max(1) });
    ANY_ARMED.store(true, Ordering::Relaxed);
}

/// Disarms every point.
pub fn disarm_all() {
    *POINTS.lock() = None;
    ANY_ARMED.store(false, Ordering::Relaxed);
}

/// Arms what `DTFS_FAULTS` names. Called once when the program starts.
///
/// # Errors
/// The part of the variable that cannot be read.
pub fn arm_from_env() -> Result<(), String> {
    let Ok(spec) = std::env::var("DTFS_FAULTS") else {
        return Ok(());
    };
    for part in spec.split(',').filter(|p| !p.is_empty()) {
        let (name, fault, nth) = parse(part).ok_or_else(|| format!("DTFS_FAULTS: cannot read \"{part}\""))?;
        arm(name, fault, nth);
    }
    Ok(())
}

fn parse(part: &str) -> Option<(&str, Fault, u64)> {
    let (name, rest) = part.split_once('=')?;
    let (what, nth) = rest.split_once('@').unwrap_or((rest, "1"));
    let fault = match what.split_once(':') {
        None if what == "abort" => Fault::Abort,
        Some(("errno", number)) => Fault::Fail(Errno::from_raw(number.parse().ok()?)),
        _ => return None,
    };
    Some((name, fault, nth.parse().ok()?))
}

#[cold]
fn hit(name: &str) -> Result<(), Errno> {
    let fired = {
        let mut points = POINTS.lock();
        let Some(armed) = points.as_mut().and_then(|p| p.get_mut(name)) else {
            return Ok(());
        };
        if armed.countdown == 0 {
            return Ok(());
        }
        armed.countdown -= 1;
        (armed.countdown == 0).then_some(armed.fault)
    };
    match fired {
        None => Ok(()),
        Some(Fault::Fail(errno)) => Err(errno),
        Some(Fault::Abort) => {
            // SIGKILL and not abort(): no core file, and exactly what the kill rigs do from outside.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
            std::process::abort()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fires_once_at_the_nth_hit() {
        arm("base.test", Fault::Fail(Errno::ENOSPC), 2);
        assert_eq!(point("base.test"), Ok(()));
        assert_eq!(point("base.test"), Err(Errno::ENOSPC));
        assert_eq!(point("base.test"), Ok(()));
        assert_eq!(point("base.other"), Ok(()));
    }

    #[test]
    fn the_environment_form() {
        assert_eq!(parse("a.b=abort@3"), Some(("a.b", Fault::Abort, 3)));
        assert_eq!(parse("a=errno:28"), Some(("a", Fault::Fail(Errno::ENOSPC), 1)));
        assert_eq!(parse("a=what"), None);
    }
}
