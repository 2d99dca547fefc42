//! NFS and SMB servers on a mount that is being replicated: their clients see what they see of a bare directory, and
//! afterwards source and target are equal.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::fs;
use std::process::Command;

use support::both::Both;
use support::ganesha::Ganesha;
use support::length::{either, filesystems};
use support::loopback::Loopback;
use support::samba::{PASSWORD, Samba};
use support::scratch::{FileSystem, utf8};
use support::steps::{assert_same, run_steps};
use support::trees;

/// The suites of smbtorture that are quick and say most.
const SUITES: [&str; 8] = [
    "smb2.lock",
    "smb2.rename",
    "smb2.rw",
    "smb2.read",
    "smb2.streams",
    "smb2.sharemode",
    "smb2.delete-on-close-perms",
    "base.delete",
];
/// Those that take longer.
const MORE_SUITES: [&str; 10] = [
    "smb2.compound",
    "smb2.acls",
    "smb2.fileid",
    "smb2.timestamps",
    "smb2.mkdir",
    "smb2.dir",
    "raw.open",
    "raw.rename",
    "raw.lock",
    "raw.streams",
];

/// In both directories lies the same, but for times.
fn assert_same_trees(both: &Both, context: &str) {
    let (bare, mount) = (trees::described(both.bare()), trees::described(both.mount()));
    assert!(bare.len() > 10, "{context}: next to nothing was made");
    for path in bare.keys().chain(mount.keys()) {
        assert_eq!(bare.get(path), mount.get(path), "{context}: bare and mount differ at {}", path.display());
    }
}

fn nfs_steps(both: &mut Both, loopback: &Loopback, ganesha: &mut Ganesha, export: &str, version: u32) -> Vec<String> {
    let mut script = loopback.script("nfs_steps.py");
    run_steps(script.args([&format!("/{export}"), &version.to_string()]), |word| match word {
        "drop caches" => fs::write("/proc/sys/vm/drop_caches", "2").unwrap(),
        "restart" => {
            // The server holds the root of what it exports, so it is the first to stop and the last to start.
            ganesha.stop();
            let host = &mut both.pair_mut().host;
            host.stop();
            host.start_and_mount();
            ganesha.run(loopback);
        }
        other => panic!("the script asks for {other:?}"),
    })
}

fn nfs(kind: FileSystem, version: u32) {
    let context = format!("NFS version {version} on {kind:?}");
    let mut both = Both::on(kind);
    let loopback = Loopback::new();
    let mut ganesha = Ganesha::start(&loopback, &[("bare", both.bare()), ("mount", both.mount())]);
    let bare = nfs_steps(&mut both, &loopback, &mut ganesha, "bare", version);
    let mount = nfs_steps(&mut both, &loopback, &mut ganesha, "mount", version);
    ganesha.stop();
    assert_same(&bare, &mount, &context);
    assert_same_trees(&both, &context);
    both.finish(&context);
}

/// Handles that the client holds outlive the kernel's memory of them, the NFS server, the daemon and the mount.
#[test]
fn nfs_version_3() {
    filesystems(FileSystem::Ext4).into_iter().for_each(|kind| nfs(kind, 3));
}

/// Here the server keeps what a client has open and locked.
#[test]
fn nfs_version_4() {
    filesystems(FileSystem::Xfs).into_iter().for_each(|kind| nfs(kind, 4));
}

fn samba_steps(loopback: &Loopback, samba: &Samba, share: &str) -> Vec<String> {
    let mut script = loopback.script("smb_steps.py");
    run_steps(script.args([share, utf8(&samba.conf()), PASSWORD]), |word| panic!("the script asks for {word:?}"))
}

/// The verdict of each test of a suite of smbtorture, without the reason for a failure.
fn torture(loopback: &Loopback, samba: &Samba, share: &str, suite: &str) -> Vec<String> {
    let mut command: Command = loopback.command("smbtorture");
    command.args(["-s", utf8(&samba.conf()), "-U", &format!("root%{PASSWORD}")]);
    let output = command.args([&format!("//127.0.0.1/{share}"), suite]).output().expect("smbtorture runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let is_verdict =
        |line: &&str| ["success: ", "failure: ", "error: ", "skip: "].iter().any(|word| line.starts_with(word));
    let verdict = |line: &str| line.trim_end_matches(" [").to_owned();
    let verdicts: Vec<_> = text.lines().filter(is_verdict).map(verdict).collect();
    assert!(verdicts.iter().any(|line| line.starts_with("success")), "{suite} on {share}: nothing succeeds\n{text}");
    verdicts
}

fn samba(kind: FileSystem) {
    let context = format!("Samba on {kind:?}");
    let both = Both::on(kind);
    let loopback = Loopback::new();
    let samba = Samba::start(&loopback, &[("bare", both.bare()), ("mount", both.mount())]);
    let bare = samba_steps(&loopback, &samba, "bare");
    assert_same(&bare, &samba_steps(&loopback, &samba, "mount"), &context);
    assert_same_trees(&both, &context);
    for suite in SUITES.iter().chain(either(&[][..], &MORE_SUITES[..])) {
        let bare = torture(&loopback, &samba, "bare", suite);
        assert_same(&bare, &torture(&loopback, &samba, "mount", suite), &format!("{suite}, {context}"));
    }
    samba.stop();
    both.finish(&context);
}

#[test]
fn smb() {
    filesystems(FileSystem::Ext4).into_iter().for_each(samba);
}
