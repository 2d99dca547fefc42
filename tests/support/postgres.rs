//! A PostgreSQL server, with its data where a test wants it.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, chown};
use tempfile::TempDir;

use super::process::{Process, command_line, descendants, wait_until};
use super::scratch::utf8;

const START_LIMIT: Duration = Duration::from_secs(180);
const STOP_LIMIT: Duration = Duration::from_secs(120);
/// Nobody listens there: all connections go through the socket in the server's own directory.
const PORT: &str = "5432";

/// A cluster, and its server while it runs.
pub(crate) struct Postgres {
    server: Option<Process>,
    data: PathBuf,
    /// Socket and output; everybody may look into it.
    run: TempDir,
}

impl Postgres {
    /// Makes a new cluster with checksums in the directory `data`.
    pub(crate) fn create(data: &Path) -> Postgres {
        let run = tempfile::Builder::new().prefix("dtfs-pg-").tempdir().expect("a temporary directory");
        let user = User::from_name("postgres").expect("the user database").expect("Debian's package makes this user");
        fs::create_dir(data).expect("a new directory");
        for dir in [data, run.path()] {
            chown(dir, Some(user.uid), Some(user.gid)).expect("chown");
        }
        fs::set_permissions(run.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let postgres = Postgres { server: None, data: data.to_owned(), run };
        postgres.tool("initdb", &["-k", "-A", "trust", "-D", utf8(data)]);
        postgres
    }

    /// Starts the server; it recovers by itself from whatever happened before.
    pub(crate) fn start(&mut self) {
        assert!(self.server.is_none(), "one server per cluster");
        let log = File::options().create(true).append(true).open(self.log_path()).expect("a log file");
        let mut command = self.command("postgres");
        command.args(["-D", utf8(&self.data), "-k", utf8(self.run.path()), "-p", PORT, "-c", "listen_addresses="]);
        // More happens in a short time: checkpoints, switches of the log, pages written whole.
        command.args(["-c", "max_wal_size=64MB", "-c", "checkpoint_timeout=30s", "-c", "shared_buffers=32MB"]);
        self.server = Some(Process::spawn(command.stdout(log.try_clone().expect("a second handle")).stderr(log)));
        wait_until("PostgreSQL to answer", START_LIMIT, || {
            if let Some(status) = self.server.as_mut().and_then(Process::ended) {
                panic!("PostgreSQL ended at its start: {status}");
            }
            let ready = self.client("pg_isready").arg("-q").status().expect("pg_isready runs");
            ready.success().then_some(())
        });
    }

    /// Stops it as an administrator would.
    pub(crate) fn stop(&mut self) {
        let mut server = self.server.take().expect("the server runs");
        server.signal(Signal::SIGINT);
        let status = server.wait("PostgreSQL to stop", STOP_LIMIT);
        assert!(status.success(), "PostgreSQL ended with {status}");
    }

    /// Kills the server and all of its processes, as a power switch would.
    pub(crate) fn kill9(&mut self) {
        let mut server = self.server.take().expect("the server runs");
        let below = descendants(server.pid());
        assert!(below.len() > 3, "a server has processes of its own: {below:?}");
        // The first one is stopped before it can clean up after the others.
        server.signal(Signal::SIGKILL);
        for (pid, _) in &below {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        server.wait("the killed server", STOP_LIMIT);
        // The others now belong to init, which may be slow to reap them.
        let alive = |(pid, line): &(i32, String)| !line.is_empty() && command_line(*pid) == *line;
        wait_until("the killed processes", STOP_LIMIT, || (!below.iter().any(alive)).then_some(()));
    }

    /// The answer to a query, columns separated by "|".
    pub(crate) fn query(&self, sql: &str) -> String {
        let output =
            self.client("psql").args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql, "postgres"]).output();
        let output = output.expect("psql runs");
        let text = |bytes| String::from_utf8_lossy(bytes).trim().to_owned();
        assert!(output.status.success(), "{sql}: {}\n{}", text(&output.stderr), self.log());
        text(&output.stdout)
    }

    /// `program` as a client of this server, in a directory where it may write its log.
    pub(crate) fn client(&self, program: &str) -> Command {
        let mut command = self.command(program);
        command.env("PGHOST", self.run.path()).env("PGPORT", PORT).current_dir(self.run.path());
        command
    }

    /// Runs one of PostgreSQL's programs to its end.
    pub(crate) fn tool(&self, program: &str, args: &[&str]) -> String {
        let output = self.client(program).args(args).output().expect("a program of PostgreSQL runs");
        let text = |bytes| String::from_utf8_lossy(bytes).trim().to_owned();
        assert!(output.status.success(), "{program} {args:?}: {}\n{}", text(&output.stderr), self.log());
        text(&output.stdout)
    }

    /// Where clients run.
    pub(crate) fn dir(&self) -> &Path {
        self.run.path()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.run.path().join("server.log")
    }

    /// Its programs refuse to run as root.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", "--"]).arg(programs().join(program));
        command.stdin(Stdio::null()).current_dir("/").env("LC_ALL", "C.UTF-8");
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of PostgreSQL ---\n{}--- end of the log ---", self.log());
        }
        if self.server.is_some() {
            self.kill9();
        }
    }
}

/// Debian keeps each version in a directory of its own; the newest one counts.
fn programs() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is there (scripts/setup.sh installs it)");
    let number =
        |path: &PathBuf| path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<u32>().ok());
    let with_server =
        versions.map(|entry| entry.expect("an entry").path()).filter(|dir| dir.join("bin/postgres").exists());
    with_server.max_by_key(number).expect("a version with a server").join("bin")
}
