//! HAMMER's PFS how-to, command by command, and what its scripts do.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use support::host::Host;
use support::prng::Prng;
use support::process::{Process, wait_until};
use support::scratch::{FileSystem, Scratch, utf8};
use support::trees;

const PATIENCE: Duration = Duration::from_secs(120);

struct Rig {
    host: Host,
    source: PathBuf,
    slave: PathBuf,
    scratch: Scratch,
}

/// A mounted master volume `master` with some files, and a slave of it that nobody has filled.
fn rig() -> Rig {
    let scratch = Scratch::new(FileSystem::Ext4);
    let (source, slave) = (scratch.dir("master"), scratch.dir("slave"));
    trees::fill(&source, 200);
    let mut host = Host::new();
    host.must(&["pfs-master", utf8(&source)]);
    host.adopt_volume(&source);
    host.start_and_mount();
    let shared = value(&host.must(&["pfs-status", "master"]), "shared-uuid");
    host.must(&["pfs-slave", utf8(&slave), &format!("shared-uuid={shared}")]);
    Rig { host, source, slave, scratch }
}

/// The value of `key` in what a pfs directive printed.
fn value(printed: &str, key: &str) -> String {
    let found = printed.lines().find_map(|line| line.trim().strip_prefix(&format!("{key}=")));
    found.unwrap_or_else(|| panic!("no {key} in:\n{printed}")).to_owned()
}

fn keys(printed: &str) -> Vec<String> {
    let inner = printed.lines().filter(|line| line.starts_with("    "));
    inner.map(|line| line.trim().split('=').next().unwrap().split(" defaults to").next().unwrap().to_owned()).collect()
}

const MASTER: [&str; 8] = [
    "sync-beg-tid",
    "sync-end-tid",
    "shared-uuid",
    "unique-uuid",
    "label",
    "prune-min",
    "operating as a MASTER",
    "snapshots directory for master",
];
const SLAVE: [&str; 9] = [
    "sync-beg-tid",
    "sync-end-tid",
    "shared-uuid",
    "unique-uuid",
    "slave",
    "label",
    "prune-min",
    "operating as a SLAVE",
    "snapshots directory not set for slave",
];

#[test]
fn the_how_to_step_by_step() {
    let scratch = Scratch::new(FileSystem::Ext4);
    let base = scratch.dir("base");
    let (source, slave) = (base.join("master"), base.join("slave"));
    let mut host = Host::new();
    // Without a daemon, and the directory is made.
    let printed = host.must(&["pfs-master", utf8(&source)]);
    host.adopt_volume(&source);
    assert_eq!(keys(&printed), MASTER);
    assert_eq!(value(&printed, "sync-beg-tid"), "0x0000000000000001");
    let (shared, unique) = (value(&printed, "shared-uuid"), value(&printed, "unique-uuid"));
    assert_ne!(shared, unique);
    host.start_and_mount();
    let printed = host.must(&["pfs-status", utf8(&source)]);
    assert_eq!((value(&printed, "shared-uuid"), value(&printed, "unique-uuid")), (shared.clone(), unique));
    trees::fill(&source, 100);

    let printed = host.must(&["pfs-slave", utf8(&slave), &format!("shared-uuid={shared}")]);
    assert_eq!(keys(&printed), SLAVE);
    assert_eq!(value(&printed, "sync-end-tid"), "0x0000000000000001", "beginning and end are the same");
    let id = value(&printed, "unique-uuid");
    // Twice is the same slave.
    assert_eq!(value(&host.must(&["pfs-slave", utf8(&slave), &format!("shared-uuid={shared}")]), "unique-uuid"), id);

    let copied = host.must(&["mirror-copy", "master", utf8(&slave)]);
    let lines: Vec<&str> = copied.lines().collect();
    assert!(lines[0].starts_with("histogram range 0x"), "{copied}");
    assert!(lines[1].starts_with("Mirror-read: Mirror from 0x0000000000000000 to 0x"), "{copied}");
    assert!(lines[2].contains("succeeded"), "{copied}");
    let status = host.must(&["pfs-status", utf8(&slave)]);
    assert_eq!(value(&status, "unique-uuid"), id);
    let master = host.must(&["pfs-status", "master"]);
    assert_eq!(value(&status, "sync-end-tid"), value(&master, "sync-end-tid"));
    trees::assert_equal(&source, &slave, "after the first copy");

    // Reading a source moves access times, which are changes; with them on the other side the next copy sends what is new
    // and nothing else.
    host.must(&["mirror-copy", "master", utf8(&slave), "-q"]);
    let status = host.must(&["pfs-status", utf8(&slave)]);
    fs::write(source.join("new"), b"new").unwrap();
    let copied = host.must(&["mirror-copy", "master", utf8(&slave)]);
    let sent: u64 = copied.rsplit(", ").next().unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(sent < 8192, "{copied}");
    assert!(copied.contains(&format!("Mirror from {}", value(&status, "sync-end-tid"))), "{copied}");
    assert_eq!(host.must(&["mirror-copy", "master", utf8(&slave), "-q"]), "", "-q prints nothing");
    host.stop();
    trees::assert_equal(&source, &slave, "after the second copy");
}

#[test]
fn a_slave_of_another_volume_is_refused_and_nothing_is_written() {
    let Rig { mut host, scratch, .. } = rig();
    let other = scratch.dir("other");
    host.must(&["pfs-slave", utf8(&other), "shared-uuid=9043570e-b3d9-4de9-9bef-011617202aa6"]);
    let before = trees::contents(&other);
    let answer = host.run(&["mirror-copy", "master", utf8(&other)]);
    assert_eq!(answer.code, 7, "{answer:?}");
    assert!(answer.stderr.contains("is a replica of volume 9043570e"), "{answer:?}");
    assert_eq!(trees::contents(&other), before);
    let shared = value(&host.must(&["pfs-status", "master"]), "shared-uuid");
    let answer = host.run(&["pfs-slave", utf8(&other), &format!("shared-uuid={shared}")]);
    assert_eq!(answer.code, 7, "{answer:?}");
    assert_eq!(host.run(&["pfs-slave", utf8(&other), "9043570e"]).code, 2);
    assert_eq!(host.run(&["mirror-copy", "master", "relative/dir"]).code, 2);
    host.stop();
}

#[test]
fn a_stream_is_alone_and_goes_on_where_it_was() {
    let Rig { mut host, source, slave, scratch } = rig();
    let mut stream = host.spawn("stream", &["mirror-stream", "master", utf8(&slave), "-v"]);
    fs::write(source.join("live"), b"1").unwrap();
    wait_until("the change to arrive", PATIENCE, || slave.join("live").exists().then_some(()));
    for verb in ["mirror-stream", "mirror-copy"] {
        let second = host.run(&[verb, "master", utf8(&slave)]);
        assert_eq!(second.code, 5, "{second:?}");
        assert!(second.stderr.contains("another command"), "{second:?}");
    }
    // Another session to the same tree, from a host that is not this one, finds it taken too.
    wait_until("lines of progress", PATIENCE, || host.printed("stream").contains("applied up to").then_some(()));
    stream.signal(Signal::SIGKILL);
    stream.wait("the stream", PATIENCE);
    wait_until("the session to end", PATIENCE, || host.servers().is_empty().then_some(()));
    fs::write(source.join("later"), b"2").unwrap();
    // Reading the files again must not take its place away.
    host.define_target("master", &scratch.dir("third"));
    let mut again = host.spawn("again", &["mirror-stream", "master", utf8(&slave), "-q"]);
    wait_until("the change to arrive", PATIENCE, || slave.join("later").exists().then_some(()));
    again.signal(Signal::SIGINT);
    again.wait("the stream", PATIENCE);
    assert_eq!(host.printed("again"), "", "-q prints nothing");
    let third = host.run(&["mirror-copy", "master", "third"]);
    assert_eq!(third.code, 5, "{third:?}");
    assert!(third.stderr.contains("the daemon"), "{third:?}");
    host.stop();
}

#[test]
fn a_rate_is_kept() {
    const BYTES: usize = 1 << 20;
    let Rig { mut host, source, slave, scratch: _scratch } = rig();
    host.must(&["mirror-copy", "master", utf8(&slave), "-q"]);
    fs::write(source.join("noise"), Prng::new(7).bytes(BYTES)).unwrap();
    let began = Instant::now();
    host.must(&["mirror-copy", "master", utf8(&slave), "-b", "512K"]);
    let took = began.elapsed();
    assert!(took > Duration::from_millis(1700), "1 MiB at 512 KiB a second took {took:?}");
    host.stop();
    trees::assert_equal(&source, &slave, "after a slow copy");
}

/// The example scripts find the program on the path and the host by its root.
fn script(host: &Host, name: &str, args: &[&str]) -> Command {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_dtfs"));
    let path = format!("{}:{}", program.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let mut command = Command::new(format!("{}/scripts/examples/{name}", env!("CARGO_MANIFEST_DIR")));
    command.args(args).env("PATH", path).env("DTFS_ROOT", host.root());
    command
}

#[test]
fn the_example_scripts() {
    let Rig { mut host, source, slave, scratch: _scratch } = rig();
    let slave_text = utf8(&slave);
    assert!(script(&host, "hmc", &["master", slave_text]).status().unwrap().success());
    trees::assert_equal(&source, &slave, "hmc");
    let mut stream = Process::spawn(&mut script(&host, "hms", &["master", slave_text]));
    fs::write(source.join("live"), b"1").unwrap();
    wait_until("the change to arrive", PATIENCE, || slave.join("live").exists().then_some(()));
    assert!(
        script(&host, "hms", &["master", slave_text]).status().unwrap().success(),
        "cron starts it again: no error"
    );
    let [(inner, _)] = &support::process::descendants(stream.pid())[..] else { panic!("one command in the script") };
    fs::write(source.join("last"), b"2").unwrap();
    let pid = inner.to_string();
    assert!(script(&host, "rc.shutdown", &["master", slave_text, &pid, "60"]).status().unwrap().success());
    stream.wait("the stream", PATIENCE);
    trees::assert_equal(&source, &slave, "after the last copy");
    host.stop();
}
