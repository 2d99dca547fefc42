//! One dtfs host: the real program with all of its files below a temporary root, driven as an operator would.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use parking_lot::Mutex;
use serde_json::Value;
use tempfile::TempDir;

use super::process::{Process, command_line, descendants, mounts_below, try_tool, wait_until};
use super::scratch::utf8;

const START_LIMIT: Duration = Duration::from_secs(30);
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// For one command; longer than any `--timeout` that a test passes.
const COMMAND_LIMIT: Duration = Duration::from_secs(330);

/// What one command answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A host. Dropping it kills its daemon, detaches what is still mounted, and shows the log of a test that fails.
pub(crate) struct Host {
    root: TempDir,
    /// What the commands and the daemon print, outside the root so that tests can say "nothing changed" of it.
    output: TempDir,
    daemon: Option<Process>,
    /// The daemon itself, where `daemon` is the process that gave it a pid namespace.
    inner: Option<Pid>,
    volumes: Vec<PathBuf>,
    /// Fault points of every daemon.
    faults: String,
    /// The process whose network this host is on, when it is not the machine's.
    network: Option<i32>,
    commands: AtomicU32,
    /// Directories that commands named: what keeps others out of a target stays when all is stopped. Rank: a leaf.
    named: Mutex<BTreeSet<PathBuf>>,
}

impl Host {
    /// A host without volumes, its daemon not started.
    pub(crate) fn new() -> Host {
        assert!(Path::new("/dev/fuse").exists(), "these tests mount: /dev/fuse is needed");
        let scratch = || tempfile::Builder::new().prefix("dtfs-host-").tempdir().expect("a temporary directory");
        let (root, output, commands) = (scratch(), scratch(), AtomicU32::new(0));
        Host {
            root,
            output,
            daemon: None,
            inner: None,
            volumes: Vec::new(),
            faults: String::new(),
            network: None,
            commands,
            named: Mutex::default(),
        }
    }

    /// Gives the daemons that are started from now on, and their targets, these fault points (`base::faults`).
    pub(crate) fn arm_faults(&mut self, spec: &str) {
        self.faults = spec.to_owned();
    }

    /// Puts the host on the network of process `keeper`: its commands and its daemon.
    pub(crate) fn put_on_network(&mut self, keeper: i32) {
        self.network = Some(keeper);
    }

    pub(crate) fn root(&self) -> &Path {
        self.root.path()
    }

    /// The configuration files with their content; the lock beside them does not count.
    pub(crate) fn config(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = super::trees::contents(&self.root().join("etc"));
        files.retain(|path, _| !path.ends_with(".lock"));
        files
    }

    /// Writes the configuration of a volume, by the program itself.
    pub(crate) fn define_volume(&mut self, volume: &str, dir: &Path) {
        self.volumes.push(dir.to_owned());
        self.must(&["define", "volume", volume, utf8(dir)]);
    }

    /// Takes care of a volume that the test defined itself.
    pub(crate) fn adopt_volume(&mut self, dir: &Path) {
        self.volumes.push(dir.to_owned());
    }

    pub(crate) fn define_target(&self, volume: &str, dir: &Path) {
        self.must(&["define", "target", volume, &format!("local:{}", utf8(dir))]);
    }

    /// Starts the daemon and returns when it answers.
    pub(crate) fn start(&mut self) {
        self.start_with_faults(&self.faults.clone());
    }

    /// As [`Host::start`], with the daemon in a pid namespace of its own.
    pub(crate) fn start_in_pid_namespace(&mut self) {
        let daemon = self.command(&["daemon"]);
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child"]).arg(daemon.get_program()).args(daemon.get_args());
        self.spawn_daemon(command, "");
        let unshare = self.daemon_pid();
        self.inner = descendants(unshare).first().map(|(pid, _)| Pid::from_raw(*pid));
    }

    /// As [`Host::start`], with these fault points armed (`DTFS_FAULTS`).
    pub(crate) fn start_with_faults(&mut self, faults: &str) {
        self.spawn_daemon(self.command(&["daemon"]), faults);
    }

    /// As [`Host::start`], with more in its environment.
    pub(crate) fn start_with_env(&mut self, env: &[(&str, &str)]) {
        let mut command = self.command(&["daemon"]);
        command.envs(env.iter().copied());
        self.spawn_daemon(command, &self.faults.clone());
    }

    /// Sends the daemon a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        self.daemon.as_ref().expect("the daemon runs").signal(signal);
    }

    /// Whether the daemon has ended; it must end well.
    pub(crate) fn has_stopped(&mut self) -> bool {
        let Some(status) = self.daemon.as_mut().and_then(Process::ended) else { return false };
        assert!(status.success(), "the daemon ended with {status}\n{}", self.log());
        self.daemon = None;
        true
    }

    /// Waits for the end of a daemon that was told to stop.
    pub(crate) fn wait_stopped(&mut self) {
        wait_until("the daemon to stop", STOP_LIMIT, || self.has_stopped().then_some(()));
    }

    fn spawn_daemon(&mut self, mut command: Command, faults: &str) {
        assert!(self.daemon.is_none(), "one daemon per host");
        let log = File::options().create(true).append(true).open(self.log_path()).expect("a log file");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a second handle")).stderr(log);
        command.env("DTFS_FAULTS", faults);
        self.daemon = Some(Process::spawn(&mut command));
        wait_until("the daemon to answer", START_LIMIT, || {
            if let Some(status) = self.daemon.as_mut().and_then(Process::ended) {
                panic!("the daemon ended at its start: {status}");
            }
            (self.run(&["status", "--json"]).code == 0).then_some(())
        });
    }

    /// Starts the daemon with every volume mounted.
    pub(crate) fn start_and_mount(&mut self) {
        self.start();
        self.must(&["mounts", "mount", "--all"]);
        for dir in &self.volumes {
            assert!(is_dtfs(dir), "{} is not mounted", dir.display());
        }
    }

    /// Stops the daemon by SIGTERM: it must end with 0 and leave no mount.
    pub(crate) fn stop(&mut self) {
        let mut daemon = self.daemon.take().expect("the daemon runs");
        match self.inner.take() {
            None => daemon.signal(Signal::SIGTERM),
            Some(inner) => kill(inner, Signal::SIGTERM).expect("the daemon runs"),
        }
        let status = daemon.wait("the daemon to stop", STOP_LIMIT);
        assert!(status.success(), "the daemon ended with {status}\n{}", self.log());
        for dir in &self.volumes {
            assert!(!is_dtfs(dir), "{} is still mounted after the daemon stopped", dir.display());
        }
    }

    pub(crate) fn daemon_pid(&self) -> i32 {
        self.daemon.as_ref().expect("the daemon runs").pid()
    }

    /// Stops the daemon's time.
    pub(crate) fn freeze(&self) -> Frozen {
        let daemon = self.daemon.as_ref().expect("the daemon runs");
        daemon.signal(Signal::SIGSTOP);
        Frozen(Pid::from_raw(daemon.pid()))
    }

    /// Kills every target process; returns when they are gone.
    pub(crate) fn kill9_servers(&self) {
        for pid in self.servers() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            wait_until("the killed target process", STOP_LIMIT, || is_gone(pid).then_some(()));
        }
    }

    /// What lives in memory is gone, as when the system goes down. The daemon does not run.
    pub(crate) fn lose_memory(&self) {
        let run = self.root().join("run/dtfs");
        let _ = fs::read_link(run.join("memory")).map(fs::remove_dir_all);
        for entry in fs::read_dir(run).expect("the runtime directory") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|kind| kind == "memory") {
                fs::remove_file(path).expect("a file of the daemon's");
            }
        }
    }

    /// Kills the daemon as the kernel would.
    pub(crate) fn kill9(&mut self) {
        let mut daemon = self.daemon.take().expect("the daemon runs");
        daemon.signal(Signal::SIGKILL);
        daemon.wait("the killed daemon", STOP_LIMIT);
    }

    /// As [`Host::kill9`]; returns when its target processes have ended as well, each by itself.
    pub(crate) fn kill9_and_wait(&mut self) {
        let servers = self.servers();
        self.kill9();
        for pid in servers {
            wait_until("a target process without a source", STOP_LIMIT, || is_gone(pid).then_some(()));
        }
    }

    /// The `dtfs serve` processes of this host's sessions.
    pub(crate) fn servers(&self) -> Vec<i32> {
        let daemon = self.daemon.as_ref().expect("the daemon runs");
        descendants(daemon.pid()).into_iter().filter(|(_, line)| line.contains(" serve ")).map(|(pid, _)| pid).collect()
    }

    /// Kills the only target process; returns when it is gone.
    pub(crate) fn kill9_server(&self) {
        let servers = self.servers();
        let [pid] = servers[..] else { panic!("one target process expected, found {servers:?}") };
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("the target process was just there");
        wait_until("the killed target process", STOP_LIMIT, || (!self.servers().contains(&pid)).then_some(()));
    }

    /// Runs `dtfs --root ROOT args...`.
    pub(crate) fn run(&self, args: &[&str]) -> Answer {
        let number = self.commands.fetch_add(1, Ordering::Relaxed);
        let path = |stream: &str| self.output.path().join(format!("command-{number}.{stream}"));
        let file = |stream: &str| File::create(path(stream)).expect("an output file");
        let mut command = self.command(args);
        command.stdin(Stdio::null()).stdout(file("out")).stderr(file("err"));
        let status = Process::spawn(&mut command).wait(&format!("dtfs {args:?}"), COMMAND_LIMIT);
        let read = |stream: &str| {
            let text = fs::read_to_string(path(stream)).expect("what a command prints is UTF-8");
            fs::remove_file(path(stream)).expect("the output file is there");
            text
        };
        Answer { code: status.code().unwrap_or(-1), stdout: read("out"), stderr: read("err") }
    }

    /// A command that goes on; what it prints goes to the file `name` of [`Host::printed`].
    pub(crate) fn spawn(&self, name: &str, args: &[&str]) -> Process {
        let file = |stream: &str| File::create(self.output.path().join(format!("{name}.{stream}"))).expect("a file");
        let mut command = self.command(args);
        command.stdin(Stdio::null()).stdout(file("out")).stderr(file("err"));
        Process::spawn(&mut command)
    }

    /// What a command of [`Host::spawn`] printed so far, on both streams.
    pub(crate) fn printed(&self, name: &str) -> String {
        let read = |stream: &str| fs::read_to_string(self.output.path().join(format!("{name}.{stream}")));
        read("out").unwrap_or_default() + &read("err").unwrap_or_default()
    }

    /// What `dtfs --root ROOT args...` prints to somebody who types `input`; it must succeed.
    pub(crate) fn types(&self, args: &[&str], input: &str) -> String {
        let mut given = tempfile::tempfile().expect("a temporary file");
        std::io::Write::write_all(&mut given, input.as_bytes()).expect("the input");
        std::io::Seek::rewind(&mut given).expect("the input");
        let output = self.command(args).stdin(given).output().expect("dtfs runs");
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{args:?}: {shown}\n{}", String::from_utf8_lossy(&output.stderr));
        shown
    }

    /// As [`Host::run`]; panics unless it succeeds.
    pub(crate) fn must(&self, args: &[&str]) -> String {
        let answer = self.run(args);
        assert_eq!(answer.code, 0, "dtfs {args:?}: {answer:#?}");
        answer.stdout
    }

    /// Waits until every target of the volume holds everything up to now.
    pub(crate) fn wait(&self, volume: &str, seconds: u32) {
        self.must(&["wait", volume, "--timeout", &seconds.to_string()]);
    }

    /// What `status --json` says.
    pub(crate) fn status(&self) -> Value {
        let text = self.must(&["status", "--json"]);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("status --json: {error}\n{text}"))
    }

    /// The status of the only target of `volume`.
    pub(crate) fn target(&self, volume: &str) -> Value {
        let status = self.status();
        let targets = find_volume(&status, volume)["targets"].as_array().expect("a list of targets");
        let [target] = &targets[..] else { panic!("one target expected: {status:#}") };
        target.clone()
    }

    /// Bytes sent over the wire to the only target of `volume`, as the daemon counts them since it started.
    pub(crate) fn bytes_sent(&self, volume: &str) -> u64 {
        let target = self.target(volume);
        target["bytes_sent"].as_u64().unwrap_or_else(|| panic!("no bytes_sent: {target:#}"))
    }

    /// The volume's last TID, after a barrier.
    pub(crate) fn tid(&self, volume: &str) -> u64 {
        let text = self.must(&["synctid", volume]);
        text.trim().parse::<dtfs::base::Tid>().unwrap_or_else(|_| panic!("synctid prints a TID: {text}")).0
    }

    /// Edits the file of the volume `data`, as an operator would: from now on what these targets get waits for so long, or not.
    pub(crate) fn set_delay(&self, targets: &[&str], delay: Option<&str>) {
        let path = self.root().join("etc/dtfs/mounts.d/data.toml");
        let text = fs::read_to_string(&path).expect("the volume's file");
        let mut lines: Vec<String> =
            text.lines().filter(|line| !line.starts_with("delay")).map(str::to_owned).collect();
        for name in targets {
            let at = lines.iter().position(|line| *line == format!("name = \"{name}\"")).expect("the target's entry");
            lines.splice(at + 1..at + 1, delay.map(|delay| format!("delay = \"{delay}\"")));
        }
        fs::write(&path, lines.join("\n") + "\n").expect("the volume's file can be written");
        self.must(&["reload"]);
    }

    /// From now on what the only target of `data` gets waits in its inbox: a change of `probe` does when this returns.
    pub(crate) fn hold(&self, delay: &str, probe: &Path) {
        self.set_delay(&["target"], Some(delay));
        wait_until("a change that waits", STOP_LIMIT, || {
            fs::write(probe, b"waits").expect("a file can be written");
            let tid = dtfs::base::Tid(self.tid("data")).to_string();
            let has = |place: &str| self.target("data")[place] == tid.as_str();
            wait_until("a target that has received it", STOP_LIMIT, || has("received_tid").then_some(()));
            (!has("applied_tid")).then_some(())
        });
    }

    /// What the daemon wrote so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.output.path().join("daemon.log")
    }

    fn command(&self, args: &[&str]) -> Command {
        let program = env!("CARGO_BIN_EXE_dtfs");
        self.named.lock().extend(args.iter().filter_map(|arg| directory_in(arg)));
        let mut command = match self.network {
            None => Command::new(program),
            Some(keeper) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/proc/{keeper}/ns/net")).args(["--", program]);
                command
            }
        };
        command.arg("--root").arg(self.root.path()).args(args).env_remove("DTFS_ROOT");
        command
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the daemon ---\n{}--- end of the log ---", self.log());
        }
        let below = self.daemon.as_ref().map(|daemon| descendants(daemon.pid())).unwrap_or_default();
        drop(self.daemon.take());
        for (pid, line) in below {
            // Its number may have gone to a stranger meanwhile: only the same command line is ours.
            if !line.is_empty() && command_line(pid) == line {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        for dir in &self.volumes {
            while is_dtfs(dir) && try_tool("umount", &["--lazy", utf8(dir)]).status.success() {}
        }
        for dir in self.named.lock().iter().filter(|dir| dir.is_dir()) {
            super::behind::uncover(dir);
        }
        let _ = fs::read_link(self.root().join("run/dtfs/memory")).map(fs::remove_dir_all);
        for (path, _) in mounts_below(self.root.path()).iter().rev() {
            try_tool("umount", &["--lazy", path]);
        }
    }
}

/// The directory that an argument names, plainly or as `local:DIR` or `ssh://HOST/DIR`.
fn directory_in(arg: &str) -> Option<PathBuf> {
    let after_host = |rest: &str| rest.find('/').map(|at| rest[at..].to_owned());
    let text = match (arg.strip_prefix("local:"), arg.strip_prefix("ssh://")) {
        (Some(dir), _) => dir.to_owned(),
        (_, Some(rest)) => after_host(rest)?,
        (None, None) => arg.to_owned(),
    };
    Some(PathBuf::from(text)).filter(|dir| dir.is_absolute())
}

/// Whether all threads of a process have ended, so that it holds no file any more; its number may be left, for whoever
/// waits for it.
fn is_gone(pid: i32) -> bool {
    let dir = PathBuf::from(format!("/proc/{pid}"));
    let Ok(stat) = fs::read_to_string(dir.join("stat")) else { return true };
    let is_zombie = stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']));
    is_zombie && fs::read_dir(dir.join("task")).map_or(0, Iterator::count) <= 1
}

/// A daemon whose time stands still until this is dropped, also by a panic: programs on its mount could not even be killed.
pub(crate) struct Frozen(Pid);

impl Drop for Frozen {
    fn drop(&mut self) {
        // It is our child and not reaped yet, so nobody else can be hit.
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

/// Whether the topmost mount at `dir` is one of dtfs.
pub(crate) fn is_dtfs(dir: &Path) -> bool {
    let mounts = mounts_below(dir);
    let own = mounts.iter().rev().find(|(path, _)| Path::new(path) == dir);
    own.is_some_and(|(_, kind)| kind.starts_with("fuse"))
}

fn find_volume<'a>(status: &'a Value, volume: &str) -> &'a Value {
    let volumes = status["volumes"].as_array().unwrap_or_else(|| panic!("no list of volumes: {status:#}"));
    let found = volumes.iter().find(|entry| entry["name"] == volume);
    found.unwrap_or_else(|| panic!("volume {volume} is missing: {status:#}"))
}
