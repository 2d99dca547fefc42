//! `dtfs status`.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use super::args::StatusArgs;
use super::cannot_write;
use super::print::{print_json, say};
use super::table::Table;
use crate::config::{Paths, VolumeName};
use crate::control::ops::{self, resolve_volume};
use crate::control::{CopyStatus, ExitCode, Failure, StatusReply, TargetStatus, VolumeStatus};

/// How often `--watch` shows it again.
const WATCH_EVERY: Duration = Duration::from_secs(2);

pub(super) fn run(paths: &Paths, args: &StatusArgs, output: &mut dyn Write) -> Result<ExitCode, Failure> {
    let volume = args.volume.as_deref().map(|text| resolve_volume(paths, text)).transpose()?;
    let show = |output: &mut dyn Write| {
        let status = ops::status(paths, volume.clone())?;
        match args.json {
            true => print_json(output, &status),
            false => print(output, &status),
        }
    };
    match args.watch {
        true => watch(output, &show),
        false => show(output).map(|()| ExitCode::Ok),
    }
}

/// Shows it again and again until the caller is ended or nobody reads any more.
fn watch(output: &mut dyn Write, show: &dyn Fn(&mut dyn Write) -> Result<(), Failure>) -> Result<ExitCode, Failure> {
    let terminal = std::io::stdout().is_terminal() && std::env::var("TERM").is_ok_and(|term| term != "dumb");
    loop {
        let mut page = Vec::new();
        show(&mut page)?;
        // Home, then the page, then what was below it is cleared: without a moment in which the screen is empty.
        let (before, after) = if terminal { ("\x1b[H\x1b[2J", "") } else { ("", "\n") };
        let page = String::from_utf8_lossy(&page);
        write!(output, "{before}{page}{after}").and_then(|()| output.flush()).map_err(cannot_write)?;
        std::thread::sleep(WATCH_EVERY);
    }
}

pub(super) fn print(output: &mut dyn Write, status: &StatusReply) -> Result<(), Failure> {
    if status.volumes.is_empty() && status.copies.is_empty() {
        return say(output, "no volumes; make one with: dtfs define volume VOL DIR");
    }
    if !status.copies.is_empty() {
        print_copies(output, &status.copies)?;
        let of_copies = status.copies.iter().map(|copy| (&copy.name, &copy.targets[..]));
        print_targets(output, &of_copies.collect::<Vec<_>>())?;
    }
    if status.volumes.is_empty() {
        return Ok(());
    }
    if !status.copies.is_empty() {
        say(output, "")?;
    }
    print_volumes(output, &status.volumes)?;
    let of_volumes = status.volumes.iter().map(|volume| (&volume.name, &volume.targets[..]));
    print_targets(output, &of_volumes.collect::<Vec<_>>())
}

fn print_copies(output: &mut dyn Write, copies: &[CopyStatus]) -> Result<(), Failure> {
    let mut table = Table::new(&["COPY", "WRITTEN BY", "APPLIED TID", "PATH", "REASON"]);
    for copy in copies {
        let path = copy.path.display().to_string();
        table.row([
            copy.name.to_string(),
            copy.host.clone(),
            copy.applied_tid.to_string(),
            path,
            copy.reason.clone().unwrap_or_default(),
        ]);
    }
    table.print(output)
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
            journal(volume),
            volume.path.display().to_string(),
            reason.map_or_else(|| noteworthy(volume), str::to_owned),
        ]);
    }
    table.print(output)
}

/// What to know of a volume that works.
fn noteworthy(volume: &VolumeStatus) -> String {
    let rules = match volume.rules.len() {
        0 => None,
        1 => Some("1 rule says what its targets get".to_owned()),
        count => Some(format!("{count} rules say what its targets get")),
    };
    let bypassed = Some(bypassed(volume)).filter(|text| !text.is_empty());
    bypassed.into_iter().chain(rules).collect::<Vec<_>>().join("; ")
}

/// Who can write behind the mount's back, or may.
fn bypassed(volume: &VolumeStatus) -> String {
    let who = volume.suspects.iter().map(ToString::to_string).chain(volume.unseen.iter().map(ToString::to_string));
    match who.collect::<Vec<_>>() {
        who if who.is_empty() => String::new(),
        who => format!("bypass-suspect: {}", who.join(", ")),
    }
}

/// The targets of volumes, or of copies that pass on what they get; nothing where there are none.
fn print_targets(output: &mut dyn Write, volumes: &[(&VolumeName, &[TargetStatus])]) -> Result<(), Failure> {
    if volumes.iter().all(|(_, targets)| targets.is_empty()) {
        return Ok(());
    }
    say(output, "")?;
    let mut table = Table::new(&[
        "VOLUME",
        "TARGET",
        "STATE",
        "CONSISTENT AT",
        "LAG",
        "BYTES",
        "TIME",
        "WORK",
        "SENT",
        "RATE",
        "URL",
        "REASON",
    ]);
    for (volume, target) in volumes.iter().flat_map(|(name, targets)| targets.iter().map(move |t| (name, t))) {
        let (state, _) = target.state.parts();
        table.row([
            volume.to_string(),
            target.name.to_string(),
            state.to_owned(),
            target.consistent_at.map_or_else(|| "-".to_owned(), |tid| tid.to_string()),
            target.lag_changes.to_string(),
            bytes(target.lag_bytes),
            duration(target.lag_seconds),
            work(target),
            bytes(target.bytes_sent),
            format!("{}/s", bytes(target.rate_bytes)),
            target.url.clone(),
            reason(target),
        ]);
    }
    table.print(output)
}

/// What the journal takes, and how much of its cap that is.
fn journal(volume: &VolumeStatus) -> String {
    match volume.journal_cap_bytes {
        0 => bytes(volume.journal_bytes),
        cap => format!("{} ({}%)", bytes(volume.journal_bytes), volume.journal_bytes.saturating_mul(100) / cap),
    }
}

/// What is left, and when that ends.
fn work(target: &TargetStatus) -> String {
    if let Some(mirror) = target.mirror.as_ref().filter(|mirror| mirror.is_running()) {
        let total = mirror.total_objects.map(|total| format!(" of {total}")).unwrap_or_default();
        let left = mirror.seconds_left.map(|left| format!(" (about {})", duration(left as f64))).unwrap_or_default();
        return format!("{}{total} objects, {}{left}", mirror.objects, bytes(mirror.bytes));
    }
    match target.work_seconds {
        Some(seconds) => format!("{} (about {})", target.work_left, duration(seconds as f64)),
        None => target.work_left.to_string(),
    }
}

/// A length of time in its two largest units.
pub(super) fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    match whole {
        0 => format!("{:.1}s", seconds.max(0.0)),
        1..60 => format!("{whole}s"),
        60..3600 => format!("{}m{:02}s", whole / 60, whole % 60),
        3600..86400 => format!("{}h{:02}m", whole / 3600, whole % 3600 / 60),
        _ => format!("{}d{:02}h", whole / 86400, whole % 86400 / 3600),
    }
}

/// Why it is in its state; otherwise the last thing that went wrong, with its time; otherwise how it differs. A clock that is
/// wrong is always said.
fn reason(target: &TargetStatus) -> String {
    let reason = match (target.state.parts().1, &target.last_error) {
        (Some(reason), _) => Some(reason.to_owned()),
        (None, Some(error)) => Some(format!("{}: {}", error.time, error.message)),
        (None, None) => match &target.mirror {
            Some(mirror) if mirror.progress == "paused" => Some("its mirror is paused".to_owned()),
            Some(mirror) if mirror.is_running() => mirror.current.as_ref().map(|path| format!("reads {path}")),
            Some(mirror) if mirror.progress == "stopped" => Some("its mirror was given up".to_owned()),
            _ if target.delay_seconds > 0 => Some(format!("stays {} behind", duration(target.delay_seconds as f64))),
            _ => target.differs.clone(),
        },
    };
    reason.into_iter().chain(target.restricted()).chain(target.clock_skew()).collect::<Vec<_>>().join("; ")
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
