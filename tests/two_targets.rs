//! Two targets, one of them dead or hung for the whole test: the other is never late because of it, nor is a program that
//! writes, and in the end both have everything.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::host::Host;
use support::scratch::{FileSystem, Scratch};
use support::trees;

/// What one write, and its way to the well target, may take: far below the fifteen seconds after which a hung target is cut
/// off, far above what a loaded machine needs.
const PROMPT: Duration = Duration::from_secs(10);
const ROUNDS: u32 = 24;

struct Rig {
    host: Host,
    source: PathBuf,
    well: PathBuf,
    ill: PathBuf,
    _scratch: Scratch,
}

fn rig() -> Rig {
    let scratch = Scratch::new(FileSystem::Ext4);
    let (source, well, ill) = (scratch.dir("source"), scratch.dir("well"), scratch.dir("ill"));
    trees::fill(&source, 50);
    let mut host = Host::new();
    host.define_volume("data", &source);
    host.start_and_mount();
    host.define_target("data", &well);
    host.define_target("data", &ill);
    host.wait("data", 120);
    Rig { host, source, well, ill, _scratch: scratch }
}

impl Rig {
    /// The process that serves `ill`.
    fn ill_server(&self) -> Option<Pid> {
        let line = |pid: i32| support::process::command_line(pid);
        self.host.servers().into_iter().find(|pid| line(*pid).contains("/ill")).map(Pid::from_raw)
    }

    /// Writes and waits for the well target, again and again, while `disturb` sees to the other; returns the worst times.
    fn live(&self, mut disturb: impl FnMut(&Rig)) -> (Duration, Duration) {
        let (mut write, mut arrive) = (Duration::ZERO, Duration::ZERO);
        for round in 0..ROUNDS {
            disturb(self);
            let began = Instant::now();
            fs::write(self.source.join(format!("round-{round}")), vec![round as u8; 1 << 20]).unwrap();
            write = write.max(began.elapsed());
            self.host.must(&["wait", "data", "well", "--timeout", "60"]);
            arrive = arrive.max(began.elapsed());
        }
        (write, arrive)
    }

    fn end(mut self, (write, arrive): (Duration, Duration)) {
        println!("worst write {write:?}, worst arrival at the well target {arrive:?}");
        assert!(write < PROMPT, "a write took {write:?}");
        assert!(arrive < PROMPT, "the well target was {arrive:?} late");
        self.host.wait("data", 180);
        self.host.stop();
        trees::assert_equal(&self.source, &self.well, "the well target");
        trees::assert_equal(&self.source, &self.ill, "the ill target");
    }
}

#[test]
fn a_hung_target_makes_nobody_late() {
    let rig = rig();
    let times = rig.live(|rig| {
        if let Some(pid) = rig.ill_server() {
            // It may end at any moment.
            let _ = kill(pid, Signal::SIGSTOP);
        }
    });
    rig.end(times);
}

#[test]
fn a_dead_target_makes_nobody_late() {
    let rig = rig();
    let times = rig.live(|rig| {
        if let Some(pid) = rig.ill_server() {
            let _ = kill(pid, Signal::SIGKILL);
        }
    });
    rig.end(times);
}
