//! Two daemons on two networks joined by a cable: one listens, the other calls, and strangers call as well.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use support::host::Host;
use support::link::{FAR, Link};
use support::loopback::client_script;
use support::process::{Process, command_line, wait_until};
use support::scratch::{FileSystem, Scratch, utf8};
use support::thief::{Outcome, steal};
use support::trees;
use support::workload::{Workload, worker_was_asked};

const LIMIT: Duration = Duration::from_secs(120);
/// Lies in the tree before the mirror and never changes: whoever mirrors again sends it again.
const BALLAST_BYTES: usize = 24 << 20;

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
        Rig::with_faults("", "")
    }

    /// As [`Rig::strangers`], with fault points on the near and on the far side.
    fn with_faults(near_faults: &str, far_faults: &str) -> Rig {
        let scratch = Scratch::with_size(FileSystem::Ext4, 2048);
        let (source, target) = (scratch.dir("source"), scratch.path().join("target"));
        trees::fill(&source.join("many"), 200);
        let mut ballast = vec![0; BALLAST_BYTES];
        blake3::Hasher::new().finalize_xof().fill(&mut ballast);
        fs::write(source.join("ballast"), &ballast).unwrap();
        let link = Link::new();
        let (mut near, mut far) = (Host::new(), Host::new());
        near.put_on_network(link.near.keeper());
        far.put_on_network(link.far.keeper());
        near.define_volume("data", &source);
        let settings = far.root().join("etc/dtfs/dtfs.toml");
        fs::create_dir_all(settings.parent().unwrap()).unwrap();
        fs::write(&settings, format!("listen = \"{FAR}:6320\"\n")).unwrap();
        far.start_with_faults(far_faults);
        near.start_with_faults(near_faults);
        near.must(&["mounts", "mount", "--all"]);
        Rig { near, far, source, target, link, scratch }
    }

    fn acquainted() -> Rig {
        Rig::strangers().introduced()
    }

    fn introduced(self) -> Rig {
        let rig = self;
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

    /// What a stranger on the source's network gets for an answer.
    fn stranger(&self, args: &[&str]) -> String {
        let output = self.link.near.script("tls_stranger.py").arg(FAR).args(args).output().expect("python3 runs");
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
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
fn a_tree_is_mirrored_and_followed_through_kills_cuts_and_restarts() {
    let mut rig = Rig::acquainted();
    assert_eq!(rig.far.must(&["check"]), "", "a copy needs no entry in dtfs_mounts");
    rig.define_target("copy");
    // Cut in the middle of the mirror.
    wait_until("the mirror to begin", LIMIT, || (rig.near.bytes_sent("data") > 1 << 20).then_some(()));
    rig.link.cut();
    Workload::start(&rig.source, 7, 2, 500).finish();
    rig.link.mend();
    rig.near.wait("data", 300);
    let mirrored = rig.near.bytes_sent("data");
    assert!(mirrored > BALLAST_BYTES as u64, "noise does not shrink: a second mirror would show");

    rig.far.kill9_server();
    fs::write(rig.source.join("after"), b"the kill of the session").unwrap();
    rig.near.wait("data", 300);
    let load = Workload::start(&rig.source, 8, 2, 500);
    rig.far.kill9_and_wait();
    load.finish();
    rig.far.start();
    rig.near.wait("data", 300);
    rig.far.stop();
    fs::write(rig.source.join("after"), b"the stop of the daemon there").unwrap();
    rig.far.start();
    rig.near.wait("data", 300);
    let load = Workload::start(&rig.source, 9, 2, 500);
    rig.link.cut();
    load.finish();
    wait_until("the cut to be noticed", LIMIT, || (rig.near.target("data")["state"] == "offline").then_some(()));
    rig.link.mend();
    rig.near.wait("data", 300);
    let again = rig.near.bytes_sent("data") - mirrored;
    assert!(again < BALLAST_BYTES as u64, "{again} bytes were sent again, the mirror took {mirrored}");

    let load = Workload::start(&rig.source, 10, 2, 300);
    load.finish();
    rig.near.kill9();
    wait_until("the session of a source that was killed to end", LIMIT, || rig.far.servers().is_empty().then_some(()));
    rig.near.start_and_mount();
    rig.near.wait("data", 300);
    // The counter begins at 0 with each daemon.
    assert!(rig.near.bytes_sent("data") < BALLAST_BYTES as u64, "a kill of the source is no reason for a mirror");
    rig.finish("tls");
}

#[test]
fn a_key_reaches_its_own_copy_and_nothing_else() {
    let rig = Rig::strangers();
    rig.far.must(&["define", "source", "copy", "near", utf8(&rig.target)]);
    let other = rig.scratch.path().join("other");
    rig.far.must(&["define", "source", "another", "somebody-else", utf8(&other)]);
    let checked = rig.far.run(&["check"]);
    assert_eq!(checked.code, 2, "{checked:?}");
    assert!(checked.stderr.contains("the key of near is not known"), "check names what is missing: {checked:?}");
    rig.define_target("copy");
    rig.last_error("the key of 10.63.20.2 is not known");
    // Somebody else's key is expected there.
    rig.near.must(&["peer", "add", FAR, rig.near.must(&["peer", "show"]).trim()]);
    rig.last_error("shows another key than the one that is known");
    rig.near.must(&["peer", "add", FAR, rig.far.must(&["peer", "show"]).trim()]);
    rig.last_error("does not know the key");
    assert!(!rig.target.exists(), "nothing was made for a stranger");
    rig.far.must(&["peer", "add", "near", rig.near.must(&["peer", "show"]).trim()]);
    rig.near.wait("data", 300);
    nothing_secret_is_shown(&rig);

    rig.near.must(&["forget", "target", "data", "far"]);
    rig.define_target("another");
    rig.last_error("no such copy for this host");
    assert!(!other.exists());
    rig.near.must(&["forget", "target", "data", "far"]);
    rig.define_target("copy");
    rig.near.wait("data", 300);
    // A host that is forgotten is not served any more, nor is one whose copy is.
    rig.far.must(&["peer", "forget", "near"]);
    wait_until("the session to end", LIMIT, || rig.far.servers().is_empty().then_some(()));
    rig.last_error("does not know the key");
    rig.far.must(&["peer", "add", "near", rig.near.must(&["peer", "show"]).trim()]);
    rig.near.wait("data", 300);
    rig.far.must(&["forget", "source", "copy"]);
    wait_until("the session to end", LIMIT, || rig.far.servers().is_empty().then_some(()));
    rig.last_error("no such copy for this host");
    assert!(!rig.far.root().join("etc/dtfs/mounts.d/copy.toml").exists(), "nothing is left of what was defined");
    rig.far.must(&["define", "source", "copy", "near", utf8(&rig.target)]);
    rig.finish("one key, one copy");
}

/// The key is root's alone, and neither it nor a part of it is in a log or on a command line.
fn nothing_secret_is_shown(rig: &Rig) {
    for host in [&rig.near, &rig.far] {
        let file = host.root().join("var/lib/dtfs/.identity/identity.pem");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o600, 0o700));
        let pem = fs::read_to_string(file).unwrap();
        let secret: Vec<_> = pem.lines().skip_while(|line| !line.contains("PRIVATE")).collect();
        let lines = host.servers().into_iter().map(command_line).collect::<String>();
        let shown = host.log() + &command_line(host.daemon_pid()) + &lines;
        assert!(secret.len() >= 3 && secret.iter().all(|line| !shown.contains(line)), "a secret is shown: {shown}");
    }
}

#[test]
fn strangers_get_no_further_than_the_door() {
    let rig = Rig::acquainted();
    rig.define_target("copy");
    rig.near.wait("data", 300);
    let served = rig.far.servers();
    assert_eq!(rig.stranger(&["plain"]), "closed");
    assert_eq!(rig.stranger(&["no-certificate"]), "refused");
    assert_eq!(rig.stranger(&["old-version"]), "refused");
    assert_eq!(rig.stranger(&["unknown-key"]), "told");
    assert_eq!(thief(&rig), Outcome::Refused, "a certificate is no secret; without its key it says nothing");
    assert_eq!(rig.stranger(&["slow"]), "closed", "whoever takes longer than ten seconds is not waited for");
    assert_eq!(rig.far.servers(), served, "no process was started for any of them");
    rig.finish("strangers at the door");
}

/// Somebody who shows the source's certificate and has another key.
fn thief(rig: &Rig) -> Outcome {
    let pem = fs::read_to_string(rig.near.root().join("var/lib/dtfs/.identity/identity.pem")).unwrap();
    steal(rig.link.near.keeper(), &format!("{FAR}:6320"), &pem)
}

/// Who does not look whether a key is proven serves whoever has seen a certificate.
#[test]
fn control_the_proof_of_a_key_is_not_looked_at() {
    let mut rig = Rig::with_faults("", "tls.proof=skip").introduced();
    assert_eq!(thief(&rig), Outcome::Served);
    rig.near.stop();
    rig.far.stop();
}

/// Who does not look whose key it is sends the tree to whoever answers.
#[test]
fn control_the_pin_of_a_key_is_not_looked_at() {
    let rig = Rig::with_faults("tls.pin=skip", "").introduced();
    rig.near.must(&["peer", "add", FAR, rig.near.must(&["peer", "show"]).trim()]);
    rig.define_target("copy");
    rig.finish("sent to somebody with another key");
}

/// Where it listens follows `dtfs.toml` at a reload; who is being served there ends with it.
#[test]
fn a_reload_begins_and_ends_to_listen() {
    let rig = Rig::acquainted();
    let settings = rig.far.root().join("etc/dtfs/dtfs.toml");
    rig.define_target("copy");
    rig.near.wait("data", 300);
    fs::write(&settings, "listen = \"10.63.20.2:6321\"\n").unwrap();
    let plan = rig.far.must(&["reload", "--dry-run"]);
    assert!(plan.contains("at 10.63.20.2:6321, not at 10.63.20.2:6320 any more"), "{plan}");
    assert_eq!(rig.near.target("data")["state"], "replicating");
    rig.far.must(&["reload"]);
    rig.last_error("Connection refused");
    assert!(rig.far.servers().is_empty(), "who was served ends with where it listened");
    let other = format!("tls://{FAR}:6321/copy");
    rig.near.must(&["forget", "target", "data", "far"]);
    rig.near.must(&["define", "target", "data", &other, "--as", "far"]);
    rig.near.wait("data", 300);
    fs::write(&settings, "").unwrap();
    let told = rig.far.must(&["reload"]);
    assert!(told.contains("no source can call any more"), "{told}");
    rig.last_error("Connection refused");
    fs::write(&settings, format!("listen = \"{FAR}:6321\"\n")).unwrap();
    rig.far.signal(Signal::SIGHUP);
    fs::write(rig.source.join("after"), b"the reload").unwrap();
    rig.finish("reloads");
}

#[test]
fn strangers_in_numbers_do_not_stop_a_session() {
    let rig = Rig::acquainted();
    rig.define_target("copy");
    rig.near.wait("data", 300);
    let _flood = flood(&rig);
    Workload::start(&rig.source, 9, 2, 300).finish();
    rig.near.wait("data", 300);
    let threads = fs::read_dir(format!("/proc/{}/task", rig.far.daemon_pid())).unwrap().count();
    assert!(threads < 60, "{threads} threads for strangers");
    drop(_flood);
    rig.finish("strangers in numbers");
}

/// 400 connections that say nothing or nonsense, again as soon as they are closed, until what is returned is dropped.
fn flood(rig: &Rig) -> (ChildStdin, Process) {
    let mut command = rig.link.near.command("python3");
    command.args([&client_script("tls_stranger.py"), FAR, "flood"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut stranger = Process::spawn(&mut command);
    let (keep, out) = stranger.pipes();
    let mut line = String::new();
    BufReader::new(out).read_line(&mut line).unwrap();
    assert_eq!(line, "flooding\n");
    (keep, stranger)
}
