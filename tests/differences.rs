//! What differs from the backing directory, as `src/stack/SEMANTICS.md` lists it: each row names its test, and those that
//! stand nowhere else stand here.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use dtfs::sys::{self, Errno};
use nix::sys::signal::Signal;
use support::both::Both;
use support::host::Host;
use support::mounted::Mounted;
use support::process::{Process, wait_until};
use support::scratch::{FileSystem, Scratch, utf8};
use support::user::User;

const LIMIT: Duration = Duration::from_secs(60);

/// The rows of the table of what a program sees: what differs, why, and the tests.
fn rows() -> Vec<(String, Vec<String>)> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/stack/SEMANTICS.md")).unwrap();
    let tables = text.split("| On the mount | Why | Test |").skip(1);
    let lines = tables.flat_map(|table| table.lines().skip(2).take_while(|line| line.starts_with('|')));
    let row = |line: &str| {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").collect();
        assert_eq!(cells.len(), 3, "three columns: {line}");
        let tests = cells[2].split(", ").map(|name| name.trim().trim_matches('`').to_owned());
        (cells[0].trim().to_owned(), tests.collect())
    };
    lines.map(row).collect()
}

/// The source file that `name` (FILE::FUNCTION) means.
fn file_of(name: &str) -> (PathBuf, &str) {
    let (file, function) = name.rsplit_once("::").unwrap_or_else(|| panic!("{name} is no FILE::FUNCTION"));
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let relative = match file.split_once("::") {
        Some((room, module)) => format!("src/{room}/{module}.rs"),
        None => format!("tests/{file}.rs"),
    };
    (root.join(relative), function)
}

#[test]
fn every_difference_has_its_test() {
    let rows = rows();
    assert!(rows.len() > 25, "{} rows", rows.len());
    for (what, tests) in rows {
        for name in tests {
            let (path, function) = file_of(&name);
            let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{what}: {}: {error}", path.display()));
            let is_test = text.contains(&format!("#[test]\nfn {function}()"))
                || text.contains(&format!("#[test]\n    fn {function}()"));
            assert!(is_test, "{what}: no test {function} in {}", path.display());
        }
    }
}

#[test]
fn stat_shows_no_birth_time() {
    let both = Both::on(FileSystem::Ext4);
    let born = |dir: &Path| {
        fs::write(dir.join("f"), b"x").unwrap();
        fs::metadata(dir.join("f")).unwrap().created().is_ok()
    };
    assert_eq!((born(both.bare()), born(both.mount())), (true, false));
    both.finish("birth times");
}

#[test]
fn the_limit_of_links_is_told_as_fuse_s_and_kept_as_the_filesystem_s() {
    let both = Both::on(FileSystem::Ext4);
    let limit = |dir: &Path| nix::unistd::pathconf(dir, nix::unistd::PathconfVar::LINK_MAX).unwrap();
    assert_eq!((limit(both.bare()), limit(both.mount())), (Some(65_000), Some(127)));
    let file = both.mount().join("f");
    fs::write(&file, b"x").unwrap();
    for i in 0..200 {
        fs::hard_link(&file, both.mount().join(format!("name{i}"))).unwrap();
    }
    both.finish("many links");
}

/// An ioctl of linux/fs.h with one pointer; the buffer is as large as the largest of them asks for.
fn ioctl(file: &File, request: libc::Ioctl, argument: u64) -> sys::Result<()> {
    let mut buffer = [0_u64; 32];
    buffer[0] = argument;
    buffer[1] = u64::MAX;
    #[allow(unsafe_code, reason = "these requests are in no crate")]
    // SAFETY: the buffer lives, and is larger than what each of the requests below reads or writes.
    Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), request, buffer.as_mut_ptr()) }).map(drop)
}

/// _IOWR(0x94, 13, struct file_clone_range), FIDEDUPERANGE and FS_IOC_FIEMAP; FICLONE takes a descriptor.
const FICLONERANGE: libc::Ioctl = 0x4020_940d;
const FIDEDUPERANGE: libc::Ioctl = 0xc018_9436_u32 as libc::Ioctl;
const FIEMAP: libc::Ioctl = 0xc020_660b_u32 as libc::Ioctl;

#[test]
fn extents_are_neither_shared_nor_shown() {
    let both = Both::on(FileSystem::Btrfs);
    for (dir, shared) in [(both.bare(), true), (both.mount(), false)] {
        let source = dir.join("source");
        fs::write(&source, vec![7; 65_536]).unwrap();
        File::open(&source).unwrap().sync_all().unwrap();
        let copy = File::create(dir.join("copy")).unwrap();
        let from = File::open(&source).unwrap();
        let clone = ioctl(&copy, FICLONERANGE, from.as_raw_fd() as u64);
        assert_eq!(clone.is_ok() || clone == Err(Errno::EINVAL), shared, "clone: {clone:?}");
        let map = ioctl(&from, FIEMAP, 0);
        assert_eq!(map.is_ok(), shared, "map: {map:?}");
        let always = Command::new("cp").args(["--reflink=always", utf8(&source), utf8(&dir.join("reflink"))]).output();
        assert_eq!(always.unwrap().status.success(), shared);
        let same = ioctl(&from, FIDEDUPERANGE, 0);
        assert_eq!(same != Err(Errno::EOPNOTSUPP), shared, "the same data: {same:?}");
    }
    both.finish("shared extents");
}

#[test]
fn a_swap_file_is_refused() {
    let m = Mounted::new();
    let file = m.path("swap");
    fs::write(&file, vec![0; 1 << 20]).unwrap();
    assert!(Command::new("mkswap").arg(&file).output().unwrap().status.success());
    let on = Command::new("swapon").arg(&file).output().unwrap();
    assert!(!on.status.success(), "{on:?}");
}

#[test]
fn a_copied_range_holds_zeros_where_its_source_has_a_hole() {
    let both = Both::on(FileSystem::Ext4);
    let source = File::options().read(true).write(true).create_new(true).open(both.mount().join("source")).unwrap();
    source.set_len(1 << 20).unwrap();
    source.write_all_at(&[1; 4096], (1 << 20) - 4096).unwrap();
    source.sync_all().unwrap();
    let copy = File::options().read(true).write(true).create_new(true).open(both.mount().join("copy")).unwrap();
    assert_eq!(sys::copy_file_range(source.as_fd(), 0, copy.as_fd(), 0, 1 << 20), Ok(1 << 20));
    assert_eq!(sys::lseek(source.as_fd(), 0, libc::SEEK_DATA), Ok((1 << 20) - 4096));
    assert_eq!(sys::lseek(copy.as_fd(), 0, libc::SEEK_DATA), Ok(0));
    both.finish("a copied hole");
}

#[test]
fn a_sync_of_everything_asks_dtfs_for_nothing() {
    let m = Mounted::new();
    let file = File::create(m.path("f")).unwrap();
    let count = |m: &Mounted| m.volume.requests().values().sum::<u64>();
    let before = count(&m);
    nix::unistd::syncfs(&file).unwrap();
    nix::unistd::sync();
    assert_eq!(count(&m), before);
}

#[test]
fn a_mount_has_a_device_of_its_own_and_no_filesystem_id() {
    let both = Both::on(FileSystem::Ext4);
    let device = |dir: &Path| fs::metadata(dir).unwrap().dev();
    assert_ne!(device(both.bare()), device(both.mount()));
    let id = |dir: &Path| format!("{:?}", nix::sys::statfs::statfs(dir).unwrap().filesystem_id());
    assert_ne!(id(both.bare()), id(both.mount()));
    assert!(id(both.mount()).contains("[0, 0]"), "{}", id(both.mount()));
    fs::write(both.mount().join("f"), b"x").unwrap();
    both.finish("devices");
}

/// The same with more of them than the daemon keeps: all are usable on the bare directory.
#[test]
fn objects_without_a_name_that_nobody_opened_are_kept_up_to_a_number() {
    const COUNT: usize = 400;
    let both = Both::on(FileSystem::Ext4);
    let usable = |dir: &Path| {
        let held: Vec<_> = (0..COUNT)
            .map(|i| {
                let path = dir.join(format!("f{i}"));
                fs::write(&path, b"x").unwrap();
                let fd = sys::openat(nix::fcntl::AT_FDCWD, &support::both::c_path(&path), libc::O_PATH, 0).unwrap();
                fs::remove_file(&path).unwrap();
                fd
            })
            .collect();
        held.iter().filter(|fd| File::open(format!("/proc/self/fd/{}", fd.as_raw_fd())).is_ok()).count()
    };
    assert_eq!(usable(both.bare()), COUNT);
    let kept = usable(both.mount());
    assert!((256..COUNT).contains(&kept), "{kept} of {COUNT}");
    fs::write(both.mount().join("f"), b"x").unwrap();
    both.finish("nameless objects");
}

/// A daemon in a pid namespace of its own does not find a program outside, and so not its supplementary groups.
#[test]
fn supplementary_groups_are_not_seen_across_pid_namespaces() {
    const MEMBER: User<'static> = User { uid: 1234, gid: 1234, groups: &[4321], umask: 0o022 };
    let scratch = Scratch::new(FileSystem::Ext4);
    let (source, bare) = (scratch.dir("source"), scratch.dir("bare"));
    let mut host = Host::new();
    host.define_volume("data", &source);
    host.start_in_pid_namespace();
    host.must(&["mounts", "mount", "--all"]);
    let keeps_group_bit = |dir: &Path| {
        let path = dir.join("f");
        fs::write(&path, b"x").unwrap();
        std::os::unix::fs::chown(&path, Some(MEMBER.uid), Some(MEMBER.groups[0])).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o2755)).unwrap();
        // An access control list that says what the mode says: the mode is set with it.
        let set =
            MEMBER.does(|| Command::new("setfacl").args(["-m", "u::rwx,g::r-x,o::r-x,u:99:r"]).arg(&path).status());
        assert!(set.unwrap().success());
        fs::metadata(&path).unwrap().mode() & 0o2000 != 0
    };
    assert_eq!((keeps_group_bit(&bare), keeps_group_bit(&source)), (true, false));
    host.stop();
}

/// Blocks that are reserved for a group serve its members by primary group only.
#[test]
fn reserved_blocks_are_for_the_caller_s_own_group() {
    const BY_MEMBERSHIP: User<'static> = User { uid: 1234, gid: 1234, groups: &[4321], umask: 0o022 };
    const BY_GROUP: User<'static> = User { uid: 1234, gid: 4321, groups: &[], umask: 0o022 };
    let written = |dir: &Path, user: User<'_>| {
        fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        user.does(|| {
            let file = OpenOptions::new().write(true).create_new(true).open(dir.join("f")).unwrap();
            (0..).take_while(|i| file.write_all_at(&[7; 65_536], i * 65_536).is_ok()).count()
        })
    };
    let on_a_new_disk = |user, mounted: bool| {
        let scratch = Scratch::with_size(FileSystem::Ext4, 64);
        scratch.reserve_for_group(4321, 40);
        let dir = scratch.dir("d");
        if !mounted {
            return written(&dir, user);
        }
        let mut host = Host::new();
        host.define_volume("data", &dir);
        host.start_and_mount();
        let count = written(&dir, user);
        host.stop();
        count
    };
    let (all, none) = (on_a_new_disk(BY_GROUP, true), on_a_new_disk(BY_MEMBERSHIP, true));
    assert!(all > none + none / 4, "{all} {none}");
    assert!(on_a_new_disk(BY_MEMBERSHIP, false) > none + none / 4);
}

/// The file is gone, and its space comes back when the kernel forgets it.
#[test]
fn the_space_of_a_removed_file_comes_back() {
    let both = Both::on(FileSystem::Ext4);
    let free = || nix::sys::statvfs::statvfs(both.bare()).unwrap().blocks_free();
    let path = both.mount().join("f");
    fs::write(&path, vec![7; 32 << 20]).unwrap();
    File::open(&path).unwrap().sync_all().unwrap();
    let before = free();
    fs::remove_file(&path).unwrap();
    wait_until("the space to come back", LIMIT, || (free() > before + 4096).then_some(()));
    fs::write(both.mount().join("g"), b"x").unwrap();
    both.finish("space");
}

/// Dead, but not gone before its request is answered.
#[test]
fn a_program_cannot_be_killed_while_its_request_is_served() {
    let scratch = Scratch::new(FileSystem::Ext4);
    let source = scratch.dir("source");
    let mut host = Host::new();
    host.define_volume("data", &source);
    host.start_and_mount();
    let frozen = scratch.freeze();
    let mut command = Command::new("mkdir");
    command.arg(source.join("d"));
    let mut program = Process::spawn(&mut command);
    let status = |field: &str| {
        let text = fs::read_to_string(format!("/proc/{}/status", program.pid())).unwrap();
        text.lines().find_map(|line| line.strip_prefix(field)).map(|value| value.trim().to_owned()).unwrap()
    };
    wait_until("the request to be served", LIMIT, || is_blocked(host.daemon_pid()).then_some(()));
    program.signal(Signal::SIGKILL);
    wait_until("the program to wait for its answer", LIMIT, || status("State:").starts_with('D').then_some(()));
    assert!(source.exists(), "others are served");
    assert!(program.ended().is_none());
    drop(frozen);
    program.wait("the program to go when it has its answer", LIMIT);
    assert!(source.join("d").is_dir());
    host.stop();
}

/// Whether a thread of the process waits in the kernel for a filesystem.
fn is_blocked(pid: i32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads
        .map(|thread| fs::read_to_string(thread.path().join("stat")).unwrap_or_default())
        .any(|stat| stat.contains(") D "))
}
