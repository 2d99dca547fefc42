//! Two daemons on two networks joined by a cable: one listens, the other calls.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use support::host::Host;
use support::link::{FAR, Link, NEAR};
use support::process::{Process, wait_until};
use support::scratch::{FileSystem, Scratch, utf8};
use support::trees;
use support::workload::{Workload, worker_was_asked};

const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn workload_worker() {
    worker_was_asked();
}

/// The fields are dropped in this order.
struct Rig {
    near: Host,
    far: Host,
    source: PathBuf,
    target: PathBuf,
    link: Link,
    scratch: Scratch,
}

impl Rig {
    /// Both run; they do not know each other.
    fn strangers() -> Rig {
        let scratch = Scratch::with_size(FileSystem::Ext4, 2048);
        let (source, target) = (scratch.dir("source"), scratch.path().join("target"));
        trees::fill(&source.join("many"), 500);
        let link = Link::new();
        let (mut near, mut far) = (Host::new(), Host::new());
        near.put_on_network(link.near.keeper());
        far.put_on_network(link.far.keeper());
        near.define_volume("data", &source);
        let settings = far.root().join("etc/dtfs/dtfs.toml");
        fs::create_dir_all(settings.parent().unwrap()).unwrap();
        fs::write(&settings, format!("listen = \"{FAR}:6320\"\n")).unwrap();
        far.start();
        near.start_and_mount();
        Rig { near, far, source, target, link, scratch }
    }

    fn acquainted() -> Rig {
        let rig = Rig::strangers();
        rig.far.must(&["peer", "add", "near", rig.near.must(&["peer", "show"]).trim()]);
        rig.near.must(&["peer", "add", FAR, rig.far.must(&["peer", "show"]).trim()]);
        rig.far.must(&["define", "source", "copy", "near", utf8(&rig.target)]);
        rig
    }

    fn define_target(&self, volume: &str) {
        self.near.must(&["define", "target", "data", &format!("tls://{FAR}/{volume}"), "--as", "far"]);
    }

    fn last_error(&self, what: &str) {
        wait_until(&format!("an error that says {what}"), LIMIT, || {
            self.near.target("data").to_string().contains(what).then_some(())
        });
    }

    fn finish(mut self, context: &str) {
        self.near.wait("data", 300);
        self.near.stop();
        wait_until("the other end to stop", LIMIT, || self.far.servers().is_empty().then_some(()));
        self.far.stop();
        trees::assert_equal(&self.source, &self.target, context);
    }
}

#[test]
fn a_tree_is_mirrored_and_followed_through_kills_and_restarts() {
    let mut rig = Rig::acquainted();
    rig.define_target("copy");
    Workload::start(&rig.source, 7, 2, 1_000).finish();
    rig.near.wait("data", 300);
    let mirrored = rig.near.bytes_sent("data");
    rig.far.kill9_server();
    fs::write(rig.source.join("after"), b"the kill of the session").unwrap();
    rig.near.wait("data", 300);
    rig.far.kill9_and_wait();
    fs::write(rig.source.join("after"), b"the kill of the daemon there").unwrap();
    rig.far.start();
    rig.near.wait("data", 300);
    rig.far.stop();
    fs::write(rig.source.join("after"), b"the stop of the daemon there").unwrap();
    rig.far.start();
    rig.near.wait("data", 300);
    rig.link.cut();
    Workload::start(&rig.source, 8, 2, 300).finish();
    wait_until("the cut to be noticed", LIMIT, || (rig.near.target("data")["state"] == "offline").then_some(()));
    rig.link.mend();
    rig.near.wait("data", 300);
    let again = rig.near.bytes_sent("data") - mirrored;
    assert!(again < mirrored, "{again} bytes were sent again, the mirror took {mirrored}");
    let key = rig.far.root().join("var/lib/dtfs/.identity/identity.pem");
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o7777, 0o600);
    assert!(!rig.far.log().contains("PRIVATE") && !rig.near.log().contains("PRIVATE"));
    rig.finish("tls");
}

#[test]
fn a_key_reaches_its_own_copy_and_nothing_else() {
    let rig = Rig::strangers();
    rig.far.must(&["define", "source", "copy", "near", utf8(&rig.target)]);
    let other = rig.scratch.path().join("other");
    rig.far.must(&["define", "source", "another", "somebody-else", utf8(&other)]);
    rig.define_target("copy");
    rig.last_error("the key of 10.63.20.2 is not known");
    // Somebody else's key is expected there.
    rig.near.must(&["peer", "add", FAR, rig.near.must(&["peer", "show"]).trim()]);
    rig.last_error("invalid peer certificate");
    rig.near.must(&["peer", "add", FAR, rig.far.must(&["peer", "show"]).trim()]);
    rig.last_error("does not know the key");
    assert!(!rig.target.exists(), "nothing was made for a stranger");
    rig.far.must(&["peer", "add", "near", rig.near.must(&["peer", "show"]).trim()]);
    rig.near.wait("data", 300);

    rig.near.must(&["forget", "target", "data", "far"]);
    rig.define_target("another");
    rig.last_error("no such copy for this host");
    assert!(!other.exists());
    rig.near.must(&["forget", "target", "data", "far"]);
    rig.define_target("copy");
    rig.near.wait("data", 300);
    // A host that is forgotten is not served any more.
    rig.far.must(&["peer", "forget", "near"]);
    wait_until("the session to end", LIMIT, || rig.far.servers().is_empty().then_some(()));
    rig.last_error("does not know the key");
    rig.far.must(&["peer", "add", "near", rig.near.must(&["peer", "show"]).trim()]);
    rig.finish("one key, one copy");
}

/// Connections that say nothing, that say something else, and very many of them.
const STRANGER: &str = r#"
import socket, sys
held = []
for n in range(400):
    s = socket.socket()
    s.settimeout(20)
    try:
        s.connect((sys.argv[1], 6320))
        s.send([b"", b"GET / HTTP/1.0\r\n\r\n", b"dtfs replication protocol 1\n", b"\x16\x03\x01\xff\xff" + b"a" * 2000][n % 4] or b"\x16")
    except OSError:
        pass
    held.append(s)
print("held", flush=True)
sys.stdin.read()
"#;

#[test]
fn strangers_in_numbers_do_not_stop_a_session() {
    let rig = Rig::acquainted();
    rig.define_target("copy");
    rig.near.wait("data", 300);
    let mut command = rig.link.near.command("python3");
    command.args(["-c", STRANGER, FAR]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut stranger = Process::spawn(&mut command);
    let (keep, out) = stranger.pipes();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
    assert_eq!(line, "held\n");
    Workload::start(&rig.source, 9, 2, 300).finish();
    rig.near.wait("data", 300);
    let threads = fs::read_dir(format!("/proc/{}/task", rig.far.daemon_pid())).unwrap().count();
    assert!(threads < 100, "{threads} threads for strangers from {NEAR}");
    drop(keep);
    rig.finish("strangers");
}
