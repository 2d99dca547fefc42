//! `dtfs check`, `reload`, `events` and `doctor`: what an operator looks at.

use std::io::Write;
use std::path::PathBuf;

use serde::Serialize;

use super::args::EventsArgs;
use super::mounts::report_problems;
use super::print::{print_json, say};
use crate::config::Paths;
use crate::control::ops::{self, EventRange, Finding, resolve_volume};
use crate::control::{EventEntry, ExitCode, Failure};

/// Silent when all is good.
pub(super) fn check(paths: &Paths, files: &[PathBuf]) -> Result<ExitCode, Failure> {
    let problems = match files {
        [] => ops::check(paths)?,
        files => ops::check_files(files)?,
    };
    Ok(report_problems(&problems))
}

pub(super) fn reload(paths: &Paths, output: &mut dyn Write) -> Result<ExitCode, Failure> {
    let notes = ops::reload(paths)?;
    if notes.is_empty() {
        say(output, "nothing changed")?;
    }
    notes.iter().try_for_each(|note| say(output, note)).map(|()| ExitCode::Ok)
}

pub(super) fn events(paths: &Paths, args: &EventsArgs, output: &mut dyn Write) -> Result<ExitCode, Failure> {
    let volume = args.volume.as_deref().map(|text| resolve_volume(paths, text)).transpose()?;
    let range = EventRange { volume, follow: args.follow, limit: args.lines };
    ops::events(paths, range, &mut |entries| {
        for entry in entries {
            match args.json {
                true => print_json(output, entry)?,
                false => say(output, &event_line(entry))?,
            }
        }
        output.flush().map_err(super::cannot_write)
    })?;
    Ok(ExitCode::Ok)
}

fn event_line(entry: &EventEntry) -> String {
    let EventEntry { time, level, volume, target, text } = entry;
    let about = target.as_ref().map_or_else(|| volume.to_string(), |target| format!("{volume}/{target}"));
    format!("{time}  {level:<7}  {about}: {text}")
}

/// The answer of `doctor --json`.
#[derive(Serialize)]
struct Findings<'a> {
    findings: &'a [Finding],
}

/// Ends with code 6 when there is more than something good to know.
pub(super) fn doctor(paths: &Paths, json: bool, output: &mut dyn Write) -> Result<ExitCode, Failure> {
    let findings = ops::doctor(paths)?;
    if json {
        print_json(output, &Findings { findings: &findings })?;
    } else {
        for finding in &findings {
            say(output, &format!("{} [{}] {}", finding.severity.word(), finding.id, finding.what))?;
            say(output, &format!("  fix: {}", finding.fix))?;
        }
        if findings.is_empty() {
            say(output, "nothing found")?;
        }
    }
    let bad = findings.iter().any(|finding| finding.severity != ops::Severity::Info);
    Ok(if bad { ExitCode::Differences } else { ExitCode::Ok })
}
