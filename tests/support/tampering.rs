//! What may be done to a target's tree behind its back.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::time::Duration;

use super::process::tool;
use super::scratch::utf8;
use super::trees;

/// Everything that a tampering may be done to, and `many` small files that nothing is done to.
pub(crate) fn fill(source: &Path, many: usize) {
    trees::fill(&source.join("many"), many);
    let dir = source.join("dir");
    fs::create_dir_all(dir.join("sub/deeper")).unwrap();
    for name in ["content", "mode", "owner", "xattr", "xattr-gone", "mtime", "size", "gone", "renamed", "replaced"] {
        fs::write(dir.join(name), name.repeat(5000)).unwrap();
    }
    let big = File::create(dir.join("big")).unwrap();
    big.set_len(40 << 20).unwrap();
    big.write_all_at(&vec![3; 3 << 20], 20 << 20).unwrap();
    let holes = File::create(dir.join("holes")).unwrap();
    holes.set_len(8 << 20).unwrap();
    holes.write_all_at(&[1; 4096], 0).unwrap();
    for name in ["xattr", "xattr-gone"] {
        tool("setfattr", &["-n", "user.colour", "-v", "blue", utf8(&dir.join(name))]);
    }
    fs::write(dir.join("linked"), "one object, two names").unwrap();
    fs::hard_link(dir.join("linked"), dir.join("sub/link")).unwrap();
    symlink("nowhere", dir.join("symlink")).unwrap();
    fs::write(dir.join("sub/deeper/leaf"), "leaf").unwrap();
    fs::create_dir(source.join("moved")).unwrap();
    fs::write(source.join("moved/inner"), "inner").unwrap();
    fs::write(dir.join("flags"), "flags").unwrap();
}

/// Keeps the times of `path` while `change` changes it.
fn with_times(path: &Path, change: impl FnOnce()) {
    let stat = fs::symlink_metadata(path).unwrap();
    change();
    let file = File::options().read(true).open(path).unwrap();
    let times = fs::FileTimes::new().set_modified(stat.modified().unwrap()).set_accessed(stat.accessed().unwrap());
    file.set_times(times).unwrap();
    assert_eq!(fs::symlink_metadata(path).unwrap().modified().unwrap(), stat.modified().unwrap());
}

/// Changes of a target, each with what a verification must say of it. Directories keep their times where entries change, so
/// that only the change itself can be noticed.
pub(crate) struct Tampering {
    /// The word of a verification for it.
    pub(crate) what: &'static str,
    pub(crate) path: &'static str,
    pub(crate) change: fn(&Path),
}

const fn tampering(what: &'static str, path: &'static str, change: fn(&Path)) -> Tampering {
    Tampering { what, path, change }
}

fn in_dir(path: &Path, change: impl FnOnce()) {
    with_times(path.parent().unwrap(), change);
}

pub(crate) fn write_at(path: &Path, bytes: &[u8], offset: u64) {
    with_times(path, || File::options().write(true).open(path).unwrap().write_all_at(bytes, offset).unwrap());
}

pub(crate) const TAMPERINGS: &[Tampering] = &[
    // One bit, with size and mtime as they were.
    tampering("content", "dir/content", |path| write_at(path, b"C", 12_345)),
    tampering("content", "dir/big", |path| write_at(path, &[2], (23 << 20) - 1)),
    // Zeros where the source has a hole, and bytes in another.
    tampering("holes", "dir/holes", |path| write_at(path, &[0; 4096], 4 << 20)),
    tampering("mode", "dir/mode", |path| fs::set_permissions(path, Permissions::from_mode(0o4777)).unwrap()),
    tampering("owner", "dir/owner", |path| chown(path, Some(4711), None).unwrap()),
    tampering("mtime", "dir/mtime", |path| {
        let later = fs::metadata(path).unwrap().modified().unwrap() + Duration::from_nanos(1);
        File::open(path).unwrap().set_modified(later).unwrap();
    }),
    tampering("size", "dir/size", |path| {
        with_times(path, || File::options().write(true).open(path).unwrap().set_len(7).unwrap())
    }),
    tampering("xattr", "dir/xattr", |path| drop(tool("setfattr", &["-n", "user.colour", "-v", "red", utf8(path)]))),
    tampering("xattr", "dir/xattr-gone", |path| drop(tool("setfattr", &["-x", "user.colour", utf8(path)]))),
    tampering("xattr", "dir/sub/deeper", |path| drop(tool("setfattr", &["-n", "user.new", "-v", "1", utf8(path)]))),
    tampering("flags", "dir/flags", |path| drop(tool("chattr", &["+d", utf8(path)]))),
    tampering("missing", "dir/gone", |path| in_dir(path, || fs::remove_file(path).unwrap())),
    tampering("missing", "dir/renamed", |path| {
        in_dir(path, || fs::rename(path, path.with_file_name("other")).unwrap())
    }),
    tampering("extra", "many/extra", |path| in_dir(path, || fs::write(path, "not of the source").unwrap())),
    tampering("extra", "many/extra-dir", |path| in_dir(path, || fs::create_dir(path).unwrap())),
    tampering("replaced", "dir/replaced", |path| {
        // A copy with everything that the original had, also the mark of its identity.
        in_dir(path, || {
            let copy = path.with_file_name("copy");
            tool("cp", &["--archive", utf8(path), utf8(&copy)]);
            fs::rename(copy, path).unwrap();
        });
    }),
    // A hard link that is none any more.
    tampering("replaced", "dir/sub/link", |path| {
        in_dir(path, || {
            let copy = path.with_file_name("copy");
            tool("cp", &["--preserve=mode,ownership,timestamps", utf8(path), utf8(&copy)]);
            fs::rename(copy, path).unwrap();
        });
    }),
    tampering("extra", "moved/second-name", |path| {
        in_dir(path, || fs::hard_link(path.with_file_name("inner"), path).unwrap())
    }),
    tampering("replaced", "dir/symlink", |path| {
        in_dir(path, || {
            fs::remove_file(path).unwrap();
            symlink("elsewhere", path).unwrap();
        });
    }),
    tampering("missing", "dir/sub/deeper/leaf", |path| {
        in_dir(path, || {
            let to = path.ancestors().nth(4).unwrap().join("moved/leaf");
            in_dir(&to, || fs::rename(path, &to).unwrap());
        })
    }),
];

/// What follows from a tampering elsewhere: the new places of what was renamed.
pub(crate) const CONSEQUENCES: &[(&str, &str)] =
    &[("extra", "dir/other"), ("extra", "moved/leaf"), ("content", "dir/size")];

impl Tampering {
    /// Whether nothing but the content tells of it: size, time of modification and everything else are as they were.
    pub(crate) fn is_in_content_only(&self) -> bool {
        matches!(self.what, "content" | "holes")
    }
}
