//! What is changed while nobody watches is found at the next mount and reaches the target, at the price of a comparison
//! of what changed.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use support::host::Host;
use support::process::wait_until;
use support::scratch::{FileSystem, Scratch};
use support::trees;

const WAIT_SECONDS: u32 = 30;

/// A volume `data` with one target that holds everything, both on one filesystem, with room for a directory outside.
struct Pair {
    host: Host,
    source: PathBuf,
    target: PathBuf,
    outside: PathBuf,
    _scratch: Scratch,
}

impl Pair {
    fn new(kind: FileSystem, prepare: impl FnOnce(&Path)) -> Pair {
        let scratch = Scratch::new(kind);
        let (source, target, outside) = (scratch.dir("source"), scratch.dir("target"), scratch.dir("outside"));
        prepare(&source);
        let mut host = Host::new();
        host.define_volume("data", &source);
        host.start_and_mount();
        host.define_target("data", &target);
        host.wait("data", WAIT_SECONDS);
        Pair { host, source, target, outside, _scratch: scratch }
    }

    /// Waits until nothing in the tree looks as if it was changed at the time of the next stop.
    fn quiet(&self) {
        let newest = newest_ctime(&self.source);
        wait_until("a quiet moment", Duration::from_secs(10), || {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64;
            (now > newest + 3).then_some(())
        });
    }

    /// Stops the daemon, lets `change` work on the bare directory, and starts it again; returns the bytes that this cost.
    fn changed_while_stopped(&mut self, change: impl FnOnce(&Path, &Path)) -> u64 {
        self.host.stop();
        change(&self.source, &self.outside);
        self.host.start_and_mount();
        self.host.wait("data", WAIT_SECONDS);
        self.host.bytes_sent("data")
    }

    fn stop_and_compare(mut self, context: &str) {
        self.host.wait("data", WAIT_SECONDS);
        self.host.stop();
        trees::assert_equal(&self.source, &self.target, context);
    }
}

fn newest_ctime(dir: &Path) -> i64 {
    let below = fs::read_dir(dir).unwrap().map(|entry| {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => newest_ctime(&entry.path()),
            false => entry.metadata().unwrap().ctime(),
        }
    });
    below.fold(fs::metadata(dir).unwrap().ctime(), i64::max)
}

/// 2,000 small files that stay, one large one, and something to do each kind of change to.
fn prepare(source: &Path) {
    trees::fill(&source.join("still"), 2000);
    trees::fill(&source.join("renamed-dir/inner/deep"), 50);
    trees::fill(&source.join("moved-dir/inner"), 50);
    trees::fill(&source.join("deleted-dir/inner"), 50);
    trees::fill(&source.join("files"), 20);
    fs::create_dir(source.join("elsewhere")).unwrap();
    let large = File::create(source.join("large")).unwrap();
    (0..8).for_each(|mib| large.write_all_at(&vec![mib as u8; 1 << 20], mib << 20).unwrap());
    for name in ["mode", "xattr", "linked", "unlinked-one"] {
        fs::write(source.join(name), name).unwrap();
    }
    fs::hard_link(source.join("unlinked-one"), source.join("unlinked-two")).unwrap();
    symlink("mode", source.join("symlink")).unwrap();
}

/// Every kind of change that the bare directory can see.
fn change(source: &Path, outside: &Path) {
    let at = |name: &str| source.join(name);
    fs::rename(at("renamed-dir"), at("new-name")).unwrap();
    fs::rename(at("moved-dir"), at("elsewhere/moved")).unwrap();
    fs::remove_dir_all(at("deleted-dir")).unwrap();
    fs::remove_file(at("files/file-00000")).unwrap();
    fs::rename(at("files/file-00001"), at("files/renamed")).unwrap();
    fs::rename(at("files/file-00002"), at("elsewhere/crossed")).unwrap();
    fs::rename(at("files/file-00003"), at("files/file-00004")).unwrap();
    overwrite(&at("files/file-00005"), b"XYZ", 3);
    overwrite(&at("large"), b"four megabytes in", 4 << 20);
    File::options().append(true).open(at("files/file-00006")).unwrap().write_all(b"more").unwrap();
    File::options().write(true).open(at("files/file-00007")).unwrap().set_len(4).unwrap();
    fs::set_permissions(at("mode"), PermissionsExt::from_mode(0o4711)).unwrap();
    fs::set_permissions(at("elsewhere"), PermissionsExt::from_mode(0o2750)).unwrap();
    let file = File::open(at("xattr")).unwrap();
    dtfs::sys::setxattr(std::os::fd::AsFd::as_fd(&file), c"user.colour", b"red", 0).unwrap();
    fs::hard_link(at("linked"), at("elsewhere/link")).unwrap();
    fs::remove_file(at("unlinked-one")).unwrap();
    fs::remove_file(at("symlink")).unwrap();
    symlink("elsewhere", at("symlink")).unwrap();
    fs::create_dir_all(at("born/below")).unwrap();
    fs::write(at("born/below/new"), vec![7; 100_000]).unwrap();
    fs::rename(outside.join("old"), at("elsewhere/came-in")).unwrap();
    fs::rename(at("born"), at("new-name/inner/born")).unwrap();
}

/// Overwrites bytes in place and puts the modification time back.
fn overwrite(path: &Path, bytes: &[u8], offset: u64) {
    let file = File::options().write(true).open(path).unwrap();
    let before = file.metadata().unwrap().modified().unwrap();
    file.write_all_at(bytes, offset).unwrap();
    file.set_modified(before).unwrap();
}

fn changes_made_while_stopped(kind: FileSystem) {
    let mut pair = Pair::new(kind, prepare);
    trees::fill(&pair.outside.join("old/and/deep"), 30);
    pair.quiet();
    let bytes = pair.changed_while_stopped(change);
    assert!(bytes < 1 << 20, "{kind:?}: {bytes} bytes were sent for some small changes beside an 8 MiB file");
    println!("{kind:?}: {bytes} bytes");
    pair.stop_and_compare(&format!("{kind:?}, changed while stopped"));
}

#[test]
fn changes_made_while_stopped_on_ext4() {
    changes_made_while_stopped(FileSystem::Ext4);
}

#[test]
fn changes_made_while_stopped_on_xfs() {
    changes_made_while_stopped(FileSystem::Xfs);
}

#[test]
fn changes_made_while_stopped_on_btrfs() {
    changes_made_while_stopped(FileSystem::Btrfs);
}

#[test]
fn changes_made_between_unmount_and_mount() {
    let pair = Pair::new(FileSystem::Ext4, prepare);
    trees::fill(&pair.outside.join("old/and/deep"), 30);
    pair.host.must(&["mounts", "unmount", "--all"]);
    change(&pair.source, &pair.outside);
    pair.host.must(&["mounts", "mount", "--all"]);
    fs::write(pair.source.join("files/after"), b"through the mount").unwrap();
    fs::rename(pair.source.join("new-name"), pair.source.join("elsewhere/again")).unwrap();
    pair.stop_and_compare("changed while unmounted");
}

/// An operator's own umount: nobody was told when it happened.
#[test]
fn changes_made_behind_an_umount_of_somebody_else() {
    let mut pair = Pair::new(FileSystem::Ext4, |source| trees::fill(&source.join("files"), 20));
    support::process::tool("umount", &[support::scratch::utf8(&pair.source)]);
    overwrite(&pair.source.join("files/file-00001"), b"XYZ", 3);
    pair.host.must(&["mounts", "mount", "--all"]);
    pair.host.wait("data", WAIT_SECONDS);
    support::process::tool("umount", &[support::scratch::utf8(&pair.source)]);
    overwrite(&pair.source.join("files/file-00002"), b"XYZ", 3);
    pair.host.stop();
    pair.host.start_and_mount();
    pair.stop_and_compare("umount by somebody else");
}

/// After a new start of the system no ctime proves anything: a clock may have been wrong in between.
#[test]
fn after_a_new_start_of_the_system_everything_is_compared() {
    let mut pair = Pair::new(FileSystem::Ext4, |source| trees::fill(&source.join("files"), 20));
    pair.host.stop();
    overwrite(&pair.source.join("files/file-00001"), b"XYZ", 3);
    let database = rusqlite::Connection::open(pair.host.root().join("var/lib/dtfs/data/state.db")).unwrap();
    let other_boot =
        "UPDATE meta SET value = CAST(substr(value, 1, 24) || randomblob(16) AS BLOB) WHERE key = 'watched'";
    assert_eq!(database.execute(other_boot, []).unwrap(), 1);
    drop(database);
    pair.host.start_and_mount();
    pair.host.wait("data", WAIT_SECONDS);
    assert!(pair.host.log().contains("started anew"), "{}", pair.host.log());
    pair.stop_and_compare("new start of the system");
}
