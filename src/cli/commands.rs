//! Which function does which command.

use std::io::{self, Write};

use super::args::{LogArgs, OperatorCommand, WaitArgs};
use super::print::{print_json, say};
use super::{
    Verbosity, define, manual, mirror, mirror_start, monitor, mounts, orphans, peers, roles, status, verify, watch,
};
use crate::config::{Edits, Paths};
use crate::control::ops::{self, LogRange, WaitFor, resolve_volume};
use crate::control::{ExitCode, Failure, LogEntry, MirrorMode};
use crate::menu;

/// Does `command`; its result goes to `output`.
pub(super) fn run(
    paths: &Paths,
    verbosity: Verbosity,
    command: &OperatorCommand,
    output: &mut dyn Write,
) -> Result<ExitCode, Failure> {
    if paths.edits() == Edits::Rehearsed && verbosity >= Verbosity::Normal {
        say(output, "dry run, nothing is changed; what would be said:")?;
    }
    match command {
        OperatorCommand::Mounts(command) => mounts::run(paths, verbosity, command, output),
        OperatorCommand::Define(command) => define::define(paths, verbosity, command, output),
        OperatorCommand::Forget(command) => define::forget(paths, verbosity, command, output),
        OperatorCommand::Peer(command) => peers::run(paths, verbosity, command, output),
        OperatorCommand::Replication(command) => define::replication(paths, verbosity, command, output),
        OperatorCommand::Mirror(command) => mirror_start::run(paths, verbosity, command, output),
        OperatorCommand::Orphans(command) => orphans::run(paths, command, output),
        OperatorCommand::Status(args) => status::run(paths, args, output),
        OperatorCommand::Verify(args) => verify::run(paths, verbosity, args, output),
        OperatorCommand::Check { files } => watch::check(paths, files),
        OperatorCommand::Reload => watch::reload(paths, output),
        OperatorCommand::Events(args) => watch::events(paths, args, output),
        OperatorCommand::Monitor(args) => monitor::run(paths, args, output),
        OperatorCommand::Doctor { json } => watch::doctor(paths, *json, output),
        OperatorCommand::Wait(args) => wait(paths, verbosity, args, output),
        OperatorCommand::Synctid { volume } => {
            let tid = ops::sync_tid(paths, resolve_volume(paths, volume)?)?;
            say(output, &tid.to_string()).map(|()| ExitCode::Ok)
        }
        OperatorCommand::Log(args) => log(paths, args, output),
        OperatorCommand::Demote(args) => roles::demote(paths, verbosity, args, output),
        OperatorCommand::MirrorCopy(args) => mirror::run(paths, verbosity, args, MirrorMode::Copy, output),
        OperatorCommand::MirrorStream(args) => mirror::run(paths, verbosity, args, MirrorMode::Stream, output),
        OperatorCommand::Pages { dir } => manual::write(dir),
        OperatorCommand::Setup { start } => menu::run(paths, &mut io::stdin().lock(), output, start),
    }
}

fn wait(paths: &Paths, verbosity: Verbosity, args: &WaitArgs, output: &mut dyn Write) -> Result<ExitCode, Failure> {
    let volume = resolve_volume(paths, &args.volume)?;
    let what = WaitFor { volume, target: args.target.clone(), tid: args.tid, timeout_ms: args.timeout };
    let (tid, targets) = ops::wait(paths, what)?;
    if verbosity >= Verbosity::Normal {
        let names: Vec<&str> = targets.iter().map(|target| target.as_str()).collect();
        say(output, &format!("{}: consistent at {tid}", names.join(", ")))?;
    }
    Ok(ExitCode::Ok)
}

fn log(paths: &Paths, args: &LogArgs, output: &mut dyn Write) -> Result<ExitCode, Failure> {
    let volume = resolve_volume(paths, &args.volume)?;
    let range = LogRange { volume, from: args.from, follow: args.follow, limit: None };
    ops::log(paths, range, &mut |entries| {
        for entry in entries {
            match args.json {
                true => print_json(output, entry)?,
                false => say(output, &log_line(entry))?,
            }
        }
        output.flush().map_err(super::cannot_write)
    })?;
    Ok(ExitCode::Ok)
}

pub(super) fn log_line(entry: &LogEntry) -> String {
    let time = entry.time.as_deref().unwrap_or("-");
    format!("{}  {time}  {:<10}  {}  {}", entry.tid, entry.op, entry.object, entry.detail).trim_end().to_owned()
}
