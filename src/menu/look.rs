//! The numbers for targets, and those that only look.

use super::cannot_write;
use super::leaves::{say_command, say_told};
use super::talk::Talk;
use crate::config::{Adoption, Paths, TargetName, TargetUrl};
use crate::control::ops::{self, EventRange, NewTarget, Severity, resolve_volume};
use crate::control::{ExitCode, Failure, MirrorAction, TargetStatus};

/// How many of the newest events are shown.
const EVENTS: usize = 20;

/// `None` for an empty answer or the end of the input: the leaf is left.
fn ask(talk: &mut Talk<'_>, question: &str) -> Result<Option<String>, Failure> {
    Ok(talk.ask(question).map_err(cannot_write)?.filter(|answer| !answer.is_empty()))
}

fn say(talk: &mut Talk<'_>, line: &str) -> Result<(), Failure> {
    talk.say(line).map_err(cannot_write)
}

pub(super) fn define_target(paths: &Paths, talk: &mut Talk<'_>) -> Result<ExitCode, Failure> {
    let Some(volume) = ask(talk, "Volume (name or path): ")? else { return Ok(ExitCode::Ok) };
    let Some(url) = ask(talk, "Where to (for example local:/mnt/replica): ")? else { return Ok(ExitCode::Ok) };
    say_command(paths, talk, &["define", "target", &volume, &url])?;
    let volume = resolve_volume(paths, &volume)?;
    let url: TargetUrl = url.parse().map_err(|problem| Failure::new(ExitCode::Usage, problem))?;
    let (target, told) = ops::define_target(
        paths,
        &volume,
        NewTarget { url, name: None, adoption: Adoption::Refuse, period: None, delay: None },
    )?;
    say(talk, &format!("Defined the target {} of {volume} at {}.", target.name, target.url))?;
    say_told(talk, &told)
}

pub(super) fn forget_target(paths: &Paths, talk: &mut Talk<'_>) -> Result<ExitCode, Failure> {
    let Some(volume) = ask(talk, "Volume (name or path): ")? else { return Ok(ExitCode::Ok) };
    let Some(name) = ask(talk, "Target to forget (its name): ")? else { return Ok(ExitCode::Ok) };
    say_command(paths, talk, &["forget", "target", &volume, &name])?;
    let volume = resolve_volume(paths, &volume)?;
    let target = TargetName::new(&name)?;
    ops::forget_target(paths, &volume, &target)?;
    say(talk, &format!("Forgot the target {target} of {volume}. Its tree is untouched."))?;
    Ok(ExitCode::Ok)
}

pub(super) fn mirror(paths: &Paths, talk: &mut Talk<'_>) -> Result<ExitCode, Failure> {
    let Some(volume) = ask(talk, "Volume (name or path): ")? else { return Ok(ExitCode::Ok) };
    let Some(name) = ask(talk, "Target to mirror (its name): ")? else { return Ok(ExitCode::Ok) };
    let question = "Which kind: full, difference or checksum? [difference] ";
    let Some(kind) = talk.ask(question).map_err(cannot_write)? else { return Ok(ExitCode::Ok) };
    let (option, action) = match kind.as_str() {
        "full" => ("--full", MirrorAction::Full),
        "" | "difference" => ("--difference", MirrorAction::Difference),
        "checksum" => ("--checksum", MirrorAction::Checksum),
        _ => {
            let message = format!("\"{kind}\" is no kind of mirror");
            return Err(Failure::new(ExitCode::Usage, message).with_remedy("answer full, difference or checksum"));
        }
    };
    say_command(paths, talk, &["mirror", "start", &volume, &name, option])?;
    let volume = resolve_volume(paths, &volume)?;
    let target = TargetName::new(&name)?;
    ops::set_mirror(paths, volume.clone(), target.clone(), action, None)?;
    say(talk, &format!("A mirror of {volume} at {target} has begun; 4.1 shows how far it is."))?;
    Ok(ExitCode::Ok)
}

pub(super) fn reload(paths: &Paths, talk: &mut Talk<'_>) -> Result<ExitCode, Failure> {
    say_command(paths, talk, &["reload"])?;
    let notes = ops::reload(paths)?;
    if notes.is_empty() {
        say(talk, "Nothing changed.")?;
    }
    notes.iter().try_for_each(|note| say(talk, &format!("  {note}"))).map(|()| ExitCode::Ok)
}

pub(super) fn status(paths: &Paths, talk: &mut Talk<'_>) -> Result<ExitCode, Failure> {
    say_command(paths, talk, &["status"])?;
    let status = ops::status(paths, None)?;
    if status.volumes.is_empty() {
        say(talk, "There are no volumes.")?;
    }
    for volume in &status.volumes {
        let (state, reason) = volume.state.parts();
        let reason = reason.map_or_else(String::new, |reason| format!(": {reason}"));
        say(talk, &format!("  {} at {}: {state}{reason}", volume.name, volume.path.display()))?;
        say_targets(talk, &volume.targets)?;
    }
    for copy in &status.copies {
        say(talk, &format!("  {} at {}: written by {}", copy.name, copy.path.display(), copy.host))?;
        say_targets(talk, &copy.targets)?;
    }
    Ok(ExitCode::Ok)
}

fn say_targets(talk: &mut Talk<'_>, targets: &[TargetStatus]) -> Result<(), Failure> {
    for target in targets {
        let (state, reason) = target.state.parts();
        let reason = reason.map_or_else(String::new, |reason| format!(": {reason}"));
        let (changes, work) = (target.lag_changes, target.work_left);
        let line =
            format!("    target {}: {state}{reason}; {changes} changes behind, {work} objects left", target.name);
        say(talk, &line)?;
    }
    Ok(())
}

pub(super) fn events(paths: &Paths, talk: &mut Talk<'_>) -> Result<ExitCode, Failure> {
    say_command(paths, talk, &["events", "-n", &EVENTS.to_string()])?;
    let range = EventRange { volume: None, follow: false, limit: EVENTS };
    ops::events(paths, range, &mut |entries| {
        entries.iter().try_for_each(|entry| {
            say(talk, &format!("  {} {} {}: {}", entry.time, entry.level, entry.volume, entry.text))
        })
    })?;
    Ok(ExitCode::Ok)
}

pub(super) fn check(paths: &Paths, talk: &mut Talk<'_>) -> Result<ExitCode, Failure> {
    say_command(paths, talk, &["check"])?;
    let problems = ops::check(paths)?;
    if problems.is_empty() {
        say(talk, "All is good.")?;
        return Ok(ExitCode::Ok);
    }
    problems.iter().try_for_each(|problem| say(talk, &format!("  {problem}"))).map(|()| ExitCode::Usage)
}

pub(super) fn doctor(paths: &Paths, talk: &mut Talk<'_>) -> Result<ExitCode, Failure> {
    say_command(paths, talk, &["doctor"])?;
    let findings = ops::doctor(paths)?;
    for finding in &findings {
        say(talk, &format!("  {} [{}] {}", finding.severity.word(), finding.id, finding.what))?;
        say(talk, &format!("    fix: {}", finding.fix))?;
    }
    let bad = findings.iter().any(|finding| finding.severity != Severity::Info);
    Ok(if bad { ExitCode::Differences } else { ExitCode::Ok })
}
