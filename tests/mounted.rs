//! A real mount: programs see through it what they would see on the backing directory. Needs root and /dev/fuse.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use dtfs::backing::Tree;
use dtfs::fuse::{Agreed, MountedVolume, Unmount, Unmounted, dead_mount_at};
use dtfs::journal::{Journal, JournalOptions};
use dtfs::stack::{Stack, StackOptions};
use dtfs::sys::{self, Errno};
use support::mounted::{Mounted, as_user};
use support::scratch::{FileSystem, Scratch};
use support::user::SOMEONE;
use support::workload::{self, Workload};
use support::{mapping, trees};

#[test]
fn files_are_created_written_read_and_renamed() {
    let m = Mounted::new();
    let mut file = File::create(m.path("a")).unwrap();
    file.write_all(b"hello ").unwrap();
    file.write_all(b"world").unwrap();
    drop(file);
    assert_eq!(fs::read(m.path("a")).unwrap(), b"hello world");
    assert_eq!(fs::read(m.behind.join("a")).unwrap(), b"hello world");
    fs::create_dir(m.path("d")).unwrap();
    fs::rename(m.path("a"), m.path("d/b")).unwrap();
    assert!(!m.path("a").exists());
    fs::hard_link(m.path("d/b"), m.path("c")).unwrap();
    assert_eq!(fs::metadata(m.path("c")).unwrap().nlink(), 2);
    symlink("d/b", m.path("l")).unwrap();
    assert_eq!(fs::read_link(m.path("l")).unwrap(), Path::new("d/b"));
    assert_eq!(fs::read(m.path("l")).unwrap(), b"hello world");
    let mut append = OpenOptions::new().append(true).open(m.path("c")).unwrap();
    append.write_all(b"!").unwrap();
    append.sync_all().unwrap();
    drop(append);
    File::create(m.path("c")).unwrap();
    assert_eq!(fs::metadata(m.behind.join("d/b")).unwrap().len(), 0);
    let expected = ["create", "write", "write", "create", "rename", "link", "create", "write", "truncate"];
    let words: Vec<_> = m.words().into_iter().filter(|w| *w != "setattr").collect();
    assert_eq!(words, expected);
}

#[test]
fn attributes_match_those_behind() {
    let m = Mounted::new();
    fs::write(m.path("f"), b"12345").unwrap();
    fs::set_permissions(m.path("f"), PermissionsExt::from_mode(0o4751)).unwrap();
    std::os::unix::fs::chown(m.path("f"), Some(12), Some(34)).unwrap();
    let time = std::time::UNIX_EPOCH + Duration::new(1_234_567_890, 123_456_789);
    File::open(m.path("f")).unwrap().set_modified(time).unwrap();
    let (here, behind) = (fs::metadata(m.path("f")).unwrap(), fs::metadata(m.behind.join("f")).unwrap());
    let facts =
        |m: &fs::Metadata| (m.ino(), m.mode(), m.uid(), m.gid(), m.size(), m.mtime(), m.mtime_nsec(), m.ctime_nsec());
    assert_eq!(facts(&here), facts(&behind));
    assert_eq!((here.mtime(), here.mtime_nsec()), (1_234_567_890, 123_456_789));
}

#[test]
fn a_large_directory_is_listed_whole() {
    let m = Mounted::new();
    for i in 0..5000 {
        File::create(m.path(&format!("file-{i:05}"))).unwrap();
    }
    let mut names: Vec<_> =
        fs::read_dir(&m.at).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let expected: Vec<_> = (0..5000).map(|i| format!("file-{i:05}")).collect();
    assert_eq!(names, expected);
    for entry in fs::read_dir(&m.at).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    assert_eq!(fs::read_dir(&m.behind).unwrap().count(), 0);
}

#[test]
fn an_unlinked_file_lives_until_it_is_closed() {
    let m = Mounted::new();
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(m.path("f")).unwrap();
    file.write_all(b"still here").unwrap();
    fs::remove_file(m.path("f")).unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "still here");
    drop(file);
    // RELEASE is sent after close has returned.
    for _ in 0..200 {
        if m.words().last() == Some(&"gone") {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("{:?}", m.words());
}

#[test]
fn xattrs_and_the_reserved_ones() {
    let m = Mounted::new();
    fs::write(m.path("f"), b"").unwrap();
    assert_eq!(set_xattr(&m.path("f"), "user.colour", b"red"), Ok(()));
    assert_eq!(set_xattr(&m.path("f"), "trusted.other", b"value"), Ok(()));
    assert_eq!(set_xattr(&m.path("f"), "trusted.dtfs.oid", b"value"), Err(Errno::EPERM));
    for path in [m.path("f"), m.behind.join("f")] {
        let file = File::open(path).unwrap();
        let mut names = sys::listxattr(file.as_fd()).unwrap();
        names.sort();
        assert_eq!(names, [&b"trusted.other"[..], b"user.colour"]);
        assert_eq!(sys::getxattr(file.as_fd(), c"user.colour").unwrap(), b"red");
    }
}

#[test]
fn the_history_is_told_to_root_on_the_root_only() {
    let m = Mounted::new();
    fs::write(m.path("f"), b"").unwrap();
    let get = |path: PathBuf| sys::getxattr(File::open(path).unwrap().as_fd(), c"trusted.dtfs.history");
    let history = dtfs::base::History::from_bytes(&get(m.path("")).unwrap()).expect("a history");
    assert!(!history.epochs.is_empty());
    assert_eq!(get(m.path("f")), Err(Errno::ENODATA));
    assert_eq!(get(m.behind.clone()), Err(Errno::ENODATA), "nothing is stored");
    assert_eq!(set_xattr(&m.path(""), "trusted.dtfs.history", b"x"), Err(Errno::EPERM));
    assert!(sys::listxattr(File::open(m.path("")).unwrap().as_fd()).unwrap().is_empty());
    assert_eq!(SOMEONE.does(|| get(m.path(""))), Err(Errno::ENODATA), "only root is told");
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) -> sys::Result<()> {
    let object = File::open(path).unwrap();
    sys::setxattr(object.as_fd(), &CString::new(name).unwrap(), value, 0)
}

#[test]
fn a_shared_mapping_reaches_the_file() {
    let m = Mounted::new();
    fs::write(m.path("f"), vec![b'.'; 8192]).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(m.path("f")).unwrap();
    mapping::write(file.as_fd(), 5000, b"X", 8192, true).unwrap();
    assert_eq!(fs::read(m.behind.join("f")).unwrap()[5000], b'X');
    assert_eq!(fs::read(m.path("f")).unwrap()[5000], b'X');
}

#[test]
fn readers_see_what_a_direct_writer_wrote() {
    let m = Mounted::new();
    fs::write(m.path("f"), vec![b'a'; 65536]).unwrap();
    let reader = File::open(m.path("f")).unwrap();
    let mut buffer = [0; 16];
    reader.read_exact_at(&mut buffer, 4096).unwrap();
    let writer = OpenOptions::new().write(true).open(m.path("f")).unwrap();
    writer.write_all_at(b"new bytes here..", 4096).unwrap();
    reader.read_exact_at(&mut buffer, 4096).unwrap();
    assert_eq!(&buffer, b"new bytes here..");
}

#[test]
fn a_user_s_write_kills_set_user_id() {
    let m = Mounted::new();
    let path = m.path("f");
    for line in ["echo x >> F", "echo y 1<> F", "truncate -s 1 F", "echo z > F"] {
        fs::write(&path, b"text").unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o6777)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o6777);
        assert!(as_user(&line.replace('F', path.to_str().unwrap())), "{line}");
        let behind = fs::metadata(m.behind.join("f")).unwrap().mode() & 0o7777;
        assert_eq!(behind, 0o777, "behind, {line}");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o777, "mount, {line}");
    }
}

#[test]
fn owners_umask_and_default_acl_are_those_of_the_backing_filesystem() {
    let m = Mounted::new();
    fs::set_permissions(&m.at, PermissionsExt::from_mode(0o777)).unwrap();
    fs::create_dir(m.path("acl")).unwrap();
    fs::set_permissions(m.path("acl"), PermissionsExt::from_mode(0o777)).unwrap();
    // u::rwx, u:1000:rwx, g::rwx, m::rwx, o::---, as in linux/posix_acl_xattr.h.
    let acl: &[(u16, u16, u32)] =
        &[(1, 7, u32::MAX), (2, 7, 1000), (4, 7, u32::MAX), (0x10, 7, u32::MAX), (0x20, 0, u32::MAX)];
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in acl {
        value.extend(tag.to_le_bytes());
        value.extend(perm.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    set_xattr(&m.path("acl"), "system.posix_acl_default", &value).unwrap();
    let at = m.at.to_str().unwrap();
    assert!(as_user(&format!("umask 027; cd {at}; mkdir d; touch f; touch acl/f; mkdir acl/d")));
    let fact = |name: &str| {
        let (here, behind) = (fs::metadata(m.path(name)).unwrap(), fs::metadata(m.behind.join(name)).unwrap());
        assert_eq!(here.mode(), behind.mode(), "{name}");
        assert_eq!((here.uid(), here.gid()), (65_534, 65_534), "{name}");
        here.mode() & 0o7777
    };
    assert_eq!((fact("d"), fact("f")), (0o750, 0o640));
    // The default ACL takes the place of the umask.
    assert_eq!((fact("acl/d"), fact("acl/f")), (0o770, 0o660));
    assert!(!as_user(&format!("echo x > {at}/acl/../none/f")));
}

#[test]
fn what_was_agreed_with_the_kernel_is_kept_in_the_volume_s_state() {
    let m = Mounted::new();
    let text = m.stack.connection().unwrap().expect("it is there as soon as the mount is");
    let agreed: Agreed = text.parse().unwrap();
    assert_eq!(agreed.version.0, 7);
    assert!(agreed.wanted != 0 && agreed.wanted & !agreed.offered == 0, "{text}");
    assert!(agreed.max_write >= 128 << 10 && agreed.read_ahead <= agreed.offered_read_ahead, "{text}");
}

#[test]
fn file_flags_pass_and_others_do_not() {
    let m = Mounted::new();
    fs::write(m.path("f"), b"text").unwrap();
    let chattr = |flags: &str| {
        let status = Command::new("chattr").arg(flags).arg(m.path("f")).status();
        status.unwrap().success()
    };
    if !chattr("+a") {
        return; // no inode flags on this filesystem
    }
    assert!(fs::write(m.path("f"), b"x").is_err());
    let mut append = OpenOptions::new().append(true).open(m.path("f")).unwrap();
    append.write_all(b" and more").unwrap();
    drop(append);
    assert!(fs::remove_file(m.path("f")).is_err());
    assert!(chattr("-a"));
    assert_eq!(fs::read(m.behind.join("f")).unwrap(), b"text and more");
    let words = m.words();
    assert_eq!(words.iter().filter(|w| **w == "setflags").count(), 2, "{words:?}");
}

#[test]
fn holes_are_punched_copied_and_found() {
    let m = Mounted::new();
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(m.path("f")).unwrap();
    file.write_all_at(&vec![7; 1 << 20], 0).unwrap();
    let fd = file.as_fd();
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    assert_eq!(sys::fallocate(fd, punch, 65536, 131_072), Ok(()));
    assert_eq!(sys::lseek(fd, 0, libc::SEEK_HOLE), Ok(65536));
    assert_eq!(sys::lseek(fd, 65536, libc::SEEK_DATA), Ok(196_608));
    assert!(sys::fallocate(fd, libc::FALLOC_FL_COLLAPSE_RANGE, 0, 4096).is_err());
    fs::copy(m.path("f"), m.path("copy")).unwrap();
    assert_eq!(fs::read(m.behind.join("copy")).unwrap(), fs::read(m.behind.join("f")).unwrap());
}

#[test]
fn a_synchronous_write_is_durable_when_it_returns() {
    let m = Mounted::new();
    let journal = m.stack.journal();
    for (name, flags) in [("s", libc::O_SYNC), ("d", libc::O_DSYNC)] {
        let mut open = OpenOptions::new();
        open.write(true).create_new(true).custom_flags(flags);
        let file = open.open(m.path(name)).unwrap();
        file.write_all_at(&[5; 4096], 0).unwrap();
        assert_eq!(journal.durable_tid(), journal.last_tid(), "{name}");
    }
}

#[test]
fn direct_io_needs_no_alignment_behind() {
    let m = Mounted::new();
    let mut open = OpenOptions::new();
    open.read(true).write(true).create_new(true).custom_flags(libc::O_DIRECT);
    let file = open.open(m.path("f")).unwrap();
    file.write_all_at(&[5; 1000], 3).unwrap();
    let mut buffer = [0; 1000];
    file.read_exact_at(&mut buffer, 3).unwrap();
    assert_eq!(buffer, [5; 1000]);
}

#[test]
fn a_mount_in_use_is_busy_and_a_lazy_unmount_waits_for_its_users() {
    let m = Mounted::new();
    fs::write(m.path("f"), b"text").unwrap();
    let file = File::open(m.path("f")).unwrap();
    let error = m.volume.unmount(Unmount::Plain).unwrap_err();
    assert!(error.to_string().ends_with("in use"), "{error}");
    assert_eq!(m.volume.unmount(Unmount::Lazy).unwrap(), Unmounted::InUse);
    assert!(!m.path("f").exists());
    let mut buffer = [0; 4];
    file.read_exact_at(&mut buffer, 0).unwrap();
    assert_eq!(&buffer, b"text");
    drop(file);
    assert_eq!(m.volume.wait(Duration::from_secs(10)), Unmounted::Ended);
    assert!(!dead_mount_at(&m.at));
}

#[test]
fn a_dead_mount_is_seen_and_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (at, behind) = (dir.path().join("mnt"), dir.path().join("tree"));
    fs::create_dir(&at).unwrap();
    fs::create_dir(&behind).unwrap();
    // What a daemon that was killed leaves: a mount whose device nobody holds.
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").unwrap();
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    let point = CString::new(at.to_str().unwrap()).unwrap();
    sys::mount_fuse(c"dtfs:dead", &point, &CString::new(options).unwrap()).unwrap();
    drop(device);
    assert!(dead_mount_at(&at));
    fs::write(behind.join("f"), b"alive").unwrap();
    let (journal, _) = Journal::open(&dir.path().join("j"), JournalOptions::default()).unwrap();
    let stack = Stack::new(Tree::open(&behind).unwrap(), journal, StackOptions::default()).unwrap();
    let volume = MountedVolume::mount(stack, &at, "alive").unwrap();
    let (dead, seen) = (dead_mount_at(&at), fs::read(at.join("f")));
    volume.unmount(Unmount::Plain).unwrap();
    assert_eq!((dead, seen.unwrap()), (false, b"alive".to_vec()));
    assert_eq!(fs::read_dir(&at).unwrap().count(), 0, "nothing is left mounted below");
}

#[test]
fn a_working_directory_that_was_removed_still_answers() {
    let m = Mounted::new();
    fs::create_dir(m.path("d")).unwrap();
    let dir = sys::openat(nix::fcntl::AT_FDCWD, &CString::new(m.path("d").to_str().unwrap()).unwrap(), libc::O_PATH, 0);
    let dir = dir.unwrap();
    fs::remove_dir(m.path("d")).unwrap();
    assert_eq!(sys::fstat(dir.as_fd()).map(|stat| stat.uid), Ok(0));
    assert_eq!(sys::mkdirat(dir.as_fd(), c"new", 0o755), Err(Errno::ENOENT));
}

#[test]
fn a_volume_is_mounted_over_its_own_directory() {
    let dir = tempfile::tempdir().unwrap();
    let state = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("before"), b"here").unwrap();
    let (journal, _) = Journal::open(&state.path().join("j"), JournalOptions::default()).unwrap();
    let tree = Tree::open(dir.path()).unwrap();
    let stack = Stack::new(tree, journal, StackOptions::default()).unwrap();
    let volume = MountedVolume::mount(stack, dir.path(), "over").unwrap();
    let seen = fs::read(dir.path().join("before"));
    let written = fs::write(dir.path().join("after"), b"too");
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    volume.unmount(Unmount::Plain).unwrap();
    assert_eq!(seen.unwrap(), b"here");
    written.unwrap();
    assert_eq!(fs::read(dir.path().join("after")).unwrap(), b"too");
    assert!(table.contains("- fuse.dtfs dtfs:over "), "{table}");
}

#[test]
fn workload_worker() {
    workload::worker_was_asked();
}

/// What the kernel keeps of the mount must be what is there, whoever changed it through the mount.
fn views_stay_equal_on(kind: FileSystem) {
    let scratch = Scratch::new(kind);
    let m = Mounted::over(tempfile::tempdir().unwrap(), scratch.dir("tree"));
    let done = Workload::start(&m.at, 1, 4, 4000).finish();
    assert!(done.len() > 10, "{done:?}");
    trees::assert_equal(&m.behind, &m.at, "the mount shows what lies behind it");
    assert!(!m.stack.has_failed());
}

#[test]
fn a_busy_mount_shows_what_lies_behind_it_on_ext4() {
    views_stay_equal_on(FileSystem::Ext4);
}

#[test]
fn a_busy_mount_shows_what_lies_behind_it_on_xfs() {
    views_stay_equal_on(FileSystem::Xfs);
}

#[test]
fn a_busy_mount_shows_what_lies_behind_it_on_btrfs() {
    views_stay_equal_on(FileSystem::Btrfs);
}
