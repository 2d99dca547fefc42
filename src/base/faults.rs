//! Named fault points: places where a test makes a step fail, leaves it out, or lets the process die, on purpose.
//!
//! A point that is not armed costs one relaxed load. Points are armed by a test in process ([`arm`]) or for a child
//! process by the environment, as `DTFS_FAULTS=NAME=FAULT[@N[+]],...`:
//!
//! | FAULT | what happens at the point |
//! |---|---|
//! | `abort` | the process ends as by kill -9 |
//! | `errno:28` | the step is not done and reports that errno |
//! | `skip` | the step is not done and reports success; a rule is not kept |
//! | `slow:5` | the step takes so many milliseconds longer, as on a slow disk |
//!
//! It happens at the `N`th hit (1 when nothing is said), once; with `+`, and for a `skip` or `slow` without `@`, at every
//! hit from then on. A child of the process inherits the variable: on one host it arms the targets as well, each counting
//! for itself.
//!
//! `skip` is for negative controls: a rig counts only when it fails with a rule of the design broken.
//!
//! A name is `room.what`. A step is wrapped in [`step`] (or passes [`point`] before it, when it cannot be left out), a
//! rule asks [`skipped`].

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use parking_lot::Mutex;

/// What an armed point does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process ends at once, as by kill -9: nothing is flushed, no destructor runs.
    Abort,
    /// The step reports this errno instead of being done.
    Fail(Errno),
    /// The step reports success and is not done; a rule is not kept.
    Skip,
    /// The step is done after so long.
    Slow(Duration),
}

/// How often an armed point does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Times {
    Once,
    Always,
}

struct Armed {
    fault: Fault,
    times: Times,
    /// Hits left until it fires.
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
        true => hit(name).map(drop),
    }
}

/// Does `action` at the point `name`, unless a test left it out.
///
/// # Errors
/// Those of `action`, and the errno that a test asked for.
#[inline]
pub fn step(name: &str, action: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
    if ANY_ARMED.load(Ordering::Relaxed) && hit(name)? == Way::Around {
        return Ok(());
    }
    action()
}

/// Whether a test asked for the rule `name` not to be kept.
#[inline]
pub fn skipped(name: &str) -> bool {
    ANY_ARMED.load(Ordering::Relaxed) && hit(name) == Ok(Way::Around)
}

/// Arms `name` to do `fault` at its `nth` hit (1 is the next one), once.
pub fn arm(name: &str, fault: Fault, nth: u64) {
    put(name, Armed { fault, times: Times::Once, countdown: nth.max(1) });
}

/// Arms `name` to do `fault` at every hit from now on.
pub fn arm_always(name: &str, fault: Fault) {
    put(name, Armed { fault, times: Times::Always, countdown: 1 });
}

fn put(name: &str, armed: Armed) {
    POINTS.lock().get_or_insert_default().insert(name.to_owned(), armed);
    ANY_ARMED.store(true, Ordering::Relaxed);
}

/// Disarms one point.
pub fn disarm(name: &str) {
    if let Some(points) = POINTS.lock().as_mut() {
        points.remove(name);
    }
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
        let (name, armed) = parse(part).ok_or_else(|| format!("DTFS_FAULTS: cannot read \"{part}\""))?;
        put(name, armed);
    }
    Ok(())
}

fn parse(part: &str) -> Option<(&str, Armed)> {
    let (name, rest) = part.split_once('=')?;
    let otherwise = if rest == "skip" || rest.starts_with("slow:") { "1+" } else { "1" };
    let (what, when) = rest.split_once('@').unwrap_or((rest, otherwise));
    let fault = match what.split_once(':') {
        None if what == "abort" => Fault::Abort,
        None if what == "skip" => Fault::Skip,
        Some(("errno", number)) => Fault::Fail(Errno::from_raw(number.parse().ok()?)),
        Some(("slow", millis)) => Fault::Slow(Duration::from_millis(millis.parse().ok()?)),
        _ => return None,
    };
    let (nth, times) = match when.strip_suffix('+') {
        Some(nth) => (nth, Times::Always),
        None => (when, Times::Once),
    };
    Some((name, Armed { fault, times, countdown: nth.parse::<u64>().ok()?.max(1) }))
}

/// Where the program goes on at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Through,
    /// Past the step, as if it were done.
    Around,
}

impl Armed {
    fn fires(&mut self) -> bool {
        match (self.countdown, self.times) {
            (0, _) => false,
            (1, Times::Always) => true,
            _ => {
                self.countdown -= 1;
                self.countdown == 0
            }
        }
    }
}

#[cold]
fn hit(name: &str) -> Result<Way, Errno> {
    let fired = {
        let mut points = POINTS.lock();
        let armed = points.as_mut().and_then(|points| points.get_mut(name));
        armed.and_then(|armed| armed.fires().then_some(armed.fault))
    };
    match fired {
        None => Ok(Way::Through),
        Some(Fault::Skip) => Ok(Way::Around),
        Some(Fault::Slow(time)) => {
            std::thread::sleep(time);
            Ok(Way::Through)
        }
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
    fn a_step_is_left_out() {
        let mut done = Vec::new();
        let mut go = |i| {
            let push = || {
                done.push(i);
                Ok(())
            };
            assert_eq!(step("base.skip", push), Ok(()));
        };
        arm("base.skip", Fault::Skip, 2);
        (0..3).for_each(&mut go);
        arm_always("base.skip", Fault::Skip);
        (3..5).for_each(&mut go);
        assert_eq!(done, [0, 2]);
        assert!(skipped("base.skip"));
        assert!(!skipped("base.unarmed"));
        assert_eq!(step("base.unarmed", || Err(Errno::EIO)), Err(Errno::EIO));
    }

    #[test]
    fn the_environment_form() {
        let read = |part| parse(part).map(|(name, armed)| (name, armed.fault, armed.times, armed.countdown));
        assert_eq!(read("a.b=abort@3"), Some(("a.b", Fault::Abort, Times::Once, 3)));
        assert_eq!(read("a=errno:28"), Some(("a", Fault::Fail(Errno::ENOSPC), Times::Once, 1)));
        assert_eq!(read("a=errno:5@2+"), Some(("a", Fault::Fail(Errno::EIO), Times::Always, 2)));
        assert_eq!(read("a=skip"), Some(("a", Fault::Skip, Times::Always, 1)));
        assert_eq!(read("a=slow:7"), Some(("a", Fault::Slow(Duration::from_millis(7)), Times::Always, 1)));
        assert_eq!(read("a=skip@4"), Some(("a", Fault::Skip, Times::Once, 4)));
        assert_eq!(read("a=what"), None);
        assert_eq!(read("a=skip@x"), None);
    }
}
