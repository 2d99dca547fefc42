//! What processes do with each other through files: running them, locks, leases.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use dtfs::sys::{self, Errno};
use nix::fcntl::{FcntlArg, Flock, FlockArg, fcntl};
use support::both::{Both, Facts};
use support::mounted::Mounted;
use support::process::{Process, wait_until};
use support::scratch::FileSystem;
use support::user::SOMEONE;

fn running(dir: &Path, facts: &mut Facts) {
    let program = dir.join("program");
    fs::copy("/bin/cat", &program).unwrap();
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    let end = Command::new(&program).arg("/dev/null").status();
    facts.add("runs", end.is_ok_and(|status| status.success()));
    let mut command = Command::new(&program);
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    let child = Process::spawn(&mut command);
    let exe = format!("/proc/{}/exe", child.pid());
    wait_until("the program to run", Duration::from_secs(10), || {
        fs::read_link(&exe).is_ok_and(|path| path == program).then_some(())
    });
    facts.end("write while it runs", OpenOptions::new().write(true).open(&program));
    facts.end("truncate while it runs", nix::unistd::truncate(&program, 10).map_err(Into::into));
    facts.end(
        "replace while it runs",
        fs::copy("/bin/cat", dir.join("new")).and_then(|_| fs::rename(dir.join("new"), &program)),
    );
    drop(child);
    let writer = OpenOptions::new().append(true).open(&program).unwrap();
    facts.end("run while it is written", Command::new(&program).arg("/dev/null").status());
    drop(writer);
    let script = dir.join("script");
    fs::write(&script, "#!/bin/sh\nexit 7\n").unwrap();
    facts.end("not executable", Command::new(&script).status());
    fs::set_permissions(&script, Permissions::from_mode(0o711)).unwrap();
    facts.add("script", format!("{:?}", Command::new(&script).status().unwrap().code()));
}

/// One that is run with set-user-id must be on the mount, too.
fn set_user_id(dir: &Path, facts: &mut Facts) {
    let program = dir.join("id");
    fs::copy("/usr/bin/id", &program).unwrap();
    fs::set_permissions(&program, Permissions::from_mode(0o4755)).unwrap();
    let output = SOMEONE.does(|| Command::new(&program).arg("-u").output().unwrap());
    facts.add("effective uid", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn programs_run_and_their_text_is_busy() {
    for kind in [FileSystem::Ext4, FileSystem::Xfs] {
        let both = Both::on(kind);
        both.same("running", running);
        both.same("set-user-id", set_user_id);
        both.finish(&format!("programs on {kind:?}"));
    }
}

fn range(kind: i32, start: i64, len: i64) -> libc::flock {
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: start, l_len: len, l_pid: 0 }
}

fn locks(dir: &Path, facts: &mut Facts) {
    let open =
        || OpenOptions::new().read(true).write(true).create(true).truncate(false).open(dir.join("lock")).unwrap();
    let (a, b) = (open(), open());
    // By open file: two handles of one process conflict.
    facts.sys("OFD write lock", fcntl(a.as_fd(), FcntlArg::F_OFD_SETLK(&range(libc::F_WRLCK, 0, 100))));
    facts.sys("OFD overlapping", fcntl(b.as_fd(), FcntlArg::F_OFD_SETLK(&range(libc::F_RDLCK, 50, 100))));
    facts.sys("OFD beside", fcntl(b.as_fd(), FcntlArg::F_OFD_SETLK(&range(libc::F_WRLCK, 100, 100))));
    let mut asked = range(libc::F_RDLCK, 0, 1);
    facts.sys("OFD question", fcntl(b.as_fd(), FcntlArg::F_OFD_GETLK(&mut asked)));
    facts.add("OFD answer", format!("{} {} {}", asked.l_type, asked.l_start, asked.l_len));
    // By process: against the open file's.
    facts.sys("POSIX against OFD", fcntl(b.as_fd(), FcntlArg::F_SETLK(&range(libc::F_WRLCK, 20, 10))));
    facts.sys("POSIX beside", fcntl(b.as_fd(), FcntlArg::F_SETLK(&range(libc::F_WRLCK, 300, 10))));
    facts.sys("OFD against POSIX", fcntl(a.as_fd(), FcntlArg::F_OFD_SETLK(&range(libc::F_RDLCK, 305, 1))));
    drop(a);
    facts.sys("after the close", fcntl(b.as_fd(), FcntlArg::F_SETLK(&range(libc::F_WRLCK, 20, 10))));
    let reader = File::open(dir.join("lock")).unwrap();
    facts.sys("write lock of a reader", fcntl(reader.as_fd(), FcntlArg::F_SETLK(&range(libc::F_WRLCK, 500, 1))));
    let first = Flock::lock(open(), FlockArg::LockExclusiveNonblock);
    facts.add("flock", first.is_ok());
    let second = Flock::lock(open(), FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno);
    facts.add("flock again", format!("{:?}", second.err()));
    // Another process waits for it, and gets it.
    let mut command = Command::new("flock");
    command.arg(dir.join("lock")).args(["-c", "true"]);
    let mut waiter = Process::spawn(&mut command);
    wait_until("the waiter to wait", Duration::from_secs(10), || is_waiting(waiter.pid()).then_some(()));
    facts.add("waits", waiter.ended().is_none());
    drop(first);
    facts.add("gets it", waiter.wait("the waiter", Duration::from_secs(10)).success());
}

/// Whether a process waits for a flock.
fn is_waiting(pid: i32) -> bool {
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    locks.lines().any(|line| line.contains("-> FLOCK") && line.contains(&format!(" {pid} ")))
}

#[test]
fn locks_are_those_of_the_kernel() {
    let both = Both::on(FileSystem::Ext4);
    both.same("locks", locks);
    both.finish("locks");
}

fn lease(file: &File, kind: i32) -> sys::Result<()> {
    #[allow(unsafe_code, reason = "F_SETLEASE is not in nix")]
    // SAFETY: plain integers.
    Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) }).map(drop)
}

fn leases(dir: &Path, facts: &mut Facts) {
    fs::write(dir.join("leased"), b"x").unwrap();
    let reader = File::open(dir.join("leased")).unwrap();
    facts.sys("read lease", lease(&reader, libc::F_RDLCK));
    facts.sys("given back", lease(&reader, libc::F_UNLCK));
    facts.sys("write lease", lease(&reader, libc::F_WRLCK));
    facts.sys("given back", lease(&reader, libc::F_UNLCK));
    let writer = OpenOptions::new().write(true).open(dir.join("leased")).unwrap();
    facts.sys("read lease beside a writer", lease(&reader, libc::F_RDLCK));
    drop(writer);
}

#[test]
fn leases_are_those_of_the_kernel() {
    let both = Both::on(FileSystem::Ext4);
    both.same("leases", leases);
    both.finish("leases");
}

/// What a mapping stored is in the page cache only: see src/stack/SEMANTICS.md.
#[test]
fn a_store_is_data_once_it_was_synced() {
    let m = Mounted::new();
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(m.path("f")).unwrap();
    file.set_len(1 << 20).unwrap();
    let map = support::mapping::Held::new(file.as_fd(), 1 << 20, true);
    map.set(70_000, b'x');
    assert_eq!(sys::lseek(file.as_fd(), 0, libc::SEEK_DATA), Err(Errno::ENXIO));
    file.sync_all().unwrap();
    assert_eq!(sys::lseek(file.as_fd(), 0, libc::SEEK_DATA), Ok(69_632));
}

/// O_TMPFILE does not pass; programs use a named file then. See src/stack/SEMANTICS.md.
#[test]
fn a_file_without_a_name_cannot_be_made() {
    let m = Mounted::new();
    let path = support::both::c_path(&m.at);
    let end = sys::openat(nix::fcntl::AT_FDCWD, &path, libc::O_TMPFILE | libc::O_RDWR, 0o600);
    assert_eq!(end.map(drop), Err(Errno::EOPNOTSUPP));
    let mut file = tempfile::tempfile_in(&m.at).unwrap();
    file.write_all(b"works").unwrap();
}
