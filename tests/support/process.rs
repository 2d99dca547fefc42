//! Child processes that do not outlive their test, and waiting for a condition.

use std::fs;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Polls `check` until it gives a value; panics with `what` after `limit`.
pub(crate) fn wait_until<T>(what: &str, limit: Duration, mut check: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(start.elapsed() < limit, "waited {limit:?} for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A child that is killed and reaped when it goes out of scope.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn spawn(command: &mut Command) -> Process {
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        Process(child)
    }

    pub(crate) fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("the child is there until it is reaped");
    }

    /// Its standard input and output, which were asked for as pipes.
    pub(crate) fn pipes(&mut self) -> (ChildStdin, ChildStdout) {
        (self.0.stdin.take().expect("a pipe to it"), self.0.stdout.take().expect("a pipe from it"))
    }

    /// Its exit status when it has ended.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().expect("a child can be waited for")
    }

    pub(crate) fn wait(&mut self, what: &str, limit: Duration) -> ExitStatus {
        wait_until(what, limit, || self.ended())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The id is ours until wait() has reaped it, so nobody else can be hit.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a tool to its end; panics with its output unless it succeeds.
pub(crate) fn tool(program: &str, args: &[&str]) -> String {
    let output = try_tool(program, args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {}\n{stderr}", output.status);
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Runs a tool to its end.
pub(crate) fn try_tool(program: &str, args: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null());
    command.output().unwrap_or_else(|error| panic!("cannot run {program} (scripts/setup.sh installs it): {error}"))
}

/// The processes below `pid`, with their command lines.
pub(crate) fn descendants(pid: i32) -> Vec<(i32, String)> {
    let mut found: Vec<(i32, String)> = Vec::new();
    let mut todo = vec![pid];
    while let Some(parent) = todo.pop() {
        for child in children(parent) {
            todo.push(child);
            found.push((child, command_line(child)));
        }
    }
    found
}

/// The arguments of a process joined by spaces; empty when it is gone.
pub(crate) fn command_line(pid: i32) -> String {
    let raw = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let parts = raw.split(|b| *b == 0).map(String::from_utf8_lossy).collect::<Vec<_>>();
    parts.join(" ").trim().to_owned()
}

fn children(pid: i32) -> Vec<i32> {
    // Children belong to the thread that forked them.
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let lists = tasks.flatten().map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default());
    lists.flat_map(|list| list.split_whitespace().filter_map(|p| p.parse().ok()).collect::<Vec<_>>()).collect()
}

/// Mount points at or below `dir`, as (path, filesystem type), in the order of mounting.
pub(crate) fn mounts_below(dir: &Path) -> Vec<(String, String)> {
    // The thread's and not the process's: a rig has mounts of its own.
    let table = fs::read_to_string("/proc/thread-self/mountinfo").expect("/proc is mounted");
    let entries = table.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let path = left.split(' ').nth(4)?.replace("\\040", " ");
        Path::new(&path).starts_with(dir).then(|| (path, right.split(' ').next().unwrap_or_default().to_owned()))
    });
    entries.collect()
}

/// Most memory that the process has had at once, in KiB; `None` when it has ended.
pub(crate) fn peak_memory_kib(pid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").parse().expect("a number"))
}
