//! Inode flags, extent size hints and project ids: set, handed down by directories, and the same on the target.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;

use dtfs::sys::{self, Errno, FsXattr, InodeFlags};
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{Mode, SFlag};
use support::both::{Both, Facts, c_path};
use support::replica::Pair;
use support::scratch::FileSystem;

const EVERY: [FileSystem; 3] = [FileSystem::Ext4, FileSystem::Xfs, FileSystem::Btrfs];
const SYNC: u32 = 0x08;
const IMMUTABLE: u32 = 0x10;
const NODUMP: u32 = 0x40;
const NOATIME: u32 = 0x80;
const DIRSYNC: u32 = 0x1_0000;
const NOCOW: u32 = 0x80_0000;
const PROJECT_INHERIT: u32 = 0x200;
const EXTENT_SIZE: u32 = 0x800;
const EXTENT_SIZE_INHERIT: u32 = 0x1000;
const COW_EXTENT_SIZE: u32 = 0x1_0000;

fn open(path: &Path) -> sys::Result<OwnedFd> {
    sys::openat(AT_FDCWD, &c_path(path), libc::O_RDONLY | libc::O_NONBLOCK, 0)
}

/// chattr(1): sets `flags` beside those that are there.
fn add_flags(path: &Path, flags: u32) -> sys::Result<()> {
    let fd = open(path)?;
    let present = sys::file_flags_get(fd.as_fd())?;
    sys::file_flags_set(fd.as_fd(), sys::FileFlags(present.0 | flags))
}

fn remove_flags(path: &Path, flags: u32) -> sys::Result<()> {
    let fd = open(path)?;
    let present = sys::file_flags_get(fd.as_fd())?;
    sys::file_flags_set(fd.as_fd(), sys::FileFlags(present.0 & !flags))
}

/// xfs_io(8): changes what FS_IOC_FSSETXATTR sets.
fn change(path: &Path, change: impl Fn(&mut FsXattr)) -> sys::Result<()> {
    let fd = open(path)?;
    let mut present = FsXattr::from_bytes(&sys::fsxattr_get(fd.as_fd())?);
    change(&mut present);
    sys::fsxattr_set(fd.as_fd(), &present.to_bytes())
}

fn flags(path: &Path) -> String {
    format!("{:?}", open(path).and_then(|fd| sys::inode_flags_get(fd.as_fd())))
}

/// One object of each kind in `dir`, and what the directory handed down.
fn furnish(dir: &Path, facts: &mut Facts) {
    fs::write(dir.join("file"), b"file").unwrap();
    fs::create_dir_all(dir.join("sub/deeper")).unwrap();
    fs::write(dir.join("sub/deeper/file"), b"deep").unwrap();
    symlink("file", dir.join("link")).unwrap();
    nix::unistd::mkfifo(&dir.join("fifo"), Mode::S_IRWXU).unwrap();
    nix::sys::stat::mknod(&dir.join("node"), SFlag::S_IFREG, Mode::S_IRWXU, 0).unwrap();
    nix::sys::stat::mknod(&dir.join("null"), SFlag::S_IFCHR, Mode::S_IRWXU, 0x103).unwrap();
    for name in ["file", "sub", "sub/deeper", "sub/deeper/file", "node"] {
        facts.add(format!("{} {name}", dir.file_name().unwrap().display()), flags(&dir.join(name)));
    }
}

fn handed_down(dir: &Path, facts: &mut Facts) {
    for (name, bits) in [("sync", SYNC), ("nodump", NODUMP), ("noatime", NOATIME | DIRSYNC), ("nocow", NOCOW)] {
        let dir = dir.join(name);
        fs::create_dir(&dir).unwrap();
        facts.sys(format!("chattr {name}"), add_flags(&dir, bits));
        furnish(&dir, facts);
        facts.sys(format!("chattr {name} file"), remove_flags(&dir.join("file"), bits));
        facts.add(format!("{name} file then"), flags(&dir.join("file")));
        fs::rename(dir.join("sub/deeper/file"), dir.join("moved")).unwrap();
        facts.add(format!("{name} moved"), flags(&dir.join("moved")));
    }
    let locked = dir.join("locked");
    fs::create_dir(&locked).unwrap();
    fs::write(locked.join("file"), b"file").unwrap();
    facts.sys("immutable", add_flags(&locked, IMMUTABLE | NODUMP));
    facts.sys("project of an immutable one", change(&locked, |fsx| fsx.project = 9));
    facts.end("a file in it", fs::write(locked.join("new"), b"new"));
    facts.sys("mutable", remove_flags(&locked, IMMUTABLE));
}

fn in_project(dir: &Path, id: u32) -> sys::Result<()> {
    fs::create_dir(dir).unwrap();
    change(dir, |fsx| (fsx.project, fsx.xflags) = (id, fsx.xflags | PROJECT_INHERIT))
}

fn projects(dir: &Path, facts: &mut Facts) {
    facts.sys("one", in_project(&dir.join("one"), 1));
    facts.sys("large", in_project(&dir.join("large"), u32::MAX - 1));
    for name in ["one", "large"] {
        furnish(&dir.join(name), facts);
    }
    fs::write(dir.join("outside"), b"of no project").unwrap();
    let link = |from: &str, to: &str| fs::hard_link(dir.join(from), dir.join(to));
    let rename = |from: &str, to: &str| fs::rename(dir.join(from), dir.join(to));
    facts.end("link into a project", link("outside", "one/outside"));
    facts.end("rename into a project", rename("outside", "one/outside"));
    facts.end("rename between projects", rename("one/file", "large/from-one"));
    facts.end("rename of a directory between projects", rename("one/sub", "large/sub-of-one"));
    facts.end("rename in a project", rename("one/file", "one/sub/file"));
    facts.end("rename of a link between projects", rename("one/link", "large/from-one"));
    facts.end("rename out of a project", rename("one/sub/file", "out"));
    facts.add("out", flags(&dir.join("out")));
    facts.sys("another project", change(&dir.join("one/node"), |fsx| fsx.project = 7));
    facts.add("another project", flags(&dir.join("one/node")));
    facts.end("and now a link in its directory", link("one/node", "one/twin"));
    facts.sys("no heritage", change(&dir.join("one"), |fsx| fsx.xflags &= !PROJECT_INHERIT));
    facts.end("then anything comes in", rename("large/file", "one/from-large"));
    facts.sys("heritage again", change(&dir.join("one"), |fsx| fsx.xflags |= PROJECT_INHERIT));
    fs::create_dir(dir.join("one/late")).unwrap();
    furnish(&dir.join("one/late"), facts);
}

fn hints(dir: &Path, facts: &mut Facts) {
    let set = |name: &str, xflag: u32, bytes: u32| {
        change(&dir.join(name), |fsx| {
            fsx.xflags |= xflag;
            match xflag {
                COW_EXTENT_SIZE => fsx.cow_extent_size = bytes,
                _ => fsx.extent_size = bytes,
            }
        })
    };
    for name in ["file", "full", "copied", "dropped"] {
        fs::write(dir.join(name), b"").unwrap();
    }
    fs::write(dir.join("full"), vec![1; 100_000]).unwrap();
    facts.sys("empty file", set("file", EXTENT_SIZE, 65_536));
    facts.sys("odd size", set("dropped", EXTENT_SIZE, 65_537));
    facts.sys("full file", set("full", EXTENT_SIZE, 65_536));
    facts.sys("copies", set("copied", COW_EXTENT_SIZE, 131_072));
    File::options().write(true).open(dir.join("file")).unwrap().write_all_at(&[2; 200_000], 5).unwrap();
    facts.sys("too late", set("file", EXTENT_SIZE, 131_072));
    facts.sys("dropped", set("dropped", EXTENT_SIZE, 65_536));
    facts.sys("none again", change(&dir.join("dropped"), |fsx| fsx.xflags &= !EXTENT_SIZE));
    fs::create_dir(dir.join("of-large")).unwrap();
    facts.sys("directory", set("of-large", EXTENT_SIZE_INHERIT, 1 << 20));
    furnish(&dir.join("of-large"), facts);
    for name in ["file", "full", "copied", "dropped", "of-large"] {
        facts.add(name, flags(&dir.join(name)));
    }
}

fn everything(both: &Both) {
    both.same("flags", handed_down);
    both.same("projects", projects);
    both.same("hints", hints);
}

#[test]
fn flags_projects_and_hints_are_those_of_the_filesystem() {
    for kind in EVERY {
        let both = Both::on(kind);
        everything(&both);
        both.finish(&format!("flags on {kind:?}"));
    }
}

/// What was there before the volume is mirrored; then the directories' own change under it.
#[test]
fn flags_that_are_there_already_are_mirrored() {
    for kind in EVERY {
        let mut facts = Facts::default();
        let pair = Pair::mirrored(kind, |source| {
            let _ = change(source, |fsx| (fsx.project, fsx.xflags) = (3, fsx.xflags | PROJECT_INHERIT));
            add_flags(source, NODUMP).unwrap();
            for (name, scenario) in
                [("flags", handed_down as fn(&Path, &mut Facts)), ("projects", projects), ("hints", hints)]
            {
                fs::create_dir(source.join(name)).unwrap();
                scenario(&source.join(name), &mut Facts::default());
            }
        });
        furnish(&pair.source, &mut facts);
        fs::create_dir(pair.source.join("projects/large/late")).unwrap();
        furnish(&pair.source.join("projects/large/late"), &mut facts);
        pair.stop_and_compare(&format!("mirrored flags on {kind:?}"));
    }
}

/// On xfs also symlinks and special files show that they belong to a project.
#[test]
fn what_is_no_file_belongs_to_a_project_too() {
    let project = |path: &Path| {
        let fd = sys::openat(AT_FDCWD, &c_path(path), libc::O_PATH | libc::O_NOFOLLOW, 0)?;
        sys::inode_flags_of_path(fd.as_fd()).map(|flags: InodeFlags| flags.project)
    };
    let mut pair = Pair::mirrored(FileSystem::Xfs, |_| {});
    in_project(&pair.source.join("one"), 11).unwrap();
    furnish(&pair.source.join("one"), &mut Facts::default());
    pair.wait();
    pair.host.stop();
    for name in ["link", "fifo", "null"] {
        let (source, target) = (pair.source.join("one").join(name), pair.target.join("one").join(name));
        assert_eq!(project(&source), Ok::<_, Errno>(11), "{name}");
        assert_eq!(project(&target), Ok(11), "{name}");
    }
    pair.host.start();
    pair.stop_and_compare("projects of special files");
}
