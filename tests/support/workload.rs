//! A seeded workload of every kind of filesystem change, run by several processes against one directory.
//!
//! The workers are this test binary itself, started again for the one test `workload_worker` with [`VARIABLE`] set: a
//! helper program of its own would be a second `[[bin]]`, which `cargo install` would put beside the product. Nothing can
//! pass unseen: a worker ends with a receipt line of what it did, and [`Workload::finish`] fails without one from each.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::ops::Worker;
use super::process::Process;

/// Asks the test binary to be a worker: `SEED:OPS:NUMBER:DIR`.
pub(crate) const VARIABLE: &str = "DTFS_WORKLOAD";
const RECEIPT: &str = "workload-receipt";
const LIMIT: Duration = Duration::from_secs(300);

/// Running workers; they are killed when it is dropped.
pub(crate) struct Workload {
    workers: Vec<(Process, PathBuf)>,
    seed: u64,
    _outputs: TempDir,
}

/// How often each kind of change succeeded, over all workers.
pub(crate) type Done = BTreeMap<String, u64>;

impl Workload {
    /// Starts `processes` workers that share `ops` operations in `dir`.
    pub(crate) fn start(dir: &Path, seed: u64, processes: u64, ops: u64) -> Workload {
        println!("workload: seed {seed}, {processes} processes, {ops} operations in {}", dir.display());
        let outputs = tempfile::tempdir().expect("a temporary directory");
        let start = |number: u64| {
            let output = outputs.path().join(number.to_string());
            let mut value = OsString::from(format!("{seed}:{}:{number}:", ops / processes));
            value.push(dir);
            let file = File::create(&output).expect("an output file");
            let mut command = Command::new(std::env::current_exe().expect("this test binary"));
            command.args(["--exact", "workload_worker", "--nocapture", "--test-threads=1"]).env(VARIABLE, value);
            command.stdin(Stdio::null()).stderr(file.try_clone().expect("a second handle")).stdout(file);
            (Process::spawn(&mut command), output)
        };
        Workload { workers: (0..processes).map(start).collect(), seed, _outputs: outputs }
    }

    /// Waits for all workers; panics unless each did all its operations without an error that native would not give.
    pub(crate) fn finish(mut self) -> Done {
        let mut done = Done::new();
        for (worker, output) in &mut self.workers {
            let status = worker.wait("a worker of the workload", LIMIT);
            let text = fs::read_to_string(output).expect("the worker's output");
            assert!(status.success(), "a worker failed (seed {}):\n{text}", self.seed);
            let receipt = text.lines().find_map(|line| line.split_once(RECEIPT)).map(|(_, counts)| counts);
            let receipt = receipt.unwrap_or_else(|| panic!("a worker did nothing (seed {}):\n{text}", self.seed));
            for (kind, count) in receipt.split_whitespace().filter_map(|part| part.split_once('=')) {
                *done.entry(kind.to_owned()).or_default() += count.parse::<u64>().expect("a count");
            }
        }
        done
    }
}

/// Does a worker's part when this process was started as one; false when it was not.
pub(crate) fn worker_was_asked() -> bool {
    let Ok(value) = std::env::var(VARIABLE) else { return false };
    let mut parts = value.splitn(4, ':');
    let mut number = || parts.next().and_then(|part| part.parse::<u64>().ok()).expect("SEED:OPS:NUMBER:DIR");
    let (seed, ops, worker) = (number(), number(), number());
    let dir = parts.next().expect("SEED:OPS:NUMBER:DIR");
    let done = Worker::new(Path::new(dir), seed, worker).run(ops);
    let counts = done.iter().map(|(kind, count)| format!(" {kind}={count}")).collect::<String>();
    // On a line of its own: the test runner may have begun one.
    println!("\n{RECEIPT}{counts}");
    true
}
