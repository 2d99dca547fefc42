//! `dtfs demo`: two directories on this host, replicated live, shown, checked and cleaned up.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::backing::compare::{CompareOptions, compare_trees};
use crate::config::Paths;
use crate::control::{Client, ExitCode, Failure, Reply, Request, TargetState, TargetStatus};

/// Whether what the demo made is removed at the end.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Everything is removed.
    No,
    /// The directories stay, to look at.
    Yes,
}

/// Longest wait for any step.
const PATIENCE: Duration = Duration::from_secs(600);

/// Runs the demo and tells what happens on `out`.
///
/// # Errors
/// [`Failure`] names the step that failed; exit code 6 when the trees differ in the end.
pub fn demo(keep: Keep, out: &mut dyn Write) -> Result<(), Failure> {
    let stage = Stage::set(keep)?;
    let told = stage.play(out);
    let cleaned = stage.clear(out);
    told.and(cleaned)
}

struct Stage {
    dir: PathBuf,
    keep: Keep,
    program: PathBuf,
}

impl Stage {
    fn set(keep: Keep) -> Result<Stage, Failure> {
        let program = std::fs::read_link("/proc/self/exe").map_err(failed("find this program"))?;
        let dir = std::env::temp_dir().join(format!("dtfs-demo-{}", std::process::id()));
        std::fs::create_dir(&dir).map_err(failed("make a directory for the demo"))?;
        Ok(Stage { dir, keep, program })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn play(&self, out: &mut dyn Write) -> Result<(), Failure> {
        let (tree, replica) = (self.path("tree"), self.path("replica"));
        let sample = sample_tree()?;
        say(out, format_args!("dtfs demo, in {}", self.dir.display()))?;
        say(out, format_args!("  copying {} to {} ...", sample.display(), tree.display()))?;
        copy(&sample, &tree)?;
        self.command(out, &["define", "volume", "demo", &text(&tree)])?;
        let mut daemon = Daemon::start(self)?;
        say(out, format_args!("  $ dtfs daemon &                 (mounted on {})", tree.display()))?;
        let began = Instant::now();
        self.command(out, &["define", "target", "demo", &format!("local:{}", text(&replica))])?;
        let changed = change_while_mirroring(&tree)?;
        say(out, format_args!("  changed the tree while it is mirrored: {changed}"))?;
        self.command(out, &["wait", "demo", "--timeout", "600"])?;
        let took = began.elapsed();
        let target = self.target()?;
        let late = one_change(&tree, &replica)?;
        self.command(out, &["wait", "demo", "--timeout", "600"])?;
        self.command(out, &["status", "demo"])?;
        daemon.stop()?;
        self.account(out, (&tree, &replica), took, &target, late)
    }

    fn account(
        &self,
        out: &mut dyn Write,
        (tree, replica): (&Path, &Path),
        took: Duration,
        target: &TargetStatus,
        late: Duration,
    ) -> Result<(), Failure> {
        let report = compare_trees(tree, replica, &CompareOptions::default())
            .map_err(|error| Failure::new(ExitCode::Failed, format!("compare the trees: {error}")))?;
        let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
        say(out, format_args!(""))?;
        say(out, format_args!("  objects compared            {}", report.objects))?;
        say(out, format_args!("  bytes compared              {:.1} MiB", mib(report.bytes)))?;
        say(out, format_args!("  mirror, changes included    {:.2} s", took.as_secs_f64()))?;
        say(out, format_args!("  sent to the target          {:.1} MiB", mib(target.bytes_sent)))?;
        say(out, format_args!("  one change, seen on target  {:.0} ms after", late.as_secs_f64() * 1000.0))?;
        if !report.is_equal() {
            return Err(Failure::new(ExitCode::Differences, format!("the trees differ:\n{report}")));
        }
        say(out, format_args!("  both trees are equal: names, bytes, holes, owners, modes, times, xattrs, hard links"))
    }

    /// Runs one of our own commands, as an operator would.
    fn command(&self, out: &mut dyn Write, arguments: &[&str]) -> Result<(), Failure> {
        say(out, format_args!("  $ dtfs {}", arguments.join(" ")))?;
        let done = self.dtfs().args(arguments).output().map_err(failed("run dtfs"))?;
        for line in String::from_utf8_lossy(&done.stdout).lines() {
            say(out, format_args!("      {line}"))?;
        }
        match done.status.success() {
            true => Ok(()),
            false => Err(Failure::new(ExitCode::Failed, String::from_utf8_lossy(&done.stderr).trim())),
        }
    }

    fn dtfs(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(self.path("host")).current_dir("/").stdin(Stdio::null());
        command
    }

    fn paths(&self) -> Paths {
        Paths::new(Some(self.path("host")))
    }

    fn target(&self) -> Result<TargetStatus, Failure> {
        let reply = Client::connect(&self.paths())?.call(&Request::Status { volume: None })?;
        let Reply::Status(status) = reply else { return Err(Failure::new(ExitCode::Failed, "no status")) };
        let target = status.volumes.into_iter().flat_map(|volume| volume.targets).next();
        target.filter(|t| t.state != TargetState::New).ok_or(Failure::new(ExitCode::Failed, "the target is gone"))
    }

    fn clear(&self, out: &mut dyn Write) -> Result<(), Failure> {
        if self.keep == Keep::Yes {
            return say(out, format_args!("  kept: {}", self.dir.display()));
        }
        let replica = std::fs::canonicalize(self.path("replica")).map_err(failed("clean up"))?;
        crate::backing::guard::remove_cover(&replica)
            .map_err(|errno| Failure::new(ExitCode::Failed, format!("clean up: {errno}")))?;
        super::memory::remove_memory(&self.paths()).map_err(failed("clean up"))?;
        std::fs::remove_dir_all(&self.dir).map_err(failed("clean up"))?;
        say(out, format_args!("  cleaned up"))
    }
}

/// The daemon of the demo; it never outlives it.
struct Daemon {
    child: Child,
    tree: PathBuf,
}

impl Daemon {
    fn start(stage: &Stage) -> Result<Daemon, Failure> {
        let child = stage.dtfs().arg("daemon").spawn().map_err(failed("start the daemon"))?;
        let mut daemon = Daemon { child, tree: stage.path("tree") };
        let paths = stage.paths();
        until("the daemon to answer", || {
            if let Ok(Some(status)) = daemon.child.try_wait() {
                return Err(Failure::new(ExitCode::Failed, format!("the daemon ended: {status}")));
            }
            let mounted = Client::connect(&paths).and_then(|mut client| client.call(&Request::Status { volume: None }));
            Ok(matches!(mounted, Ok(Reply::Status(status)) if status.volumes.iter().any(is_mounted)))
        })?;
        Ok(daemon)
    }

    fn stop(&mut self) -> Result<(), Failure> {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)
            .map_err(|errno| Failure::new(ExitCode::Failed, format!("stop the daemon: {errno}")))?;
        let status = self.child.wait().map_err(failed("wait for the daemon"))?;
        match status.success() {
            true => Ok(()),
            false => Err(Failure::new(ExitCode::Failed, format!("the daemon ended: {status}"))),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
            let _ = crate::fuse::detach(&self.tree);
        }
    }
}

fn is_mounted(volume: &crate::control::VolumeStatus) -> bool {
    volume.state == crate::control::VolumeState::Mounted
}

/// The Rust toolchain's library sources, or the C headers, whichever is there.
fn sample_tree() -> Result<PathBuf, Failure> {
    let sysroot = Command::new("rustc").args(["--print", "sysroot"]).output().ok();
    let sysroot = sysroot.map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    let library = sysroot.map(|root| root.join("lib/rustlib/src/rust/library")).filter(|dir| dir.is_dir());
    let headers = PathBuf::from("/usr/include");
    library.or_else(|| headers.is_dir().then_some(headers)).ok_or_else(|| {
        Failure::new(ExitCode::Failed, "neither the Rust library sources nor /usr/include is there to replicate")
    })
}

fn copy(from: &Path, to: &Path) -> Result<(), Failure> {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().map_err(failed("run cp"))?;
    match status.success() {
        true => Ok(()),
        false => Err(Failure::new(ExitCode::Failed, format!("cp -a {} failed", from.display()))),
    }
}

/// Writes, renames, links and removes while the mirror runs. Says what it did.
fn change_while_mirroring(tree: &Path) -> Result<String, Failure> {
    let io = failed("change the tree");
    let change = || -> std::io::Result<usize> {
        let dir = tree.join("made-by-the-demo");
        std::fs::create_dir(&dir)?;
        for i in 0..500 {
            let file = dir.join(format!("file-{i}"));
            std::fs::write(&file, format!("line {i}\n").repeat(i + 1))?;
            match i % 5 {
                0 => std::fs::rename(&file, dir.join(format!("renamed-{i}")))?,
                1 => std::fs::hard_link(&file, dir.join(format!("link-{i}")))?,
                2 => std::fs::remove_file(&file)?,
                3 => std::os::unix::fs::symlink("nowhere", dir.join(format!("symlink-{i}")))?,
                _ => std::fs::OpenOptions::new().write(true).open(&file)?.set_len(7)?,
            }
        }
        std::fs::rename(&dir, tree.join("moved-by-the-demo"))?;
        Ok(500)
    };
    let files = change().map_err(io)?;
    Ok(format!("{files} files written; renamed, linked, removed, truncated; their directory moved"))
}

/// How long after a change the target shows it.
fn one_change(tree: &Path, replica: &Path) -> Result<Duration, Failure> {
    std::fs::write(tree.join("last-change"), b"seen\n").map_err(failed("change the tree"))?;
    let began = Instant::now();
    let there = replica.join("last-change");
    until("the change to arrive", || Ok(std::fs::read(&there).is_ok_and(|bytes| bytes == b"seen\n")))?;
    Ok(began.elapsed())
}

fn until(what: &str, mut done: impl FnMut() -> Result<bool, Failure>) -> Result<(), Failure> {
    let deadline = Instant::now() + PATIENCE;
    while !done()? {
        if Instant::now() > deadline {
            return Err(Failure::new(ExitCode::Behind, format!("waited in vain for {what}")));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn say(out: &mut dyn Write, line: std::fmt::Arguments<'_>) -> Result<(), Failure> {
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(failed("write to the terminal"))
}

fn failed(what: &'static str) -> impl Fn(std::io::Error) -> Failure {
    move |error| Failure::new(ExitCode::Failed, format!("{what}: {error}"))
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
