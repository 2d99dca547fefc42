//! A script that prints one line for each of its steps, and may ask the test to do something in between.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use super::process::Process;

/// No step takes as long.
const STEP_LIMIT: Duration = Duration::from_secs(180);
const LAST: &str = "done";

/// Runs the script to its end. For a line "@ word" `answer` is called with the word, and the script goes on afterwards.
///
/// Every other line is a step. A script that does not end with "done" has failed, whatever it printed before.
pub(crate) fn run_steps(command: &mut Command, mut answer: impl FnMut(&str)) -> Vec<String> {
    let mut script = Process::spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
    let (mut input, output) = script.pipes();
    let lines = lines_of(BufReader::new(output));
    let mut steps = Vec::new();
    loop {
        match lines.recv_timeout(STEP_LIMIT) {
            Ok(line) => match line.strip_prefix("@ ") {
                Some(word) => {
                    answer(word);
                    input.write_all(b"\n").expect("the script waits for its answer");
                }
                None => steps.push(line),
            },
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => panic!("{command:?} is silent after {:#?}", steps.last()),
        }
    }
    let status = script.wait("a script to end", STEP_LIMIT);
    assert!(status.success(), "{command:?}: {status}, after {:#?}", steps.last());
    assert_eq!(steps.pop().as_deref(), Some(LAST), "{command:?} did not come to its end");
    steps
}

/// The lines as they come; the thread ends with the script.
fn lines_of(output: impl BufRead + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

/// Panics with the steps that ended differently on the bare directory and on the mount.
pub(crate) fn assert_same(bare: &[String], mount: &[String], context: &str) {
    assert!(!bare.is_empty(), "{context}: no step was done");
    let differ: Vec<_> = bare.iter().zip(mount).filter(|(bare, mount)| bare != mount).collect();
    let lines: Vec<_> = differ.iter().map(|(bare, mount)| format!("  bare:  {bare}\n  mount: {mount}")).collect();
    assert!(lines.is_empty(), "{context} differs:\n{}", lines.join("\n"));
    assert_eq!(bare.len(), mount.len(), "{context}: number of steps");
}
