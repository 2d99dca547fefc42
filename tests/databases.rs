//! Databases on a mount that is being replicated: they are killed in the middle of their work, recover, have kept every
//! promise, and source and target are equal.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use support::length::{either, filesystems};
use support::loopback::client_script;
use support::postgres::Postgres;
use support::process::{Process, tool, wait_until};
use support::replica::Pair;
use support::scratch::{FileSystem, utf8};

const LIMIT: Duration = Duration::from_secs(300);

/// pgbench for a while; it is still at work when the server is killed, and returns what it has been promised: each line
/// of its log is a transaction whose commit was answered.
fn load_until_killed(postgres: &mut Postgres, seconds: u32) -> u64 {
    let before = logged(postgres);
    let mut command = postgres.client("pgbench");
    command
        .args(["-n", "-c", "4", "-j", "2", "-T", "600", "-l", "postgres"])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut load = Process::spawn(&mut command);
    let rows = || postgres.query("SELECT count(*) FROM pgbench_history").parse::<u64>().unwrap();
    let (first, start) = (rows(), std::time::Instant::now());
    wait_until("pgbench to do something for a while", LIMIT, || {
        assert!(load.ended().is_none(), "pgbench ended by itself");
        (start.elapsed() >= Duration::from_secs(seconds.into()) && rows() > first + 200).then_some(())
    });
    postgres.kill9();
    load.wait("pgbench without a server", LIMIT);
    logged(postgres) - before
}

/// The transactions in all logs of pgbench.
fn logged(postgres: &Postgres) -> u64 {
    let files = fs::read_dir(postgres.dir()).unwrap().map(|entry| entry.unwrap().path());
    let logs = files.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("pgbench_log"));
    // A line that was cut off by the end of the program does not count.
    logs.map(|path| fs::read(path).unwrap().iter().filter(|byte| **byte == b'\n').count() as u64).sum()
}

/// What each transaction of pgbench adds to an account, a teller, a branch and the history is the same number.
fn assert_balanced(postgres: &Postgres) {
    let sums = postgres.query(
        "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers), \
         (SELECT sum(bbalance) FROM pgbench_branches), (SELECT coalesce(sum(delta), 0) FROM pgbench_history)",
    );
    let sums: Vec<_> = sums.split('|').collect();
    assert!(sums.len() == 4 && sums.iter().all(|sum| *sum == sums[0]), "balances differ: {sums:?}");
}

fn postgres(kind: FileSystem) {
    let pair = Pair::mirrored(kind, |_| {});
    let data = pair.source.join("cluster");
    let mut postgres = Postgres::create(&data);
    postgres.start();
    postgres.tool("pgbench", &["-q", "-i", "-s", either("2", "10"), "postgres"]);
    let mut promised = 0;
    for _ in 0..either(2, 3) {
        promised += load_until_killed(&mut postgres, either(5, 60));
        postgres.start();
        let kept = postgres.query("SELECT count(*) FROM pgbench_history").parse::<u64>().unwrap();
        assert!(kept >= promised, "{promised} transactions were committed, {kept} are there after recovery");
        assert_balanced(&postgres);
    }
    println!("{kind:?}: {promised} transactions were promised and kept");
    assert!(promised > 0, "pgbench logged nothing: nothing is proven");
    postgres.query("VACUUM FULL");
    postgres.stop();
    postgres.tool("pg_checksums", &["--check", "-D", utf8(&data)]);
    pair.stop_and_compare(&format!("PostgreSQL on {kind:?}"));
}

#[test]
fn postgresql_is_killed_and_recovers() {
    filesystems(FileSystem::Ext4).into_iter().for_each(postgres);
}

fn sqlite(args: &[&str]) -> String {
    let script = client_script("sqlite_worker.py");
    tool("python3", &[&[script.as_str()], args].concat())
}

/// A process that works on the database, and what it says was committed.
struct Worker {
    process: Process,
    said: std::path::PathBuf,
}

impl Worker {
    fn start(base: &Path, number: u32, said: &Path) -> Worker {
        let said = said.join(format!("said-{number}"));
        let mut command = Command::new("python3");
        command.arg(client_script("sqlite_worker.py")).args([utf8(base), &number.to_string()]).stdin(Stdio::null());
        Worker { process: Process::spawn(command.stdout(File::create(&said).unwrap())), said }
    }

    /// The last move that it was told is committed; 0 for none.
    fn last(&mut self) -> u64 {
        let text = fs::read_to_string(&self.said).unwrap();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().last().map_or(0, |line| line.parse().unwrap())
    }
}

/// Two processes write one database and are killed in the middle of it, again and again.
fn sqlite_killed(kind: FileSystem, mode: &str) {
    let context = format!("SQLite in {mode} mode on {kind:?}");
    let pair = Pair::mirrored(kind, |_| {});
    let said = tempfile::tempdir().unwrap();
    let base = pair.source.join("bank.db");
    assert_eq!(sqlite(&[utf8(&base), "create", mode]), mode);
    let mut before = [0, 0];
    for _ in 0..either(3, 10) {
        let mut workers = [1, 2].map(|number| Worker::start(&base, number, said.path()));
        wait_until("both processes to work", LIMIT, || {
            workers
                .iter_mut()
                .for_each(|worker| assert!(worker.process.ended().is_none(), "{context}: a worker ended"));
            let moved = workers.iter_mut().zip(before).all(|(worker, before)| worker.last() > before + either(60, 600));
            moved.then_some(())
        });
        workers.iter().for_each(|worker| worker.process.signal(Signal::SIGKILL));
        for worker in &mut workers {
            worker.process.wait("a killed worker", LIMIT);
        }
        let report = sqlite(&[utf8(&base), "check"]);
        let lines: Vec<_> = report.lines().collect();
        assert_eq!(lines[..2], ["ok", "0"], "{context}: integrity and the sum of all money\n{report}");
        for (number, worker) in workers.iter_mut().enumerate() {
            let kept: Vec<u64> = lines[2 + number].split(' ').map(|word| word.parse().unwrap()).collect();
            let promised = worker.last();
            assert!(kept[1] >= promised, "{context}: move {promised} was committed, {report}");
            assert_eq!(kept[1], kept[2], "{context}: moves in between are missing\n{report}");
            before[number] = kept[1];
        }
    }
    println!("{context}: {before:?} moves");
    pair.stop_and_compare(&context);
}

#[test]
fn sqlite_with_a_write_ahead_log() {
    filesystems(FileSystem::Xfs).into_iter().for_each(|kind| sqlite_killed(kind, "wal"));
}

#[test]
fn sqlite_with_a_rollback_journal() {
    filesystems(FileSystem::Btrfs).into_iter().for_each(|kind| sqlite_killed(kind, "delete"));
}
