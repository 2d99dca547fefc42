//! `dtfs`: reads the command line and hands it to the room that does it.

use std::process::ExitCode;

use anyhow::anyhow;
use dtfs::base::faults;
use dtfs::cli::{self, Action, Invocation};
use dtfs::config::{DaemonFile, Paths};
use dtfs::control::{self, Failure};
use dtfs::daemon::{self, Keep};

fn main() -> ExitCode {
    match run() {
        Ok(code) => code.into(),
        Err(error) => {
            cli::report(&Failure::new(control::ExitCode::Failed, format!("{error:#}")));
            control::ExitCode::Failed.into()
        }
    }
}

fn run() -> anyhow::Result<control::ExitCode> {
    faults::arm_from_env().map_err(|problem| anyhow!(problem))?;
    let Invocation { paths, verbosity, action } = cli::parse();
    start_log(&paths, verbosity, &action);
    let done = match &action {
        Action::Operator(command) => return Ok(cli::run(&paths, verbosity, command)),
        Action::Daemon => daemon::run(&paths),
        Action::Serve(args) => daemon::serve(&paths, &args.dir, args.adoption()),
        Action::ShowIdentity => daemon::show_identity(&paths, &mut std::io::stdout()),
        Action::Promote(wanted) => daemon::promote(&paths, wanted, &mut std::io::stdout()),
        Action::Pfs(verb) => daemon::pfs(&paths, verb, &mut std::io::stdout()),
        Action::Demo(args) => daemon::demo(if args.keep { Keep::Yes } else { Keep::No }, &mut std::io::stdout()),
    };
    Ok(match done {
        Ok(()) => control::ExitCode::Ok,
        Err(failure) => {
            cli::report(&failure);
            failure.code
        }
    })
}

/// Events go to standard error; the daemon's file says how, unless the command line says how much.
fn start_log(paths: &Paths, verbosity: cli::Verbosity, action: &Action) {
    let file = match action {
        // A file that is not understood is said, and ends the daemon, when it starts.
        Action::Daemon => DaemonFile::load(paths).unwrap_or_default(),
        _ => DaemonFile::default(),
    };
    let level = match verbosity {
        cli::Verbosity::Normal => file.log_level.word(),
        chosen => chosen.level(),
    };
    daemon::log_to_stderr(level, file.log_format);
}
