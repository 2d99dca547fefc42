//! Questions and answers, line by line.

use std::collections::VecDeque;
use std::io::{self, BufRead, Read, Write};

use crate::control::printable;

/// Longest answer in bytes: a path and some more.
const MAX_ANSWER: u64 = 8192;

/// The operator, at a terminal, in a pipe or on the command line.
pub(super) struct Talk<'a> {
    pub(super) input: &'a mut dyn BufRead,
    pub(super) output: &'a mut dyn Write,
    /// Answers given on the command line, used before the input is read.
    pub(super) answers: VecDeque<String>,
}

/// A question that is answered by yes or no.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    Yes,
    No,
}

impl Talk<'_> {
    /// One line to the operator, safe for a terminal.
    pub(super) fn say(&mut self, line: &str) -> io::Result<()> {
        writeln!(self.output, "{}", printable(line))
    }

    /// The answer without blanks around it; `None` at the end of the input.
    pub(super) fn ask(&mut self, question: &str) -> io::Result<Option<String>> {
        write!(self.output, "{question}")?;
        if let Some(given) = self.answers.pop_front() {
            writeln!(self.output, "{given}")?;
            return Ok(Some(given));
        }
        self.output.flush()?;
        let mut line = Vec::new();
        let read = (&mut *self.input).take(MAX_ANSWER).read_until(b'\n', &mut line)?;
        match read {
            0 => {
                writeln!(self.output)?;
                Ok(None)
            }
            _ => Ok(Some(String::from_utf8_lossy(&line).trim().to_owned())),
        }
    }

    /// Yes or no, where an empty answer means no; asks again until it is one of them. `None` at the end of the input.
    pub(super) fn ask_no_or_yes(&mut self, question: &str) -> io::Result<Option<Answer>> {
        loop {
            let Some(answer) = self.ask(question)? else { return Ok(None) };
            match answer.to_ascii_lowercase().as_str() {
                "" | "n" | "no" => return Ok(Some(Answer::No)),
                "y" | "yes" => return Ok(Some(Answer::Yes)),
                _ => self.say("Please answer y or n.")?,
            }
        }
    }
}
