//! `dtfs mirror-copy` and `dtfs mirror-stream`, with HAMMER's lines.

use std::io::Write;

use super::Verbosity;
use super::args::MirrorArgs;
use super::print::say;
use crate::config::Paths;
use crate::control::ops::{self, resolve_volume};
use crate::control::{ExitCode, Failure, MirrorMode, MirrorProgress, MirrorRun};

pub(super) fn run(
    paths: &Paths,
    verbosity: Verbosity,
    args: &MirrorArgs,
    mode: MirrorMode,
    output: &mut dyn Write,
) -> Result<ExitCode, Failure> {
    let volume = resolve_volume(paths, &args.volume)?;
    let run = MirrorRun { target: args.target.clone(), mode, rate_bytes: args.rate.map(|rate| rate.0) };
    let mut begun = false;
    let mut show = |progress: &MirrorProgress| {
        if verbosity >= Verbosity::Normal && !std::mem::replace(&mut begun, true) {
            say(output, &format!("histogram range {} - {}", progress.from, progress.to))?;
            say(output, &format!("Mirror-read: Mirror from {} to {}", progress.from, progress.to))?;
        } else if verbosity >= Verbosity::Info {
            say(output, &step(progress))?;
        }
        output.flush().map_err(super::cannot_write)
    };
    let end = ops::mirror(paths, volume.clone(), run, &mut show)?;
    if verbosity >= Verbosity::Normal {
        let (target, bytes) = (&end.target, end.bytes_sent);
        say(output, &format!("Mirror-read {volume} to {target} succeeded at {}, {bytes} bytes sent", end.applied))?;
    }
    Ok(ExitCode::Ok)
}

fn step(progress: &MirrorProgress) -> String {
    let MirrorProgress { target, applied, work_left, bytes_sent, .. } = progress;
    format!("{target}: applied up to {applied}, {work_left} objects left, {bytes_sent} bytes sent")
}
