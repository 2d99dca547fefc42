//! Bad input is refused with the reason, exit code 2 (mistyped) or 7 (harmful), and nothing is changed.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use support::host::{Answer, Host, is_dtfs};
use support::process::{tool, try_tool, wait_until};
use support::scratch::{Directory, utf8};
use support::trees::contents;

const USAGE: i32 = 2;
const REFUSED: i32 = 7;

/// A directory with one file in it, below a temporary one.
fn user_dir(name: &str) -> (Directory, PathBuf) {
    let scratch = Directory::new();
    let dir = scratch.path().join(name);
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("file"), "the user's own").unwrap();
    (scratch, dir)
}

/// Runs a command that must be refused with `code`, say why in words that hold `reason`, and change no configuration.
fn refused(host: &Host, args: &[&str], code: i32, reason: &str) -> Answer {
    let before = host.config();
    let answer = host.run(args);
    assert_eq!(answer.code, code, "dtfs {args:?}: {answer:#?}");
    assert!(answer.stderr.contains(reason), "dtfs {args:?} does not say \"{reason}\": {answer:#?}");
    assert_eq!(host.config(), before, "dtfs {args:?} was refused and changed the configuration");
    answer
}

/// A filesystem mounted at a directory until this is dropped.
struct InnerMount(PathBuf);

impl InnerMount {
    fn new(at: &Path) -> InnerMount {
        tool("mount", &["-t", "tmpfs", "tmpfs", utf8(at)]);
        InnerMount(at.to_owned())
    }
}

impl Drop for InnerMount {
    fn drop(&mut self) {
        try_tool("umount", &["--lazy", utf8(&self.0)]);
    }
}

/// Both ways to make a directory a volume refuse it alike.
fn refused_as_volume(host: &Host, dir: &Path, code: i32, reason: &str) {
    refused(host, &["define", "volume", "data", utf8(dir)], code, reason);
    refused(host, &["mounts", "add", utf8(dir)], code, reason);
}

#[test]
fn a_path_that_is_missing_or_no_directory_is_a_mistake() {
    let (_scratch, dir) = user_dir("dir");
    let host = Host::new();
    refused_as_volume(&host, &dir.join("missing"), USAGE, "missing does not exist");
    refused_as_volume(&host, &dir.join("file"), USAGE, "file is not a directory");
    refused_as_volume(&host, Path::new("no/such/place"), USAGE, "/no/such/place does not exist");
    assert_eq!(fs::read(dir.join("file")).unwrap(), b"the user's own");
}

#[test]
fn the_root_directory_is_refused_and_candidates_are_named() {
    let host = Host::new();
    let answer = refused(&host, &["define", "volume", "data", "/"], REFUSED, "cannot be replicated as a whole");
    assert!(answer.stderr.contains("/home") || answer.stderr.contains("/srv"), "{answer:#?}");
    refused_as_volume(&host, Path::new("/proc"), REFUSED, "no files that could be replicated");
}

#[test]
fn a_directory_that_holds_the_journal_or_lies_in_it_is_refused() {
    let host = Host::new();
    let state = host.root().join("var/lib/dtfs");
    fs::create_dir_all(state.join("inner")).unwrap();
    for dir in [host.root(), &host.root().join("var"), &state, &state.join("inner")] {
        refused_as_volume(&host, dir, REFUSED, "dtfs's own directory");
    }
}

#[test]
fn a_directory_that_is_a_volume_already_is_refused() {
    let (_scratch, dir) = user_dir("dir");
    fs::create_dir(dir.join("below")).unwrap();
    let mut host = Host::new();
    host.define_volume("first", &dir);
    refused_as_volume(&host, &dir, REFUSED, "already the volume first");
    refused_as_volume(&host, &dir.join("below"), REFUSED, "lies in");
    refused_as_volume(&host, dir.parent().unwrap(), REFUSED, "holds");
}

#[test]
fn what_another_dtfs_has_mounted_is_refused() {
    let (_scratch, dir) = user_dir("dir");
    let mut host = Host::new();
    host.define_volume("data", &dir);
    host.start_and_mount();
    let other = Host::new();
    refused_as_volume(&other, &dir, REFUSED, "mounted");
    assert_eq!(fs::read(dir.join("file")).unwrap(), b"the user's own", "the first mount is unharmed");
    host.stop();
}

#[test]
fn a_directory_with_mounts_below_is_refused_unless_they_are_ignored() {
    let (scratch, dir) = user_dir("dir");
    let (inner, target) = (dir.join("below/inner"), scratch.path().join("target"));
    fs::create_dir_all(&inner).unwrap();
    let mounted = InnerMount::new(&inner);
    fs::write(inner.join("on the inner one"), "not of the volume").unwrap();
    let mut host = Host::new();
    host.define_volume("data", &dir);
    host.start();
    let refused = host.run(&["mounts", "mount", "--all"]);
    assert_eq!(refused.code, REFUSED, "{refused:#?}");
    assert!(refused.stdout.contains(utf8(&inner)), "the inner mount is named: {refused:#?}");
    assert!(refused.stdout.contains("submounts=ignore"), "the remedy is named: {refused:#?}");
    host.must(&["mounts", "remove", utf8(&dir)]);
    host.must(&["mounts", "add", utf8(&dir), "-o", "volume=data,submounts=ignore"]);
    host.must(&["mounts", "mount", "--all"]);
    assert!(is_dtfs(&dir), "mounted over it");
    assert_eq!(fs::read_dir(&inner).unwrap().count(), 0, "what the inner mount covers");
    fs::write(inner.join("covered"), "of the volume").unwrap();
    host.define_target("data", &target);
    host.wait("data", 60);
    assert_eq!(fs::read(target.join("below/inner/covered")).unwrap(), b"of the volume");
    assert!(host.log().contains(utf8(&inner)), "the log names what is hidden");
    host.stop();
    assert_eq!(fs::read(inner.join("on the inner one")).unwrap(), b"not of the volume");
    drop(mounted);
    assert_eq!(fs::read(inner.join("covered")).unwrap(), b"of the volume");
}

#[test]
fn a_target_in_its_own_volume_is_refused() {
    let (_scratch, dir) = user_dir("dir");
    let mut host = Host::new();
    host.define_volume("data", &dir);
    let inside = format!("local:{}", utf8(&dir.join("replica")));
    refused(&host, &["define", "target", "data", &inside], REFUSED, "lies in");
    refused(&host, &["define", "target", "data", "floppy:a"], USAGE, "floppy");
    assert!(!dir.join("replica").exists());
}

#[test]
fn a_target_with_files_of_its_own_is_refused_unless_adopted() {
    let (_scratch, source) = user_dir("source");
    let (_other, target) = user_dir("target");
    fs::write(target.join("precious"), "not a replica").unwrap();
    let before = contents(&target);
    let mut host = Host::new();
    host.define_volume("data", &source);
    host.start_and_mount();
    let url = format!("local:{}", utf8(&target));
    let answer = host.run(&["define", "target", "data", &url]);
    // The receiving end sees what is in the directory: the answer comes with the command or a moment later.
    if answer.code == 0 {
        let is_refused = || (host.target("data")["state"] == "refused").then_some(());
        wait_until("the target to refuse", Duration::from_secs(30), is_refused);
        host.must(&["forget", "target", "data", "target"]);
    } else {
        assert_eq!(answer.code, REFUSED, "{answer:#?}");
    }
    assert_eq!(contents(&target), before, "a refused target is not touched");
    host.must(&["define", "target", "data", &url, "--adopt"]);
    host.wait("data", 60);
    assert!(!target.join("precious").exists(), "an adopted target becomes equal");
    host.stop();
}

#[test]
fn a_bad_line_is_named_and_the_others_go_on() {
    let (_scratch, dir) = user_dir("good");
    let mut host = Host::new();
    host.define_volume("good", &dir);
    let file = host.root().join("etc/dtfs/dtfs_mounts");
    let good = fs::read_to_string(&file).unwrap();
    let bad_line = good.lines().count() + 1;
    fs::write(&file, format!("{good}/srv/bad no-such-option\n")).unwrap();
    let listed = host.run(&["mounts", "list"]);
    assert!(listed.stdout.contains(utf8(&dir)), "the good entry is listed: {listed:#?}");
    assert!(listed.stderr.contains(&format!("dtfs_mounts:{bad_line}: ")), "line {bad_line} is named: {listed:#?}");
    host.start();
    let mounted = host.run(&["mounts", "mount", "--all"]);
    assert!(is_dtfs(&dir), "the good volume is mounted all the same: {mounted:#?}");
    host.stop();
}

#[test]
fn a_damaged_volume_file_is_named_with_its_line() {
    let (_scratch, dir) = user_dir("dir");
    let mut host = Host::new();
    host.define_volume("data", &dir);
    let volumes = host.root().join("etc/dtfs/mounts.d");
    fs::create_dir_all(&volumes).unwrap();
    fs::write(volumes.join("data.toml"), "role = \"master\"\njurnal_cap = \"8G\"\n").unwrap();
    let target = format!("local:{}", utf8(&dir.with_file_name("replica")));
    let answer = refused(&host, &["define", "target", "data", &target], USAGE, "data.toml:2: ");
    assert!(answer.stderr.contains("journal_cap"), "the nearest key is named: {answer:#?}");
}

#[test]
fn commands_that_need_a_daemon_say_so() {
    let host = Host::new();
    let answer = host.run(&["status"]);
    assert_eq!(answer.code, 3, "{answer:#?}");
    assert!(answer.stderr.contains("dtfs daemon"), "the remedy is named: {answer:#?}");
}
