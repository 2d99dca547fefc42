//! `dtfs setup`: the line-based menu with DTSetup's numbers.
//!
//! Works on any reader and writer, so that it can be piped and tested. Invariants: a number
//! whose work is done otherwise says how; every leaf prints the equivalent `dtfs` command and calls the same [`crate::control::ops`] as that command
//! does; the end of the input ends the menu without doing anything more.

mod leaves;
mod look;
mod talk;
mod tree;

use std::collections::VecDeque;
use std::io::{self, BufRead, Write};

use crate::config::Paths;
use crate::control::{ExitCode, Failure};
use talk::Talk;
use tree::{Kind, Node};

/// Runs the menu from its top, or at the number and with the answers of `start` (`["1.3.1.1", "/srv/data", "n"]`): a
/// leaf is done once, a menu is opened. Returns how the last leaf ended.
///
/// # Errors
/// What a leaf chosen in `start` failed with; code 2 for a number that is not offered or too many answers; code 1 when
/// the output cannot be written.
pub fn run(
    paths: &Paths,
    input: &mut dyn BufRead,
    output: &mut dyn Write,
    start: &[String],
) -> Result<ExitCode, Failure> {
    let node = match start.first() {
        None => &tree::TOP,
        Some(number) => tree::find(number).ok_or_else(|| no_such_number(number))?,
    };
    let answers: VecDeque<String> = start.iter().skip(1).cloned().collect();
    let mut talk = Talk { input, output, answers };
    match &node.kind {
        Kind::Leaf(leaf) if talk.answers.len() > leaf.answers() => {
            let message = format!("{} asks {} questions, not {}", node.number, leaf.answers(), talk.answers.len());
            Err(Failure::new(ExitCode::Usage, message))
        }
        Kind::Leaf(leaf) => leaf.run(paths, &mut talk),
        Kind::Menu(_) | Kind::Note(_) if !talk.answers.is_empty() => {
            Err(Failure::new(ExitCode::Usage, format!("{} asks nothing and takes no answers", node.number)))
        }
        Kind::Note(text) => talk.say(text).map(|()| ExitCode::Ok).map_err(cannot_write),
        Kind::Menu(_) => browse(paths, &mut talk, node),
    }
}

/// Shows `node` and what is chosen below it, until the operator goes back from it or the input ends.
fn browse(paths: &Paths, talk: &mut Talk<'_>, node: &'static Node) -> Result<ExitCode, Failure> {
    let mut above: Vec<&'static Node> = Vec::new();
    let mut here = node;
    let mut ended = ExitCode::Ok;
    loop {
        show(talk, here).map_err(cannot_write)?;
        let Some(choice) = talk.ask("Enter a number (0 = back, q = quit): ").map_err(cannot_write)? else {
            return Ok(ended);
        };
        let chosen = match choice.to_ascii_lowercase().as_str() {
            "" => continue,
            "q" | "quit" => return Ok(ended),
            "0" | "b" | "back" => match above.pop() {
                Some(parent) => {
                    here = parent;
                    continue;
                }
                None => return Ok(ended),
            },
            _ => tree::choose(here, &choice),
        };
        match chosen.map(|chosen| (chosen, &chosen.kind)) {
            None => talk.say(&format!("{choice} is not offered here.")).map_err(cannot_write)?,
            Some((chosen, Kind::Menu(_))) => {
                above.push(here);
                here = chosen;
            }
            Some((_, Kind::Note(text))) => talk.say(text).map_err(cannot_write)?,
            Some((_, Kind::Leaf(leaf))) => ended = perform(paths, talk, *leaf)?,
        }
    }
}

/// Does a leaf; a failure is shown and the menu goes on.
fn perform(paths: &Paths, talk: &mut Talk<'_>, leaf: tree::Leaf) -> Result<ExitCode, Failure> {
    match leaf.run(paths, talk) {
        Ok(code) => Ok(code),
        Err(failure) => {
            talk.say(&format!("Not done: {failure}.")).map_err(cannot_write)?;
            if let Some(remedy) = &failure.remedy {
                talk.say(&format!("Next: {remedy}")).map_err(cannot_write)?;
            }
            Ok(failure.code)
        }
    }
}

fn show(talk: &mut Talk<'_>, node: &Node) -> io::Result<()> {
    talk.say("")?;
    talk.say(node.title)?;
    for child in node.children() {
        talk.say(&format!("  {}  {}", child.number, child.title))?;
    }
    Ok(())
}

fn no_such_number(number: &str) -> Failure {
    Failure::new(ExitCode::Usage, format!("the menu has no number {}", number.escape_debug()))
        .with_remedy("dtfs setup shows the numbers")
}

fn cannot_write(error: io::Error) -> Failure {
    Failure::new(ExitCode::Failed, format!("the menu cannot read or write: {error}"))
}

#[cfg(test)]
mod tests;
