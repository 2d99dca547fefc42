//! `dtfs mirror start|stop|pause|resume`.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use super::args::{MirrorCommand, MirrorStartArgs, TargetArgs};
use super::print::say;
use super::progress::Progress;
use super::status::bytes;
use super::{Verbosity, cannot_write};
use crate::config::{Paths, TargetName, VolumeName};
use crate::control::ops::{self, resolve_volume};
use crate::control::{ExitCode, Failure, MirrorAction, MirrorReply};

/// How often it is asked how far the mirror is.
const LOOK_EVERY: Duration = Duration::from_millis(300);

pub(super) fn run(
    paths: &Paths,
    verbosity: Verbosity,
    command: &MirrorCommand,
    output: &mut dyn Write,
) -> Result<ExitCode, Failure> {
    let (target, action, done) = match command {
        MirrorCommand::Start(args) => return start(paths, verbosity, args, output),
        MirrorCommand::Stop(args) => (args, MirrorAction::Stop, "gave up"),
        MirrorCommand::Pause(args) => (args, MirrorAction::Pause, "paused"),
        MirrorCommand::Resume(args) => (args, MirrorAction::Resume, "resumed"),
    };
    let TargetArgs { volume, target } = target;
    let volume = resolve_volume(paths, volume)?;
    ops::set_mirror(paths, volume.clone(), target.clone(), action, None)?;
    tell(verbosity, output, &format!("{done} the mirror of {volume} at {target}"))
}

fn start(
    paths: &Paths,
    verbosity: Verbosity,
    args: &MirrorStartArgs,
    output: &mut dyn Write,
) -> Result<ExitCode, Failure> {
    let TargetArgs { volume, target } = &args.which;
    let volume = resolve_volume(paths, volume)?;
    ops::set_mirror(paths, volume.clone(), target.clone(), args.action(), args.rate.map(|rate| rate.0))?;
    if !args.wait && !std::io::stderr().is_terminal() {
        return tell(
            verbosity,
            output,
            &format!("a mirror of {volume} at {target} has begun; dtfs status shows how far it is"),
        );
    }
    let progress = Progress::new(verbosity);
    let outcome = follow(paths, &volume, target, &progress);
    progress.end();
    let reply = outcome?;
    let text = format!(
        "mirror of {volume} at {target}: {}, {} objects, {}",
        reply.progress,
        reply.objects,
        bytes(reply.bytes)
    );
    tell(verbosity, output, &text)?;
    Ok(if reply.progress == "done" { ExitCode::Ok } else { ExitCode::Partly })
}

/// Looks until it does not run any more. It goes on when the caller is ended.
fn follow(
    paths: &Paths,
    volume: &VolumeName,
    target: &TargetName,
    progress: &Progress,
) -> Result<MirrorReply, Failure> {
    loop {
        let status = ops::status(paths, Some(volume.clone()))?;
        let found = status.targets().find(|(_, row)| row.name == *target);
        let Some(reply) = found.and_then(|(_, row)| row.mirror.clone()) else {
            return Err(Failure::new(ExitCode::Behind, format!("the target {target} is gone")));
        };
        if !reply.is_running() {
            return Ok(reply);
        }
        progress.mirror(&reply);
        std::thread::sleep(LOOK_EVERY);
    }
}

fn tell(verbosity: Verbosity, output: &mut dyn Write, text: &str) -> Result<ExitCode, Failure> {
    if verbosity >= Verbosity::Normal {
        say(output, text)?;
        output.flush().map_err(cannot_write)?;
    }
    Ok(ExitCode::Ok)
}
