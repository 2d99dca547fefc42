//! `dtfs define ...` and `dtfs forget ...`.

use std::io::Write;

use super::Verbosity;
use super::args::{DefineCommand, ForgetCommand, RejoinArgs, ReplicationCommand};
use super::mounts::say_done;
use super::print::say;
use crate::config::{Activity, Paths, SourceEntry};
use crate::control::ops::{self, NewTarget, OnlyThere, resolve_volume};
use crate::control::{ExitCode, Failure};

pub(super) fn define(
    paths: &Paths,
    verbosity: Verbosity,
    command: &DefineCommand,
    output: &mut dyn Write,
) -> Result<ExitCode, Failure> {
    match command {
        DefineCommand::Volume { volume, dir } => {
            let (entry, told) = ops::define_volume(paths, volume, dir)?;
            let path = entry.path.display();
            let line = format!("defined the volume {volume} at {path}; mount it with: dtfs mounts mount {path}");
            say_done(output, verbosity, &line, &told)
        }
        DefineCommand::Source { volume, host, dir, adopt, trust } => {
            let (adoption, trust) = ((*adopt).into(), *trust);
            let wanted = SourceEntry { host: host.clone(), dir: dir.clone(), adoption, trust };
            let (source, told) = ops::define_source(paths, volume, wanted)?;
            let line = format!("defined the copy {volume} at {}, written by {host}", source.dir.display());
            say_done(output, verbosity, &line, &told)
        }
        DefineCommand::Master { volume } => {
            let volume = resolve_volume(paths, volume)?;
            let (path, told) = ops::define_master(paths, &volume)?;
            let line = format!("{volume} is a master: what changes below {} goes to its targets", path.display());
            say_done(output, verbosity, &line, &told)
        }
        DefineCommand::Target { volume, url, name, adopt, period, delay } => {
            let volume = resolve_volume(paths, volume)?;
            let (url, name) = (url.clone(), name.clone());
            let new = NewTarget { url, name, adoption: (*adopt).into(), period: *period, delay: *delay };
            let (target, told) = ops::define_target(paths, &volume, new)?;
            let line = format!("defined the target {} of {volume} at {}", target.name, target.url);
            say_done(output, verbosity, &line, &told)
        }
    }
}

pub(super) fn replication(
    paths: &Paths,
    verbosity: Verbosity,
    command: &ReplicationCommand,
    output: &mut dyn Write,
) -> Result<ExitCode, Failure> {
    let (args, activity, done) = match command {
        ReplicationCommand::Pause(args) => (args, Activity::Paused, "paused"),
        ReplicationCommand::Resume(args) => (args, Activity::Running, "resumed"),
    };
    let volume = resolve_volume(paths, &args.volume)?;
    let told = ops::set_activity(paths, &volume, &args.target, activity)?;
    say_done(output, verbosity, &format!("{done} the target {} of {volume}", args.target), &told)
}

pub(super) fn rejoin(
    paths: &Paths,
    verbosity: Verbosity,
    args: &RejoinArgs,
    output: &mut dyn Write,
) -> Result<ExitCode, Failure> {
    let (volume, target) = (resolve_volume(paths, &args.which.volume)?, &args.which.target);
    let (own, kept) = match args.discard {
        false => (OnlyThere::Kept, "kept in .dtfs/fork-EPOCH in its directory"),
        true => (OnlyThere::GivenUp, "given up"),
    };
    let told = ops::rejoin(paths, &volume, target, own)?;
    let line = format!("the target {target} follows {volume} again; what only it has is {kept}");
    say_done(output, verbosity, &line, &told)
}

pub(super) fn forget(
    paths: &Paths,
    verbosity: Verbosity,
    command: &ForgetCommand,
    output: &mut dyn Write,
) -> Result<ExitCode, Failure> {
    let notes = match command {
        ForgetCommand::Volume { volume } => {
            let volume = resolve_volume(paths, volume)?;
            let mut notes = ops::forget_volume(paths, &volume)?;
            notes.push(format!("forgot the volume {volume}; its files and its targets' trees are untouched"));
            notes
        }
        ForgetCommand::Source { volume } => {
            let source = ops::forget_source(paths, volume)?;
            let mut notes = vec![format!("nobody writes the copy {volume} any more; its tree is untouched")];
            notes.extend(ops::covered(&source.dir));
            notes
        }
        ForgetCommand::Target { volume, target } => {
            let volume = resolve_volume(paths, volume)?;
            let url = ops::forget_target(paths, &volume, target)?;
            let mut notes = vec![format!("forgot the target {target} of {volume}; its tree is untouched")];
            notes.extend(match url.local_dir() {
                Some(dir) => ops::covered(dir),
                None => {
                    Some("others still find its tree read-only, on its host, until it is unmounted there".to_owned())
                }
            });
            notes
        }
    };
    if verbosity >= Verbosity::Normal {
        notes.iter().try_for_each(|note| say(output, note))?;
    }
    Ok(ExitCode::Ok)
}
