//! Targets behind a real ssh server, on a network of its own, with throwaway keys.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use support::host::Host;
use support::loopback::Loopback;
use support::process::wait_until;
use support::scratch::{FileSystem, Scratch, utf8};
use support::sshd::{Key, Sshd};
use support::trees;
use support::workload::{Workload, worker_was_asked};

const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn workload_worker() {
    worker_was_asked();
}

/// Two hosts on one machine: the fields are dropped in this order.
struct Rig {
    source_host: Host,
    sshd: Sshd,
    /// Where the other host keeps its state.
    target_host: Host,
    source: PathBuf,
    target: PathBuf,
    _network: Loopback,
    _scratch: Scratch,
}

impl Rig {
    fn new(key: impl FnOnce(&str) -> Option<String>) -> Rig {
        let scratch = Scratch::with_size(FileSystem::Ext4, 2048);
        let (source, target) = (scratch.dir("source"), scratch.path().join("it's a copy"));
        trees::fill(&source.join("many"), 500);
        let network = Loopback::new();
        let (mut source_host, target_host) = (Host::new(), Host::new());
        source_host.put_on_network(network.keeper());
        let forced = key(utf8(&target));
        let sshd =
            Sshd::start(&network, "127.0.0.1", target_host.root(), &forced.as_deref().map_or(Key::Free, Key::Forced));
        sshd.write_client_config(&source_host.root().join("etc/dtfs/ssh_config"));
        source_host.define_volume("data", &source);
        source_host.start_and_mount();
        Rig { source_host, sshd, target_host, source, target, _network: network, _scratch: scratch }
    }

    fn define(&self, dir: &str) {
        self.source_host.must(&["define", "target", "data", &format!("ssh://root@127.0.0.1:2222{dir}")]);
    }

    fn define_target(&self) {
        self.define(utf8(&self.target));
    }

    fn wait(&self) {
        self.source_host.wait("data", 300);
    }

    fn last_error(&self, what: &str) -> String {
        wait_until("an error that says why", LIMIT, || {
            let target = self.source_host.target("data");
            let text = target.to_string();
            text.contains(what).then_some(text)
        })
    }

    fn finish(mut self, context: &str) {
        self.wait();
        self.source_host.stop();
        wait_until("the other end to stop", LIMIT, || self.sshd.servers().is_empty().then_some(()));
        trees::assert_equal(&self.source, &self.target, context);
        assert!(self.target_host.root().join("var/lib/dtfs/replicas").exists(), "the state lies on the other host");
    }
}

#[test]
fn a_tree_is_mirrored_and_followed_through_kills_of_both_ends_of_the_connection() {
    let rig = Rig::new(|_| None);
    rig.define_target();
    assert_eq!(rig.source_host.target("data")["name"], "127.0.0.1", "named after its host");
    Workload::start(&rig.source, 5, 2, 1_000).finish();
    rig.wait();
    let mirrored = rig.source_host.bytes_sent("data");
    for round in 0..4 {
        let victims = if round % 2 == 0 { rig.sshd.servers() } else { rig.sshd.connections() };
        assert!(!victims.is_empty(), "there is a session");
        let _ = kill(Pid::from_raw(victims[0]), Signal::SIGKILL);
        fs::write(rig.source.join("after"), format!("round {round}")).unwrap();
        rig.wait();
    }
    let again = rig.source_host.bytes_sent("data") - mirrored;
    assert!(again < 32 << 10, "{again} bytes were sent after four kills");
    rig.finish("ssh");
}

#[test]
fn a_key_with_a_forced_command_reaches_one_directory_only() {
    let rig = Rig::new(|target| Some(format!("dtfs serve --stdio '{}'", target.replace('\'', r"'\''"))));
    let elsewhere = rig.target.with_file_name("elsewhere");
    rig.define(utf8(&elsewhere));
    let text = rig.last_error("this key reaches");
    assert!(text.contains("a copy only"), "{text}");
    assert!(!elsewhere.exists() && !rig.target.exists(), "nothing was made");
    rig.source_host.must(&["forget", "target", "data", "127.0.0.1"]);
    rig.define_target();
    rig.wait();
    rig.finish("forced command");
}

#[test]
fn what_ssh_says_is_shown_and_the_way_is_tried_again() {
    let rig = Rig::new(|_| None);
    rig.sshd.forget_key();
    rig.define_target();
    rig.last_error("Permission denied");
    assert!(rig.sshd.servers().is_empty());
    // A server that is not who it was is not spoken to.
    let config = rig.source_host.root().join("etc/dtfs/ssh_config");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("known_hosts", "nobody_known")).unwrap();
    rig.last_error("Host key verification failed");
}

#[test]
fn a_paused_target_keeps_its_place_and_a_bandwidth_holds_it_back() {
    let mut rig = Rig::new(|_| None);
    rig.define_target();
    rig.wait();
    rig.source_host.must(&["replication", "pause", "data", "127.0.0.1"]);
    wait_until("the session to end", LIMIT, || rig.sshd.servers().is_empty().then_some(()));
    assert_eq!(rig.source_host.target("data")["state"], "paused");
    Workload::start(&rig.source, 6, 2, 300).finish();
    // Also through a restart.
    rig.source_host.stop();
    rig.source_host.start_and_mount();
    assert_eq!(rig.source_host.target("data")["state"], "paused");
    assert_eq!(rig.source_host.run(&["wait", "data", "--timeout", "1"]).code, 4, "it is behind");
    assert!(rig.sshd.servers().is_empty());

    // The rate counts from its first session on; the file changes while it is paused.
    let file = rig.source_host.root().join("etc/dtfs/mounts.d/data.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("paused = true", "bandwidth = \"256K, 00:00-24:00 512K\"\npaused = true")).unwrap();
    let mut noise = vec![0; 3 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    fs::write(rig.source.join("noise"), &noise).unwrap();
    rig.source_host.must(&["replication", "resume", "data", "127.0.0.1"]);
    let started = std::time::Instant::now();
    rig.wait();
    let (took, bytes) = (started.elapsed().as_secs_f64(), rig.source_host.bytes_sent("data"));
    assert!(bytes >= noise.len() as u64, "noise does not shrink: {bytes}");
    // The last batch goes at once, and its debt is paid afterwards.
    let most = (512 << 10) as f64 * took + (2 << 20) as f64;
    assert!((bytes as f64) < most, "{bytes} bytes in {took} seconds");
    rig.finish("pause and bandwidth");
}

/// Owners are numbers: a name that means somebody else on the other host, or nobody, changes nothing.
#[test]
fn a_host_with_other_users_keeps_the_numbers() {
    let users = Scratch::new(FileSystem::Ext4);
    let others = |name: &str, lines: &str| {
        let path = users.path().join(name);
        fs::write(&path, format!("root:x:0:{lines}")).unwrap();
        path
    };
    let passwd = others("passwd", "0::/root:/bin/sh\nnobody:x:1001:1001::/:/bin/sh\ndaemon:x:65534:8::/:/bin/sh\n");
    let group = others("group", "\nnogroup:x:1001:\ndaemon:x:65534:\n");
    let rig = Rig::new(|target| {
        let bind = format!("mount --bind {} /etc/passwd && mount --bind {} /etc/group", utf8(&passwd), utf8(&group));
        let serve = format!("exec dtfs serve --stdio \\\"{target}\\\"");
        let who = utf8(&users.path().join("who")).to_owned();
        Some(
            format!("unshare --mount sh -c '{bind} && id --user nobody >{who} && {serve}'").replace("it's", r"it'\''s"),
        )
    });
    let owners = [(65534, 65534), (1, 1), (1001, 8), (3_000_000_001, 70_000)];
    let files: Vec<_> = owners.iter().map(|(uid, gid)| rig.source.join(format!("of-{uid}-{gid}"))).collect();
    for (file, (uid, gid)) in files.iter().zip(owners) {
        fs::write(file, "").unwrap();
        chown(file, Some(uid), Some(gid)).unwrap();
        support::process::tool("setfacl", &["--modify", "u:65534:r,u:1:rw,g:8:r", utf8(file)]);
    }
    rig.define_target();
    rig.wait();
    for (file, (uid, gid)) in files.iter().zip(owners) {
        chown(file, Some(gid), Some(uid)).unwrap();
    }
    rig.wait();
    assert_eq!(fs::read_to_string(users.path().join("who")).unwrap(), "1001\n", "the other host has the same users");
    for (file, (uid, gid)) in files.iter().zip(owners) {
        let copy = fs::metadata(rig.target.join(file.file_name().unwrap())).unwrap();
        assert_eq!((copy.uid(), copy.gid()), (gid, uid));
    }
    rig.finish("other users");
}
