//! The command line: what was typed, and the commands that are an operator's.
//!
//! [`parse`] reads the arguments; `daemon`, `serve` and `demo` are for the composition root, everything else is done
//! by [`run`]. Invariants: results go to standard output, errors to standard error as `dtfs: ...` with what to do
//! next; every command ends with one of [`crate::control::ExitCode`]; nothing is edited or asked that
//! [`crate::control::ops`] does not offer to the menu as well.

mod args;
mod commands;
mod completion;
mod define;
mod manual;
mod mirror;
mod mirror_start;
mod monitor;
mod mount_helper;
mod mounts;
mod orphans;
mod peers;
mod print;
mod progress;
mod roles;
mod status;
mod table;
mod verify;
mod watch;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;

use clap::Parser;

use crate::config::Paths;
use crate::control::{ExitCode, Failure, PfsVerb, Promotion};

pub use args::{DemoArgs, OperatorCommand, ServeArgs};
pub use print::report;

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Invocation {
    /// Where dtfs's files are (`--root`).
    pub paths: Paths,
    /// How much to say.
    pub verbosity: Verbosity,
    /// What to do.
    pub action: Action,
}

/// Who does it.
#[derive(Clone, Debug)]
pub enum Action {
    /// `dtfs daemon`: mounts, serves and answers until it is stopped.
    Daemon,
    /// `dtfs serve --stdio`: the receiving end of one session.
    Serve(ServeArgs),
    /// `dtfs peer show`.
    ShowIdentity,
    /// `dtfs demo`.
    Demo(DemoArgs),
    /// `dtfs promote`.
    Promote(Promotion),
    /// `dtfs pfs-...`.
    Pfs(PfsVerb),
    /// Everything else: [`run`] does it.
    Operator(OperatorCommand),
}

/// How much is said on standard error, from `-q` to `-vvv`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Verbosity {
    /// `-q`: errors only.
    Quiet,
    /// Warnings and the result.
    Normal,
    /// `-v`: what is done.
    Info,
    /// `-vv`: how it is done.
    Debug,
    /// `-vvv`: every step.
    Trace,
}

impl Verbosity {
    /// The level's name for a `tracing` filter.
    pub fn level(self) -> &'static str {
        match self {
            Verbosity::Quiet => "error",
            Verbosity::Normal => "warn",
            Verbosity::Info => "info",
            Verbosity::Debug => "debug",
            Verbosity::Trace => "trace",
        }
    }
}

/// Reads the arguments of this process. Ends it for `--help` and `--version` (code 0) and for arguments that are
/// wrong (code 2); also when a shell asks for completions, and when mount(8) calls it by the name of its helper.
pub fn parse() -> Invocation {
    completion::answer_shell();
    let mut args: Vec<OsString> = std::env::args_os().collect();
    match called_as(args.first()) {
        Called::MountHelper => {
            let args: Vec<String> = args.iter().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
            std::process::exit(mount_helper::run(&args).into())
        }
        Called::Setup => args.splice(..1, ["dtfs".into(), "setup".into()]).for_each(drop),
        Called::Dtfs => {}
    }
    match args::Arguments::try_parse_from(args) {
        Ok(arguments) => arguments.into_invocation(),
        Err(error) => end_with(&error),
    }
}

/// The program has several names (links), and one more thing to do for each.
enum Called {
    Dtfs,
    /// `DTSetup`: the menu.
    Setup,
    /// `mount.dtfs` or `mount.fuse.dtfs`.
    MountHelper,
}

fn called_as(program: Option<&OsString>) -> Called {
    let name = program.and_then(|program| Path::new(program).file_name()).unwrap_or_default();
    match name.to_str() {
        Some("DTSetup") => Called::Setup,
        Some("mount.dtfs" | "mount.fuse.dtfs") => Called::MountHelper,
        _ => Called::Dtfs,
    }
}

/// Help and the version are results; a wrong argument is reported like every other error.
fn end_with(error: &clap::Error) -> ! {
    let rendered = error.render().to_string();
    match rendered.strip_prefix("error: ") {
        // When standard error is gone, the exit code is all that is left.
        Some(problem) => drop(write!(io::stderr(), "dtfs: {problem}")),
        None => drop(error.print()),
    }
    std::process::exit(error.exit_code())
}

/// Does an operator's command with standard input and output, reports a failure, and returns how it ended.
pub fn run(paths: &Paths, verbosity: Verbosity, command: &OperatorCommand) -> ExitCode {
    let mut output = io::stdout().lock();
    let outcome = commands::run(paths, verbosity, command, &mut output);
    match outcome.and_then(|code| output.flush().map(|()| code).map_err(cannot_write)) {
        Ok(code) => code,
        Err(failure) => {
            report(&failure);
            failure.code
        }
    }
}

fn cannot_write(error: io::Error) -> Failure {
    Failure::new(ExitCode::Failed, format!("cannot write the result: {error}"))
}

#[cfg(test)]
mod tests;
