//! `dtfs mounts ...`.

use std::io::Write;

use super::Verbosity;
use super::args::{MountsCommand, WhichArgs};
use super::print::{print_json, report, say};
use super::table::Table;
use crate::config::{Edits, OpenFiles, Paths};
use crate::control::ops::{self, Detach, MountHow, Rehearsal, Told, Which};
use crate::control::{ExitCode, Failure, MountReply, MountsReply, Problem};

pub(super) fn run(
    paths: &Paths,
    verbosity: Verbosity,
    command: &MountsCommand,
    output: &mut dyn Write,
) -> Result<ExitCode, Failure> {
    match command {
        MountsCommand::List { json } => {
            let listed = ops::list_entries(paths)?;
            if *json {
                print_json(output, &listed)?
            } else {
                print_entries(output, &listed)?
            }
            Ok(report_problems(&listed.problems))
        }
        MountsCommand::Add { path, options } => {
            let (entry, told) = ops::add_entry(paths, path, options)?;
            let line = format!("added {} as the volume {}", entry.path.display(), entry.volume);
            say_done(output, verbosity, &line, &told)
        }
        MountsCommand::Remove { path } => {
            let (entry, told) = ops::remove_entry(paths, path)?;
            let line = format!("removed {}; its files, journal and targets are untouched", entry.path.display());
            say_done(output, verbosity, &line, &told)
        }
        MountsCommand::Mount { which, allow_open } => {
            let rehearsal = if paths.edits() == Edits::Rehearsed { Rehearsal::DryRun } else { Rehearsal::ForReal };
            let open_files = if *allow_open { OpenFiles::Allow } else { OpenFiles::Refuse };
            let how = MountHow { rehearsal, open_files };
            print_verdicts(output, &ops::mount(paths, &which.which(), how)?)
        }
        MountsCommand::Unmount { which, lazy } => {
            let detach = if *lazy { Detach::Lazy } else { Detach::WhenUnused };
            print_verdicts(output, &ops::unmount(paths, &which.which(), detach)?)
        }
    }
}

impl WhichArgs {
    fn which(&self) -> Which {
        match self.all {
            true => Which::All,
            false => Which::Paths(self.paths.clone()),
        }
    }
}

fn print_entries(output: &mut dyn Write, listed: &MountsReply) -> Result<(), Failure> {
    if listed.mounts.is_empty() {
        return say(output, "no entries; add one with: dtfs mounts add PATH");
    }
    let mut table = Table::new(&["PATH", "VOLUME", "STATE", "OPTIONS", "REASON"]);
    for row in &listed.mounts {
        let (state, reason) = row.state.as_ref().map_or(("-", Some("no daemon runs")), |state| state.parts());
        let path = row.path.display().to_string();
        table.row([path, row.volume.to_string(), state.into(), row.options.clone(), reason.unwrap_or("").into()]);
    }
    table.print(output)
}

fn print_verdicts(output: &mut dyn Write, reply: &MountReply) -> Result<ExitCode, Failure> {
    if reply.verdicts.is_empty() {
        say(output, "no entries; add one with: dtfs mounts add PATH")?;
    }
    for verdict in &reply.verdicts {
        say(output, &format!("{}: {}", verdict.path.display(), verdict.verdict))?;
        for line in verdict.holders.lines() {
            say(output, &format!("  {line}"))?;
        }
    }
    report_problems(&reply.problems);
    Ok(reply.exit_code())
}

/// Bad lines go to standard error; the good ones were shown all the same.
pub(super) fn report_problems(problems: &[Problem]) -> ExitCode {
    for problem in problems {
        let failure =
            Failure { code: ExitCode::Usage, message: problem.message.clone(), remedy: problem.remedy.clone() };
        report(&failure);
    }
    if problems.is_empty() { ExitCode::Ok } else { ExitCode::Usage }
}

/// What was done, and what the daemon made of it.
pub(super) fn say_done(
    output: &mut dyn Write,
    verbosity: Verbosity,
    line: &str,
    told: &Told,
) -> Result<ExitCode, Failure> {
    if verbosity >= Verbosity::Normal {
        say(output, line)?;
        for note in told.notes() {
            say(output, &format!("  {note}"))?;
        }
    }
    Ok(ExitCode::Ok)
}
