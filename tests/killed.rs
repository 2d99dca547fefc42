//! kill -9 of the daemon, of the target, or of both, in the middle of a storm of changes, again and again: in the end both
//! trees are equal. `DTFS_SEED` repeats a seed, `DTFS_KILLS` sets how many rounds are lived through.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use support::host::Host;
use support::prng::Prng;
use support::process::wait_until;
use support::scratch::{FileSystem, Scratch};
use support::trees;

const WAIT_SECONDS: u32 = 120;
const STORM_LIMIT: Duration = Duration::from_secs(60);

/// Changes a tree until the mount is dead or it is told to stop.
struct Storm {
    changes: Arc<AtomicU64>,
    /// 0 while it goes on.
    stop: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Storm {
    fn start(tree: &Path, seed: u64) -> Storm {
        let (changes, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (counted, stopped, tree) = (changes.clone(), stop.clone(), tree.to_owned());
        let thread = std::thread::spawn(move || {
            let mut prng = Prng::new(seed);
            while stopped.load(Ordering::Relaxed) == 0 {
                match change(&tree, &mut prng) {
                    Err(error) if is_dead(&error) => return,
                    Ok(()) | Err(_) => counted.fetch_add(1, Ordering::Relaxed),
                };
            }
        });
        Storm { changes, stop, thread }
    }

    /// Waits until it has made `count` changes, so that the kill comes in the middle of work and not at a time of day.
    fn reach(&self, count: u64) {
        let raged = || self.changes.load(Ordering::Relaxed) >= count || self.thread.is_finished();
        wait_until("the storm to rage", STORM_LIMIT, || raged().then_some(()));
    }

    fn end(self) {
        self.stop.store(1, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

fn is_dead(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED))
}

fn change(tree: &Path, prng: &mut Prng) -> io::Result<()> {
    let mut path = || -> PathBuf { tree.join(format!("d{}", prng.below(6))).join(format!("n{}", prng.below(12))) };
    let (one, other) = (path(), path());
    let dir = one.parent().unwrap_or(tree).to_owned();
    match prng.below(9) {
        0 => fs::create_dir_all(dir),
        1 | 2 => fs::write(&one, vec![prng.below(256) as u8; prng.below(60_000) as usize]),
        3 => fs::OpenOptions::new().append(true).open(&one)?.write_all(b"appended\n"),
        4 => fs::rename(&one, &other),
        5 => fs::remove_file(&one),
        6 => fs::hard_link(&one, &other),
        7 => fs::OpenOptions::new().write(true).open(&one)?.set_len(prng.below(100_000)),
        _ => fs::rename(dir, tree.join(format!("d{}", prng.below(6))).join("moved")),
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

#[test]
fn whoever_is_killed_both_trees_end_equal() {
    let seed = number("DTFS_SEED", 1);
    println!("seed {seed} (DTFS_SEED repeats it)");
    let scratch = Scratch::new(FileSystem::Ext4);
    let (source, target) = (scratch.dir("source"), scratch.dir("target"));
    trees::fill(&source.join("d0"), 50);
    let mut host = Host::new();
    host.define_volume("data", &source);
    host.start_and_mount();
    host.define_target("data", &target);
    let mut prng = Prng::new(seed);
    for round in 0..number("DTFS_KILLS", 6) {
        let storm = Storm::start(&source, seed + 1000 * round);
        storm.reach(100 + prng.below(900));
        let victim = prng.below(3);
        // There may be none: a session that was cut is tried again after a moment.
        if victim != 0 && host.servers().len() == 1 {
            host.kill9_server();
        }
        if victim != 1 {
            host.kill9();
            storm.end();
            host.start_and_mount();
        } else {
            storm.end();
        }
    }
    fs::write(source.join("last"), b"after the last kill").unwrap();
    host.wait("data", WAIT_SECONDS);
    host.stop();
    trees::assert_equal(&source, &target, &format!("seed {seed}"));
}

/// A target that hangs in the middle of a batch takes no more bytes; the daemon stops all the same, and what was not
/// taken is there after the next start.
#[test]
fn a_target_that_hangs_does_not_keep_the_daemon_from_stopping() {
    let scratch = Scratch::new(FileSystem::Ext4);
    let (source, target) = (scratch.dir("source"), scratch.dir("target"));
    let mut host = Host::new();
    host.define_volume("data", &source);
    host.start_and_mount();
    host.define_target("data", &target);
    host.wait("data", WAIT_SECONDS);
    let [server] = host.servers()[..] else { panic!("one target process expected") };
    let server = nix::unistd::Pid::from_raw(server);
    nix::sys::signal::kill(server, nix::sys::signal::Signal::SIGSTOP).unwrap();
    // More than the pipe takes.
    fs::write(source.join("large"), vec![7; 8 << 20]).unwrap();
    host.stop();
    host.start_and_mount();
    host.wait("data", WAIT_SECONDS);
    host.stop();
    trees::assert_equal(&source, &target, "after a target that hung");
}
