//! What local users can try, on the source and on the target, that no other test is about.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use support::replica::Pair;
use support::scratch::FileSystem;
use support::user::SOMEONE;

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
