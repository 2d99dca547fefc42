//! Who else can look into a target's tree and change it: nobody changes it, nobody sees it before it is consistent for the
//! first time, and neither kills nor roles nor an operator's umount(8) leave anything else. `DTFS_SEED` repeats a run.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dtfs::backing::guard::{Cover, cover_at};
use nix::errno::Errno;
use support::behind::{Behind, uncover};
use support::host::Host;
use support::length::number;
use support::loopback::Loopback;
use support::prng::Prng;
use support::process::{mounts_below, tool, wait_until};
use support::replica::Pair;
use support::scratch::{FileSystem, Scratch, utf8};
use support::sshd::{Key, Sshd};
use support::trees;
use support::user::SOMEONE;
use support::workload::{Workload, worker_was_asked};

const PATIENCE: Duration = Duration::from_secs(120);
const WAIT_SECONDS: u32 = 180;

#[test]
fn workload_worker() {
    worker_was_asked();
}

/// A directory that belongs to an ordinary user, with a file.
fn fill(source: &Path) {
    trees::fill(&source.join("many"), 50);
    fs::create_dir(source.join("theirs")).unwrap();
    fs::write(source.join("theirs/file"), "as it came").unwrap();
    for name in ["theirs", "theirs/file"] {
        chown(source.join(name), Some(SOMEONE.uid), Some(SOMEONE.gid)).unwrap();
    }
    fs::write(source.join("suid"), "a program").unwrap();
    fs::set_permissions(source.join("suid"), fs::Permissions::from_mode(0o4755)).unwrap();
}

fn errno<T>(end: io::Result<T>) -> Option<Errno> {
    end.err().and_then(|error| error.raw_os_error()).map(Errno::from_raw)
}

/// The mounts right at `path`.
fn mounts_at(path: &Path) -> usize {
    mounts_below(path).iter().filter(|(point, _)| Path::new(point) == path).count()
}

fn events(host: &Host) -> String {
    host.must(&["events", "data"])
}

/// What a local user, and root by the path, can do to a tree that is a target: nothing.
fn nobody_changes(target: &Path, outside: &Path) {
    let theirs = target.join("theirs");
    let attempts = || {
        [
            errno(fs::write(theirs.join("file"), "changed")),
            errno(fs::write(theirs.join("new"), "new")),
            errno(fs::create_dir(theirs.join("new"))),
            errno(fs::remove_file(theirs.join("file"))),
            errno(fs::rename(theirs.join("file"), theirs.join("other"))),
            errno(fs::set_permissions(theirs.join("file"), fs::Permissions::from_mode(0o777))),
        ]
    };
    assert_eq!(SOMEONE.does(attempts), [Some(Errno::EROFS); 6]);
    assert_eq!(attempts(), [Some(Errno::EROFS); 6], "root does not by mistake");
    for moved in
        [SOMEONE.does(|| errno(fs::rename(&theirs, outside.join("theirs")))), errno(fs::rename(&theirs, outside))]
    {
        assert!(matches!(moved, Some(Errno::EXDEV | Errno::EROFS)), "moved out: {moved:?}");
    }
    let busy = errno(fs::rename(target, target.with_extension("away")));
    assert_eq!(busy, Some(Errno::EBUSY), "the target itself is moved away");
    assert_eq!(fs::read_to_string(theirs.join("file")).unwrap(), "as it came");
    let options = mount_options(target);
    assert!(["ro", "nosuid", "nodev"].iter().all(|option| options.split(',').any(|o| o == *option)), "{options}");
}

fn mount_options(target: &Path) -> String {
    tool("findmnt", &["--noheadings", "--output", "VFS-OPTIONS", "--mountpoint", utf8(target)])
}

#[test]
fn a_target_is_closed_until_it_is_consistent_and_read_only_from_then_on() {
    let scratch = Scratch::new(FileSystem::Ext4);
    // As below systemd: what is mounted on one mount appears on its peers.
    tool("mount", &["--make-shared", utf8(scratch.path())]);
    let (source, target, outside) = (scratch.dir("source"), scratch.dir("target"), scratch.dir("outside"));
    fs::set_permissions(&outside, fs::Permissions::from_mode(0o777)).unwrap();
    fill(&source);
    let mut host = Host::new();
    host.define_volume("data", &source);
    // The target comes to a halt in the middle of the mirror.
    host.start_with_faults("applier.record=errno:28@30+");
    host.must(&["mounts", "mount", "--all"]);
    host.define_target("data", &target);
    wait_until("the target to stall", PATIENCE, || (host.target("data")["state"] == "stalled").then_some(()));
    assert_eq!(cover_at(&target).unwrap(), Cover::Closed);
    assert_eq!(mounts_at(&target), 2);
    assert_eq!(SOMEONE.does(|| errno(fs::read_dir(&target))), Some(Errno::EACCES));
    assert_eq!(SOMEONE.does(|| errno(File::open(target.join("many")))), Some(Errno::EACCES));
    assert_eq!(errno(fs::write(target.join("new"), "")), Some(Errno::EROFS));
    let behind = Behind::of(&target);
    assert!(fs::read_dir(behind.path()).unwrap().count() > 0, "something has come, and nobody sees it");
    drop(behind);
    let servers = host.servers();
    host.kill9();
    support::process::wait_until("the target's process to end", PATIENCE, || {
        servers.iter().all(|pid| support::process::command_line(*pid).is_empty()).then_some(())
    });
    assert_eq!((cover_at(&target).unwrap(), mounts_at(&target)), (Cover::Closed, 2), "a mount needs no process");

    host.start_and_mount();
    host.wait("data", WAIT_SECONDS);
    assert_eq!((cover_at(&target).unwrap(), mounts_at(&target)), (Cover::ReadOnly, 1));
    assert_eq!(SOMEONE.does(|| fs::read_to_string(target.join("theirs/file"))).unwrap(), "as it came");
    assert_eq!(fs::metadata(target.join("suid")).unwrap().mode() & 0o7777, 0o4755);
    nobody_changes(&target, &outside);
    // A record of what they would have taken along still goes into the target.
    SOMEONE.does(|| fs::write(source.join("theirs/later"), "later")).unwrap();
    host.wait("data", WAIT_SECONDS);
    assert_eq!(fs::read_to_string(target.join("theirs/later")).unwrap(), "later");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    let before = events(&host);
    assert!(!before.contains("others could change"), "{before}");
    host.stop();
    nobody_changes(&target, &outside);
    trees::assert_equal(&source, &target, "through the cover");
}

/// The same attack where the operator does not want the cover: it succeeds, so the test above is worth something.
#[test]
fn control_without_the_cover_a_local_user_takes_records_along() {
    let scratch = Scratch::new(FileSystem::Ext4);
    let (source, target, outside) = (scratch.dir("source"), scratch.dir("target"), scratch.dir("outside"));
    fs::set_permissions(&outside, fs::Permissions::from_mode(0o777)).unwrap();
    fill(&source);
    fs::create_dir(source.join("shared")).unwrap();
    fs::set_permissions(source.join("shared"), fs::Permissions::from_mode(0o777)).unwrap();
    SOMEONE.does(|| fs::create_dir(source.join("shared/theirs"))).unwrap();
    let mut host = Host::new();
    fs::create_dir_all(host.root().join("etc/dtfs")).unwrap();
    fs::write(host.root().join("etc/dtfs/dtfs.toml"), "guard = \"off\"\n").unwrap();
    host.define_volume("data", &source);
    host.start_and_mount();
    host.define_target("data", &target);
    host.wait("data", WAIT_SECONDS);
    assert_eq!(cover_at(&target).unwrap(), Cover::Bare);
    assert!(events(&host).contains("guard = \"off\""), "{}", events(&host));
    SOMEONE.does(|| fs::rename(target.join("shared/theirs"), outside.join("theirs"))).unwrap();
    SOMEONE.does(|| fs::write(source.join("shared/theirs/later"), "later")).unwrap();
    host.wait("data", WAIT_SECONDS);
    assert_eq!(fs::read_to_string(outside.join("theirs/later")).unwrap(), "later");
    // Switched on, it is covered from the next session on, and verified: nobody knows what was done.
    fs::write(host.root().join("etc/dtfs/dtfs.toml"), "guard = \"on\"\n").unwrap();
    host.kill9_server();
    let told = verified(&host);
    assert!(told.contains("a verification is due"), "{told}");
    assert_eq!(cover_at(&target).unwrap(), Cover::ReadOnly);
    let status = host.target("data");
    assert!(status["verify"]["found"].as_u64().unwrap() > 0, "{status:#}\n{told}");
}

/// The events, once a verification has ended.
fn verified(host: &Host) -> String {
    wait_until("the verification", PATIENCE, || Some(events(host)).filter(|text| text.contains("verified up to")))
}

#[test]
fn after_a_time_without_the_cover_a_verification_is_due() {
    let mut pair = Pair::mirrored(FileSystem::Ext4, |source| fill(source));
    // A reboot, or an operator's umount.
    tool("umount", &[utf8(&pair.target)]);
    assert_eq!(cover_at(&pair.target).unwrap(), Cover::Bare);
    fs::write(pair.target.join("theirs/file"), "by somebody").unwrap();
    pair.host.kill9_server();
    let told = verified(&pair.host);
    assert!(told.contains("a verification is due"), "{told}");
    let status = pair.host.target("data");
    assert!(status["verify"]["found"].as_u64().unwrap() > 0, "{status:#}\n{told}");
    assert_eq!((cover_at(&pair.target).unwrap(), mounts_at(&pair.target)), (Cover::ReadOnly, 1));
    pair.host.must(&["verify", "data", "target", "--repair"]);

    // It is over: neither a session nor a daemon says so again.
    let count = |host: &Host| events(host).matches("a verification is due").count();
    pair.host.kill9_server();
    pair.host.stop();
    pair.host.start_and_mount();
    pair.wait();
    assert_eq!(count(&pair.host), 1);

    // The daemon puts it back, and dies before any source has heard of it.
    pair.host.must(&["replication", "pause", "data", "target"]);
    pair.host.stop();
    tool("umount", &[utf8(&pair.target)]);
    pair.host.start();
    assert_eq!(cover_at(&pair.target).unwrap(), Cover::ReadOnly, "no session is up");
    pair.host.kill9();
    pair.host.must(&["replication", "resume", "data", "target"]);
    pair.host.start_and_mount();
    wait_until("the source to hear of it", PATIENCE, || (count(&pair.host) == 2).then_some(()));
    pair.stop_and_compare("verified and mended");
}

/// A system that lets nothing be mounted: it is told, and the target goes on.
#[test]
fn where_nothing_can_be_mounted_it_is_told() {
    let mut pair = Pair::mirrored(FileSystem::Ext4, |source| fill(source));
    pair.host.stop();
    uncover(&pair.target);
    pair.host.start_with_faults("guard.cover=errno:1@1+");
    pair.host.must(&["mounts", "mount", "--all"]);
    fs::write(pair.source.join("later"), "later").unwrap();
    pair.wait();
    let told = events(&pair.host);
    assert!(told.contains("its host lets nothing be mounted over it"), "{told}");
    assert!(pair.host.log().contains("nothing can be mounted over it"), "{}", pair.host.log());
    assert_eq!(cover_at(&pair.target).unwrap(), Cover::Bare);
    pair.host.stop();
    pair.host.start_and_mount();
    let told = verified(&pair.host);
    assert!(told.contains("nobody else can change its tree any more"), "{told}");
    pair.stop_and_compare("covered again");
}

#[test]
fn promotion_takes_the_cover_away_and_demotion_puts_it_back() {
    let pair = Pair::mirrored(FileSystem::Ext4, |source| fill(source));
    let Pair { mut host, target, scratch, .. } = pair;
    let outside = scratch.dir("outside");
    host.must(&["forget", "target", "data", "target"]);
    nobody_changes(&target, &outside);
    host.must(&["promote", utf8(&target), "--as", "second"]);
    host.adopt_volume(&target);
    host.must(&["mounts", "unmount", utf8(&target)]);
    assert_eq!((cover_at(&target).unwrap(), mounts_at(&target)), (Cover::Bare, 0));
    fs::write(target.join("theirs/of-a-master"), "written").unwrap();
    fs::remove_file(target.join("theirs/of-a-master")).unwrap();
    host.must(&["mounts", "mount", utf8(&target)]);
    SOMEONE.does(|| fs::write(target.join("theirs/by-them"), "written")).unwrap();
    host.must(&["demote", "second", "--discard"]);
    assert_eq!((cover_at(&target).unwrap(), mounts_at(&target)), (Cover::ReadOnly, 1));
    nobody_changes(&target, &outside);
    assert_eq!(fs::read_to_string(target.join("theirs/by-them")).unwrap(), "written", "others have always seen it");
    host.stop();
}

/// A slave that waits for its master is closed, and is read-only for everybody.
#[test]
fn a_slave_that_nobody_has_filled_is_closed() {
    let scratch = Scratch::new(FileSystem::Xfs);
    let slave = scratch.path().join("slave");
    let host = Host::new();
    let shared = "01020304-0506-0708-090a-0b0c0d0e0f10";
    let printed = host.must(&["pfs-slave", utf8(&slave), &format!("shared-uuid={shared}")]);
    assert_eq!((cover_at(&slave).unwrap(), mounts_at(&slave)), (Cover::Closed, 2));
    assert_eq!(host.must(&["pfs-status", utf8(&slave)]), printed, "root sees it through dtfs");
    assert_eq!(host.must(&["pfs-slave", utf8(&slave), &format!("shared-uuid={shared}")]), printed);
    assert_eq!(mounts_at(&slave), 2);
}

/// Who says that a copy is restricted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SaidBy {
    /// `dtfs.toml`, of all copies of the host.
    Host,
    /// The copy's own file.
    Copy,
}

/// A program with rights of its own, and a device with two names.
fn make_dangerous(dir: &Path) {
    fs::create_dir(dir).unwrap();
    fs::write(dir.join("program"), utf8(dir)).unwrap();
    fs::set_permissions(dir.join("program"), fs::Permissions::from_mode(0o6755)).unwrap();
    // cap_net_raw+ep, as setcap(8) writes it (struct vfs_cap_data, version 2).
    let capability = "0x0100000200200000000000000000000000000000";
    tool("setfattr", &["-n", "security.capability", "-v", capability, utf8(&dir.join("program"))]);
    tool("setfattr", &["-n", "trusted.of-source", "-v", "1", utf8(&dir.join("program"))]);
    tool("setfattr", &["-n", "user.colour", "-v", "blue", utf8(&dir.join("program"))]);
    tool("mknod", &["-m", "666", utf8(&dir.join("device")), "c", "1", "3"]);
    fs::hard_link(dir.join("device"), dir.join("second")).unwrap();
    fs::set_permissions(dir, fs::Permissions::from_mode(0o2775)).unwrap();
}

#[test]
fn a_restricted_copy_takes_nothing_dangerous_and_is_equal_for_a_verification() {
    restricted(FileSystem::Ext4, SaidBy::Host);
}

#[test]
fn a_copy_is_restricted_by_its_own_file_on_xfs() {
    restricted(FileSystem::Xfs, SaidBy::Copy);
}

#[test]
fn a_copy_is_restricted_by_its_own_file_on_btrfs() {
    restricted(FileSystem::Btrfs, SaidBy::Copy);
}

/// A host with a restricted copy.
struct Restricted {
    host: Host,
    /// The copy's host and the way to it, where the copy's own file says so.
    there: Option<(Sshd, Host, Loopback)>,
    scratch: Scratch,
}

impl Restricted {
    fn new(kind: FileSystem, said_by: SaidBy) -> Restricted {
        let scratch = Scratch::new(kind);
        let (source, target) = (scratch.dir("source"), scratch.dir("target"));
        make_dangerous(&source.join("before"));
        let mut host = Host::new();
        let mut url = format!("local:{}", utf8(&target));
        let there = (said_by == SaidBy::Copy).then(|| {
            let (network, far) = (Loopback::new(), Host::new());
            host.put_on_network(network.keeper());
            far.must(&["define", "source", "kept", "somebody", utf8(&target), "--trust", "restricted"]);
            let sshd = Sshd::start(&network, "127.0.0.1", far.root(), &Key::Free);
            sshd.write_client_config(&host.root().join("etc/dtfs/ssh_config"));
            url = format!("ssh://root@127.0.0.1:2222{}", utf8(&target));
            (sshd, far, network)
        });
        if there.is_none() {
            fs::create_dir_all(host.root().join("etc/dtfs")).unwrap();
            fs::write(host.root().join("etc/dtfs/dtfs.toml"), "trust = \"restricted\"\n").unwrap();
        }
        host.define_volume("data", &source);
        host.start_and_mount();
        host.must(&["define", "target", "data", &url, "--as", "target"]);
        host.wait("data", WAIT_SECONDS);
        Restricted { host, there, scratch }
    }

    fn source(&self) -> PathBuf {
        self.scratch.path().join("source")
    }

    fn target(&self) -> PathBuf {
        self.scratch.path().join("target")
    }

    fn servers(&self) -> Vec<i32> {
        self.there.as_ref().map_or_else(|| self.host.servers(), |(sshd, ..)| sshd.servers())
    }

    /// The session ends, and another one begins.
    fn next_session(&self) {
        let before = self.servers();
        for pid in &before {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL).unwrap();
        }
        wait_until("the next session", PATIENCE, || {
            let now = self.servers();
            let is_new = !now.is_empty() && now.iter().all(|pid| !before.contains(pid));
            (is_new && self.host.target("data")["state"] == "replicating").then_some(())
        });
        self.host.wait("data", WAIT_SECONDS);
    }

    fn told(&self) -> usize {
        let lines = self.host.must(&["events", "data"]);
        lines.lines().filter(|line| line.contains("it is restricted there")).count()
    }
}

/// What a restricted copy leaves out is no difference, whether it came with the mirror or afterwards, and is counted.
fn restricted(kind: FileSystem, said_by: SaidBy) {
    let mut rig = Restricted::new(kind, said_by);
    let (source, target) = (rig.source(), rig.target());
    make_dangerous(&source.join("after"));
    fs::rename(source.join("after/second"), source.join("after/third")).unwrap();
    rig.host.wait("data", WAIT_SECONDS);
    for dir in ["before", "after"] {
        let dir = target.join(dir);
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o7777, 0o775);
        assert_eq!(fs::metadata(dir.join("program")).unwrap().mode() & 0o7777, 0o755);
        let behind = Behind::of(&target);
        let xattrs = tool("getfattr", &["-d", "-m", "-", utf8(&behind.join(dir.file_name().unwrap()).join("program"))]);
        assert!(xattrs.contains("user.colour"), "{xattrs}");
        assert!(!xattrs.contains("security.capability") && !xattrs.contains("of-source"), "{xattrs}");
        let device = fs::symlink_metadata(dir.join("device")).unwrap();
        assert!(device.is_file() && device.len() == 0 && device.mode() & 0o7777 == 0 && device.nlink() == 2);
    }
    assert!(target.join("after/third").exists());
    rig.host.must(&["verify", "data", "target"]);
    // Each of the two directories, its program and its device. The parent that a record tells of is not counted for that.
    let status = rig.host.target("data");
    assert_eq!(status["left_out"], 6, "{status:#}");
    assert!(rig.host.must(&["status", "data"]).contains("restricted: lacks something of 6 objects"));
    assert_eq!(rig.told(), 1, "once a session");
    match said_by {
        SaidBy::Host => what_is_gone_lacks_nothing(&rig),
        SaidBy::Copy => a_source_that_is_trusted_again(&rig),
    }
    rig.host.stop();
    if said_by == SaidBy::Copy {
        wait_until("the other end to stop", PATIENCE, || rig.servers().is_empty().then_some(()));
        trees::assert_equal(&source, &target, "a source that is trusted again");
    }
}

fn what_is_gone_lacks_nothing(rig: &Restricted) {
    assert!(rig.host.log().contains("left out of a restricted copy"));
    fs::remove_dir_all(rig.source().join("before")).unwrap();
    rig.host.wait("data", WAIT_SECONDS);
    assert_eq!(rig.host.target("data")["left_out"], 3, "{:#}", rig.host.target("data"));
    rig.next_session();
    assert_eq!(rig.host.target("data")["left_out"], 3, "it is remembered");
    assert_eq!(rig.told(), 1, "nothing is new");
    let told = rig.host.must(&["forget", "target", "data", "target"]);
    assert!(told.contains("to end that: umount"), "{told}");
}

/// From the next session on nothing is left out, and a verification finds and brings what was.
fn a_source_that_is_trusted_again(rig: &Restricted) {
    let (_, far, _) = rig.there.as_ref().unwrap();
    let file = far.root().join("etc/dtfs/mounts.d/kept.toml");
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains("trust = \"restricted\""), "{text}");
    fs::write(&file, text.replace("restricted", "full")).unwrap();
    rig.next_session();
    assert_eq!(rig.host.run(&["verify", "data", "target"]).code, 6);
    rig.host.must(&["verify", "data", "target", "--repair"]);
    rig.host.wait("data", WAIT_SECONDS);
    assert!(rig.host.target("data")["left_out"].is_null(), "{:#}", rig.host.target("data"));
}

/// Daemon and target are killed at random places, from the first session on: from the first cover on there is no moment
/// without one, none is stacked, and after the last one nothing is left over.
#[test]
fn kills_leave_no_gap_and_no_stack() {
    let seed = number("DTFS_SEED", 1);
    println!("seed {seed} (DTFS_SEED repeats it)");
    let mut random = Prng::new(seed);
    let scratch = Scratch::new(FileSystem::Ext4);
    let (source, target) = (scratch.dir("source"), scratch.dir("target"));
    fill(&source);
    let mut host = Host::new();
    host.define_volume("data", &source);
    host.start_and_mount();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watching = scope.spawn(|| watch(&target, &over));
        host.define_target("data", &target);
        for round in 0..10 {
            let storm = Workload::start(&source.join("many"), seed + round, 2, 150);
            std::thread::sleep(Duration::from_millis(random.below(300)));
            match round % 2 {
                0 => host.kill9_servers(),
                _ => {
                    storm.finish();
                    host.kill9();
                    std::thread::sleep(Duration::from_millis(random.below(100)));
                    host.start_and_mount();
                    continue;
                }
            }
            storm.finish();
        }
        host.wait("data", WAIT_SECONDS);
        over.store(true, Ordering::SeqCst);
        let (looks, first) = watching.join().unwrap();
        assert!(looks > 100 && first == Cover::Closed, "{looks} looks, first {first:?}");
    });
    host.stop();
    assert_eq!((cover_at(&target).unwrap(), mounts_at(&target)), (Cover::ReadOnly, 1));
    trees::assert_equal(&source, &target, &format!("seed {seed}"));
    uncover(&target);
    assert_eq!(mounts_at(&target), 0);
}

/// How often the target was seen covered, and how it was first seen to be closed or not.
fn watch(target: &Path, over: &AtomicBool) -> (u64, Cover) {
    let (mut looks, mut first) = (0, Cover::Bare);
    while !over.load(Ordering::SeqCst) {
        let now = cover_at(target).unwrap();
        if looks > 0 {
            assert_ne!(now, Cover::Bare, "after {looks} looks");
        }
        if now == Cover::Closed && first == Cover::Bare {
            first = now;
        }
        looks += u64::from(now != Cover::Bare);
        assert!(mounts_at(target) <= 2, "stacked");
        std::thread::sleep(Duration::from_millis(1));
    }
    (looks, first)
}
