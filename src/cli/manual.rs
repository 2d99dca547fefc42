//! The manual pages and the completion scripts, as files for whoever packages dtfs.
//!
//! The part of dtfs(8) about commands comes from the grammar itself; the prose lies beside this file, in `manual/`.

use std::io;
use std::path::Path;

use clap::{Arg, Command, CommandFactory};
use clap_complete::env::Shells;

use super::args::Arguments;
use crate::control::{ExitCode, Failure};

const BEFORE: &str = include_str!("manual/dtfs.8.before");
const AFTER: &str = include_str!("manual/dtfs.8.after");
/// Pages that are prose alone.
const PAGES: [(&str, &str); 3] = [
    ("dtfs_mounts.5", include_str!("manual/dtfs_mounts.5")),
    ("dtfs.toml.5", include_str!("manual/dtfs.toml.5")),
    ("mount.dtfs.8", include_str!("manual/mount.dtfs.8")),
];
/// Where each shell looks, by the name of its script.
const SCRIPTS: [(&str, &str); 3] = [("bash", "dtfs"), ("zsh", "_dtfs"), ("fish", "dtfs.fish")];

/// Writes `DIR/man/*` and `DIR/completions/SHELL/*`.
///
/// # Errors
/// When a file cannot be written.
pub(super) fn write(dir: &Path) -> Result<ExitCode, Failure> {
    write_all(dir)
        .map_err(|error| Failure::new(ExitCode::Failed, format!("cannot write {}: {error}", dir.display())))?;
    Ok(ExitCode::Ok)
}

fn write_all(dir: &Path) -> io::Result<()> {
    let man = dir.join("man");
    std::fs::create_dir_all(&man)?;
    std::fs::write(man.join("dtfs.8"), commands_page()?)?;
    for (name, text) in PAGES {
        std::fs::write(man.join(name), fill(text))?;
    }
    for (shell, script) in SCRIPTS {
        let to = dir.join("completions").join(shell);
        std::fs::create_dir_all(&to)?;
        std::fs::write(to.join(script), completion(shell)?)?;
    }
    Ok(())
}

fn completion(shell: &str) -> io::Result<Vec<u8>> {
    let mut script = Vec::new();
    let shells = Shells::builtins();
    let shell = shells.completer(shell).ok_or_else(|| io::Error::other(format!("no completions for {shell}")))?;
    shell.write_registration("COMPLETE", "dtfs", "dtfs", "dtfs", &mut script)?;
    Ok(script)
}

fn fill(text: &str) -> String {
    text.replace("@VERSION@", env!("CARGO_PKG_VERSION"))
}

/// dtfs(8): prose, every command, prose.
fn commands_page() -> io::Result<String> {
    let mut page = fill(BEFORE);
    let mut root = Arguments::command();
    root.build();
    page.push_str(".SH \"GLOBAL OPTIONS\"\n");
    page.push_str(&options(&own_options(root.clone(), Globals::Shown))?);
    page.push_str(".SH COMMANDS\n");
    for command in root.get_subcommands() {
        describe(command, &mut page)?;
    }
    page.push_str(&fill(AFTER));
    Ok(page)
}

/// The commands below `command`, or itself when there are none.
fn describe(command: &Command, page: &mut String) -> io::Result<()> {
    if command.is_hide_set() || command.get_name() == "help" {
        return Ok(());
    }
    let mut below = command.get_subcommands().peekable();
    if below.peek().is_some() {
        return below.try_for_each(|command| describe(command, page));
    }
    let command = own_options(command.clone(), Globals::Hidden);
    page.push_str(&format!(".SS \"{}\"\n", command.get_bin_name().unwrap_or(command.get_name())));
    let man = clap_mangen::Man::new(command.clone());
    page.push_str(&section(|to| man.render_synopsis_section(to))?);
    page.push_str(".PP\n");
    page.push_str(&section(|to| man.render_description_section(to))?);
    page.push_str(&options(&command)?);
    if let Some(after) = command.get_after_help() {
        page.push_str(&format!(".PP\n.nf\n{}\n.fi\n", escape(&after.to_string())));
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Globals {
    Shown,
    Hidden,
}

/// What belongs to every command is said once.
fn own_options(command: Command, globals: Globals) -> Command {
    let is_everywhere = |arg: &Arg| {
        matches!(arg.get_id().as_str(), "help" | "version") || (globals == Globals::Hidden && arg.is_global_set())
    };
    command.mut_args(|arg| if is_everywhere(&arg) { arg.hide(true) } else { arg })
}

fn options(command: &Command) -> io::Result<String> {
    let man = clap_mangen::Man::new(command.clone());
    section(|to| man.render_options_section(to))
}

/// A section without its heading and without the preamble that a whole page begins with.
fn section(render: impl FnOnce(&mut dyn io::Write) -> io::Result<()>) -> io::Result<String> {
    let mut text = Vec::new();
    render(&mut text)?;
    let text = String::from_utf8(text).map_err(io::Error::other)?;
    Ok(text
        .split_once(".SH ")
        .and_then(|(_, rest)| rest.split_once('\n'))
        .map_or(String::new(), |(_, body)| body.to_owned()))
}

/// Plain text as roff: no line begins a request, no backslash an escape.
fn escape(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    let line = |line: &str| if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line.to_owned() };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_every_command() {
        fn leaves(command: &Command, names: &mut Vec<String>) {
            if command.is_hide_set() || command.get_name() == "help" {
                return;
            }
            match command.has_subcommands() {
                true => command.get_subcommands().for_each(|command| leaves(command, names)),
                false => names.push(command.get_bin_name().unwrap().to_owned()),
            }
        }
        let mut root = Arguments::command();
        root.build();
        let mut names = Vec::new();
        leaves(&root, &mut names);
        let page = commands_page().unwrap();
        assert!(names.len() > 10);
        for name in names {
            assert!(page.contains(&format!(".SS \"{name}\"\n")), "{name}");
        }
        assert!(!page.contains('@'), "a place that was not filled");
    }
}
