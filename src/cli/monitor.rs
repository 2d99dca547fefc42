//! `dtfs monitor`: one line and an exit code, as Nagios and its kin want them.
//!
//! The codes are theirs and not [`ExitCode`]'s: 0 fine, 1 warning, 2 critical, 3 unknown. They coincide with those of
//! `ExitCode` by number, so the same type carries them.

use std::io::Write;
use std::time::Duration;

use super::args::MonitorArgs;
use super::print::say;
use super::status::duration;
use crate::config::Paths;
use crate::control::ops::{self, resolve_volume};
use crate::control::{ExitCode, Failure, StatusReply, TargetState, VolumeState};

/// How bad it is; the number is the exit code.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Verdict {
    Fine,
    Warning,
    Critical,
    Unknown,
}

impl Verdict {
    fn word(self) -> &'static str {
        ["OK", "WARNING", "CRITICAL", "UNKNOWN"][self as usize]
    }

    fn code(self) -> ExitCode {
        [ExitCode::Ok, ExitCode::Failed, ExitCode::Usage, ExitCode::NoDaemon][self as usize]
    }
}

pub(super) fn run(paths: &Paths, args: &MonitorArgs, output: &mut dyn Write) -> Result<ExitCode, Failure> {
    let warn = args.warn_lag.unwrap_or(args.max_lag / 2);
    let asked = args.volume.as_deref().map(|text| resolve_volume(paths, text)).transpose();
    let (verdict, line) = match asked.and_then(|volume| ops::status(paths, volume)) {
        Ok(status) => judge(&status, warn, args.max_lag),
        Err(failure) => (Verdict::Unknown, failure.message),
    };
    say(output, &format!("DTFS {} - {line}", verdict.word())).map(|()| verdict.code())
}

/// The worst of everything, and one line with what is wrong and the numbers.
fn judge(status: &StatusReply, warn: Duration, max: Duration) -> (Verdict, String) {
    let mut worst = Verdict::Fine;
    let mut wrong = Vec::new();
    let mut numbers = Vec::new();
    let mut say = |verdict: Verdict, text: String| {
        worst = worst.max(verdict);
        wrong.push(text);
    };
    for volume in &status.volumes {
        if volume.state != VolumeState::Mounted {
            say(Verdict::Critical, format!("{} is {}", volume.name, volume.state.parts().0));
        }
    }
    for (volume, target) in status.targets() {
        let name = format!("{volume}/{}", target.name);
        let lag = Duration::from_secs_f64(target.lag_seconds.max(0.0));
        let limits = format!("{};{}", warn.as_secs_f64(), max.as_secs_f64());
        numbers.push(format!("'{name}'={:.1}s;{limits};0", target.lag_seconds));
        match &target.state {
            TargetState::Refused { .. } | TargetState::Stalled { .. } => {
                say(Verdict::Critical, format!("{name} is {}", target.state.parts().0));
            }
            _ if lag > max => say(Verdict::Critical, format!("{name} is {} behind", duration(target.lag_seconds))),
            TargetState::Offline { .. } => say(Verdict::Warning, format!("{name} is offline")),
            _ if lag > warn => say(Verdict::Warning, format!("{name} is {} behind", duration(target.lag_seconds))),
            _ => {}
        }
    }
    let good = format!("{} volumes, {} targets", status.volumes.len(), numbers.len());
    let text = if wrong.is_empty() { good } else { wrong.join(", ") };
    (worst, format!("{text} | {}", numbers.join(" ")).trim_end_matches(" | ").to_owned())
}
