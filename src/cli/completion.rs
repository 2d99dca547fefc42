//! Shell completions that know this host: the grammar, and the names of its volumes and targets.
//!
//! The shell's script asks the program itself (`COMPLETE=bash dtfs`), which answers from the files and without a daemon.

use std::ffi::OsStr;

use clap::{Arg, Command, CommandFactory};
use clap_complete::CompleteEnv;
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};

use super::args::Arguments;
use crate::config::{MountsFile, Paths, VolumeFile};

/// Answers a shell that asks for completions, and ends the process then.
pub(super) fn answer_shell() {
    CompleteEnv::with_factory(command).bin("dtfs").completer("dtfs").complete();
}

/// The grammar with what completes its values.
fn command() -> Command {
    with_names(Arguments::command())
}

/// What a value is follows from its name in the grammar, the same in every command.
fn with_names(command: Command) -> Command {
    command.mut_args(complete).mut_subcommands(with_names)
}

fn complete(arg: Arg) -> Arg {
    let name = arg.get_value_names().and_then(|names| names.first()).map(ToString::to_string).unwrap_or_default();
    match (name.as_str(), arg.get_id().as_str()) {
        // The name that a new volume gets is nobody's yet.
        ("VOL", _) => arg.add(ArgValueCompleter::new(volumes)),
        ("TARGET", _) | ("NAME", "target") => arg.add(ArgValueCompleter::new(targets)),
        _ => arg,
    }
}

fn volumes(typed: &OsStr) -> Vec<CompletionCandidate> {
    let typed = typed.to_string_lossy();
    let Ok(mounts) = MountsFile::load(&paths()) else { return Vec::new() };
    let fitting = mounts.entries().filter(|entry| entry.volume.as_str().starts_with(&*typed));
    fitting
        .map(|entry| {
            CompletionCandidate::new(entry.volume.as_str()).help(Some(entry.path.display().to_string().into()))
        })
        .collect()
}

/// Those of the volume on the line; of all volumes when none is there.
fn targets(typed: &OsStr) -> Vec<CompletionCandidate> {
    let typed = typed.to_string_lossy();
    let Ok(files) = VolumeFile::load_all(&paths()) else { return Vec::new() };
    let words: Vec<String> = words().collect();
    let is_named = |name: &str| words.iter().any(|word| word == name);
    let any = files.iter().any(|file| is_named(file.volume.as_str()));
    let files = files.iter().filter(|file| !any || is_named(file.volume.as_str()));
    let targets = files.filter_map(|file| file.file.as_ref().ok()).flat_map(|file| &file.targets);
    targets
        .filter(|target| target.name.as_str().starts_with(&*typed))
        .map(|target| CompletionCandidate::new(target.name.as_str()).help(Some(target.url.to_string().into())))
        .collect()
}

/// The words of the line, which the shell hands over behind `--`.
fn words() -> impl Iterator<Item = String> {
    std::env::args().skip_while(|word| word != "--").skip(1)
}

/// Where the files are, as far as the line or the environment says.
fn paths() -> Paths {
    let line: Vec<String> = words().collect();
    let typed = line.windows(2).find(|pair| pair[0] == "--root").map(|pair| pair[1].clone().into());
    Paths::new(typed.or_else(|| std::env::var_os("DTFS_ROOT").map(Into::into)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_volume_and_target_of_the_grammar_is_completed() {
        fn completed(command: &Command, value: &str) -> usize {
            let is_it = |arg: &&Arg| arg.get_value_names().is_some_and(|names| names[0] == *value);
            let here = command.get_arguments().filter(is_it);
            let here = here.filter(|arg| arg.get::<ArgValueCompleter>().is_some()).count();
            here + command.get_subcommands().map(|command| completed(command, value)).sum::<usize>()
        }
        assert!(completed(&command(), "VOL") >= 6);
        assert!(completed(&command(), "TARGET") >= 1);
    }
}
