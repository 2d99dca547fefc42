use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::base::Tid;
use crate::config::{TargetName, VolumeName};
use crate::control::{LastError, StatusReply, TargetState, TargetStatus, VolumeState, VolumeStatus};

fn arguments(words: &[&str]) -> Result<Invocation, clap::Error> {
    args::Arguments::try_parse_from(std::iter::once(&"dtfs").chain(words)).map(args::Arguments::into_invocation)
}

/// What the command printed and how it ended.
fn perform(root: &Path, words: &[&str]) -> (Result<ExitCode, Failure>, String) {
    let mut all = vec!["--root", root.to_str().unwrap()];
    all.extend_from_slice(words);
    let invocation = arguments(&all).unwrap();
    let Action::Operator(command) = invocation.action else { panic!("{words:?} is no operator's command") };
    let mut output = Vec::new();
    let ended = commands::run(&invocation.paths, invocation.verbosity, &command, &mut output);
    (ended, String::from_utf8(output).unwrap())
}

fn place() -> (tempfile::TempDir, PathBuf, String) {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().canonicalize().unwrap();
    fs::create_dir_all(top.join("data")).unwrap();
    let data = top.join("data").to_str().unwrap().to_owned();
    (dir, top.join("host"), data)
}

#[test]
fn the_grammar_is_sound() {
    use clap::CommandFactory;
    args::Arguments::command().debug_assert();
}

#[test]
fn every_command_is_read() {
    for words in [
        "daemon",
        "mounts list --json",
        "mounts add /a -o atime,volume=x",
        "mounts remove /a",
        "mounts mount /a /b --dry-run --allow-open",
        "mounts mount --all",
        "mounts unmount --all --lazy",
        "define volume v /a",
        "define target v local:/b --as n --adopt",
        "forget volume v",
        "forget target v n",
        "status",
        "status v --json -vv",
        "wait v n --tid 0x10 --timeout 1.5",
        "synctid v",
        "rejoin v n --discard",
        "check",
        "check a/dtfs_mounts",
        "reload --dry-run",
        "events v --follow --json -n 5",
        "monitor v --max-lag 5m --warn-lag 30",
        "doctor --json",
        "status --watch",
        "--dry-run define volume v /a",
        "log v --from 5 --follow --json",
        "serve --stdio /b --adopt",
        "demo --keep",
        "setup 1.3.1.1 /a n",
    ] {
        let words: Vec<&str> = words.split(' ').collect();
        assert!(arguments(&words).is_ok(), "{words:?}");
    }
}

#[test]
fn what_is_wrong_ends_with_code_2() {
    for words in [
        "nosuch",
        "mounts mount",
        "mounts mount /a --all",
        "mounts add /a -o nosuch",
        "define volume a/b /a",
        "define target v ftp://h/d",
        "serve /b",
        "wait v --timeout -1",
        "-q -v status",
        "monitor --max-lag soon",
    ] {
        let words: Vec<&str> = words.split(' ').collect();
        assert_eq!(arguments(&words).err().map(|e| e.exit_code()), Some(2), "{words:?}");
    }
}

#[test]
fn the_files_are_edited_and_listed_without_a_daemon() {
    let (_dir, root, data) = place();
    let (ended, shown) = perform(&root, &["mounts", "add", &data, "-o", "atime"]);
    assert_eq!(ended, Ok(ExitCode::Ok));
    assert!(shown.contains("as the volume data") && shown.contains("no daemon runs"), "{shown}");
    let (_, shown) = perform(&root, &["mounts", "list", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((&json["v"], &json["mounts"][0]["volume"]), (&1.into(), &"data".into()));
    let (ended, _) = perform(&root, &["mounts", "add", &data]);
    assert_eq!(ended.unwrap_err().code, ExitCode::Refused);
    let url = format!("local:{data}2");
    assert_eq!(perform(&root, &["define", "target", &data, &url, "--delay", "6h"]).0, Ok(ExitCode::Ok));
    let file = std::fs::read_to_string(Path::new(&root).join("etc/dtfs/mounts.d/data.toml")).unwrap();
    assert!(file.contains("delay = \"6h\""), "{file}");
    assert_eq!(perform(&root, &["forget", "target", "data", "data2"]).0, Ok(ExitCode::Ok));
    assert_eq!(perform(&root, &["-q", "mounts", "remove", &data]), (Ok(ExitCode::Ok), String::new()));
    assert_eq!(perform(&root, &["status"]).0.unwrap_err().code, ExitCode::NoDaemon);
    assert_eq!(perform(&root, &["setup", "1.3.1.1", &data, "n"]).0, Ok(ExitCode::Ok));
}

#[test]
fn status_is_a_table() {
    let target = TargetStatus {
        name: TargetName::new("copy").unwrap(),
        url: "local:/copy".into(),
        state: TargetState::Replicating,
        received_tid: Tid(5),
        applied_tid: Tid(4),
        lag_changes: 1,
        lag_bytes: 2048,
        lag_seconds: 75.0,
        delay_seconds: 0,
        rate_bytes: 10240,
        work_seconds: None,
        work_left: 0,
        consistent_at: Some(Tid(4)),
        bytes_sent: 1536,
        errors: 0,
        clock_offset_seconds: None,
        differs: None,
        left_out: None,
        orphans: None,
        mirror: None,
        verify: None,
        last_error: Some(LastError { time: "2026-01-01T00:00:00.000Z".into(), message: "cut".into() }),
    };
    let volume = VolumeStatus {
        name: VolumeName::new("data").unwrap(),
        path: "/data".into(),
        uuid: None,
        state: VolumeState::Mounted,
        last_tid: Tid(5),
        durable_tid: Tid(5),
        journal_bytes: 100,
        journal_cap_bytes: 1000,
        requests: 0,
        requests_by_kind: Default::default(),
        suspects: Vec::new(),
        unseen: Vec::new(),
        rules: vec!["+ /keep/".into(), "- *.tmp".into()],
        targets: vec![target],
    };
    let mut output = Vec::new();
    status::print(&mut output, &StatusReply { volumes: vec![volume], ..StatusReply::default() }).unwrap();
    let shown = String::from_utf8(output).unwrap();
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(
        lines[1],
        "data    mounted  0x0000000000000005  0x0000000000000005  100 (10%)  /data  2 rules say what its targets get"
    );
    let shown: Vec<&str> = lines[4].split("  ").filter(|cell| !cell.is_empty()).map(str::trim).collect();
    assert_eq!(
        shown[2..10],
        ["replicating", "0x0000000000000004", "1", "2.0K", "1m15s", "0", "1.5K", "10.0K/s"],
        "{shown:?}"
    );
    assert!(lines[4].ends_with("2026-01-01T00:00:00.000Z: cut"), "{}", lines[4]);
}

#[test]
fn the_help_of_every_command_has_an_example() {
    fn look(command: &clap::Command, path: &str, without: &mut Vec<String>) {
        let path = format!("{path} {}", command.get_name());
        let has = command.get_after_help().is_some_and(|text| text.to_string().contains("Example"));
        if !has && !command.has_subcommands() && !command.is_hide_set() {
            without.push(path.clone());
        }
        command.get_subcommands().for_each(|below| look(below, &path, without));
    }
    let mut without = Vec::new();
    look(&<args::Arguments as clap::CommandFactory>::command(), "", &mut without);
    assert!(without.is_empty(), "{without:?}");
}
