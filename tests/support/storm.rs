//! Programs at work while somebody dies: several processes, some that make every kind of change, some that believe what
//! fsync says (`promises.rs`). Each ends in order when the mount below it is dead.
//!
//! As in `workload.rs` the processes are this test binary itself, started again for the one test `storm_worker`.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use dtfs::sys::Errno;
use tempfile::TempDir;

use super::ops::Worker;
use super::process::{Process, wait_until};
use super::promises::{self, Keeper};

/// Asks the test binary to be a worker: `ROLE:NUMBER:SEED:BOOK:TREE`; no path of ours holds a colon.
const VARIABLE: &str = "DTFS_STORM";
const END_LIMIT: Duration = Duration::from_secs(300);
const CHAOS_OPS: u64 = 1_000_000_000;

/// What a mount answers when its daemon, or the disk below it, is dead: the worker's life ends with it.
const DEAD: [Errno; 4] = [Errno::ENOTCONN, Errno::ECONNABORTED, Errno::EIO, Errno::EROFS];

/// The books of all keepers, for as long as the tree lives.
pub(crate) struct Books {
    dir: TempDir,
    keepers: u64,
}

impl Books {
    pub(crate) fn new(keepers: u64) -> Books {
        Books { dir: tempfile::tempdir().expect("a temporary directory"), keepers }
    }

    fn book(&self, number: u64) -> PathBuf {
        self.dir.path().join(number.to_string())
    }

    /// Promises given so far.
    pub(crate) fn count(&self) -> u64 {
        (0..self.keepers).map(|number| promises::count(&self.book(number))).sum()
    }

    /// The promises that do not hold in `tree`.
    pub(crate) fn broken(&self, tree: &Path) -> Vec<String> {
        let given = (0..self.keepers).filter(|number| promises::count(&self.book(*number)) > 0);
        given.flat_map(|number| promises::broken(&keeper_dir(tree, number), &self.book(number))).collect()
    }
}

fn keeper_dir(tree: &Path, number: u64) -> PathBuf {
    tree.join(format!("keeper-{number}"))
}

/// Running workers; they are killed when it is dropped.
pub(crate) struct Storm<'a> {
    workers: Vec<(Process, PathBuf)>,
    books: &'a Books,
    began_with: u64,
    _outputs: TempDir,
}

impl<'a> Storm<'a> {
    /// Starts one keeper for each book, and `chaos` workers that change everything below `tree/chaos`.
    pub(crate) fn start(tree: &Path, books: &'a Books, chaos: u64, seed: u64) -> Storm<'a> {
        let outputs = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir_all(tree.join("chaos")).expect("a directory in the tree");
        let start = |role: &str, number: u64| {
            let output = outputs.path().join(format!("{role}-{number}"));
            let mut value = OsString::from(format!("{role}:{number}:{seed}:"));
            value.push(books.book(number));
            value.push(":");
            value.push(tree);
            let file = File::create(&output).expect("an output file");
            let mut command = Command::new(std::env::current_exe().expect("this test binary"));
            command.args(["--exact", "storm_worker", "--nocapture", "--test-threads=1"]).env(VARIABLE, value);
            command.stdin(Stdio::null()).stderr(file.try_clone().expect("a second handle")).stdout(file);
            (Process::spawn(&mut command), output)
        };
        let keepers = (0..books.keepers).map(|number| start("keeper", number));
        let workers = keepers.chain((0..chaos).map(|number| start("chaos", number))).collect();
        Storm { workers, books, began_with: books.count(), _outputs: outputs }
    }

    /// Waits until `count` more promises were given: what happens then happens in the middle of work.
    pub(crate) fn reach(&mut self, count: u64) {
        let books = self.books;
        let wanted = self.began_with + count;
        wait_until("the programs to be given promises", END_LIMIT, || {
            self.fail_if_ended();
            (books.count() >= wanted).then_some(())
        });
    }

    fn fail_if_ended(&mut self) {
        for (worker, output) in &mut self.workers {
            if let Some(status) = worker.ended() {
                panic!("a worker ended before its time: {status}\n{}", text(output));
            }
        }
    }

    /// The mount is dead: waits until every worker has seen that.
    pub(crate) fn end_with_mount(mut self) {
        for (worker, output) in &mut self.workers {
            let status = worker.wait("a worker to see that its mount is dead", END_LIMIT);
            assert!(ended_in_order(status), "a worker failed: {status}\n{}", text(output));
        }
    }

    /// Kills the workers, while the mount lives.
    pub(crate) fn kill(mut self) {
        self.fail_if_ended();
        for (worker, _) in &mut self.workers {
            worker.signal(nix::sys::signal::Signal::SIGKILL);
        }
        for (worker, _) in &mut self.workers {
            worker.wait("a killed worker", END_LIMIT);
        }
    }
}

/// A mapping of a file on a dead mount answers with SIGBUS.
fn ended_in_order(status: ExitStatus) -> bool {
    status.success() || status.signal() == Some(libc::SIGBUS)
}

fn text(output: &Path) -> String {
    fs::read_to_string(output).unwrap_or_default()
}

/// Does a worker's part when this process was started as one; false when it was not.
pub(crate) fn worker_was_asked() -> bool {
    let Ok(value) = std::env::var(VARIABLE) else { return false };
    let [role, number, seed, book, tree] = value.splitn(5, ':').collect::<Vec<_>>()[..] else {
        panic!("ROLE:NUMBER:SEED:BOOK:TREE")
    };
    let number: u64 = number.parse().expect("a number");
    let seed: u64 = seed.parse::<u64>().expect("a number").wrapping_mul(1_000_003) ^ (number << 40);
    match role {
        "keeper" => keep(&keeper_dir(Path::new(tree), number), Path::new(book), seed),
        _ => rage(&Path::new(tree).join("chaos"), seed, number),
    }
    true
}

fn is_dead(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|raw| DEAD.contains(&Errno::from_raw(raw)))
}

fn rage(dir: &Path, seed: u64, number: u64) {
    match File::open(dir) {
        Ok(dir) => drop(Worker::at(dir.into(), seed, number).run_until(CHAOS_OPS, &DEAD)),
        Err(error) => assert!(is_dead(&error), "{}: {error}", dir.display()),
    }
}

fn keep(dir: &Path, book: &Path, seed: u64) {
    let life = || -> io::Result<()> {
        let mut keeper = Keeper::open(dir, book, seed)?;
        loop {
            keeper.step()?;
        }
    };
    let error = life().expect_err("it goes on until the mount is dead");
    assert!(is_dead(&error), "{}: {error}", dir.display());
}
