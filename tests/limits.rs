//! Full disks and failing syncs: every one has an outcome that is defined, told, and over once the cause is.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use serde_json::Value;
use support::behind;
use support::host::Host;
use support::process::wait_until;
use support::scratch::{FileSystem, Scratch, utf8};
use support::trees;

const LIMIT: Duration = Duration::from_secs(120);
const WAIT_SECONDS: u32 = 120;

/// Writes `bytes` of data that does not compress and syncs it.
fn write_synced(path: &Path, bytes: usize) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(&support::prng::Prng::new(bytes as u64).bytes(bytes))?;
    file.sync_all()
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

/// Takes all space of the filesystem below `dir`, to the last block.
fn fill(dir: &Path) -> PathBuf {
    let path = dir.join("filler");
    let mut file = File::create(&path).unwrap();
    for piece in [1 << 20, 64 << 10, 4 << 10, 512] {
        while file.write_all(&vec![0x66; piece]).is_ok() {}
    }
    let _ = file.sync_all();
    path
}

/// Makes the target unreachable: its directory is moved away, and a file stands in its place.
fn take_away(host: &Host, target: &Path) {
    wait_until("the target's directory to be free", Duration::from_secs(60), || {
        behind::rename(target, &target.with_extension("away")).ok()
    });
    fs::write(target, "in the way").unwrap();
    if !host.servers().is_empty() {
        host.kill9_server();
    }
}

fn bring_back(target: &Path) {
    fs::remove_file(target).unwrap();
    fs::rename(target.with_extension("away"), target).unwrap();
}

fn volume(host: &Host, name: &str) -> Value {
    let status = host.status();
    let volumes = status["volumes"].as_array().unwrap();
    volumes.iter().find(|volume| volume["name"] == name).unwrap().clone()
}

/// A source whose journal lies on a small disk, which is full, while its target is away.
struct FullJournal {
    host: Host,
    source: PathBuf,
    target: PathBuf,
    filler: PathBuf,
    _disks: (Scratch, Scratch),
}

fn full_journal(cap: &str) -> FullJournal {
    let (trees_fs, journal_fs) = (Scratch::new(FileSystem::Ext4), Scratch::with_size(FileSystem::Ext4, 256));
    let (source, target) = (trees_fs.dir("source"), trees_fs.dir("target"));
    let store = journal_fs.dir("store");
    let mut host = Host::new();
    host.adopt_volume(&source);
    let config = host.root().join("etc/dtfs/mounts.d");
    fs::create_dir_all(&config).unwrap();
    fs::write(config.join("data.toml"), format!("journal_cap = \"{cap}\"\n")).unwrap();
    host.must(&["mounts", "add", utf8(&source), "-o", &format!("volume=data,store={}", utf8(&store))]);
    host.start_and_mount();
    host.define_target("data", &target);
    host.wait("data", WAIT_SECONDS);
    take_away(&host, &target);

    let filler = fill(journal_fs.path());
    FullJournal { host, source, target, filler, _disks: (trees_fs, journal_fs) }
}

impl FullJournal {
    fn end(mut self) {
        fs::remove_file(&self.filler).unwrap();
        write_synced(&self.source.join("after"), 100_000).unwrap();
        bring_back(&self.target);
        self.host.wait("data", WAIT_SECONDS);
        self.host.stop();
        trees::assert_equal(&self.source, &self.target, "after the journal's disk was full");
    }
}

/// The journal's disk is full below its cap: what the target lacks becomes work, and nobody waits or is refused.
#[test]
fn a_full_journal_disk_goes_on_with_the_segments_that_it_has() {
    let full = full_journal("24M");
    for no in 0..300 {
        write_synced(&full.source.join(format!("{no}")), 200_000).unwrap();
    }
    full.end();
}

/// No segment can be given up: changes are refused before the tree is touched, and taken again once there is room.
#[test]
fn a_full_journal_disk_refuses_changes_and_takes_them_again() {
    let full = full_journal("8G");
    let (host, source) = (&full.host, &full.source);
    let (mut made, mut refused) = (0, 0);
    for no in 0..2000 {
        let dir = source.join(format!("{no}"));
        match fs::create_dir(&dir).and_then(|()| write_synced(&dir.join("file"), 200_000)) {
            Ok(()) => made += 1,
            Err(error) => {
                assert_eq!(errno(&error), Errno::ENOSPC, "{error}");
                refused += 1;
                break;
            }
        }
    }
    assert!(made > 0 && refused > 0, "{made} made, {refused} refused: the disk was never full");
    // Nothing is half done: what was refused is not there.
    let before: Vec<_> = trees::contents(source).into_keys().collect();
    let name = source.join("refused");
    for _ in 0..20 {
        let error = fs::write(&name, vec![1; 100_000]).unwrap_err();
        assert_eq!(errno(&error), Errno::ENOSPC);
    }
    let left: Vec<_> = trees::contents(source).into_keys().filter(|path| !path.ends_with("refused")).collect();
    assert_eq!(left, before);
    assert_eq!(volume(host, "data")["state"], "mounted", "{:#}", volume(host, "data"));
    full.end();
}

/// The backing filesystem is full: programs get what they get without dtfs.
#[test]
fn a_full_backing_filesystem_answers_as_without_dtfs() {
    for kind in [FileSystem::Ext4, FileSystem::Xfs, FileSystem::Btrfs] {
        let (small, large) = (Scratch::with_size(kind, 320), Scratch::new(FileSystem::Ext4));
        let (source, target) = (small.dir("source"), large.dir("target"));
        let mut host = Host::new();
        host.define_volume("data", &source);
        host.start_and_mount();
        host.define_target("data", &target);
        for no in 0..50 {
            write_synced(&source.join(format!("before-{no}")), 10_000).unwrap();
        }
        fill(&source);
        for no in 0..50 {
            let dir = source.join(format!("dir-{no}"));
            if let Err(error) = fs::create_dir(&dir).and_then(|()| write_synced(&dir.join("file"), 50_000)) {
                assert_eq!(errno(&error), Errno::ENOSPC, "{kind:?}: {error}");
            }
            let _ = fs::rename(source.join(format!("before-{no}")), source.join(format!("renamed-{no}")));
        }
        fs::remove_file(source.join("filler")).unwrap();
        // The space comes back when the kernel has forgotten the file, a moment later.
        wait_until("the space of the removed file", Duration::from_secs(20), || {
            write_synced(&source.join("room"), 100_000).ok()
        });
        write_synced(&source.join("after"), 100_000).unwrap();
        host.wait("data", WAIT_SECONDS);
        host.stop();
        trees::assert_equal(&source, &target, &format!("{kind:?}: after the backing filesystem was full"));
    }
}

/// One failing sync poisons one volume: it says so, refuses changes, and never calls anything durable that is not. The
/// other volume goes on. A new start compares, and all is well.
fn poisoned_by(fault: &str, poison: impl Fn(&Host, &Path) -> Option<Errno>) {
    let scratch = Scratch::new(FileSystem::Ext4);
    let dirs = |name: &str| (scratch.dir(name), scratch.dir(&format!("{name}-target")));
    let ((bad, bad_target), (good, good_target)) = (dirs("bad"), dirs("good"));
    let mut host = Host::new();
    host.define_volume("bad", &bad);
    host.define_volume("good", &good);
    host.define_target("bad", &bad_target);
    host.define_target("good", &good_target);
    host.start_with_faults(fault);
    host.must(&["mounts", "mount", "--all"]);
    write_synced(&good.join("before"), 1000).unwrap();
    host.wait("good", WAIT_SECONDS);
    host.wait("bad", WAIT_SECONDS);
    let found = (0..200).find_map(|no| {
        fs::write(bad.join(format!("file-{no}")), vec![7; 5000])
            .err()
            .map(|error| errno(&error))
            .or_else(|| poison(&host, &bad.join(format!("file-{no}"))))
    });
    assert_eq!(found, Some(Errno::EIO), "{fault} never struck");

    let error = fs::write(bad.join("refused"), b"x").unwrap_err();
    assert_eq!(errno(&error), Errno::EIO, "a poisoned volume takes no change");
    assert_eq!(fs::read(bad.join("file-0")).unwrap(), vec![7; 5000], "and can still be read");
    let state = volume(&host, "bad");
    assert_eq!(state["state"], "failed", "{state:#}");
    assert!(!state["reason"].as_str().unwrap().is_empty());
    write_synced(&good.join("meanwhile"), 100_000).unwrap();
    host.wait("good", WAIT_SECONDS);
    assert_eq!(volume(&host, "good")["state"], "mounted");

    host.kill9();
    host.start_and_mount();
    write_synced(&bad.join("afterwards"), 100_000).unwrap();
    host.wait("bad", WAIT_SECONDS);
    host.wait("good", WAIT_SECONDS);
    host.stop();
    trees::assert_equal(&bad, &bad_target, fault);
    trees::assert_equal(&good, &good_target, fault);
}

fn sync(path: &Path) -> Option<Errno> {
    File::open(path).unwrap().sync_all().err().map(|error| errno(&error))
}

#[test]
fn a_failed_sync_of_the_journal_poisons_its_volume_only() {
    poisoned_by("journal.fdatasync=errno:5@60", |_, path| sync(path));
}

#[test]
fn a_failed_write_of_the_journal_poisons_its_volume_only() {
    poisoned_by("journal.pwrite=errno:28@60", |_, path| sync(path));
}

#[test]
fn a_failed_fsync_of_the_backing_file_poisons_its_volume_only() {
    poisoned_by("backing.fsync=errno:5@20", |_, path| sync(path));
}

#[test]
fn a_failed_syncfs_poisons_its_volume_only() {
    poisoned_by("backing.syncfs=errno:5@5", |host, _| {
        let answer = host.run(&["synctid", "bad"]);
        (answer.code != 0).then_some(Errno::EIO)
    });
}

/// The memory that outlives the process has no room: its volume is not served, and says why; the bare directory does not
/// show instead. The other volume goes on, and the next try takes up what the killed daemon left.
#[test]
fn no_room_for_the_memory_that_outlives_the_daemon_keeps_one_volume_down() {
    let scratch = Scratch::new(FileSystem::Ext4);
    let names = ["one", "two"];
    let dirs = names.map(|name| (scratch.dir(name), scratch.dir(&format!("{name}-target"))));
    let mut host = Host::new();
    for (name, (tree, target)) in names.iter().zip(&dirs) {
        host.define_volume(name, tree);
        host.define_target(name, target);
    }
    host.start_and_mount();
    for (tree, _) in &dirs {
        write_synced(&tree.join("before"), 10_000).unwrap();
        fs::write(tree.join("not synced"), b"in memory only").unwrap();
    }
    host.kill9();
    // It mounts what was mounted.
    host.start_with_faults("shared.allocate=errno:28@1");
    let state = |name: &str| volume(&host, name)["state"].as_str().unwrap().to_owned();
    let [(down, (bare, _)), (_, (up, _))] =
        wait_until("both volumes to have been tried", LIMIT, || match names.map(|name| state(name) == "mounted") {
            [false, true] => Some([(names[0], &dirs[0]), (names[1], &dirs[1])]),
            [true, false] => Some([(names[1], &dirs[1]), (names[0], &dirs[0])]),
            _ => None,
        });
    assert_eq!(state(down), "refused");
    assert!(
        volume(&host, down)["reason"].as_str().is_some_and(|text| text.contains("ENOSPC")),
        "{}",
        volume(&host, down)
    );
    assert_eq!(errno(&fs::read_dir(bare).unwrap_err()), Errno::ENOTCONN, "the bare directory shows");
    write_synced(&up.join("meanwhile"), 10_000).unwrap();
    host.must(&["mounts", "mount", "--all"]);
    for (name, (tree, _)) in names.iter().zip(&dirs) {
        write_synced(&tree.join("afterwards"), 10_000).unwrap();
        host.wait(name, WAIT_SECONDS);
    }
    host.stop();
    for (tree, target) in &dirs {
        trees::assert_equal(tree, target, "there is room");
    }
}

/// The state database fails once, in the middle of everything: what it should have held is done again.
#[test]
fn a_failed_transaction_of_the_state_database_is_made_good() {
    for nth in [3, 8, 12, 20, 40] {
        let scratch = Scratch::new(FileSystem::Ext4);
        let (source, target) = (scratch.dir("source"), scratch.dir("target"));
        let mut host = Host::new();
        host.define_volume("data", &source);
        host.define_target("data", &target);
        host.start_with_faults(&format!("journal.sqlite=errno:28@{nth}"));
        if host.run(&["mounts", "mount", "--all"]).code != 0 {
            host.must(&["mounts", "mount", "--all"]);
        }
        for no in 0..30 {
            write_synced(&source.join(format!("{no}")), 20_000).unwrap();
            if no % 10 == 0 {
                host.wait("data", WAIT_SECONDS);
            }
        }
        host.wait("data", WAIT_SECONDS);
        host.stop();
        trees::assert_equal(&source, &target, &format!("the {nth}th transaction failed"));
    }
}
