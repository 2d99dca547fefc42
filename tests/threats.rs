//! What local users can try, on the source and on the target, that no other test is about.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use support::behind::uncover;
use support::process::{tool, wait_until};
use support::replica::Pair;
use support::scratch::{FileSystem, utf8};
use support::user::SOMEONE;

const PATIENCE: Duration = Duration::from_secs(120);

/// Everything at and below `path`.
fn all(path: &Path) -> Vec<PathBuf> {
    let mut found = vec![path.to_owned()];
    if fs::symlink_metadata(path).unwrap().is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| found.extend(all(&entry.unwrap().path())));
    }
    found
}

/// Lets everybody come as far as `path`: what keeps them out must be what lies there.
fn open_way_to(path: &Path) {
    for dir in path.ancestors().skip(1) {
        let mode = fs::metadata(dir).unwrap().permissions().mode();
        fs::set_permissions(dir, Permissions::from_mode(mode | 0o055)).unwrap();
    }
}

/// A journal and an inbox have copies of what programs wrote, with no mode of theirs, and of what is deleted.
#[test]
fn nobody_but_root_reads_what_is_stored() {
    let pair = Pair::mirrored(FileSystem::Ext4, |_| {});
    fs::write(pair.source.join("secret"), "of root only").unwrap();
    pair.wait();
    fs::remove_file(pair.source.join("secret")).unwrap();
    pair.wait();
    let state = pair.host.root().join("var/lib/dtfs");
    open_way_to(&state);
    let public = state.with_file_name("public");
    fs::write(&public, "").unwrap();
    assert!(SOMEONE.does(|| File::open(&public)).is_ok(), "the way to it is closed: this proves nothing");
    let mut looked = 0;
    for path in all(&state) {
        let stat = fs::symlink_metadata(&path).unwrap();
        let opened = SOMEONE.does(|| File::open(&path));
        assert!(opened.is_err(), "{} can be read by everybody", path.display());
        // Also by who has come into the directory when it was open, or gets a link.
        assert!(
            stat.uid() == 0 && (stat.is_symlink() || stat.mode() & 0o077 == 0),
            "{}: {:o}",
            path.display(),
            stat.mode()
        );
        looked += 1;
    }
    assert!(looked > 10, "{looked} files are no store");
}

/// A fifo holds up whoever opens it, a device does something: neither a mirror nor a verification opens them.
#[test]
fn what_is_no_file_is_not_opened() {
    let device = |path: &Path, kind, major, minor| mknod(path, kind, Mode::S_IRUSR, makedev(major, minor)).unwrap();
    let pair = Pair::mirrored(FileSystem::Ext4, |source| {
        nix::unistd::mkfifo(&source.join("fifo"), Mode::S_IRWXU).unwrap();
        drop(UnixListener::bind(source.join("socket")).unwrap());
        device(&source.join("terminal"), SFlag::S_IFCHR, 5, 0);
        device(&source.join("disk"), SFlag::S_IFBLK, 7, 250);
    });
    let behind = pair.behind();
    let fifos = [pair.source.join("fifo"), behind.join("fifo")];
    let over = AtomicBool::new(false);
    // fifo(7): opening it for writing fails with ENXIO as long as nobody has it open for reading.
    let is_open = |path: &PathBuf| OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path).is_ok();
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut seen = false;
            while !over.load(Ordering::Relaxed) {
                seen |= fifos.iter().any(is_open);
            }
            seen
        });
        for kind in ["--full", "--difference", "--checksum"] {
            pair.host.must(&["mirror", "start", "data", "target", kind, "--wait"]);
        }
        pair.host.must(&["verify", "data", "target"]);
        over.store(true, Ordering::Relaxed);
        assert!(!watch.join().unwrap(), "somebody has opened a fifo");
        for fifo in &fifos {
            let reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(fifo).unwrap();
            assert!(is_open(fifo), "a reader would not have been seen");
            drop(reader);
        }
    });
    drop(behind);
    pair.stop_and_compare("with what is no file");
}

/// A directory or a file that is mounted over another, until it is dropped.
struct Bound(PathBuf);

impl Bound {
    fn over(point: PathBuf, what: &Path) -> Bound {
        tool("mount", &["--bind", utf8(what), utf8(&point)]);
        Bound(point)
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        tool("umount", &["--lazy", utf8(&self.0)]);
    }
}

/// Everything at and below `dir`, with what shows that it was changed, or that its count of links was.
fn states(dir: &Path) -> Vec<(PathBuf, i64, i64, u64)> {
    let state = |path: PathBuf| {
        let stat = fs::symlink_metadata(&path).unwrap();
        (path, stat.ctime(), stat.ctime_nsec(), stat.nlink())
    };
    all(dir).into_iter().map(state).collect()
}

/// A change of every kind in, into and out of `dir`.
fn change_all(source: &Path, dir: &str) {
    let at = |name: &str| source.join(dir).join(name);
    fs::write(at("file"), "changed").unwrap();
    fs::set_permissions(at("file"), Permissions::from_mode(0o604)).unwrap();
    fs::write(at("new"), "new").unwrap();
    fs::hard_link(at("file"), source.join(format!("{dir}-link"))).unwrap();
    fs::hard_link(source.join("plain"), at("plain-link")).unwrap();
    fs::rename(at("moved"), source.join(format!("{dir}-moved"))).unwrap();
    fs::rename(source.join(format!("{dir}-comes")), at("came")).unwrap();
    fs::remove_file(at("gone")).unwrap();
    fs::rename(at("inner/file"), at("file-of-inner")).unwrap();
    fs::remove_dir(at("inner")).unwrap();
}

/// Waits until the target takes nothing and says that this is for what is mounted on `point`.
fn refused_for(pair: &Pair, point: &Path) {
    wait_until("the target to be refused", PATIENCE, || {
        let target = pair.host.target("data");
        let reason = target["reason"].as_str().unwrap_or_default();
        (reason.contains("mounted below it") && reason.contains(utf8(point))).then_some(())
    });
}

/// What lies mounted inside a target when a session begins is refused by name. Who mounts something there while it is served does so over a
/// directory or a file: records are for what is below, and reach nothing that is mounted, also where device and names are the
/// same.
#[test]
fn what_is_mounted_inside_a_target_is_out_of_reach() {
    const DIRS: [&str; 2] = ["one", "other"];
    let fill = |dir: &Path| {
        fs::create_dir_all(dir.join("inner")).unwrap();
        for name in ["file", "moved", "gone", "inner/file"] {
            fs::write(dir.join(name), "as it came").unwrap();
        }
    };
    let mut pair = Pair::mirrored(FileSystem::Ext4, |source| {
        fs::write(source.join("plain"), "as it came").unwrap();
        for dir in DIRS {
            fill(&source.join(dir));
            fs::write(source.join(format!("{dir}-comes")), "as it came").unwrap();
        }
    });
    let (target, outside) = (pair.target.clone(), pair.scratch.dir("outside"));
    fill(&outside);
    let before = states(&outside);
    pair.host.stop();
    uncover(&target);
    let inside = Bound::over(target.join("one"), &outside);
    pair.host.start_and_mount();
    change_all(&pair.source, "one");
    refused_for(&pair, &target.join("one"));
    drop(inside);
    pair.wait();

    let inside = [
        Bound::over(target.join("other"), &outside),
        Bound::over(target.join("plain"), &outside.join("file")),
        Bound::over(target.join("one-moved"), &outside.join("file")),
    ];
    assert_eq!(
        fs::metadata(target.join("other/file")).unwrap().ino(),
        fs::metadata(outside.join("file")).unwrap().ino()
    );
    change_all(&pair.source, "other");
    fs::write(pair.source.join("plain"), "changed").unwrap();
    pair.wait();
    pair.host.must(&["verify", "data", "target"]);
    // The kernel does not remove a name on which something is mounted (EBUSY, fs/namei.c, vfs_unlink).
    fs::remove_file(pair.source.join("one-moved")).unwrap();
    refused_for(&pair, &target.join("one-moved"));
    assert_eq!(states(&outside), before, "something that is mounted was changed");
    drop(inside);
    pair.wait();
    assert_eq!(states(&outside), before, "something that was mounted was changed");
    pair.stop_and_compare("below what was mounted");
}
