//! What an operator sees: mistakes and their sentences, dry runs, check, reload, events, monitor, status, doctor, and the
//! menu on a terminal.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use support::behind;
use support::host::Host;
use support::process::wait_until;
use support::scratch::{Directory, utf8};

const LIMIT: Duration = Duration::from_secs(120);

/// A host with the volume `data` and its target `copy`, its daemon not started, and the directory above both.
fn defined() -> (Host, Directory) {
    let scratch = Directory::new();
    let mut host = Host::new();
    fs::create_dir(scratch.path().join("data")).unwrap();
    host.define_volume("data", &scratch.path().join("data"));
    host.define_target("data", &scratch.path().join("copy"));
    (host, scratch)
}

/// What is typed (`@` is the scratch directory), how it ends, and words of the sentence.
const MISTAKES: &[(&str, i32, &str)] = &[
    ("", 2, "Usage"),
    ("nosuch", 2, "unrecognized subcommand"),
    ("statsu", 2, "status"),
    ("--root", 2, "a value is required"),
    ("-q -v status", 2, "cannot be used with"),
    ("mounts", 2, "Usage"),
    ("mounts add", 2, "PATH"),
    ("mounts add @/missing", 2, "missing does not exist"),
    ("mounts add @/file", 2, "is not a directory"),
    ("mounts add /", 7, "cannot be replicated as a whole"),
    ("mounts add /proc", 7, "holds no files that could be replicated"),
    ("mounts add @/data", 7, "is already the volume data"),
    ("mounts add @/data/sub", 7, "lies in"),
    ("mounts add @", 7, "holds"),
    ("mounts add @/copy", 7, "of the volume data"),
    ("mounts add @/other -o nosuch", 2, "unknown option"),
    ("mounts add @/other -o norepatme", 2, "did you mean \"norepatime\"?"),
    ("mounts add @/other -o atime,norepatime", 2, "contradicts or repeats"),
    ("mounts add @/other -o volume=a/b", 2, "volume=a/b"),
    ("mounts add @/other -o volume=data", 2, "data"),
    ("mounts add @/other -o store=relative", 2, "must be absolute"),
    ("mounts add @/other -o store=@/data/j", 7, "of the volume data"),
    ("mounts add @/other -o submounts=maybe", 2, "refuse or ignore"),
    ("mounts add @/other -o atime=yes", 2, "takes no value"),
    ("define master nosuch", 2, "there is no volume"),
    ("define master @/other", 2, "lies in no volume"),
    ("define target data local:@/x -p 0", 2, "at least 1"),
    ("define target data local:@/x -p 1.5", 2, "whole seconds"),
    ("mounts remove @/other", 2, "is no entry of"),
    ("mounts mount", 2, "required"),
    ("mounts mount @/data --all", 2, "cannot be used with"),
    ("mounts mount @/data", 3, "no daemon answers"),
    ("mounts unmount --all", 3, "no daemon answers"),
    ("define volume data @/other", 2, "the volume data is already"),
    ("define volume a/b @/other", 2, "a/b"),
    ("define volume x", 2, "DIR"),
    ("define volume x @/missing", 2, "does not exist"),
    ("define volume x /", 7, "as a whole"),
    ("define target nosuch local:@/t", 2, "there is no volume \"nosuch\""),
    ("define target dato local:@/t", 2, "did you mean \"data\"?"),
    ("define target data ftp://h/d", 2, "ftp"),
    ("define target data local:relative", 2, "relative"),
    ("define target data local:@/copy", 2, "exists already"),
    ("define target data local:@/data/sub", 7, "lies in"),
    ("define target data local:/", 2, "gives no name"),
    ("define target data local:/ --as x", 7, "/"),
    ("define target data local:@/t --as a/b", 2, "a/b"),
    ("forget target data cop", 2, "did you mean \"copy\"?"),
    ("forget target data archive", 2, "targets of data: copy"),
    ("forget volume nosuch", 2, "there is no volume"),
    ("status", 3, "start it with: dtfs daemon"),
    ("status @/other", 2, "lies in no volume"),
    ("wait data --timeout -1", 2, "unexpected argument '-1'"),
    ("wait data --timeout soon", 2, "write seconds"),
    ("wait data", 3, "no daemon answers"),
    ("synctid nosuch", 2, "there is no volume"),
    ("log data --from xyz", 2, "xyz"),
    ("rejoin data copy", 3, "no daemon answers"),
    ("rejoin data cop", 2, "did you mean \"copy\"?"),
    ("reload", 3, "no daemon answers"),
    ("events", 3, "no daemon answers"),
    ("events nosuch", 2, "there is no volume"),
    ("monitor --max-lag soon", 2, "write a time"),
    ("check @/file", 2, "neither called dtfs_mounts nor VOLUME.toml"),
    ("check @/missing", 1, "cannot read"),
    ("setup 9.9", 2, "the menu has no number 9.9"),
    ("setup 1.3.1.1 @/other n n", 2, "asks 2 questions"),
    ("setup 1.3.1.1 / n", 7, "as a whole"),
    ("serve @/t", 2, "--stdio"),
];

#[test]
fn mistakes_end_with_a_sentence_and_a_code_and_change_nothing() {
    let (host, scratch) = defined();
    let top = utf8(scratch.path());
    fs::create_dir(scratch.path().join("data/sub")).unwrap();
    fs::create_dir_all(scratch.path().join("other")).unwrap();
    fs::create_dir_all(scratch.path().join("copy")).unwrap();
    fs::write(scratch.path().join("file"), "x").unwrap();
    let before = (host.config(), support::trees::contents(scratch.path()));
    for (line, code, sentence) in MISTAKES {
        let typed = line.replace('@', top);
        let args: Vec<&str> = typed.split(' ').filter(|word| !word.is_empty()).collect();
        let answer = host.run(&args);
        assert_eq!(answer.code, *code, "dtfs {line}: {answer:#?}");
        assert!(answer.stderr.contains(sentence), "dtfs {line} does not say \"{sentence}\": {answer:#?}");
        assert!(!answer.stderr.contains("panicked"), "dtfs {line}: {answer:#?}");
        let after = (host.config(), support::trees::contents(scratch.path()));
        assert!(after == before, "dtfs {line} was refused and changed something");
    }
}

#[test]
fn a_dry_run_of_every_edit_changes_nothing() {
    let (host, scratch) = defined();
    fs::create_dir(scratch.path().join("other")).unwrap();
    let state = host.root().join("var/lib/dtfs/data");
    fs::create_dir_all(&state).unwrap();
    let before = host.config();
    let path = |name: &str| utf8(&scratch.path().join(name)).to_owned();
    let url = format!("local:{}", path("t"));
    for (args, says) in [
        (vec!["define", "volume", "x", &path("other")], "defined the volume x"),
        (vec!["define", "target", "data", &url, "--as", "new"], "defined the target new"),
        (vec!["define", "master", "data"], "data is a master"),
        (vec!["mounts", "add", &path("other"), "-o", "atime"], "as the volume other"),
        (vec!["mounts", "remove", &path("data")], "removed"),
        (vec!["forget", "target", "data", "copy"], "forgot the target copy"),
        (vec!["forget", "volume", "data"], "removed the journal"),
        (vec!["setup", "1.3.1.1", &path("other"), "n"], "Added"),
        (vec!["mounts", "mount", "--all"], "would be mounted"),
    ] {
        let shown = host.must(&[&["--dry-run"], &args[..]].concat());
        assert!(shown.starts_with("dry run, nothing is changed"), "{args:?}: {shown}");
        assert!(shown.contains(says), "{args:?}: {shown}");
        assert_eq!(host.config(), before, "{args:?} changed something");
        assert!(state.is_dir(), "{args:?}");
    }
    assert_eq!(host.run(&["--dry-run", "mounts", "add", "/"]).code, 7, "what would be refused is refused");
}

#[test]
fn check_is_silent_when_all_is_good_and_names_each_bad_line() {
    let (host, _scratch) = defined();
    let good = host.run(&["check"]);
    assert_eq!((good.code, good.stdout.as_str(), good.stderr.as_str()), (0, "", ""));
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("mounts.d");
    let samples = host.run(&["check", utf8(&samples.join("dtfs_mounts")), utf8(&samples.join("data.toml"))]);
    assert_eq!((samples.code, samples.stderr.as_str()), (0, ""), "the repository's samples");

    let mounts = host.root().join("etc/dtfs/dtfs_mounts");
    let mut text = fs::read_to_string(&mounts).unwrap();
    text.push_str("relative/path\n/no/such/place volume=gone\n");
    fs::write(&mounts, &text).unwrap();
    fs::write(host.root().join("etc/dtfs/mounts.d/lost.toml"), "rol = \"master\"\n").unwrap();
    let bad = host.run(&["check"]);
    assert_eq!(bad.code, 2);
    for said in
        ["dtfs_mounts:2:", "dtfs_mounts:3:", "lost.toml:1:", "did you mean \"role\"?", "/no/such/place does not exist"]
    {
        assert!(bad.stderr.contains(said), "{said}: {}", bad.stderr);
    }
    assert_eq!(fs::read_to_string(&mounts).unwrap(), text, "a check changes nothing");
}

#[test]
fn reload_applies_the_difference_and_prints_it() {
    let (mut host, scratch) = defined();
    host.start_and_mount();
    let file = host.root().join("etc/dtfs/mounts.d/data.toml");
    let text = fs::read_to_string(&file).unwrap();
    assert_eq!(host.must(&["reload"]), "nothing changed\n");
    let second = format!("{text}\n[[target]]\nname = \"second\"\nurl = \"local:{}/second\"\n", utf8(scratch.path()));
    fs::write(&file, &second).unwrap();
    let shown = host.must(&["reload", "--dry-run"]);
    assert!(shown.contains("data: target second added"), "{shown}");
    assert_eq!(host.status()["volumes"][0]["targets"].as_array().unwrap().len(), 1, "a dry run");
    assert_eq!(host.must(&["reload"]), "data: target second added\n");
    host.wait("data", 60);
    fs::write(&file, second.replace("/second\"", "/elsewhere\"")).unwrap();
    let shown = host.must(&["reload"]);
    assert!(shown.contains("target second moved from") && shown.contains("/elsewhere"), "{shown}");
    fs::write(&file, &text).unwrap();
    assert_eq!(host.must(&["reload"]), "data: target second removed\n");
    fs::write(&file, format!("journal_cap = \"1G\"\n{text}")).unwrap();
    assert!(host.must(&["reload"]).contains("count from the next start"), "a cap is read when the volume is opened");
    fs::write(&file, "journal_cap = 3 4\n").unwrap();
    assert!(host.must(&["reload"]).contains("data: nothing changed:"), "a bad file changes nothing");
    assert_eq!(host.status()["volumes"][0]["targets"].as_array().unwrap().len(), 1);
    fs::write(&file, &text).unwrap();
    host.stop();
}

#[test]
fn status_events_and_monitor_tell_of_a_target_that_is_gone() {
    let (mut host, scratch) = defined();
    host.start_and_mount();
    host.wait("data", 60);
    let status = host.status();
    assert_eq!(status["daemon"]["version"], env!("CARGO_PKG_VERSION"));
    assert!(status["volumes"][0]["journal_cap_bytes"].as_u64().unwrap() > 0);
    let answer = host.run(&["monitor"]);
    assert!(
        answer.code == 0 && answer.stdout.starts_with("DTFS OK - 1 volumes, 1 targets | 'data/copy'="),
        "{answer:?}"
    );

    // The target's place becomes a file: no session can be opened there.
    host.kill9_server();
    wait_until("the target's directory to be free", LIMIT, || {
        let aside = scratch.path().join("aside");
        (behind::rename(&scratch.path().join("copy"), &aside).is_ok()).then_some(())
    });
    fs::write(scratch.path().join("copy"), "in the way").unwrap();
    fs::write(scratch.path().join("data/new"), vec![7; 100_000]).unwrap();
    let target = wait_until("the lag to be told", LIMIT, || {
        let target = host.target("data");
        let lags = target["lag_seconds"].as_f64().unwrap() > 1.0 && target["lag_bytes"].as_u64().unwrap() > 0;
        (lags && target["last_error"]["time"].is_string()).then_some(target)
    });
    assert!(target["lag_changes"].as_u64().unwrap() > 0);
    let answer = host.run(&["monitor", "--max-lag", "1s"]);
    assert!(answer.code == 2 && answer.stdout.starts_with("DTFS CRITICAL - data/copy is "), "{answer:?}");
    let shown = host.must(&["status"]);
    assert!(shown.contains("offline"), "{shown}");
    let found = findings(&host);
    assert!(has(&found, "target-offline") || has(&found, "target-refused"), "{found:#?}");

    fs::remove_file(scratch.path().join("copy")).unwrap();
    fs::rename(scratch.path().join("aside"), scratch.path().join("copy")).unwrap();
    host.wait("data", 120);
    assert_eq!(host.target("data")["lag_changes"], 0);
    host.stop();
    let answer = host.run(&["monitor"]);
    assert!(answer.code == 3 && answer.stdout.starts_with("DTFS UNKNOWN - no daemon"), "{answer:?}");
}

#[test]
fn events_and_status_go_on_when_asked_to() {
    let (mut host, scratch) = defined();
    host.start_and_mount();
    host.wait("data", 60);
    let spawn = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dtfs"));
        command.arg("--root").arg(host.root()).args(args).env_remove("DTFS_ROOT").stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        (child, lines)
    };
    // Shown once, an empty line, and shown again.
    let (mut watch, lines) = spawn(&["status", "--watch"]);
    let headings = lines.map_while(Result::ok).filter(|line| line.starts_with("VOLUME")).take(4).count();
    watch.kill().unwrap();
    watch.wait().unwrap();
    assert_eq!(headings, 4, "two tables with two headings each");

    let (mut follow, mut lines) = spawn(&["events", "--follow", "--json", "-n", "0"]);
    // An event of the real kind: the target loses its catalog and is compared.
    host.kill9_server();
    let replicas = host.root().join("var/lib/dtfs/replicas");
    for replica in fs::read_dir(replicas).unwrap() {
        fs::remove_dir_all(replica.unwrap().path()).unwrap();
    }
    fs::write(scratch.path().join("data/more"), "x").unwrap();
    let line = lines.next().unwrap().unwrap();
    follow.kill().unwrap();
    follow.wait().unwrap();
    let event: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&event["v"], &event["volume"]), (&1.into(), &"data".into()), "{event}");
    assert!(event["time"].is_string() && !event["text"].as_str().unwrap().is_empty(), "{event}");
    let shown = host.must(&["events", "data"]);
    assert!(shown.contains(event["text"].as_str().unwrap()), "{shown}");
    host.stop();
}

fn findings(host: &Host) -> Value {
    let answer = host.run(&["doctor", "--json"]);
    assert!([0, 6].contains(&answer.code), "{answer:?}");
    serde_json::from_str(&answer.stdout).unwrap()
}

fn has(found: &Value, id: &str) -> bool {
    found["findings"].as_array().unwrap().iter().any(|finding| finding["id"] == id)
}

#[test]
fn the_doctor_finds_what_is_wrong_and_only_that() {
    let (mut host, scratch) = defined();
    let (data, etc) = (scratch.path().join("data"), host.root().join("etc"));
    let open = fs::File::create(data.join("open")).unwrap();
    fs::create_dir_all(host.root().join("var/lib/dtfs/olden")).unwrap();
    fs::write(etc.join("exports"), format!("{} *(rw)\n", utf8(&data))).unwrap();
    fs::create_dir_all(etc.join("samba")).unwrap();
    fs::write(etc.join("samba/smb.conf"), format!("[data]\n  path = {}\n", utf8(&data))).unwrap();
    fs::create_dir_all(etc.join("ganesha")).unwrap();
    fs::write(etc.join("ganesha/ganesha.conf"), format!("EXPORT {{ Path = {}; }}\n", utf8(&data))).unwrap();
    fs::write(etc.join("dtfs/mounts.d/lost.toml"), "rol = 1\n").unwrap();
    let found = findings(&host);
    for id in [
        "daemon",
        "not-mounted",
        "open-files",
        "left-over",
        "server-order",
        "server-unguarded",
        "config",
        "target-same-disk",
        "journal-beside-tree",
    ] {
        // The target's directory is not there before its first session.
        assert!(has(&found, id) || id == "target-same-disk", "{id} is not found: {found:#?}");
    }
    drop(open);
    for unit in ["nfs-server", "smbd", "nfs-ganesha"] {
        let drop_in = etc.join(format!("systemd/system/{unit}.service.d"));
        fs::create_dir_all(&drop_in).unwrap();
        fs::write(drop_in.join("dtfs.conf"), "[Unit]\nAfter=dtfs.service\nRequires=dtfs.service\n").unwrap();
    }
    fs::write(etc.join("exports"), format!("{} *(rw,mountpoint)\n", utf8(&data))).unwrap();
    fs::write(etc.join("samba/smb.conf"), format!("[data]\n  path = {}\n  root preexec = findmnt %P\n", utf8(&data)))
        .unwrap();
    fs::remove_file(etc.join("dtfs/mounts.d/lost.toml")).unwrap();
    fs::remove_dir(host.root().join("var/lib/dtfs/olden")).unwrap();
    host.start_and_mount();
    host.wait("data", 60);
    let found = findings(&host);
    for id in
        ["daemon", "not-mounted", "open-files", "left-over", "server-order", "server-unguarded", "config", "version"]
    {
        assert!(!has(&found, id), "{id} is still found: {found:#?}");
    }
    assert!(has(&found, "target-same-disk"), "{found:#?}");
    let store = host.root().join("var/lib/dtfs/data");
    fs::set_permissions(&store, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(has(&findings(&host), "journal-mode"));
    host.kill9();
    assert!(has(&findings(&host), "dead-mount"));
    host.must(&["forget", "target", "data", "copy"]);
    host.start_and_mount();
    assert!(has(&findings(&host), "no-target"));
    host.stop();
}

#[test]
fn the_menu_works_on_a_terminal_from_start_to_end() {
    let scratch = Directory::new();
    let data = scratch.path().join("data");
    fs::create_dir(&data).unwrap();
    let mut host = Host::new();
    host.adopt_volume(&data);
    host.start();
    let typed = format!(
        "1\n3\n1\n1\n{}\nn\n3\n0\n0\n6\n1\ndata\nlocal:{}\n0\n0\n4\n1\n2\n0\n6\n2\n0\n1.3.2.1\n1.3.1.4\n1.3.1.2\n1\nq\n",
        utf8(&data),
        utf8(&scratch.path().join("copy")),
    );
    let menu = format!("{} --root {} setup", env!("CARGO_BIN_EXE_dtfs"), utf8(host.root()));
    let shown_file = scratch.path().join("shown");
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--command", &menu, "/dev/null"]);
    command.stdin(Stdio::piped()).stdout(fs::File::create(&shown_file).unwrap());
    let mut child = command.spawn().expect("script(1) gives a terminal");
    child.stdin.take().unwrap().write_all(typed.as_bytes()).unwrap();
    let status = child.wait().unwrap();
    let shown = fs::read_to_string(&shown_file).unwrap();
    for said in [
        "Replicate access times?",
        "do not choose the root",
        "as the volume data",
        ": mounted",
        "define target data local:",
        "Defined the target copy",
        "data at ",
        "All is good.",
        "Image files on a volume are captured",
        ": unmounted",
        "Removed ",
    ] {
        assert!(shown.contains(said), "\"{said}\" is not shown:\n{shown}");
    }
    assert!(status.success(), "{status}\n{shown}");
    assert_eq!(host.run(&["status"]).code, 0, "the daemon stays");
    host.stop();
}

/// The second target has everything before anybody looks at the first, so the first was left alone and is not merely late.
#[test]
fn a_target_with_a_period_is_left_alone_until_somebody_waits() {
    let (mut host, scratch) = defined();
    let (data, slow) = (scratch.path().join("data"), scratch.path().join("slow"));
    host.must(&["define", "target", "data", &format!("local:{}", utf8(&slow)), "-p", "3600"]);
    assert!(host.must(&["define", "master", "data"]).contains("data is a master"));
    host.start_and_mount();
    host.wait("data", 60);
    for round in 0..3 {
        let name = format!("file-{round}");
        fs::write(data.join(&name), "x").unwrap();
        host.must(&["wait", "data", "copy", "--timeout", "60"]);
        assert!(scratch.path().join("copy").join(&name).exists());
        assert!(!slow.join(&name).exists(), "round {round}: it was sent at once");
    }
    host.must(&["wait", "data", "slow", "--timeout", "60"]);
    assert!(slow.join("file-2").exists());
    fs::write(data.join("file-3"), "x").unwrap();
    host.must(&["verify", "data", "slow"]);
    host.stop();
}

#[test]
fn a_target_whose_clock_is_wrong_is_named() {
    let (mut host, _scratch) = defined();
    host.start_and_mount();
    host.wait("data", 60);
    let offset = |host: &Host| host.target("data")["clock_offset_seconds"].as_f64();
    let near = wait_until("the clock of the target", LIMIT, || offset(&host));
    // The same clock, but a message may be long under way on a machine that is busy.
    assert!((-60.0..0.1).contains(&near), "{near}");
    host.stop();
    host.start_with_faults("wire.clock=skip");
    let far = wait_until("the clock of a target that was never set", LIMIT, || offset(&host));
    assert!(far < -1e9, "{far}");
    let shown = host.must(&["status"]);
    assert!(shown.contains("its clock is 1") && shown.contains(" s behind"), "{shown}");
    let found = host.run(&["doctor"]);
    assert!(found.code == 6 && found.stdout.contains("clock-skew"), "{found:#?}");
    host.stop();
}
