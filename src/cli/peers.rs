//! `dtfs peer ...`.

use std::io::Write;

use super::Verbosity;
use super::args::PeerCommand;
use super::mounts::say_done;
use super::table::Table;
use crate::config::Paths;
use crate::control::ops::{self, Told};
use crate::control::{ExitCode, Failure};

pub(super) fn run(
    paths: &Paths,
    verbosity: Verbosity,
    command: &PeerCommand,
    output: &mut dyn Write,
) -> Result<ExitCode, Failure> {
    match command {
        PeerCommand::Add { host, fingerprint } => {
            ops::add_peer(paths, host, *fingerprint)?;
            say_done(
                output,
                verbosity,
                &format!("the host {host} is known by {fingerprint}"),
                &Told::Daemon(Vec::new()),
            )
        }
        PeerCommand::Forget { host } => {
            ops::forget_peer(paths, host)?;
            say_done(output, verbosity, &format!("forgot the host {host}"), &Told::Daemon(Vec::new()))
        }
        PeerCommand::List => {
            let mut table = Table::new(&["HOST", "KEY"]);
            for (host, fingerprint) in ops::list_peers(paths)? {
                table.row([host, fingerprint.to_string()]);
            }
            table.print(output).map(|()| ExitCode::Ok)
        }
        // `cli::parse` hands it to where keys are.
        PeerCommand::Show => Err(Failure::new(ExitCode::Failed, "a host's key is shown by the program itself")),
    }
}
