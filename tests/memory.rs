//! What a node that the kernel knows costs the daemon: little memory, and no descriptor. Needs root and /dev/fuse.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

use std::fs::{self, File};
use std::path::Path;

use dtfs::backing::Tree;
use dtfs::fuse::{MountedVolume, Unmount};
use dtfs::journal::{Journal, JournalOptions};
use dtfs::stack::{Stack, StackOptions};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

const FILES: usize = 100_000;
const PER_DIRECTORY: usize = 1000;
const OPEN_FILES: u64 = 20_000;
const MOST_BYTES: usize = 200;

fn fill(behind: &Path) {
    for d in 0..FILES / PER_DIRECTORY {
        let dir = behind.join(format!("d{d}"));
        fs::create_dir(&dir).unwrap();
        (0..PER_DIRECTORY).for_each(|f| drop(File::create(dir.join(format!("f{f}"))).unwrap()));
    }
}

/// Looks every file up, so that the kernel knows its node.
fn look_at(root: &Path) -> usize {
    let dirs: Vec<_> = fs::read_dir(root).unwrap().map(|dir| dir.unwrap().path()).collect();
    let mut seen = 0;
    for entry in dirs.iter().flat_map(|dir| fs::read_dir(dir).unwrap()) {
        entry.unwrap().metadata().unwrap();
        seen += 1;
    }
    seen
}

fn resident_bytes() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.split_whitespace().next().unwrap().parse::<usize>().unwrap() * 1024
}

#[test]
fn a_hundred_thousand_files_cost_little_memory_and_no_descriptors() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES.min(hard), hard).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (behind, at) = (dir.path().join("tree"), dir.path().join("mnt"));
    fs::create_dir(&behind).unwrap();
    fs::create_dir(&at).unwrap();
    fill(&behind);
    let (journal, _) = Journal::open(&dir.path().join("j"), JournalOptions::default()).unwrap();
    let stack = Stack::new(Tree::open(&behind).unwrap(), journal, StackOptions::default()).unwrap();
    stack.remember_inodes(&dir.path().join("inodes"), None).unwrap();
    let volume = MountedVolume::mount(stack.clone(), &at, "memory").unwrap();

    // What a worker needs whatever the number of files is there before anything is counted.
    fs::read_dir(&at).unwrap().for_each(drop);
    let before = resident_bytes();
    let seen = look_at(&at);
    let grown = resident_bytes().saturating_sub(before);
    let descriptors = fs::read_dir("/proc/self/fd").unwrap().count();
    let (nodes, _) = stack.in_use();
    volume.unmount(Unmount::Lazy).unwrap();

    assert_eq!(seen, FILES);
    // The kernel may have forgotten some under memory pressure, which is nothing to count.
    assert!(nodes > FILES / 2, "only {nodes} nodes are known");
    assert!(descriptors < 1000, "{descriptors} descriptors for {nodes} nodes");
    println!("{} bytes for each of {nodes} nodes, {descriptors} descriptors", grown / nodes);
    assert!(grown <= nodes * MOST_BYTES, "{grown} bytes for {nodes} nodes");
}
