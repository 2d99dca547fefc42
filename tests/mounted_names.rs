//! Names and directories: rename2, odd names, depth, large directories that change while they are listed.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirEntryExt, MetadataExt, symlink};
use std::path::Path;

use dtfs::sys::{self, Errno};
use nix::fcntl::AT_FDCWD;
use support::both::{Both, Facts, c_path};
use support::mounted::Mounted;
use support::scratch::{FileSystem, Scratch};

const EVERY: [FileSystem; 3] = [FileSystem::Ext4, FileSystem::Xfs, FileSystem::Btrfs];

fn on_every_filesystem(context: &str, scenario: impl Fn(&Both)) {
    for kind in EVERY {
        let both = Both::on(kind);
        scenario(&both);
        both.finish(&format!("{context} on {kind:?}"));
    }
}

fn rename(from: &Path, to: &Path, flags: u32) -> sys::Result<()> {
    sys::renameat2(AT_FDCWD, &c_path(from), AT_FDCWD, &c_path(to), flags)
}

/// A little of everything, two names of one object among it.
fn furnish(dir: &Path) {
    fs::create_dir_all(dir.join("full/inner")).unwrap();
    fs::create_dir(dir.join("empty")).unwrap();
    fs::write(dir.join("file"), b"file").unwrap();
    fs::write(dir.join("other"), b"other").unwrap();
    fs::hard_link(dir.join("file"), dir.join("twin")).unwrap();
    symlink("file", dir.join("link")).unwrap();
    nix::unistd::mkfifo(&dir.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
}

fn listing(dir: &Path, facts: &mut Facts) {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap()).collect();
    names.sort_by_key(fs::DirEntry::file_name);
    for entry in names {
        let stat = entry.metadata().unwrap();
        assert_eq!(entry.ino(), stat.ino(), "the listing and stat agree");
        let content = if stat.is_file() { fs::read(entry.path()).unwrap() } else { Vec::new() };
        let name = entry.file_name().into_encoded_bytes().escape_ascii().to_string();
        facts
            .add(name, format!("{:o} links {} {content:?}", stat.mode(), if stat.is_dir() { 0 } else { stat.nlink() }));
    }
}

fn renames(dir: &Path, facts: &mut Facts) {
    let names = ["full", "full/inner", "empty", "file", "twin", "link", "fifo", "none", "empty/new", "full/inner/deep"];
    let flags =
        [0, libc::RENAME_NOREPLACE, libc::RENAME_EXCHANGE, libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE, 1 << 7];
    for flag in flags {
        for (from, to) in names.iter().flat_map(|from| names.iter().map(move |to| (from, to))) {
            let place = dir.join(format!("{flag}-{}-{}", from.replace('/', "+"), to.replace('/', "+")));
            fs::create_dir(&place).unwrap();
            furnish(&place);
            let what = format!("{from} to {to} with {flag:#x}");
            facts.sys(&what, rename(&place.join(from), &place.join(to), flag));
            listing(&place, facts);
        }
    }
}

#[test]
fn every_rename_between_every_kind() {
    on_every_filesystem("renames", |both| both.same("renames", renames));
}

/// A difference: see src/stack/SEMANTICS.md.
#[test]
fn a_rename_leaves_no_whiteout() {
    let m = Mounted::new();
    fs::write(m.path("a"), b"").unwrap();
    assert_eq!(rename(&m.path("a"), &m.path("b"), libc::RENAME_WHITEOUT), Err(Errno::EINVAL));
}

fn odd_names(dir: &Path, facts: &mut Facts) {
    for byte in (1..=255u8).filter(|byte| *byte != b'/') {
        let name = if byte == b'.' { vec![b'.'; 3] } else { vec![byte] };
        facts.end(byte, fs::write(dir.join(OsStr::from_bytes(&name)), [byte]));
        facts.end(byte, fs::create_dir(dir.join(OsStr::from_bytes(&[b"dir-", &name[..]].concat()))));
    }
    let long = |len| OsStr::from_bytes(&[0xf0; 300][..len]).to_owned();
    for len in [254, 255, 256] {
        let at = dir.join(long(len));
        facts.end(len, fs::write(&at, b"long"));
        facts.end(len, fs::rename(&at, dir.join(OsStr::from_bytes(&vec![b'x'; len]))));
        facts.end(len, symlink(OsStr::from_bytes(&vec![b'/'; 4095]), dir.join(OsStr::from_bytes(&vec![b's'; len]))));
        facts.end(len, fs::metadata(&at));
    }
    facts.end("text of 4096", symlink(OsStr::from_bytes(&[b'x'; 4096]), dir.join("too-long")));
    for odd in ["", ".", "..", "a/..", "dir-a/.", "file/"] {
        facts.end(odd, fs::create_dir(dir.join(odd)));
        facts.end(odd, fs::remove_dir(dir.join(odd)));
        facts.end(odd, fs::rename(dir.join("dir-a"), dir.join(odd)));
    }
    listing(dir, facts);
}

#[test]
fn names_of_every_byte_and_of_255() {
    on_every_filesystem("names", |both| both.same("names", odd_names));
}

fn open_dir(parent: &OwnedFd, name: &CString) -> sys::Result<OwnedFd> {
    sys::openat(parent.as_fd(), name, libc::O_PATH | libc::O_DIRECTORY, 0)
}

/// Deeper than any path can say: 30 names of 250 bytes.
fn depth(dir: &Path, facts: &mut Facts) {
    let name = CString::new("d".repeat(250)).unwrap();
    let mut levels = vec![sys::openat(AT_FDCWD, &c_path(dir), libc::O_PATH, 0).unwrap()];
    for _ in 0..30 {
        let last = levels.last().unwrap();
        sys::mkdirat(last.as_fd(), &name, 0o755).unwrap();
        levels.push(open_dir(last, &name).unwrap());
    }
    let bottom = levels.last().unwrap().as_fd();
    let flags = libc::O_CREAT | libc::O_WRONLY;
    let file = sys::openat(bottom, c"file", flags, 0o644).unwrap();
    facts.sys("write", sys::pwrite(file.as_fd(), b"deep", 0));
    facts.sys("symlink", sys::symlinkat(c"file", bottom, c"link"));
    facts.sys("rename", sys::renameat2(bottom, c"file", levels[3].as_fd(), c"up", 0));
    facts.add("size", format!("{:?}", sys::fstatat(levels[3].as_fd(), c"up").map(|stat| stat.size)));
    facts.sys("into itself", sys::renameat2(levels[2].as_fd(), &name, bottom, c"loop", 0));
    let path = dir.join(name.to_str().unwrap().to_owned() + "/").join([name.to_str().unwrap(); 20].join("/"));
    facts.end("as a path", fs::metadata(path));
    let up = (0..30).try_fold(levels.pop().unwrap(), |at, _| open_dir(&at, &c"..".to_owned()));
    facts.add("up again", up.is_ok_and(|top| sys::fstat(top.as_fd()).unwrap().ino == fs::metadata(dir).unwrap().ino()));
}

#[test]
fn deeper_than_a_path_can_say() {
    on_every_filesystem("depth", |both| both.same("depth", depth));
}

/// Half of the entries go while the directory is listed: none may come twice, none that stays may be missing.
fn listed_while_it_shrinks(kind: FileSystem, count: usize) {
    let scratch = Scratch::with_size(kind, 2048);
    let behind = scratch.dir("tree");
    fs::create_dir(behind.join("many")).unwrap();
    let name = |number: usize| format!("entry-{number:07}");
    for number in 0..count {
        File::create(behind.join("many").join(name(number))).unwrap();
    }
    let m = Mounted::over(tempfile::tempdir().unwrap(), behind);
    let dir = m.path("many");
    let seen = std::thread::scope(|scope| {
        let remover = scope.spawn(|| {
            for number in (0..count).step_by(2) {
                fs::remove_file(dir.join(name(number))).unwrap();
            }
        });
        let mut seen: HashMap<Vec<u8>, u32> = HashMap::new();
        for entry in fs::read_dir(&dir).unwrap() {
            *seen.entry(entry.unwrap().file_name().into_vec()).or_default() += 1;
        }
        remover.join().unwrap();
        seen
    });
    let twice: Vec<_> = seen.iter().filter(|(_, times)| **times > 1).take(5).collect();
    assert!(twice.is_empty(), "{kind:?}: listed twice: {twice:?}");
    let lost = (1..count).step_by(2).find(|number| !seen.contains_key(name(*number).as_bytes()));
    assert_eq!(lost, None, "{kind:?}: an entry that stayed was not listed");
    assert_eq!(fs::read_dir(&dir).unwrap().count(), count / 2, "{kind:?}");
}

#[test]
fn a_large_directory_is_listed_while_it_shrinks_on_ext4() {
    listed_while_it_shrinks(FileSystem::Ext4, 100_000);
}

#[test]
fn a_large_directory_is_listed_while_it_shrinks_on_xfs() {
    listed_while_it_shrinks(FileSystem::Xfs, 20_000);
}

#[test]
fn a_large_directory_is_listed_while_it_shrinks_on_btrfs() {
    listed_while_it_shrinks(FileSystem::Btrfs, 20_000);
}

/// What a lock file goes through: four make, rename and remove the same names. Only these errors are native.
#[test]
fn names_that_several_fight_for() {
    let m = Mounted::new();
    let fight = |number: usize| {
        for round in 0..500 {
            let (mine, lock) = (m.path(&format!("mine-{number}")), m.path("lock"));
            let steps = [
                fs::write(&mine, format!("{number} {round}")),
                fs::hard_link(&mine, &lock),
                fs::read(&lock).map(drop),
                fs::rename(&mine, &lock),
                fs::remove_file(&lock),
            ];
            for (step, end) in steps.into_iter().enumerate() {
                let errno = end.err().and_then(|error| error.raw_os_error());
                let native = matches!(errno, None | Some(libc::ENOENT | libc::EEXIST));
                assert!(native, "step {step} of round {round}: {errno:?}");
            }
        }
    };
    std::thread::scope(|scope| {
        for number in 0..4 {
            scope.spawn(move || fight(number));
        }
    });
    let left = |dir: &Path| fs::read_dir(dir).unwrap().count();
    assert_eq!(left(&m.at), left(&m.behind));
    assert!(!m.stack.has_failed());
}
