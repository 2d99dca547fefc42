//! `dtfs`: reads the command line and hands it to the room that does it.

use std::process::ExitCode;

use anyhow::anyhow;
use dtfs::base::faults;
use dtfs::cli::{self, Action, Invocation};
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
    log_to_stderr(verbosity);
    let done = match &action {
        Action::Operator(command) => return Ok(cli::run(&paths, verbosity, command)),
        Action::Daemon => daemon::run(&paths),
        Action::Serve(args) => daemon::serve(&paths, &args.dir, args.adoption()),
        Action::ShowIdentity => daemon::show_identity(&paths, &mut std::io::stdout()),
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

/// Events go to standard error; `DTFS_LOG` chooses more finely than -v (as `dtfs::sender=debug`).
fn log_to_stderr(verbosity: cli::Verbosity) {
    let filter = tracing_subscriber::EnvFilter::builder()
        .with_env_var("DTFS_LOG")
        .try_from_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(verbosity.level()));
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    let _ = lines.try_init();
}
