//! The whole path: a mounted volume replicated to a local target by the real program.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, SystemTime};

use support::length::{asked_for, number};
use support::process::wait_until;
use support::replica::Pair;
use support::scratch::{FileSystem, Scratch};
use support::workload::{Workload, worker_was_asked};
use support::{ops, trees};

const PROCESSES: u64 = 4;
const OPS: u64 = 10_000;
/// For what travels when nothing changed: handshakes, heartbeats, positions.
const QUIET_BYTES: u64 = 8 * 1024;

/// Not asked to be a worker, this checks the workload itself against native filesystems.
#[test]
fn workload_worker() {
    if worker_was_asked() {
        return;
    }
    for kind in [FileSystem::Ext4, FileSystem::Xfs, FileSystem::Btrfs] {
        let scratch = Scratch::new(kind);
        let done = Workload::start(&scratch.dir("native"), 1, PROCESSES, OPS).finish();
        let never: Vec<_> = ops::kinds().filter(|name| !done.contains_key(*name)).collect();
        assert!(never.is_empty(), "{kind:?}: these changes never succeeded: {never:?}");
    }
}

/// How many seeds each filesystem gets: `DTFS_SEEDS` (20 before a release), by default a few. `DTFS_SEED` names one.
fn seeds(default: u64) -> Vec<u64> {
    match asked_for("DTFS_SEED") {
        Some(seed) => vec![seed],
        None => (1..=number("DTFS_SEEDS", default)).collect(),
    }
}

/// A workload fills the source, a second one runs during the initial mirror, a third one after it.
fn random_workload(kind: FileSystem, seed: u64) {
    let pair = Pair::new(kind, |source| {
        Workload::start(source, seed ^ 0x5eed, PROCESSES, 2_000).finish();
        trees::fill(&source.join("many"), 2_000);
    });
    Workload::start(&pair.source, seed, PROCESSES, OPS).finish();
    pair.wait();
    Workload::start(&pair.source, seed.wrapping_add(1_000_000), PROCESSES, OPS / 4).finish();
    pair.stop_and_compare(&format!("{kind:?}, seed {seed} (DTFS_SEED={seed} repeats it)"));
}

#[test]
fn random_workload_on_ext4() {
    seeds(2).into_iter().for_each(|seed| random_workload(FileSystem::Ext4, seed));
}

#[test]
fn random_workload_on_xfs() {
    seeds(2).into_iter().for_each(|seed| random_workload(FileSystem::Xfs, seed));
}

#[test]
fn random_workload_on_btrfs() {
    seeds(1).into_iter().for_each(|seed| random_workload(FileSystem::Btrfs, seed));
}

#[test]
fn appending_a_kilobyte_to_a_gigabyte_sends_little() {
    let pair = Pair::mirrored(FileSystem::Ext4, |source| {
        let file = File::create(source.join("big")).unwrap();
        file.set_len(1 << 30).unwrap();
        for mib in [0, 500, 1023] {
            file.write_all_at(&[7; 4096], mib << 20).unwrap();
        }
    });
    let (bytes, _) = pair.cost(|| {
        let mut file = File::options().append(true).open(pair.source.join("big")).unwrap();
        file.write_all(&[9; 1024]).unwrap();
    });
    assert!(bytes < 8 * 1024, "{bytes} bytes were sent for 1 KiB");
    assert!(bytes > 0, "the counter does not move: it proves nothing");
    pair.stop_and_compare("append");
}

#[test]
fn renaming_a_directory_of_ten_thousand_files_is_one_record() {
    let pair = Pair::mirrored(FileSystem::Ext4, |source| trees::fill(&source.join("before"), 10_000));
    let (bytes, changes) = pair.cost(|| fs::rename(pair.source.join("before"), pair.source.join("after")).unwrap());
    assert_eq!(changes, 1, "a rename takes one TID");
    assert!(bytes < QUIET_BYTES, "{bytes} bytes were sent for one rename");
    pair.stop_and_compare("rename");
}

#[test]
fn a_daemon_that_stops_and_starts_mirrors_nothing_again() {
    let mut pair = Pair::mirrored(FileSystem::Ext4, |source| trees::fill(&source.join("many"), 3_000));
    let mirror = pair.bytes_sent();
    assert!(mirror > QUIET_BYTES, "the mirror itself must count: {mirror} bytes");
    // What was changed in the last two seconds before a stop is compared after it: stop at a quiet moment.
    let newest = fs::metadata(pair.source.join("many")).unwrap().ctime();
    wait_until("a quiet moment", Duration::from_secs(10), || {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64;
        (now > newest + 3).then_some(())
    });
    pair.host.stop();
    pair.host.start_and_mount();
    fs::write(pair.source.join("after"), b"written after the restart").unwrap();
    pair.wait();
    // The counter begins at 0 with each daemon.
    let again = pair.bytes_sent();
    assert!(again < QUIET_BYTES, "{again} bytes were sent after a quiet restart, the mirror took {mirror}");
    pair.stop_and_compare("restart of the daemon");
}

#[test]
fn a_target_process_that_is_killed_resumes_from_its_cursor() {
    let pair = Pair::mirrored(FileSystem::Ext4, |source| trees::fill(&source.join("many"), 3_000));
    let before = pair.bytes_sent();
    pair.host.kill9_server();
    fs::write(pair.source.join("after"), b"written after the kill").unwrap();
    pair.wait();
    let again = pair.bytes_sent() - before;
    assert!(again < QUIET_BYTES, "{again} bytes were sent after the target process was killed");
    pair.stop_and_compare("kill of the target process");
}

#[test]
fn the_log_has_what_was_changed_a_moment_ago() {
    let pair = Pair::new(FileSystem::Ext4, |_| {});
    pair.wait();
    for number in 0..30 {
        let name = format!("just-now-{number}");
        File::create(pair.source.join(&name)).unwrap();
        let log = pair.host.must(&["log", "data"]);
        assert!(log.contains(&name), "{name} is missing in {}", log);
    }
}

/// Which processors the workers of the daemon may run on, as the kernel writes them.
fn places_of_workers(pid: i32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten().map(|task| task.path());
    let workers =
        tasks.filter(|task| fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with("fuser-")));
    let allowed = workers.filter_map(|task| {
        let status = fs::read_to_string(task.join("status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).map(|list| list.trim().to_owned())
    });
    allowed.collect()
}

/// One caller alone is followed; when two ask in turn the workers are free again.
#[test]
fn a_worker_runs_where_its_only_caller_does() {
    if std::thread::available_parallelism().unwrap().get() == 1 {
        panic!("one processor shows nothing: this test needs two");
    }
    let pair = Pair::new(FileSystem::Ext4, |_| {});
    let pid = pair.host.daemon_pid();
    let file = File::create(pair.source.join("f")).unwrap();
    let is_followed = || places_of_workers(pid).iter().any(|list| list.parse::<u32>().is_ok());
    let write = |count: u64| (0..count).for_each(|at| file.write_all_at(b"x", at % 100).unwrap());
    wait_until("a worker to follow its caller", Duration::from_secs(60), || {
        write(500);
        is_followed().then_some(())
    });
    let turn = std::sync::Barrier::new(2);
    wait_until("the workers to be free", Duration::from_secs(60), || {
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        turn.wait();
                        write(1);
                    }
                });
            }
        });
        (!is_followed()).then_some(())
    });
}
