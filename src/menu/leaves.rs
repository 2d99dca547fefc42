//! What the numbers do.

use std::path::{Path, PathBuf};

use super::talk::{Answer, Talk};
use super::tree::Leaf;
use super::{cannot_write, look};
use crate::config::{AccessTimes, MountOptions, OpenFiles, Paths};
use crate::control::ops::{self, Detach, MountHow, Rehearsal, Told, Which};
use crate::control::{ExitCode, Failure, MountReply};

const BEFORE_ADDING: &str = "Caution: do not choose the root of the file system. Stop the applications that use the \
directory before it is mounted, and start them again afterwards. Start NFS and Samba after the daemon.";
const ACCESS_TIMES: &str = "Caution: replicating access times makes a change of every read, which costs speed. Access \
times that moved are recorded at file close in any case.";

impl Leaf {
    /// Asks its questions and does it. The end of the input before the last answer does nothing.
    pub(super) fn run(self, paths: &Paths, talk: &mut Talk<'_>) -> Result<ExitCode, Failure> {
        match self {
            Leaf::AddEntry => add_entry(paths, talk),
            Leaf::RemoveEntry => remove_entry(paths, talk),
            Leaf::MountAll => mount_all(paths, talk),
            Leaf::UnmountAll => unmount_all(paths, talk),
            Leaf::MountOne => mount_one(paths, talk),
            Leaf::UnmountOne => unmount_one(paths, talk),
            Leaf::DefineTarget => look::define_target(paths, talk),
            Leaf::ForgetTarget => look::forget_target(paths, talk),
            Leaf::Mirror => look::mirror(paths, talk),
            Leaf::Reload => look::reload(paths, talk),
            Leaf::Status => look::status(paths, talk),
            Leaf::Events => look::events(paths, talk),
            Leaf::Check => look::check(paths, talk),
            Leaf::Doctor => look::doctor(paths, talk),
        }
    }
}

fn add_entry(paths: &Paths, talk: &mut Talk<'_>) -> Result<ExitCode, Failure> {
    talk.say(BEFORE_ADDING).map_err(cannot_write)?;
    let Some(path) = ask_path(talk, "Directory to replicate: ")? else { return Ok(ExitCode::Ok) };
    talk.say(ACCESS_TIMES).map_err(cannot_write)?;
    let answer = talk.ask_no_or_yes("Replicate access times? [y/N] ").map_err(cannot_write)?;
    let (access_times, word) = match answer {
        Some(Answer::Yes) => (AccessTimes::Atime, "atime"),
        Some(Answer::No) => (AccessTimes::NoRepAtime, "norepatime"),
        None => return Ok(ExitCode::Ok),
    };
    say_command(paths, talk, &["mounts", "add", &path.to_string_lossy(), "-o", word])?;
    let options = MountOptions { access_times, ..MountOptions::default() };
    let (entry, told) = ops::add_entry(paths, &path, &options)?;
    let line = format!("Added {} as the volume {} (line {}).", entry.path.display(), entry.volume, entry.line);
    talk.say(&line).map_err(cannot_write)?;
    say_told(talk, &told)
}

fn mount_one(paths: &Paths, talk: &mut Talk<'_>) -> Result<ExitCode, Failure> {
    let Some(path) = ask_path(talk, "Entry to mount (its path): ")? else { return Ok(ExitCode::Ok) };
    say_command(paths, talk, &["mounts", "mount", &path.to_string_lossy()])?;
    let how = MountHow { rehearsal: Rehearsal::ForReal, open_files: OpenFiles::Refuse };
    say_verdicts(talk, &ops::mount(paths, &Which::Paths(vec![path]), how)?)
}

fn unmount_one(paths: &Paths, talk: &mut Talk<'_>) -> Result<ExitCode, Failure> {
    let Some(path) = ask_path(talk, "Entry to unmount (its path): ")? else { return Ok(ExitCode::Ok) };
    say_command(paths, talk, &["mounts", "unmount", &path.to_string_lossy()])?;
    say_verdicts(talk, &ops::unmount(paths, &Which::Paths(vec![path]), Detach::WhenUnused)?)
}

fn remove_entry(paths: &Paths, talk: &mut Talk<'_>) -> Result<ExitCode, Failure> {
    let listed = ops::list_entries(paths)?;
    if listed.mounts.is_empty() && talk.answers.is_empty() {
        talk.say("There are no entries.").map_err(cannot_write)?;
        return Ok(ExitCode::Ok);
    }
    for (i, row) in listed.mounts.iter().enumerate() {
        talk.say(&format!("  {}  {}  {}", i + 1, row.path.display(), row.options)).map_err(cannot_write)?;
    }
    let Some(choice) = ask_path(talk, "Entry to remove (its number or path): ")? else { return Ok(ExitCode::Ok) };
    let number = choice.to_str().and_then(|text| text.parse::<usize>().ok());
    let by_number = number.and_then(|n| listed.mounts.get(n.checked_sub(1)?));
    let path = by_number.map_or(choice, |row| row.path.clone());
    say_command(paths, talk, &["mounts", "remove", &path.to_string_lossy()])?;
    let (entry, told) = ops::remove_entry(paths, &path)?;
    talk.say(&format!("Removed {}. Its files and its journal are untouched.", entry.path.display()))
        .map_err(cannot_write)?;
    say_told(talk, &told)
}

fn mount_all(paths: &Paths, talk: &mut Talk<'_>) -> Result<ExitCode, Failure> {
    say_command(paths, talk, &["mounts", "mount", "--all"])?;
    let how = MountHow { rehearsal: Rehearsal::ForReal, open_files: OpenFiles::Refuse };
    say_verdicts(talk, &ops::mount(paths, &Which::All, how)?)
}

fn unmount_all(paths: &Paths, talk: &mut Talk<'_>) -> Result<ExitCode, Failure> {
    say_command(paths, talk, &["mounts", "unmount", "--all"])?;
    say_verdicts(talk, &ops::unmount(paths, &Which::All, Detach::WhenUnused)?)
}

/// `None` for an empty answer or the end of the input: the leaf is left.
fn ask_path(talk: &mut Talk<'_>, question: &str) -> Result<Option<PathBuf>, Failure> {
    let answer = talk.ask(question).map_err(cannot_write)?;
    Ok(answer.filter(|answer| !answer.is_empty()).map(PathBuf::from))
}

fn say_verdicts(talk: &mut Talk<'_>, reply: &MountReply) -> Result<ExitCode, Failure> {
    if reply.verdicts.is_empty() {
        talk.say("There are no entries.").map_err(cannot_write)?;
    }
    for verdict in &reply.verdicts {
        talk.say(&format!("  {}: {}", verdict.path.display(), verdict.verdict)).map_err(cannot_write)?;
        for line in verdict.holders.lines() {
            talk.say(&format!("    {line}")).map_err(cannot_write)?;
        }
    }
    for problem in &reply.problems {
        talk.say(&format!("  {problem}")).map_err(cannot_write)?;
    }
    Ok(reply.exit_code())
}

pub(super) fn say_told(talk: &mut Talk<'_>, told: &Told) -> Result<ExitCode, Failure> {
    for note in told.notes() {
        talk.say(&format!("  {note}")).map_err(cannot_write)?;
    }
    Ok(ExitCode::Ok)
}

/// The command that does the same.
pub(super) fn say_command(paths: &Paths, talk: &mut Talk<'_>, words: &[&str]) -> Result<(), Failure> {
    let root = paths.root().map(Path::to_string_lossy);
    let mut command = String::from("dtfs");
    if let Some(root) = &root {
        command.push_str(" --root ");
        command.push_str(&quoted(root));
    }
    for word in words {
        command.push(' ');
        command.push_str(&quoted(word));
    }
    talk.say(&format!("The same as: {command}")).map_err(cannot_write)
}

/// A word as a shell reads it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-=,:+@".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}
