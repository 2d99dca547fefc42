//! Files that are held: before a mount, at an unmount, and after a lazy one.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dtfs::sys;
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use support::behind::Behind;
use support::host::{Host, is_dtfs};
use support::process::wait_until;
use support::scratch::{FileSystem, Scratch, utf8};
use support::stuck::StuckInExec;
use support::{mapping, trees};

const WAIT_SECONDS: u32 = 60;
const BUSY: i32 = 5;
const REFUSED: i32 = 7;

/// A volume `data` with one target, not mounted yet.
struct Pair {
    host: Host,
    _company: Company,
    source: PathBuf,
    target: PathBuf,
    _scratch: Scratch,
}

/// A process that cannot be looked into concerns every daemon of the machine: what makes one runs alone.
static MACHINE: RwLock<()> = RwLock::new(());

enum Company {
    Others(#[allow(dead_code, reason = "held")] RwLockReadGuard<'static, ()>),
    Nobody(#[allow(dead_code, reason = "held")] RwLockWriteGuard<'static, ()>),
}

impl Pair {
    fn new() -> Pair {
        Pair::beside(Company::Others(MACHINE.read()))
    }

    fn beside(company: Company) -> Pair {
        let scratch = Scratch::new(FileSystem::Ext4);
        let (source, target) = (scratch.dir("source"), scratch.dir("target"));
        trees::fill(&source.join("files"), 10);
        fs::write(source.join("held"), b"before\n").unwrap();
        let mut host = Host::new();
        host.define_volume("data", &source);
        host.define_target("data", &target);
        Pair { host, _company: company, source, target, _scratch: scratch }
    }

    fn mounted() -> Pair {
        Pair::new().mount()
    }

    /// With no other test beside it.
    fn mounted_alone() -> Pair {
        Pair::beside(Company::Nobody(MACHINE.write())).mount()
    }

    fn mount(self) -> Pair {
        let mut pair = self;
        pair.host.start_and_mount();
        pair.host.wait("data", WAIT_SECONDS);
        pair
    }

    fn held(&self) -> PathBuf {
        self.source.join("held")
    }

    fn stop_and_compare(mut self, context: &str) {
        self.host.wait("data", WAIT_SECONDS);
        self.host.stop();
        trees::assert_equal(&self.source, &self.target, context);
    }
}

/// A process that appends lines to a file that it opened once.
struct Holder(Child);

impl Holder {
    fn open(path: &Path) -> Holder {
        let script = r#"exec 3>>"$0"; echo; while read -r line; do echo "$line" >&3; echo; done"#;
        let mut command = Command::new("sh");
        command.args(["-c", script, utf8(path)]).stdin(Stdio::piped()).stdout(Stdio::piped()).current_dir("/");
        let mut holder = Holder(command.spawn().unwrap());
        holder.answer();
        holder
    }

    fn write(&mut self, line: &str) {
        writeln!(self.0.stdin.as_mut().unwrap(), "{line}").unwrap();
        self.answer();
    }

    fn answer(&mut self) {
        // One line for each, so nothing is lost with the buffer.
        BufReader::new(self.0.stdout.as_mut().unwrap()).read_line(&mut String::new()).unwrap();
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    fn close(mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// It is listed at the mount, and opens its files only when it writes.
#[test]
fn who_stands_in_the_bare_directory_and_writes_there_is_seen() {
    let mut pair = Pair::new();
    let script = r#"while read -r line; do eval "$line"; echo; done"#;
    let mut command = Command::new("sh");
    command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).current_dir(pair.source.join("files"));
    let mut insider = Holder(command.spawn().unwrap());
    pair.host.start_and_mount();
    pair.host.wait("data", WAIT_SECONDS);
    for (line, name, end) in [
        ("echo new > new", "new", "new\n"),
        ("mkdir sub; echo deep > sub/deep", "sub/deep", "deep\n"),
        ("echo more >> file-00003", "file-00003", "more\n"),
        ("echo again >> sub/deep", "sub/deep", "deep\nagain\n"),
    ] {
        insider.write(line);
        pair.host.wait("data", WAIT_SECONDS);
        // Not compared with the mount, which may show what it cached before.
        let there = fs::read(pair.target.join("files").join(name)).unwrap_or_default();
        assert!(there.ends_with(end.as_bytes()), "{line}: {}", there.escape_ascii());
    }
    insider.close();
    pair.stop_and_compare("written behind the mount");
}

#[test]
fn a_writer_from_before_the_mount_refuses_it_and_is_followed_when_allowed() {
    let mut pair = Pair::new();
    let mut holder = Holder::open(&pair.held());
    let reader = Holder::open(Path::new("/dev/null"));
    pair.host.start();
    for arguments in [&["mounts", "mount", "--all"][..], &["mounts", "mount", "--all", "--dry-run"]] {
        let answer = pair.host.run(arguments);
        assert_eq!(answer.code, REFUSED, "{answer:#?}");
        let expected = format!("pid {} (sh) writes {}", holder.pid(), pair.held().display());
        assert!(answer.stdout.contains(&expected), "{answer:#?}");
        assert!(answer.stdout.contains("--allow-open"), "{answer:#?}");
        assert!(!answer.stdout.contains(&format!("pid {} ", reader.pid())), "{answer:#?}");
    }
    assert!(!is_dtfs(&pair.source));
    pair.host.must(&["mounts", "mount", "--all", "--allow-open"]);
    holder.write("behind the mount");
    let answer = pair.host.run(&["wait", "data", "--timeout", "2"]);
    assert_eq!(answer.code, 4, "no target is consistent while somebody writes behind the mount: {answer:#?}");
    let status = pair.host.status();
    assert_eq!(status["volumes"][0]["suspects"][0]["pid"], holder.pid(), "{status:#}");
    holder.write("again");
    holder.close();
    pair.host.wait("data", WAIT_SECONDS);
    let text = fs::read_to_string(pair.target.join("held")).unwrap();
    assert_eq!(text, "before\nbehind the mount\nagain\n");
    pair.stop_and_compare("a writer from before the mount");
}

#[test]
fn a_shared_mapping_from_before_the_mount_counts_after_its_file_is_closed() {
    let pid = std::process::id();
    let mut pair = Pair::new();
    fs::write(pair.held(), vec![b'.'; 8192]).unwrap();
    let file = File::options().read(true).write(true).open(pair.held()).unwrap();
    let mut map = mapping::Shared::new(&file, 8192);
    drop(file);
    pair.host.start();
    let answer = pair.host.run(&["mounts", "mount", "--all"]);
    assert_eq!(answer.code, REFUSED, "{answer:#?}");
    assert!(answer.stdout.contains(&format!("pid {pid} ")), "{answer:#?}");
    pair.host.must(&["mounts", "mount", "--all", "--allow-open"]);
    map.write(5000, b"behind the mount");
    drop(map);
    pair.stop_and_compare("a mapping from before the mount");
}

#[test]
fn readers_are_listed_and_do_not_refuse_the_mount() {
    let mut pair = Pair::new();
    let reader = File::open(pair.held()).unwrap();
    pair.host.start();
    let status = pair.host.status();
    assert_eq!(status["volumes"][0]["state"], "mounted", "{status:#}");
    pair.host.must(&["mounts", "unmount", "--all"]);
    let told = pair.host.must(&["mounts", "mount", "--all"]);
    let expected = format!("pid {} (", std::process::id());
    assert!(told.contains(&expected) && told.contains("reads") && !told.contains("writes"), "{told}");
    drop(reader);
    pair.stop_and_compare("a reader from before the mount");
}

#[test]
fn a_busy_unmount_names_who_holds_it() {
    let pair = Pair::mounted();
    let holder = Holder::open(&pair.held());
    let answer = pair.host.run(&["mounts", "unmount", "--all"]);
    assert_eq!(answer.code, BUSY, "{answer:#?}");
    assert!(answer.stdout.contains(&format!("in use by pid {} (sh)", holder.pid())), "{answer:#?}");
    assert!(answer.stdout.contains(&format!("pid {} (sh) writes", holder.pid())), "{answer:#?}");
    holder.close();
    pair.host.must(&["mounts", "unmount", "--all"]);
}

#[test]
fn what_is_held_over_a_lazy_unmount_is_journaled_until_it_is_closed() {
    let pair = Pair::mounted();
    let mut holder = Holder::open(&pair.held());
    let random = File::options().write(true).open(pair.source.join("files/file-00001")).unwrap();
    pair.host.must(&["mounts", "unmount", "--all", "--lazy"]);
    assert!(!is_dtfs(&pair.source));
    holder.write("held over the unmount");
    random.write_all_at(b"XY", 4).unwrap();
    pair.host.wait("data", WAIT_SECONDS);
    trees::assert_equal(&pair.source, &pair.target, "held over a lazy unmount");
    // Mounted again while it is held: both mounts are one volume.
    pair.host.must(&["mounts", "mount", "--all"]);
    assert!(is_dtfs(&pair.source));
    holder.write("held over the next mount");
    fs::write(pair.source.join("new"), b"through the new mount").unwrap();
    pair.host.wait("data", WAIT_SECONDS);
    sys::fsync(std::os::fd::AsFd::as_fd(&random)).unwrap();
    drop(random);
    holder.close();
    pair.stop_and_compare("held over a lazy unmount and the next mount");
}

/// Other bytes in a file of the target, with the times that it had: only who compares everything finds it.
fn tamper(file: &Path) {
    let file = File::options().read(true).write(true).open(file).unwrap();
    let before = file.metadata().unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 0).unwrap();
    file.write_all_at(&[!byte[0]], 0).unwrap();
    let times = fs::FileTimes::new().set_accessed(before.accessed().unwrap()).set_modified(before.modified().unwrap());
    file.set_times(times).unwrap();
}

/// Threads of the daemon that look into other processes.
fn lookers(host: &Host) -> usize {
    let tasks = fs::read_dir(format!("/proc/{}/task", host.daemon_pid())).unwrap();
    let names = tasks.flatten().map(|task| fs::read_to_string(task.path().join("comm")).unwrap_or_default());
    names.filter(|name| name == "dtfs-holders\n").count()
}

const LOOK: Duration = Duration::from_secs(50);

#[test]
fn a_process_that_cannot_be_looked_into_refuses_the_mount_and_holds_up_nobody() {
    let pair = Pair::mounted_alone();
    pair.host.must(&["mounts", "unmount", "--all"]);
    let stuck = StuckInExec::holding(&[]);
    let not_seen = format!("could not look into pid {} (", stuck.pid());
    std::thread::scope(|scope| {
        let mount = scope.spawn(|| pair.host.run(&["mounts", "mount", "--all"]));
        wait_until("the daemon to look", LOOK, || (lookers(&pair.host) > 0).then_some(()));
        pair.host.status();
        assert!(!mount.is_finished(), "status waited for the look, or nobody looked");
        let answer = mount.join().unwrap();
        assert_eq!(answer.code, REFUSED, "{answer:#?}");
        assert!(answer.stdout.contains(&not_seen) && answer.stdout.contains("--allow-open"), "{answer:#?}");
    });
    assert!(!is_dtfs(&pair.source));
    for arguments in [&["mounts", "mount", "--all"][..], &["mounts", "mount", "--all", "--dry-run"]] {
        let answer = pair.host.run(arguments);
        assert_eq!(answer.code, REFUSED, "{answer:#?}");
        assert!(lookers(&pair.host) <= 1, "each look leaves a thread behind");
    }
    let told = pair.host.must(&["mounts", "mount", "--all", "--allow-open"]);
    assert!(told.contains(&not_seen), "{told}");
    let status = pair.host.status();
    assert_eq!(status["volumes"][0]["unseen"][0]["pid"], stuck.pid(), "{status:#}");
    assert!(pair.host.must(&["status"]).contains(&not_seen));
    let answer = pair.host.run(&["wait", "data", "--timeout", "1"]);
    assert_eq!(answer.code, 4, "it is not known whether somebody writes behind the mount: {answer:#?}");
    tamper(&Behind::of(&pair.target).join("files/file-00001"));
    stuck.end();
    pair.stop_and_compare("everything is compared when an unseen process is gone");
}

#[test]
fn a_process_that_cannot_be_looked_into_does_not_keep_the_daemon_from_stopping() {
    let mut pair = Pair::mounted_alone();
    pair.host.must(&["mounts", "unmount", "--all"]);
    let mut stuck = StuckInExec::holding(&[&pair.held()]);
    let told = pair.host.must(&["mounts", "mount", "--all", "--allow-open"]);
    assert!(told.contains(&format!("could not look into pid {} (", stuck.pid())), "{told}");
    pair.host.stop();
    tamper(&Behind::of(&pair.target).join("files/file-00001"));
    pair.host.start();
    assert!(!is_dtfs(&pair.source), "refused at the start as well");
    pair.host.must(&["mounts", "mount", "--all", "--allow-open"]);
    let (source, target) = (pair.source.join("files/file-00001"), pair.target.join("files/file-00001"));
    wait_until("what may have been written while the daemon was away to be compared", LOOK, || {
        (fs::read(&source).unwrap() == fs::read(&target).unwrap()).then_some(())
    });
    stuck.let_go();
    let answer = pair.host.run(&["wait", "data", "--timeout", "1"]);
    assert_eq!(answer.code, 4, "it holds a file: {answer:#?}");
    let status = pair.host.status();
    assert_eq!(status["volumes"][0]["suspects"][0]["pid"], stuck.pid(), "it is seen now: {status:#}");
    stuck.end();
    pair.stop_and_compare("a process that was not seen over a restart");
}
