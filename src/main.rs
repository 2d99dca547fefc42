//! `dtfs`: reads the command line and hands it to the room that does it.

use std::process::ExitCode;

use anyhow::bail;
use dtfs::cli::{self, Action};

fn main() -> anyhow::Result<ExitCode> {
    let invocation = cli::parse();
    match &invocation.action {
        Action::Operator(command) => Ok(cli::run(&invocation.paths, invocation.verbosity, command).into()),
        Action::Daemon | Action::Serve(_) | Action::Demo(_) => bail!("this build has no daemon"),
    }
}
