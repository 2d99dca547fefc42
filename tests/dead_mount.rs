//! A daemon that was killed leaves its mount, which answers nothing, and the next one mounts over it: nobody sees the
//! bare directory in between.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use support::host::{Host, is_dtfs};
use support::scratch::{Directory, FileSystem, Scratch};
use support::trees;

const WAIT_SECONDS: u32 = 60;

/// Looks at a path all the time, by the device it shows.
struct Observer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

#[derive(Default)]
struct Seen {
    looks: u64,
    bare: u64,
    dead: u64,
}

impl Observer {
    fn start(path: PathBuf, bare: u64) -> Observer {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let look = move || {
            let mut seen = Seen::default();
            while !stopped.load(Ordering::Relaxed) {
                seen.looks += 1;
                match fs::File::open(&path).and_then(|dir| dir.metadata()) {
                    Ok(meta) => seen.bare += u64::from(meta.dev() == bare),
                    Err(_) => seen.dead += 1,
                }
            }
            seen
        };
        Observer { stop, thread: std::thread::spawn(look) }
    }

    fn end(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn answers_enotconn(path: &Path) -> bool {
    fs::read_dir(path).is_err_and(|error| error.raw_os_error() == Some(libc::ENOTCONN))
}

#[test]
fn a_dead_mount_is_replaced_without_a_look_at_the_bare_directory() {
    let scratch = Scratch::new(FileSystem::Ext4);
    let (source, target) = (scratch.dir("source"), scratch.dir("target"));
    trees::fill(&source.join("files"), 100);
    let bare = fs::metadata(&source).unwrap().dev();
    let mut host = Host::new();
    host.define_volume("data", &source);
    host.start_and_mount();
    host.define_target("data", &target);
    host.wait("data", WAIT_SECONDS);
    let observer = Observer::start(source.clone(), bare);
    // Twice: the second dead mount lies over the first.
    for round in 0..2 {
        fs::write(source.join(format!("before-{round}")), b"before the kill").unwrap();
        host.kill9();
        assert!(answers_enotconn(&source) && is_dtfs(&source));
        assert!(fs::write(source.join("lost"), b"").is_err());
        host.start_and_mount();
        fs::write(source.join(format!("after-{round}")), b"after the kill").unwrap();
    }
    let seen = observer.end();
    assert_eq!(seen.bare, 0, "the bare directory was seen in {} of {} looks", seen.bare, seen.looks);
    assert!(seen.dead > 0 && seen.looks > seen.dead, "the observer saw both states: {} of {}", seen.dead, seen.looks);
    host.wait("data", WAIT_SECONDS);
    host.stop();
    trees::assert_equal(&source, &target, "after two kills");
}

/// The volume lies right on a mount point: what is below the dead mount is another mount, not a directory of the parent.
#[test]
fn a_dead_mount_over_a_mount_point_is_replaced_too() {
    let scratch = Scratch::new(FileSystem::Ext4);
    fs::remove_dir(scratch.path().join("lost+found")).unwrap();
    let (source, target) = (scratch.path().to_owned(), Directory::new());
    trees::fill(&source.join("files"), 20);
    let mut host = Host::new();
    host.define_volume("data", &source);
    host.start_and_mount();
    host.kill9();
    assert!(answers_enotconn(&source));
    host.start_and_mount();
    assert_eq!(fs::read_dir(source.join("files")).unwrap().count(), 20);
    host.define_target("data", &target.path().join("replica"));
    host.wait("data", WAIT_SECONDS);
    host.stop();
    trees::assert_equal(&source, &target.path().join("replica"), "on a mount point");
}

/// An operator can still have the plain directory.
#[test]
fn unmounting_a_dead_mount_shows_the_directory() {
    let scratch = Scratch::new(FileSystem::Ext4);
    let source = scratch.dir("source");
    trees::fill(&source.join("files"), 3);
    let held = fs::File::options().append(true).open(source.join("files/file-00001")).unwrap();
    let mut host = Host::new();
    host.define_volume("data", &source);
    host.start();
    host.must(&["mounts", "mount", "--all", "--allow-open"]);
    host.kill9();
    assert!(answers_enotconn(&source));
    // Refused for the file that is open below: the dead mount stays.
    host.start();
    assert_eq!(host.run(&["mounts", "mount", "--all"]).code, 7);
    assert!(answers_enotconn(&source));
    host.must(&["mounts", "unmount", "--all"]);
    assert!(!is_dtfs(&source));
    drop(held);
    host.must(&["mounts", "mount", "--all"]);
    host.stop();
}
