//! `writes=back`: programs write into the kernel's page cache, which is written back later.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use dtfs::stack::{StackOptions, Writes};
use dtfs::sys;
use support::conformance;
use support::host::Host;
use support::mounted::Mounted;
use support::process::tool;
use support::replica::Pair;
use support::scratch::{FileSystem, Scratch, utf8};
use support::user::SOMEONE;
use support::workload::{Workload, worker_was_asked};

#[test]
fn workload_worker() {
    assert!(worker_was_asked() || std::env::var_os(support::workload::VARIABLE).is_none());
}

fn pair(kind: FileSystem) -> Pair {
    Pair::with_options(kind, "writes=back")
}

fn define(host: &mut Host, source: &Path) {
    host.must(&["mounts", "add", utf8(source), "-o", "volume=data,writes=back"]);
    host.adopt_volume(source);
}

fn in_process() -> Mounted {
    Mounted::with(StackOptions { writes: Writes::Back, ..StackOptions::default() })
}

fn random_workload(kind: FileSystem, seed: u64) {
    let back = pair(kind);
    Workload::start(&back.source, seed, 4, 4_000).finish();
    back.wait();
    Workload::start(&back.source, seed + 1, 4, 2_000).finish();
    back.stop_and_compare(&format!("{kind:?}, seed {seed}"));
}

#[test]
fn a_random_workload_ends_equal() {
    for (kind, seed) in [(FileSystem::Ext4, 11), (FileSystem::Xfs, 12), (FileSystem::Btrfs, 13)] {
        random_workload(kind, seed);
    }
}

#[test]
fn fsx_finds_nothing() {
    let back = pair(FileSystem::Ext4);
    for seed in 1..=2 {
        conformance::fsx(&back.source.join(format!("fsx-{seed}")), seed, 5_000);
    }
    back.stop_and_compare("fsx with writes=back");
}

#[test]
fn many_small_writes_are_few_requests() {
    let m = in_process();
    let file = File::create(m.path("f")).unwrap();
    let before = m.volume.requests();
    for i in 0..500_u64 {
        file.write_all_at(&[7; 4096], i * 4096).unwrap();
    }
    file.sync_all().unwrap();
    let after = m.volume.requests();
    let count = |kind: &str| after.get(kind).unwrap_or(&0) - before.get(kind).unwrap_or(&0);
    assert!(count("write") <= 20 && count("getxattr") <= 2, "{after:?}");
    assert_eq!(fs::read(m.behind.join("f")).unwrap(), vec![7; 500 * 4096]);
}

/// What cp(1) and others ask for.
#[test]
fn new_data_is_never_taken_for_a_hole() {
    let m = in_process();
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(m.path("f")).unwrap();
    file.set_len(1 << 20).unwrap();
    file.write_all_at(b"new", 700_000).unwrap();
    assert_eq!(sys::lseek(file.as_fd(), 0, libc::SEEK_DATA), Ok(0));
    assert_eq!(sys::lseek(file.as_fd(), 0, libc::SEEK_HOLE), Ok(1 << 20));
    tool("cp", &["--sparse=auto", utf8(&m.path("f")), utf8(&m.path("copy"))]);
    assert_eq!(fs::read(m.path("copy")).unwrap()[700_000..700_003], *b"new");
}

/// Whatever the kernel holds is handed over when it is asked for.
#[test]
fn the_kernel_hands_over_what_it_holds() {
    let m = in_process();
    let file = File::create(m.path("f")).unwrap();
    let mut held = 0;
    for round in 0..200_u8 {
        file.write_all_at(&[round; 100], 0).unwrap();
        held += usize::from(fs::read(m.behind.join("f")).unwrap() != [round; 100]);
        m.volume.write_back().unwrap();
        assert_eq!(fs::read(m.behind.join("f")).unwrap(), [round; 100]);
    }
    assert!(held > 0, "the kernel held nothing: this shows nothing");
}

#[test]
fn a_wait_includes_what_no_program_synced() {
    let back = pair(FileSystem::Ext4);
    back.wait();
    let file = File::create(back.source.join("f")).unwrap();
    for round in 0..20_u8 {
        file.write_all_at(&[round; 5000], u64::from(round) * 3000).unwrap();
        back.wait();
        assert_eq!(fs::read(back.target.join("f")).unwrap(), fs::read(back.source.join("f")).unwrap(), "{round}");
    }
    back.stop_and_compare("waits");
}

/// Whether what was written a moment before the daemon was killed is gone; what was synced is there in any case.
fn unsynced_is_lost(back: &mut Pair, round: usize) -> bool {
    let path = back.source.join(format!("file-{round}"));
    let file = File::create(&path).unwrap();
    file.write_all_at(&[1; 8192], 0).unwrap();
    file.sync_all().unwrap();
    file.write_all_at(&[2; 4096], 8192).unwrap();
    back.host.kill9();
    // Nobody takes the page any more.
    drop(file);
    back.host.start_and_mount();
    let found = fs::read(&path).unwrap();
    assert_eq!(found[..8192], [1; 8192]);
    found.len() == 8192
}

#[test]
fn what_was_not_synced_goes_with_the_daemon() {
    let mut back = pair(FileSystem::Ext4);
    // The kernel may have handed it over already, where the machine stood still for long.
    assert!(
        (0..5).any(|round| unsynced_is_lost(&mut back, round)),
        "nothing is ever lost: SEMANTICS.md says otherwise"
    );
    back.wait();
    back.stop_and_compare("kills under write-back");
}

#[test]
fn a_full_disk_is_told_at_the_sync() {
    let scratch = Scratch::with_size(FileSystem::Ext4, 64);
    let source = scratch.dir("source");
    let mut host = Host::new();
    define(&mut host, &source);
    host.start_and_mount();
    let file = File::create(source.join("large")).unwrap();
    let end =
        (0..100_u64).try_for_each(|i| file.write_all_at(&vec![7; 1 << 20], i << 20)).and_then(|()| file.sync_all());
    let errno = end.unwrap_err().raw_os_error();
    assert!(matches!(errno, Some(libc::ENOSPC | libc::EIO)), "{errno:?}");
    drop(file);
    fs::remove_file(source.join("large")).unwrap();
    support::process::wait_until("room", Duration::from_secs(60), || {
        let file = File::create(source.join("small")).unwrap();
        (file.write_all_at(b"fits", 0).and_then(|()| file.sync_all())).ok()
    });
    host.stop();
    assert_eq!(fs::read(source.join("small")).unwrap(), b"fits");
}

/// The pages begin before what is appended.
#[test]
fn what_is_appended_to_an_append_only_file_is_there_once() {
    let back = pair(FileSystem::Ext4);
    let path = back.source.join("log");
    fs::write(&path, b"first ").unwrap();
    tool("chattr", &["+a", utf8(&path)]);
    let mut file = OpenOptions::new().append(true).open(&path).unwrap();
    for part in ["second ", "third ", "fourth"] {
        file.write_all(part.as_bytes()).unwrap();
    }
    file.sync_all().unwrap();
    drop(file);
    assert_eq!(fs::read_to_string(&path).unwrap(), "first second third fourth");
    tool("chattr", &["-a", utf8(&path)]);
    back.stop_and_compare("append only");
}

#[test]
fn a_user_s_write_takes_privileges_away() {
    let back = pair(FileSystem::Ext4);
    let path = back.source.join("program");
    fs::write(&path, b"text").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
    SOMEONE.does(|| {
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(b"T", 0).unwrap();
    });
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o777);
    back.stop_and_compare("privileges");
}

/// A mapping, a reader and a writer of one file see the same at any time.
#[test]
fn handles_and_mappings_agree() {
    let m = in_process();
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(m.path("f")).unwrap();
    file.set_len(8192).unwrap();
    let mut map = support::mapping::Shared::new(&file, 8192);
    let writer = OpenOptions::new().write(true).open(m.path("f")).unwrap();
    let mut seen = [0; 4];
    for round in 0..50_u8 {
        map.write(4000, &[round, round]);
        writer.write_all_at(&[round, round], 4002).unwrap();
        let mut reader = File::open(m.path("f")).unwrap();
        reader.read_exact_at(&mut seen, 4000).unwrap();
        assert_eq!(seen, [round; 4]);
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        assert_eq!(all.len(), 8192);
    }
    let status = Command::new("cmp").args([utf8(&m.path("f")), utf8(&m.path("f"))]).status().unwrap();
    assert!(status.success());
}
