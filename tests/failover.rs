//! Failover and failback, by real daemons on real mounts: the target of a source that died is promoted and worked on, the
//! old source learns of it, becomes a target without a mirror, and gets its role back. `DTFS_SEED` repeats a run.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::host::Host;
use support::length::number;
use support::prng::Prng;
use support::process::wait_until;
use support::scratch::{FileSystem, Scratch, utf8};
use support::trees;
use support::workload::{Workload, worker_was_asked};

const PATIENCE: Duration = Duration::from_secs(120);
const WAIT_SECONDS: u32 = 180;
/// Does not compress: whoever mirrors again sends it again.
const BALLAST_BYTES: usize = 16 << 20;

#[test]
fn workload_worker() {
    worker_was_asked();
}

/// Two hosts on one machine, each with a tree. The state of copies is in one place: a copy that is reached by `local:` is
/// served by a process of the source's host.
struct Two {
    a: Host,
    b: Host,
    tree_a: PathBuf,
    tree_b: PathBuf,
    scratch: Scratch,
}

fn seed() -> u64 {
    let seed = number("DTFS_SEED", 1);
    println!("seed {seed} (DTFS_SEED repeats it)");
    seed
}

/// The volume `data` of host A, mirrored to `tree_b`.
fn mirrored(kind: FileSystem, seed: u64) -> Two {
    let scratch = Scratch::with_size(kind, 1024);
    let (tree_a, tree_b) = (scratch.dir("a"), scratch.dir("b"));
    fs::write(tree_a.join("ballast"), Prng::new(seed).bytes(BALLAST_BYTES)).unwrap();
    trees::fill(&tree_a.join("many"), 200);
    fs::create_dir(tree_a.join("work")).unwrap();
    for name in ["changed-by-both", "changed-by-a", "changed-by-b", "removed-by-a", "removed-by-b", "renamed-by-b"] {
        fs::write(tree_a.join(name), format!("{name} as it was\n")).unwrap();
    }
    fs::hard_link(tree_a.join("changed-by-b"), tree_a.join("many/second-name")).unwrap();
    let (mut a, b) = (Host::new(), Host::new());
    share_copies(&a, &b);
    a.define_volume("data", &tree_a);
    a.start_and_mount();
    a.define_target("data", &tree_b);
    a.wait("data", WAIT_SECONDS);
    // Whoever was told that it is consistent can promote it, even if the source is lost right then.
    assert!(!state_of_copy(&a).join("converging").exists());
    Two { a, b, tree_a, tree_b, scratch }
}

/// Processes of `a` serve the copies of both.
fn share_copies(a: &Host, b: &Host) {
    let state = |host: &Host| host.root().join("var/lib/dtfs");
    fs::create_dir_all(state(a).join("replicas")).unwrap();
    fs::create_dir_all(state(b)).unwrap();
    symlink(state(a).join("replicas"), state(b).join("replicas")).unwrap();
}

/// Where the state of the only copy is that processes of `host` serve.
fn state_of_copy(host: &Host) -> PathBuf {
    let states = host.root().join("var/lib/dtfs/replicas");
    fs::read_dir(states).unwrap().next().unwrap().unwrap().path()
}

impl Two {
    /// What happens on A from here on does not get to B any more.
    fn part(&self) {
        for pid in self.a.servers() {
            kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
        }
    }

    /// A goes down in the middle of things.
    fn lose_a(&mut self) {
        let servers = self.a.servers();
        self.a.kill9();
        for pid in servers {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }

    fn promote_b(&mut self) -> String {
        let told = self.b.must(&["promote", utf8(&self.tree_b), "--as", "data"]);
        self.b.adopt_volume(&self.tree_b);
        self.b.start_and_mount();
        told
    }
}

/// Changes of every kind to what came from the other host, and new objects.
fn work_as_b(tree: &Path) {
    fs::write(tree.join("changed-by-both"), b"by b").unwrap();
    fs::write(tree.join("changed-by-b"), b"by b, under both names").unwrap();
    fs::remove_file(tree.join("removed-by-b")).unwrap();
    fs::rename(tree.join("renamed-by-b"), tree.join("many/renamed")).unwrap();
    fs::hard_link(tree.join("many/file-00001"), tree.join("linked-by-b")).unwrap();
    fs::create_dir(tree.join("made-by-b")).unwrap();
    fs::rename(tree.join("many"), tree.join("made-by-b/many")).unwrap();
    fs::write(tree.join("made-by-b/new"), b"new").unwrap();
}

fn work_as_a(tree: &Path) {
    fs::write(tree.join("changed-by-both"), b"only at a").unwrap();
    fs::write(tree.join("changed-by-a"), b"only at a, too").unwrap();
    fs::remove_file(tree.join("removed-by-a")).unwrap();
    fs::create_dir(tree.join("made-by-a")).unwrap();
    fs::write(tree.join("made-by-a/new"), b"new at a").unwrap();
    fs::rename(tree.join("many/file-00007"), tree.join("made-by-a/moved")).unwrap();
}

fn writes_are_refused(tree: &Path) -> bool {
    let outcome = fs::write(tree.join("after-the-fork"), b"x");
    outcome.is_err_and(|error| error.raw_os_error() == Some(libc::EROFS))
}

#[test]
fn failover_and_failback() {
    let mut two = mirrored(FileSystem::Ext4, seed());
    let ino = fs::metadata(two.tree_b.join("ballast")).unwrap().ino();
    two.part();
    work_as_a(&two.tree_a);
    let last = two.a.tid("data");
    two.lose_a();

    let told = two.promote_b();
    assert!(told.contains("is the master volume data now"), "{told}");
    assert!(two.tree_b.join("changed-by-a").exists() && !two.tree_b.join("made-by-a").exists());
    assert_eq!(fs::metadata(two.tree_b.join("ballast")).unwrap().ino(), ino, "the same objects, now on a mount");
    assert!(!two.tree_b.join(".dtfs").exists());
    work_as_b(&two.tree_b);

    // A comes back, as if nothing had happened, and learns.
    two.a.start_and_mount();
    wait_until("the old source to refuse changes", PATIENCE, || writes_are_refused(&two.tree_a).then_some(()));
    let target = two.a.target("data");
    let reason = target["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("was promoted") && reason.contains("dtfs demote"), "{target:#}");
    assert_eq!(fs::read(two.tree_a.join("changed-by-a")).unwrap(), b"only at a, too", "it can still be read");

    let told = two.a.must(&["demote", "data"]);
    assert!(told.contains(&format!("up to {}", dtfs::base::Tid(last))) || told.contains("only here"), "{told}");
    for what in ["made-by-a", "moved", "unlink"] {
        assert!(told.contains(what), "{what} is missing in the list of what only A had:\n{told}");
    }
    let forks: Vec<_> = fs::read_dir(two.tree_a.join(".dtfs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let kept = forks.iter().find(|path| utf8(path).contains("/fork-")).unwrap_or_else(|| panic!("{forks:?}\n{told}"));
    assert_eq!(fs::read(kept.join("changed-by-both")).unwrap(), b"only at a");
    assert_eq!(fs::read(kept.join("changed-by-a")).unwrap(), b"only at a, too");
    assert_eq!(fs::read(kept.join("made-by-a/new")).unwrap(), b"new at a");

    two.b.define_target("data", &two.tree_a);
    two.b.wait("data", WAIT_SECONDS);
    let sent = two.b.bytes_sent("data");
    println!("rejoined with {sent} bytes");
    assert!(sent < BALLAST_BYTES as u64 / 16, "{sent} bytes were sent, as if for a mirror");
    assert!(!two.b.log().contains("whole tree"), "{}", two.b.log());
    trees::assert_equal(&two.tree_b, &two.tree_a, "the old source follows the new one");
    fs::write(two.tree_b.join("live"), b"live").unwrap();
    two.b.wait("data", WAIT_SECONDS);
    assert_eq!(fs::read(two.tree_a.join("live")).unwrap(), b"live");

    // And back, in order.
    let told = two.b.must(&["demote", "data"]);
    assert!(told.contains(" 0 objects are asked for") && !told.contains("only here"), "{told}");
    two.a.stop();
    two.a.must(&["promote", utf8(&two.tree_a), "--as", "data"]);
    two.a.start_and_mount();
    fs::write(two.tree_a.join("ballast-2"), b"small").unwrap();
    fs::remove_file(two.tree_a.join("made-by-b/new")).unwrap();
    fs::write(two.tree_a.join("changed-by-b"), b"by a in the end").unwrap();
    two.a.define_target("data", &two.tree_b);
    two.a.wait("data", WAIT_SECONDS);
    let sent = two.a.bytes_sent("data");
    println!("failed back with {sent} bytes");
    assert!(sent < BALLAST_BYTES as u64 / 16, "{sent} bytes were sent, as if for a mirror");
    two.a.stop();
    two.b.stop();
    trees::assert_equal(&two.tree_a, &two.tree_b, "failed back");
}

#[test]
fn what_is_converging_is_not_promoted_and_a_master_that_is_ahead_not_demoted() {
    let mut two = mirrored(FileSystem::Ext4, seed());
    assert_eq!(two.b.run(&["promote", utf8(&two.tree_b)]).code, 5, "its source is there");
    two.part();
    fs::write(two.tree_a.join("ahead"), b"x").unwrap();
    let refused = two.a.run(&["demote", "data"]);
    assert_eq!(refused.code, 7, "{refused:?}");
    assert!(refused.stderr.contains("lacks changes"), "{refused:?}");
    two.lose_a();
    // As the source says when it has something to compare.
    fs::write(state_of_copy(&two.a).join("converging"), b"").unwrap();
    let refused = two.b.run(&["promote", utf8(&two.tree_b), "--as", "data"]);
    assert_eq!(refused.code, 7, "{refused:?}");
    assert!(refused.stderr.contains("converging") && refused.stderr.contains("--force"), "{refused:?}");
    let no_copy = two.scratch.dir("no-copy");
    assert_eq!(two.b.run(&["promote", utf8(&no_copy)]).code, 2, "no copy");
    two.b.must(&["promote", utf8(&two.tree_b), "--as", "data", "--force"]);
    two.b.adopt_volume(&two.tree_b);
    two.b.start_and_mount();
    two.b.stop();
}

/// Work on A while it is killed, work on B while A rejoins and either side is killed.
#[test]
fn a_failover_in_a_storm_with_kills() {
    let seed = seed();
    let mut prng = Prng::new(seed);
    for round in 0..2 {
        let context = format!("seed {seed}, round {round}");
        let kind = if round == 0 { FileSystem::Ext4 } else { FileSystem::Xfs };
        let mut two = mirrored(kind, seed);
        Workload::start(&two.tree_a.join("work"), prng.next(), 2, 1500).finish();
        if prng.below(2) == 0 {
            two.a.wait("data", WAIT_SECONDS);
        }
        two.part();
        Workload::start(&two.tree_a.join("work"), prng.next(), 2, 600).finish();
        work_as_a(&two.tree_a);
        two.lose_a();
        let promoted = two.b.run(&["promote", utf8(&two.tree_b), "--as", "data", "--force"]);
        assert_eq!(promoted.code, 0, "{context}: {promoted:?}");
        two.b.adopt_volume(&two.tree_b);
        two.b.start_and_mount();
        work_as_b(&two.tree_b);
        Workload::start(&two.tree_b.join("work"), prng.next(), 2, 800).finish();
        two.a.start_and_mount();
        wait_until("the old source to refuse changes", PATIENCE, || writes_are_refused(&two.tree_a).then_some(()));
        // A scan for changes behind the mount's back may still run: until it is done what A has of its own is not known.
        let discard: &[&str] = if prng.below(2) == 0 { &[] } else { &["--discard"] };
        wait_until("the demotion", PATIENCE, || {
            let demoted = two.a.run(&[&["demote", "data"], discard].concat());
            assert!([0, 7].contains(&demoted.code), "{context}: {demoted:?}");
            (demoted.code == 0).then_some(())
        });
        two.a.stop();
        two.b.define_target("data", &two.tree_a);
        for _ in 0..3 {
            Workload::start(&two.tree_b.join("work"), prng.next(), 2, 200).finish();
            match prng.below(3) {
                0 => two.b.kill9_servers(),
                1 => {
                    two.b.kill9_and_wait();
                    two.b.start_and_mount();
                }
                _ => {}
            }
        }
        two.b.wait("data", WAIT_SECONDS);
        two.b.stop();
        trees::assert_equal_but_holes(&two.tree_b, &two.tree_a, &context);
    }
}

/// A volume with four targets: `then` is paused and `now` is not; `late-1` and `late-2` will stay behind.
struct Delayed {
    host: Host,
    source: PathBuf,
    copies: Vec<PathBuf>,
    _scratch: Scratch,
}

const COPIES: [&str; 4] = ["then", "now", "late-1", "late-2"];

impl Delayed {
    fn new() -> Delayed {
        let scratch = Scratch::with_size(FileSystem::Ext4, 512);
        let source = scratch.dir("source");
        trees::fill(&source.join("many"), 100);
        for name in ["changed-by-both", "changed-by-a", "removed-by-a"] {
            fs::write(source.join(name), format!("{name} as it was\n")).unwrap();
        }
        fs::create_dir(source.join("work")).unwrap();
        let mut host = Host::new();
        host.define_volume("data", &source);
        host.start_and_mount();
        let copies: Vec<PathBuf> = COPIES.iter().map(|name| scratch.dir(name)).collect();
        copies.iter().for_each(|dir| host.define_target("data", dir));
        host.wait("data", WAIT_SECONDS);
        fs::write(source.join("first"), b"so that there is a place to go back to").unwrap();
        fs::remove_file(source.join("many/file-00001")).unwrap();
        host.wait("data", WAIT_SECONDS);
        host.must(&["replication", "pause", "data", "then"]);
        Delayed { host, source, copies, _scratch: scratch }
    }

    fn set_delay(&self, delay: Option<&str>) {
        self.host.set_delay(&["late-1", "late-2"], delay);
    }

    fn target(&self, name: &str) -> serde_json::Value {
        let status = self.host.status();
        let targets = status["volumes"][0]["targets"].as_array().unwrap();
        targets.iter().find(|target| target["name"] == name).unwrap().clone()
    }

    /// Waits until both late targets have received everything up to now, durable in their inboxes.
    fn wait_received(&self) {
        self.host.must(&["wait", "data", "now", "--timeout", "180"]);
        let last = dtfs::base::Tid(self.host.tid("data")).to_string();
        wait_until("the late targets to have it", PATIENCE, || {
            let has = |name| self.target(name)["received_tid"] == last.as_str();
            (has("late-1") && has("late-2")).then_some(())
        });
    }

    /// The late targets are where `then` was paused, and say so.
    fn assert_behind(&self) {
        for name in ["late-1", "late-2"] {
            let target = self.target(name);
            assert_eq!(
                (&target["state"], &target["delay_seconds"]),
                (&"replicating".into(), &3600.into()),
                "{target:#}"
            );
            assert_eq!(target["consistent_at"], target["applied_tid"], "a past state: {target:#}");
            assert!(target["lag_changes"].as_u64().unwrap() > 0 && target["lag_seconds"] == 0.0, "{target:#}");
            trees::assert_equal(&self.copies[0], self.copy(name), name);
        }
    }

    fn copy(&self, name: &str) -> &Path {
        &self.copies[COPIES.iter().position(|copy| *copy == name).unwrap()]
    }
}

#[test]
fn a_late_copy_is_promoted_to_where_it_is_or_to_all_it_has() {
    let mut prng = Prng::new(seed());
    let mut rig = Delayed::new();
    rig.set_delay(Some("1h"));
    let disasters: [&dyn Fn(&mut Delayed); 3] = [
        &|rig| work_as_a(&rig.source),
        &|rig| {
            rig.host.kill9_servers();
            fs::remove_dir_all(rig.source.join("many")).unwrap();
        },
        &|rig| {
            // Each with a session of its own.
            rig.host.must(&["replication", "pause", "data", "late-1"]);
            rig.host.must(&["replication", "resume", "data", "late-1"]);
            fs::write(rig.source.join("after"), b"after").unwrap();
        },
    ];
    for disaster in disasters {
        disaster(&mut rig);
        Workload::start(&rig.source.join("work"), prng.next(), 2, 200).finish();
        rig.wait_received();
        rig.assert_behind();
    }
    rig.host.kill9_and_wait();

    let heir = Host::new();
    share_copies(&rig.host, &heir);
    let late = rig.copy("late-1").to_owned();
    let refused = heir.run(&["promote", utf8(&late), "--as", "one", "--at", "0x1"]);
    assert_eq!(refused.code, 7, "{refused:?}");
    let (_, rest) = refused.stderr.split_once("its tree is at ").unwrap_or_else(|| panic!("{refused:?}"));
    let place = rest.split(' ').next().unwrap();
    let told = heir.must(&["promote", utf8(&late), "--as", "one", "--at", place]);
    assert!(told.contains("received and given up") && told.contains(place), "{told}");
    trees::assert_equal(rig.copy("then"), &late, "given up");
    assert!(late.join("many/file-00042").exists());

    let late = rig.copy("late-2").to_owned();
    heir.must(&["promote", utf8(&late), "--as", "two"]);
    trees::assert_equal(rig.copy("now"), &late, "everything");
    assert_eq!(fs::read(late.join("after")).unwrap(), b"after");
}

#[test]
fn a_delay_passes_also_through_kills() {
    let mut prng = Prng::new(seed());
    let mut rig = Delayed::new();
    rig.set_delay(Some("3s"));
    let began = std::time::Instant::now();
    fs::write(rig.source.join("live"), b"live").unwrap();
    let arrived = |name: &str| rig.copy(name).join("live").exists().then_some(());
    wait_until("the change to be old enough", PATIENCE, || arrived("late-1"));
    assert!(began.elapsed() >= Duration::from_secs(3), "{:?}", began.elapsed());
    for _ in 0..4 {
        Workload::start(&rig.source.join("work"), prng.next(), 2, 150).finish();
        rig.host.kill9_servers();
    }
    Workload::start(&rig.source.join("work"), prng.next(), 2, 150).finish();
    rig.host.must(&["wait", "data", "late-1", "--timeout", "180"]);
    Workload::start(&rig.source.join("work"), prng.next(), 2, 150).finish();
    rig.set_delay(None);
    for name in ["late-1", "late-2"] {
        rig.host.must(&["wait", "data", name, "--timeout", "180"]);
    }
    rig.host.stop();
    for name in ["now", "late-1", "late-2"] {
        trees::assert_equal_but_holes(&rig.source, rig.copy(name), name);
    }
}
