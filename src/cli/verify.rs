//! `dtfs verify`.

use std::io::Write;

use super::Verbosity;
use super::args::VerifyArgs;
use super::print::{print_json, say};
use super::status::bytes;
use super::table::Table;
use crate::config::Paths;
use crate::control::ops::{self, VerifyWhat, resolve_volume};
use crate::control::{ExitCode, Failure, VerifyReply};

pub(super) fn run(
    paths: &Paths,
    verbosity: Verbosity,
    args: &VerifyArgs,
    output: &mut dyn Write,
) -> Result<ExitCode, Failure> {
    let what = VerifyWhat {
        volume: resolve_volume(paths, &args.volume)?,
        target: args.target.clone(),
        repair: args.repair,
        bandwidth: args.bandwidth,
    };
    let progress = super::progress::Progress::new(verbosity);
    let reply = ops::verify(paths, what, &mut |part| progress.verify(part))?;
    progress.end();
    match args.json {
        true => print_json(output, &reply)?,
        false => print(output, &reply)?,
    }
    Ok(match &reply {
        VerifyReply { left: 1.., .. } => ExitCode::Differences,
        VerifyReply { unsettled: 1.., .. } | VerifyReply { unreadable: 1.., .. } => ExitCode::Partly,
        _ => ExitCode::Ok,
    })
}

fn print(output: &mut dyn Write, reply: &VerifyReply) -> Result<(), Failure> {
    if !reply.differences.is_empty() {
        let mut table = Table::new(&["DIFFERS", "AT", "PATH"]);
        for row in &reply.differences {
            let at = row.offset.map(|offset| offset.to_string()).or_else(|| row.xattr.clone()).unwrap_or_default();
            table.row([row.what.clone(), at, row.path.clone()]);
        }
        table.print(output)?;
        let hidden = reply.found.saturating_sub(reply.differences.len() as u64);
        if hidden > 0 {
            say(output, &format!("... and {hidden} more"))?;
        }
    }
    let VerifyReply { volume, target, from_tid, upto_tid, objects, found, left, .. } = reply;
    let size = bytes(reply.bytes);
    let line = format!("{volume} at {target}: {objects} objects and {size} compared at {from_tid} to {upto_tid}: ");
    let outcome = match (found, left) {
        (0, _) => "no differences".to_owned(),
        (found, 0) => format!("{found} differences, all mended"),
        (found, left) if left < found => format!("{found} differences, {left} left after mending"),
        (found, _) => format!("{found} differences"),
    };
    say(output, &(line + &outcome))?;
    if reply.unsettled + reply.unreadable > 0 {
        let (unsettled, unreadable) = (reply.unsettled, reply.unreadable);
        say(
            output,
            &format!("not compared: {unsettled} objects on their way to the target, {unreadable} unreadable here"),
        )?;
    }
    Ok(())
}
