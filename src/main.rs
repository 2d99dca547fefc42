//! `dtfs`: reads the command line and hands it to the room that does it.

use std::process::ExitCode;

use anyhow::{anyhow, bail};
use dtfs::base::faults;
use dtfs::cli::{self, Action};
use dtfs::control::Failure;

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            cli::report(&Failure::new(dtfs::control::ExitCode::Failed, format!("{error:#}")));
            dtfs::control::ExitCode::Failed.into()
        }
    }
}

fn run() -> anyhow::Result<ExitCode> {
    faults::arm_from_env().map_err(|problem| anyhow!(problem))?;
    let invocation = cli::parse();
    match &invocation.action {
        Action::Operator(command) => Ok(cli::run(&invocation.paths, invocation.verbosity, command).into()),
        Action::Daemon | Action::Serve(_) | Action::Demo(_) => bail!("this build has no daemon"),
    }
}
