//! The daemon as a service: what the manager hears, what a watchdog sees, how a stop goes, and the numbers for Prometheus.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use support::host::{Host, is_dtfs};
use support::process::wait_until;
use support::scratch::{FileSystem, Scratch, utf8};
use support::trees;
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(120);

/// A service manager's end of sd_notify(3).
struct Manager {
    socket: UnixDatagram,
    dir: TempDir,
}

impl Manager {
    fn new() -> Manager {
        let dir = TempDir::new().unwrap();
        let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        Manager { socket, dir }
    }

    fn address(&self) -> String {
        utf8(&self.dir.path().join("notify")).to_owned()
    }

    /// The next message, as its lines.
    fn hear(&self) -> BTreeMap<String, String> {
        let mut buffer = [0; 4096];
        let len = self.socket.recv(&mut buffer).expect("a message of the daemon");
        let text = std::str::from_utf8(&buffer[..len]).unwrap();
        text.lines().map(|line| line.split_once('=').unwrap()).map(|(key, value)| (key.into(), value.into())).collect()
    }

    /// The next message with this key; those before it are passed over.
    fn hear_of(&self, key: &str) -> BTreeMap<String, String> {
        loop {
            let message = self.hear();
            if message.contains_key(key) {
                return message;
            }
        }
    }

    /// Takes what was said so far.
    fn forget(&self) {
        self.socket.set_nonblocking(true).unwrap();
        while self.socket.recv(&mut [0; 4096]).is_ok() {}
        self.socket.set_nonblocking(false).unwrap();
    }
}

fn settings(host: &Host, text: &str) {
    let file = host.root().join("etc/dtfs/dtfs.toml");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, text).unwrap();
}

#[test]
fn the_manager_hears_ready_after_the_mounts_then_reload_and_stop() {
    let (scratch, manager, mut host) = (Scratch::new(FileSystem::Ext4), Manager::new(), Host::new());
    let dir = scratch.dir("data");
    host.define_volume("data", &dir);
    // What cannot be mounted does not keep the others from being ready.
    let lines = host.root().join("etc/dtfs/dtfs_mounts");
    let text = fs::read_to_string(&lines).unwrap();
    fs::write(&lines, format!("/nowhere-at-all\n{text}nonsense line of words\n")).unwrap();
    let heard = std::thread::scope(|scope| {
        // What is mounted is looked up when the message arrives, not later.
        let hearer = scope.spawn(|| (manager.hear_of("READY"), is_dtfs(&dir)));
        host.start_with_env(&[("NOTIFY_SOCKET", &manager.address())]);
        hearer.join().unwrap()
    });
    assert!(heard.1, "ready came before the mount");
    assert_eq!(heard.0["READY"], "1");
    assert!(heard.0["STATUS"].starts_with("1 volumes mounted"), "{heard:?}");

    host.define_target("data", &scratch.dir("copy"));
    host.signal(Signal::SIGHUP);
    let reloading = manager.hear_of("RELOADING");
    assert!(reloading["MONOTONIC_USEC"].parse::<u64>().unwrap() > 0);
    assert_eq!(manager.hear_of("READY")["READY"], "1");
    host.signal(Signal::SIGTERM);
    manager.hear_of("STOPPING");
    host.wait_stopped();
    assert!(!is_dtfs(&dir));
}

#[test]
fn a_journal_that_stands_still_gives_no_sign_of_life() {
    let (scratch, disk) = (Scratch::new(FileSystem::Ext4), Scratch::new(FileSystem::Ext4));
    let (manager, mut host) = (Manager::new(), Host::new());
    let dir = scratch.dir("data");
    let options = format!("store={}", utf8(&disk.dir("journal")));
    host.must(&["mounts", "add", utf8(&dir), "-o", &options]);
    host.adopt_volume(&dir);
    host.start_with_env(&[("NOTIFY_SOCKET", &manager.address()), ("WATCHDOG_USEC", "300000")]);
    manager.hear_of("WATCHDOG");
    fs::write(dir.join("before"), "x").unwrap();
    manager.hear_of("WATCHDOG");

    let quiet = |host: &Host| host.log().matches("no sign of life").count();
    std::thread::scope(|scope| {
        let frozen = disk.freeze();
        // It waits for the disk, so it is nobody's whose hand the thaw is in.
        let writer = scope.spawn(|| fs::write(dir.join("not-durable"), "x"));
        let heard = scope.spawn(|| {
            // Signs of looks before the standstill are passed over; then none may come between two of these complaints.
            wait_until("complaints", LIMIT, || (quiet(&host) >= 1).then_some(()));
            manager.forget();
            let before = quiet(&host);
            wait_until("three more looks", LIMIT, || (quiet(&host) >= before + 3).then_some(()));
            manager.socket.set_nonblocking(true).unwrap();
            let heard = manager.socket.recv(&mut [0; 4096]).is_ok();
            manager.socket.set_nonblocking(false).unwrap();
            heard
        });
        let heard = heard.join();
        drop(frozen);
        assert!(!heard.expect("the daemon sees that nothing moves"), "a sign of life while nothing moves");
        writer.join().unwrap().unwrap();
    });
    manager.hear_of("WATCHDOG");
    host.stop();
}

/// A host with one target whose disk can be stopped.
struct Slow {
    host: Host,
    source: PathBuf,
    copy: PathBuf,
    disk: Scratch,
    _scratch: Scratch,
}

fn slow(drain: &str) -> Slow {
    let (scratch, disk) = (Scratch::new(FileSystem::Ext4), Scratch::new(FileSystem::Ext4));
    let (source, copy) = (scratch.dir("data"), disk.dir("copy"));
    trees::fill(&source, 20);
    let mut host = Host::new();
    settings(&host, &format!("drain = \"{drain}\"\nlog_level = \"info\"\n"));
    host.define_volume("data", &source);
    host.start_and_mount();
    host.define_target("data", &copy);
    host.wait("data", 120);
    Slow { host, source, copy, disk, _scratch: scratch }
}

impl Slow {
    /// Tells the daemon to stop, and returns when it waits for the target.
    fn begin_to_stop(&self) {
        self.host.signal(Signal::SIGTERM);
        wait_until("the daemon to wait for its target", LIMIT, || {
            self.host.log().contains("targets may take what they lack").then_some(())
        });
        assert!(!is_dtfs(&self.source), "nothing may be added while targets are waited for");
    }
}

#[test]
fn a_stop_waits_for_a_target_that_answers() {
    let mut slow = slow("600s");
    let frozen = slow.disk.freeze();
    fs::write(slow.source.join("late"), vec![7; 1 << 20]).unwrap();
    slow.begin_to_stop();
    assert!(!slow.host.has_stopped());
    drop(frozen);
    slow.host.wait_stopped();
    assert!(!slow.host.log().contains("not applied"), "{}", slow.host.log());
    trees::assert_equal(&slow.source, &slow.copy, "after the stop");
}

#[test]
fn at_the_deadline_it_names_the_tids_that_are_left() {
    let mut slow = slow("500ms");
    let frozen = slow.disk.freeze();
    fs::write(slow.source.join("late"), "x").unwrap();
    let last = slow.host.tid("data");
    slow.host.signal(Signal::SIGTERM);
    let log = wait_until("the TIDs that are left", LIMIT, || {
        let log = slow.host.log();
        log.contains("not applied").then_some(log)
    });
    let line = log.lines().find(|line| line.contains("not applied")).unwrap();
    let tids: Vec<u64> = line.split("0x").skip(1).map(|rest| u64::from_str_radix(&rest[..16], 16).unwrap()).collect();
    assert!(tids.len() == 2 && tids[0] <= last && tids[1] >= last, "{line}");
    drop(frozen);
    slow.host.wait_stopped();
    slow.host.start_and_mount();
    slow.host.wait("data", 120);
    slow.host.stop();
    trees::assert_equal(&slow.source, &slow.copy, "after the next start");
}

#[test]
fn a_second_signal_ends_the_waiting() {
    let mut slow = slow("3600s");
    let frozen = slow.disk.freeze();
    fs::write(slow.source.join("late"), "x").unwrap();
    slow.begin_to_stop();
    assert!(!slow.host.log().contains("not applied"));
    slow.host.signal(Signal::SIGTERM);
    wait_until("the end of the waiting", LIMIT, || slow.host.log().contains("not applied").then_some(()));
    drop(frozen);
    slow.host.wait_stopped();
}

#[test]
fn a_file_that_is_not_understood_ends_the_daemon_with_its_line() {
    let host = Host::new();
    settings(&host, "\ndrian = \"5m\"\n");
    let answer = host.run(&["daemon"]);
    assert_eq!(answer.code, 2, "{answer:?}");
    assert!(answer.stderr.contains("dtfs.toml:2") && answer.stderr.contains("did you mean \"drain\"?"), "{answer:?}");
}

#[test]
fn lines_of_the_log_are_json_or_have_their_priority() {
    let scratch = Scratch::new(FileSystem::Ext4);
    let mut host = Host::new();
    host.define_volume("data", &scratch.dir("data"));
    let bad = host.root().join("etc/dtfs/dtfs_mounts");
    let good = fs::read_to_string(&bad).unwrap();
    fs::write(&bad, format!("{good}a b c\n")).unwrap();
    settings(&host, "log_format = \"json\"\n");
    host.start();
    host.stop();
    let log = host.log();
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert!(lines.iter().any(|line| line["message"] == "entry skipped" && line["level"] == "WARN"), "{log}");

    settings(&host, "");
    host.start_with_env(&[("JOURNAL_STREAM", "8:1")]);
    host.stop();
    let fresh = host.log().split_off(log.len());
    assert!(fresh.lines().any(|line| line.starts_with("<4>") && line.contains("entry skipped")), "{fresh}");
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn get(port: u16, path: &str) -> Option<(String, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
    Some((head.to_owned(), body.to_owned()))
}

/// The samples by name and labels. Panics where the text is not OpenMetrics 1.0 as far as we use it.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    let (mut family, mut seen) = ((String::new(), String::new()), BTreeSet::new());
    let body = text.strip_suffix("# EOF\n").expect("the end of the text");
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("name and type");
            assert!(seen.insert(name.to_owned()), "{name} stands in two places");
            family = (name.to_owned(), kind.to_owned());
        } else if let Some(rest) = line.strip_prefix("# HELP ") {
            assert!(rest.starts_with(&format!("{} ", family.0)) && rest.ends_with('.'), "{line}");
        } else {
            let (series, value) = line.rsplit_once(' ').expect("series and value");
            let name = series.split('{').next().unwrap();
            let suffix = name.strip_prefix(&family.0).unwrap_or_else(|| panic!("{line} below {family:?}"));
            let allowed: &[&str] = match family.1.as_str() {
                "counter" => &["_total"],
                "histogram" => &["_bucket", "_count", "_sum"],
                "info" => &["_info"],
                "gauge" | "stateset" => &[""],
                kind => panic!("unknown type {kind}"),
            };
            assert!(allowed.contains(&suffix), "{line} is no {}", family.1);
            let value = value.parse().unwrap_or_else(|_| panic!("{line}"));
            assert!(samples.insert(series.to_owned(), value).is_none(), "{series} twice");
        }
    }
    samples
}

#[test]
fn the_numbers_are_those_of_the_status() {
    let scratch = Scratch::new(FileSystem::Ext4);
    let (source, copy) = (scratch.dir("data"), scratch.dir("copy"));
    let port = free_port();
    let mut host = Host::new();
    settings(&host, &format!("metrics = \"127.0.0.1:{port}\"\n"));
    host.define_volume("data", &source);
    host.start_and_mount();
    host.define_target("data", &copy);
    for number in 0..30 {
        fs::write(source.join(format!("file-{number}")), vec![1; 10_000]).unwrap();
    }
    host.wait("data", 120);
    let (head, body) = get(port, "/metrics").expect("an answer");
    assert!(
        head.starts_with("HTTP/1.1 200 OK") && head.contains("application/openmetrics-text; version=1.0.0"),
        "{head}"
    );
    let numbers = samples(&body);
    let number = |series: &str| *numbers.get(series).unwrap_or_else(|| panic!("{series} is missing:\n{body}"));
    let volume = "volume=\"data\"";
    let target = "volume=\"data\",target=\"copy\"";
    assert_eq!(number(&format!("dtfs_last_tid{{{volume}}}")), host.tid("data") as f64);
    assert_eq!(number(&format!("dtfs_applied_tid{{{target}}}")), host.tid("data") as f64);
    assert_eq!(number(&format!("dtfs_lag_ops{{{target}}}")), 0.0);
    assert_eq!(number(&format!("dtfs_consistent{{{target}}}")), 1.0);
    assert_eq!(number(&format!("dtfs_volume_state{{{volume},dtfs_volume_state=\"mounted\"}}")), 1.0);
    assert_eq!(number(&format!("dtfs_volume_state{{{volume},dtfs_volume_state=\"failed\"}}")), 0.0);
    assert_eq!(number(&format!("dtfs_target_state{{{target},dtfs_target_state=\"replicating\"}}")), 1.0);
    assert!(
        number(&format!("dtfs_journal_limit_bytes{{{volume}}}")) >= number(&format!("dtfs_journal_bytes{{{volume}}}"))
    );
    assert_eq!(number(&format!("dtfs_apply_errors_total{{{target}}}")), 0.0);
    let creates = number(&format!("dtfs_ops_total{{{volume},op=\"create\"}}"));
    assert_eq!(creates, 30.0);
    assert_eq!(number(&format!("dtfs_op_seconds_count{{{volume},op=\"create\"}}")), creates);
    assert_eq!(number(&format!("dtfs_op_seconds_bucket{{{volume},op=\"create\",le=\"+Inf\"}}")), creates);

    // A session that ends is counted.
    host.kill9_server();
    wait_until("the error to be counted", LIMIT, || {
        let numbers = samples(&get(port, "/metrics")?.1);
        (numbers[&format!("dtfs_apply_errors_total{{{target}}}")] >= 1.0).then_some(())
    });
    assert!(get(port, "/else").unwrap().0.starts_with("HTTP/1.1 404"));
    host.stop();
    assert!(get(port, "/metrics").is_none(), "nobody serves numbers of a daemon that ended");
}

#[test]
fn alerts_and_dashboard_name_numbers_that_there_are() {
    let scratch = Scratch::new(FileSystem::Ext4);
    let port = free_port();
    let mut host = Host::new();
    settings(&host, &format!("metrics = \"127.0.0.1:{port}\"\n"));
    host.define_volume("data", &scratch.dir("data"));
    host.start_and_mount();
    host.define_target("data", &scratch.dir("copy"));
    fs::write(scratch.path().join("data/file"), "x").unwrap();
    host.wait("data", 120);
    let served: BTreeSet<String> = samples(&get(port, "/metrics").expect("an answer").1)
        .keys()
        .map(|series| series.split('{').next().unwrap().to_owned())
        .collect();
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts");
    for file in ["prometheus-alerts.yml", "grafana-dashboard.json"] {
        let text = fs::read_to_string(scripts.join(file)).unwrap();
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let words = text.split(|c: char| !is_word(c)).filter(|word| word.starts_with("dtfs_"));
        let words: BTreeSet<&str> = words.collect();
        assert!(words.len() > 5, "{file}");
        for word in words {
            assert!(served.contains(word), "{file} names {word}, which is not served");
        }
    }
    let board = fs::read_to_string(scripts.join("grafana-dashboard.json")).unwrap();
    serde_json::from_str::<serde_json::Value>(&board).expect("a dashboard is JSON");
    host.stop();
}

/// Where the memory of the demo in `dir` lies.
fn memory_of(dir: &Path) -> PathBuf {
    let name = blake3::hash(utf8(&dir.join("host/run/dtfs")).as_bytes()).to_hex();
    Path::new("/dev/shm").join(format!("dtfs-{}", &name[..16]))
}

/// The main thing that the README promises, on a disk: what outlives a daemon lies in memory then, and goes as well.
#[test]
fn the_demo_ends_equal_and_leaves_nothing() {
    let scratch = Scratch::with_size(FileSystem::Ext4, 2048);
    let temporary = fs::canonicalize(scratch.dir("tmp")).unwrap();
    let demo = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dtfs"));
        let output = command.arg("demo").args(args).env("TMPDIR", &temporary).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        assert!(said.contains("both trees are equal"), "{said}");
        PathBuf::from(said.lines().find_map(|line| line.strip_prefix("dtfs demo, in ")).expect("where it is"))
    };
    let kept = demo(&["--keep"]);
    assert_eq!(fs::read_link(kept.join("host/run/dtfs/memory")).unwrap(), memory_of(&kept));
    fs::remove_dir_all(memory_of(&kept)).unwrap();
    support::behind::uncover(&kept.join("replica"));
    fs::remove_dir_all(&kept).unwrap();
    let gone = demo(&[]);
    assert!(!memory_of(&gone).exists(), "it is still in memory");
    assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0, "it is still on the disk");
}
