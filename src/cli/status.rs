//! `dtfs status`.

use std::io::Write;

use super::args::StatusArgs;
use super::print::{print_json, say};
use super::table::Table;
use crate::config::Paths;
use crate::control::ops::{self, resolve_volume};
use crate::control::{ExitCode, Failure, StatusReply, TargetStatus, VolumeStatus};

pub(super) fn run(paths: &Paths, args: &StatusArgs, output: &mut dyn Write) -> Result<ExitCode, Failure> {
    let volume = args.volume.as_deref().map(|text| resolve_volume(paths, text)).transpose()?;
    let status = ops::status(paths, volume)?;
    match args.json {
        true => print_json(output, &status)?,
        false => print(output, &status)?,
    }
    Ok(ExitCode::Ok)
}

pub(super) fn print(output: &mut dyn Write, status: &StatusReply) -> Result<(), Failure> {
    if status.volumes.is_empty() {
        return say(output, "no volumes; make one with: dtfs define volume VOL DIR");
    }
    print_volumes(output, &status.volumes)?;
    if status.volumes.iter().any(|volume| !volume.targets.is_empty()) {
        say(output, "")?;
        print_targets(output, &status.volumes)?;
    }
    Ok(())
}

fn print_volumes(output: &mut dyn Write, volumes: &[VolumeStatus]) -> Result<(), Failure> {
    let mut table = Table::new(&["VOLUME", "STATE", "LAST TID", "DURABLE TID", "JOURNAL", "PATH", "REASON"]);
    for volume in volumes {
        let (state, reason) = volume.state.parts();
        table.row([
            volume.name.to_string(),
            state.to_owned(),
            volume.last_tid.to_string(),
            volume.durable_tid.to_string(),
            bytes(volume.journal_bytes),
            volume.path.display().to_string(),
            reason.unwrap_or("").to_owned(),
        ]);
    }
    table.print(output)
}

fn print_targets(output: &mut dyn Write, volumes: &[VolumeStatus]) -> Result<(), Failure> {
    let mut table = Table::new(&["VOLUME", "TARGET", "STATE", "CONSISTENT AT", "LAG", "WORK", "SENT", "URL", "REASON"]);
    for (volume, target) in volumes.iter().flat_map(|volume| volume.targets.iter().map(move |t| (volume, t))) {
        let (state, _) = target.state.parts();
        table.row([
            volume.name.to_string(),
            target.name.to_string(),
            state.to_owned(),
            target.consistent_at.map_or_else(|| "-".to_owned(), |tid| tid.to_string()),
            target.lag_changes.to_string(),
            target.work_left.to_string(),
            bytes(target.bytes_sent),
            target.url.clone(),
            reason(target),
        ]);
    }
    table.print(output)
}

/// Why it is in its state; otherwise the last thing that went wrong, with its time; otherwise how it differs.
fn reason(target: &TargetStatus) -> String {
    match (target.state.parts().1, &target.last_error) {
        (Some(reason), _) => reason.to_owned(),
        (None, Some(error)) => format!("{}: {}", error.time, error.message),
        (None, None) => target.differs.clone().unwrap_or_default(),
    }
}

/// A number of bytes in the largest unit that leaves at least one, with one decimal.
pub(super) fn bytes(count: u64) -> String {
    let units = ["K", "M", "G", "T", "P", "E"];
    let mut value = count as f64;
    let mut unit = "";
    for next in units {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit.is_empty() { format!("{count}") } else { format!("{value:.1}{unit}") }
}
