//! Files that are held: before a mount, at an unmount, and after a lazy one.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use dtfs::sys;
use support::host::{Host, is_dtfs};
use support::scratch::{FileSystem, Scratch, utf8};
use support::{mapping, trees};

const WAIT_SECONDS: u32 = 60;
const BUSY: i32 = 5;
const REFUSED: i32 = 7;

/// A volume `data` with one target, not mounted yet.
struct Pair {
    host: Host,
    source: PathBuf,
    target: PathBuf,
    _scratch: Scratch,
}

impl Pair {
    fn new() -> Pair {
        let scratch = Scratch::new(FileSystem::Ext4);
        let (source, target) = (scratch.dir("source"), scratch.dir("target"));
        trees::fill(&source.join("files"), 10);
        fs::write(source.join("held"), b"before\n").unwrap();
        let mut host = Host::new();
        host.define_volume("data", &source);
        host.define_target("data", &target);
        Pair { host, source, target, _scratch: scratch }
    }

    fn mounted() -> Pair {
        let mut pair = Pair::new();
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
