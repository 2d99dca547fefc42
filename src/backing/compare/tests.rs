//! Each of the 13 kinds of difference, made one at a time, must be reported; equal trees must not be.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};

use super::*;
use crate::base::Timespec;
use crate::sys::TimeChange;

const OLD: Timespec = Timespec { sec: 1_000_000_000, nsec: 123_456_789 };

fn set_mtime(path: &Path, mtime: Timespec) {
    let dir = File::open(path.parent().unwrap()).unwrap();
    let name = Name::new(path.file_name().unwrap().as_bytes()).unwrap();
    let fd = sys::openat(dir.as_fd(), name.as_cstr(), libc::O_PATH, 0).unwrap();
    sys::utimens(fd.as_fd(), TimeChange::Set(mtime), TimeChange::Set(mtime)).unwrap();
}

/// Gives everything below `dir`, and `dir` itself, one mtime, so that only what a case changes differs.
fn freeze(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.symlink_metadata().unwrap().is_dir() {
            true => freeze(&path),
            false => set_mtime(&path, OLD),
        }
    }
    set_mtime(dir, OLD);
}

fn mknod(dir: &Path, name: &std::ffi::CStr, mode: u32, rdev: u64) {
    sys::mknodat(File::open(dir).unwrap().as_fd(), name, mode, rdev).unwrap();
}

fn xattr(path: &Path, value: &[u8]) {
    sys::setxattr(File::open(path).unwrap().as_fd(), c"trusted.test", value, 0).unwrap();
}

fn build(root: &Path) {
    fs::create_dir(root).unwrap();
    fs::create_dir(root.join("d")).unwrap();
    fs::write(root.join("d/f"), b"content").unwrap();
    fs::set_permissions(root.join("d/f"), fs::Permissions::from_mode(0o640)).unwrap();
    xattr(&root.join("d/f"), b"one");
    fs::write(root.join("p"), b"same").unwrap();
    fs::write(root.join("q"), b"same").unwrap();
    fs::hard_link(root.join("p"), root.join("p2")).unwrap();
    fs::hard_link(root.join("q"), root.join("q2")).unwrap();
    symlink("target", root.join("l")).unwrap();
    mknod(root, c"null", libc::S_IFCHR | 0o600, libc::makedev(1, 3));
    mknod(root, c"fifo", libc::S_IFIFO | 0o600, 0);
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.set_len(1 << 20).unwrap();
    sparse.write_all_at(&[7; 4096], 512 << 10).unwrap();
    freeze(root);
}

/// Builds two equal trees, changes the second and returns what is reported.
fn after(mutate: impl FnOnce(&Path)) -> CompareReport {
    let scratch = tempfile::tempdir().unwrap();
    let (a, b) = (scratch.path().join("a"), scratch.path().join("b"));
    build(&a);
    build(&b);
    mutate(&b);
    compare_trees(&a, &b, &CompareOptions::default()).unwrap()
}

fn only(report: &CompareReport) -> (&[u8], &What) {
    assert_eq!(report.found, 1, "{report}");
    (&report.differences[0].path, &report.differences[0].what)
}

#[test]
fn equal_trees_have_no_difference_and_own_names_do_not_count() {
    let report = after(|b| {
        fs::create_dir(b.join(".dtfs")).unwrap();
        let own = File::open(b.join("p")).unwrap();
        sys::setxattr(own.as_fd(), c"trusted.dtfs.oid", b"x", 0).unwrap();
        set_mtime(b, OLD);
    });
    assert!(report.is_equal(), "{report}");
    assert_eq!(report.objects, 11);
}

#[test]
fn each_kind_of_difference_is_reported() {
    type Case = (&'static str, fn(&Path), fn(&What) -> bool);
    let cases: [Case; 13] = [
        (
            "d/f",
            |b| (fs::remove_file(b.join("d/f")).unwrap(), set_mtime(&b.join("d"), OLD)).1,
            |w| matches!(w, What::Missing(Side::B)),
        ),
        (
            "l",
            |b| {
                fs::remove_file(b.join("l")).unwrap();
                fs::write(b.join("l"), "target").unwrap();
                freeze(b);
            },
            |w| matches!(w, What::Type { a: libc::S_IFLNK, b: libc::S_IFREG }),
        ),
        (
            "d/f",
            |b| fs::set_permissions(b.join("d/f"), fs::Permissions::from_mode(0o641)).unwrap(),
            |w| matches!(w, What::Mode { a: 0o640, b: 0o641 }),
        ),
        ("d", |b| chown(b.join("d"), Some(12), None).unwrap(), |w| matches!(w, What::Uid { a: 0, b: 12 })),
        ("null", |b| chown(b.join("null"), None, Some(13)).unwrap(), |w| matches!(w, What::Gid { a: 0, b: 13 })),
        (
            "d/f",
            |b| {
                File::options().write(true).open(b.join("d/f")).unwrap().set_len(8).unwrap();
                freeze(b);
            },
            |w| matches!(w, What::Size { a: 7, b: 8 }),
        ),
        (
            "sparse",
            |b| {
                File::options()
                    .write(true)
                    .open(b.join("sparse"))
                    .unwrap()
                    .write_all_at(b"!", (512 << 10) + 9)
                    .unwrap();
                freeze(b);
            },
            |w| matches!(w, What::Content { offset: 524_297 }),
        ),
        (
            "sparse",
            |b| {
                let file = File::options().write(true).open(b.join("sparse")).unwrap();
                file.write_all_at(&[0; 4096], 0).unwrap();
                freeze(b);
            },
            |w| matches!(w, What::Holes { offset: 0 }),
        ),
        (
            "fifo",
            |b| set_mtime(&b.join("fifo"), Timespec { nsec: OLD.nsec + 1, ..OLD }),
            |w| matches!(w, What::Mtime { b: Timespec { nsec: 123_456_790, .. }, .. }),
        ),
        (
            "l",
            |b| {
                fs::remove_file(b.join("l")).unwrap();
                symlink("Target", b.join("l")).unwrap();
                freeze(b);
            },
            |w| matches!(w, What::LinkText),
        ),
        (
            "null",
            |b| {
                fs::remove_file(b.join("null")).unwrap();
                mknod(b, c"null", libc::S_IFCHR | 0o600, libc::makedev(1, 5));
                freeze(b);
            },
            |w| matches!(w, What::Rdev { a: 0x103, b: 0x105 }),
        ),
        ("d/f", |b| xattr(&b.join("d/f"), b"two"), |w| matches!(w, What::Xattr { name } if name == b"trusted.test")),
        (
            "q2",
            |b| {
                fs::remove_file(b.join("q2")).unwrap();
                fs::hard_link(b.join("p"), b.join("q2")).unwrap();
                freeze(b);
            },
            |w| matches!(w, What::HardLinks),
        ),
    ];
    for (path, mutate, expected) in cases {
        let report = after(mutate);
        let (found_at, what) = only(&report);
        assert_eq!(found_at, path.as_bytes(), "{report}");
        assert!(expected(what), "{path}: {what:?}");
    }
}

#[test]
fn an_acl_counts_as_any_xattr() {
    let report = after(|b| {
        // Version 2; user::rw-, user:1:r--, group::r--, mask::r--, other::---.
        let entries: [(u16, u16, u32); 5] =
            [(1, 6, u32::MAX), (2, 4, 1), (4, 4, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)];
        let mut acl = 2u32.to_le_bytes().to_vec();
        for (tag, perm, id) in entries {
            acl.extend([tag.to_le_bytes(), perm.to_le_bytes()].concat());
            acl.extend(id.to_le_bytes());
        }
        sys::setxattr(File::open(b.join("d/f")).unwrap().as_fd(), c"system.posix_acl_access", &acl, 0).unwrap();
    });
    assert!(matches!(only(&report).1, What::Xattr { name } if name == b"system.posix_acl_access"), "{report}");
}

#[test]
fn atime_counts_only_when_asked() {
    let scratch = tempfile::tempdir().unwrap();
    let (a, b) = (scratch.path().join("a"), scratch.path().join("b"));
    build(&a);
    build(&b);
    let fd = File::open(b.join("p")).unwrap();
    sys::utimens(fd.as_fd(), TimeChange::Set(Timespec { sec: 5, nsec: 0 }), TimeChange::Keep).unwrap();
    assert!(compare_trees(&a, &b, &CompareOptions::default()).unwrap().is_equal());
    let with_atime = CompareOptions { atime: true, ..CompareOptions::default() };
    let report = compare_trees(&a, &b, &with_atime).unwrap();
    assert!(report.differences.iter().all(|d| matches!(d.what, What::Atime { .. })), "{report}");
    assert_eq!(report.found, 2, "both names of the inode: {report}");
}

#[test]
fn paths_longer_than_path_max_are_compared() {
    let scratch = tempfile::tempdir().unwrap();
    for side in ["a", "b"] {
        let root = scratch.path().join(side);
        fs::create_dir(&root).unwrap();
        let mut dir: OwnedFd = File::open(&root).unwrap().into();
        let name = Name::new(&[b'n'; 255]).unwrap();
        for _ in 0..20 {
            sys::mkdirat(dir.as_fd(), name.as_cstr(), 0o755).unwrap();
            dir = sys::openat(dir.as_fd(), name.as_cstr(), libc::O_RDONLY | libc::O_DIRECTORY, 0).unwrap();
        }
        sys::mkdirat(dir.as_fd(), if side == "a" { c"x" } else { c"y" }, 0o755).unwrap();
    }
    let (a, b) = (scratch.path().join("a"), scratch.path().join("b"));
    let report = compare_trees(&a, &b, &CompareOptions::default()).unwrap();
    let missing = report.differences.iter().filter(|d| matches!(d.what, What::Missing(_)) && d.path.len() > 4096);
    assert_eq!(missing.count(), 2, "{report}");
}

#[test]
fn the_list_is_bounded_and_a_missing_root_is_an_error() {
    let scratch = tempfile::tempdir().unwrap();
    let (a, b) = (scratch.path().join("a"), scratch.path().join("b"));
    fs::create_dir(&a).unwrap();
    let error = compare_trees(&a, &b, &CompareOptions::default()).unwrap_err();
    assert_eq!((error.side, error.errno), (Side::B, Errno::ENOENT));
    fs::create_dir(&b).unwrap();
    for i in 0..150 {
        fs::write(a.join(i.to_string()), "").unwrap();
    }
    let report = compare_trees(&a, &b, &CompareOptions::default()).unwrap();
    assert_eq!(report.differences.len(), 100);
    assert!(report.found >= 150);
    assert!(report.to_string().contains("more\n"), "{report}");
}
