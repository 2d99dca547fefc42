//! Many short histories at once: this test binary, started again for one of its tests, several times side by side. Fault
//! points belong to a process, so each worker has its own.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::length::number;
use super::process::Process;

/// What a worker is asked to do, in words of the test.
pub(crate) const VARIABLE: &str = "DTFS_WORKER";
/// Where histories are lived: no model needs a disk.
const MEMORY: &str = "/dev/shm";
/// A worker that says nothing for so long hangs.
const LIMIT: Duration = Duration::from_secs(24 * 3600);
/// More than there are processors: each waits for its own threads now and then.
const PER_CPU: u64 = 2;

/// Numbers from `first` on, dealt out to workers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seeds {
    pub(crate) first: u64,
    pub(crate) count: u64,
}

impl Seeds {
    /// `DTFS_SEED` and `otherwise` or what the environment says in `variable`.
    pub(crate) fn from_env(variable: &str, otherwise: u64) -> Seeds {
        Seeds { first: number("DTFS_SEED", 1), count: number(variable, otherwise) }
    }

    /// One part for each worker.
    pub(crate) fn dealt(self) -> Vec<Seeds> {
        let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64);
        let parts = (PER_CPU * cpus).min(self.count).max(1);
        let start = |part: u64| self.first + self.count * part / parts;
        (0..parts).map(|part| Seeds { first: start(part), count: start(part + 1) - start(part) }).collect()
    }
}

/// What this process was asked to do as a worker, if it is one.
pub(crate) fn asked() -> Option<String> {
    std::env::var(VARIABLE).ok()
}

/// Running workers. They are killed when this is dropped.
pub(crate) struct Workers {
    running: Vec<(Process, PathBuf)>,
    /// What they say, and everything that they make. Dropped after them.
    _dir: TempDir,
}

impl Workers {
    /// Starts one worker for each of `tasks`, for the test `name`.
    pub(crate) fn start(name: &str, tasks: impl IntoIterator<Item = String>) -> Workers {
        let dir = tempfile::Builder::new().prefix("dtfs-workers-").tempdir_in(MEMORY).expect("a temporary directory");
        let start = |(index, task): (usize, String)| {
            let path = dir.path().join(index.to_string());
            let file = File::create(&path).expect("an output file");
            let mut command = Command::new(std::env::current_exe().expect("this test binary"));
            command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(VARIABLE, task);
            command.env("TMPDIR", dir.path());
            command.stdin(Stdio::null()).stderr(file.try_clone().expect("a second handle")).stdout(file);
            (Process::spawn(&mut command), path)
        };
        let running = tasks.into_iter().enumerate().map(start).collect();
        Workers { running, _dir: dir }
    }

    /// What follows `word` in a line of the worker that says it first, as soon as it does; nothing when all end without it.
    pub(crate) fn first(mut self, word: &str) -> Option<String> {
        loop {
            let over: Vec<bool> = self.running.iter_mut().map(|(worker, _)| worker.ended().is_some()).collect();
            for (_, output) in &self.running {
                let text = std::fs::read_to_string(output).unwrap_or_default();
                if let Some(rest) = text.lines().find_map(|line| line.strip_prefix(word)) {
                    return Some(rest.to_owned());
                }
            }
            if over.iter().all(|over| *over) {
                return None;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for all and returns what they said; the first failure is a panic with its text, and ends the others.
    pub(crate) fn finish(mut self) -> Vec<String> {
        let mut said = Vec::new();
        for (worker, output) in &mut self.running {
            let status = worker.wait("a worker to end", LIMIT);
            let text = std::fs::read_to_string(output).unwrap_or_default();
            assert!(status.success(), "a worker failed, {status}:\n{text}");
            said.push(text);
        }
        said
    }
}
