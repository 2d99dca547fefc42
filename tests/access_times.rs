//! Access times: what a read leaves on the target, in both modes, and that dtfs's own reading leaves nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use support::host::Host;
use support::scratch::{FileSystem, Scratch, utf8};
use support::trees;

const WAIT_SECONDS: u32 = 60;

struct Pair {
    host: Host,
    source: PathBuf,
    target: PathBuf,
    _scratch: Scratch,
}

impl Pair {
    /// All files of the source were read last in 2001, so that relatime moves an access time at the next read.
    fn mirrored(mode: &str, guard: &str) -> Pair {
        let scratch = Scratch::new(FileSystem::Ext4);
        let (source, target) = (scratch.dir("source"), scratch.dir("target"));
        trees::fill(&source, 4);
        (0..4).for_each(|i| set_access_time(&file(&source, i), 1_000_000_000));
        let mut host = Host::new();
        fs::create_dir_all(host.root().join("etc/dtfs")).unwrap();
        fs::write(host.root().join("etc/dtfs/dtfs.toml"), format!("guard = \"{guard}\"\n")).unwrap();
        host.must(&["mounts", "add", utf8(&source), "-o", &format!("{mode},volume=data")]);
        host.adopt_volume(&source);
        host.define_target("data", &target);
        host.start_and_mount();
        host.wait("data", WAIT_SECONDS);
        Pair { host, source, target, _scratch: scratch }
    }

    /// Access times of a file behind the mount's cache and on the target, in nanoseconds.
    fn times(&self, i: usize) -> (i64, i64) {
        self.host.wait("data", WAIT_SECONDS);
        (access_time(&file(&self.source, i)), access_time(&file(&self.target, i)))
    }
}

fn file(dir: &Path, i: usize) -> PathBuf {
    dir.join(format!("file-{i:05}"))
}

fn set_access_time(path: &Path, seconds: u64) {
    let times = fs::FileTimes::new().set_accessed(UNIX_EPOCH + Duration::from_secs(seconds));
    File::options().write(true).open(path).unwrap().set_times(times).unwrap();
}

fn access_time(path: &Path) -> i64 {
    let meta = fs::metadata(path).unwrap();
    meta.atime() * 1_000_000_000 + meta.atime_nsec()
}

fn a_mode(mode: &str) {
    // Where nothing keeps others out, they move access times.
    let mut pair = Pair::mirrored(mode, "off");
    // The mirror read everything and left no trace, and the target shows the old times.
    let old = 1_000_000_000_000_000_000;
    assert_eq!((0..4).map(|i| pair.times(i)).collect::<Vec<_>>(), [(old, old); 4], "{mode}: after the mirror");
    // Its filesystem is mounted with relatime: who reads the target's tree moves access times there.
    let said = pair.host.must(&["status", "data"]).contains("without noatime");
    assert_eq!(said, mode == "atime", "{mode}: what the status says of the target");
    let tid = pair.host.tid("data");
    let mut reader = File::open(file(&pair.source, 0)).unwrap();
    reader.read_to_string(&mut String::new()).unwrap();
    if mode == "norepatime" {
        assert_eq!(pair.host.tid("data"), tid, "a read leaves no record");
    }
    drop(reader);
    support::process::wait_until("the record of the read", Duration::from_secs(10), || {
        (pair.host.tid("data") > tid).then_some(())
    });
    set_access_time(&file(&pair.source, 1), 1_100_000_000);
    pair.host.wait("data", WAIT_SECONDS);
    pair.host.stop();
    let times: Vec<_> =
        (0..4).map(|i| (access_time(&file(&pair.source, i)), access_time(&file(&pair.target, i)))).collect();
    assert!(times[0].0 > old, "{mode}: the read moved the backing access time");
    assert_eq!(times[1].0, 1_100_000_000_000_000_000, "{mode}");
    assert!(times.iter().all(|(source, target)| source == target), "{mode}: {times:?}");
    trees::assert_equal(&pair.source, &pair.target, mode);
}

/// Who reads a target that only dtfs changes moves nothing.
#[test]
fn a_target_that_is_read_only_keeps_its_access_times() {
    let mut pair = Pair::mirrored("atime", "on");
    assert!(!pair.host.must(&["status", "data"]).contains("without noatime"));
    assert!(
        fs::metadata(file(&pair.target, 2)).unwrap().len() > 0 && !fs::read(file(&pair.target, 2)).unwrap().is_empty()
    );
    assert_eq!(access_time(&file(&pair.target, 2)), 1_000_000_000_000_000_000);
    pair.host.stop();
}

#[test]
fn norepatime_records_what_moved_at_the_close() {
    a_mode("norepatime");
}

#[test]
fn atime_records_each_read() {
    a_mode("atime");
}
