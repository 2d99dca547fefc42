//! `dtfs orphans`.

use std::io::Write;

use super::args::{OrphansArgs, OrphansCommand};
use super::print::{print_json, say};
use super::status::bytes;
use super::table::Table;
use crate::config::Paths;
use crate::control::ops::{self, resolve_volume};
use crate::control::{ExitCode, Failure, OrphanVerb, OrphansReply};

pub(super) fn run(paths: &Paths, command: &OrphansCommand, output: &mut dyn Write) -> Result<ExitCode, Failure> {
    let (args, verb, done) = match command {
        OrphansCommand::Scan(args) => (args, OrphanVerb::Scan, "found"),
        OrphansCommand::Move { args, to } => (args, OrphanVerb::Move(to.clone()), "moved"),
        OrphansCommand::Delete(args) => (args, OrphanVerb::Delete, "removed"),
    };
    let volume = resolve_volume(paths, &args.which.volume)?;
    let older_than_sec = args.older_than.map_or(0, |time| time.as_secs());
    let reply = ops::orphans(paths, volume, args.which.target.clone(), verb, older_than_sec)?;
    match args.json {
        true => print_json(output, &reply)?,
        false => print(output, args, &reply, done)?,
    }
    Ok(if reply.failed > 0 { ExitCode::Partly } else { ExitCode::Ok })
}

fn print(output: &mut dyn Write, args: &OrphansArgs, reply: &OrphansReply, done: &str) -> Result<(), Failure> {
    if !reply.orphans.is_empty() {
        let mut table = Table::new(&["SINCE", "SIZE", "PATH"]);
        for row in &reply.orphans {
            let end = if row.is_dir { "/" } else { "" };
            table.row([row.since.clone(), bytes(row.size), format!("{}{end}", row.path)]);
        }
        table.print(output)?;
    }
    let done_count = reply.count - reply.failed;
    let target = &args.which.target;
    say(output, &format!("{target}: {done} {done_count} orphans, {}; {} are there", bytes(reply.bytes), reply.left))?;
    match &reply.reason {
        Some(reason) => say(output, &format!("{} could not be: {reason}", reply.failed)),
        None => Ok(()),
    }
}
