//! Include and exclude rules: what they match is what rsync's match, and a target has what rsync would have copied, whatever is
//! renamed over their edges meanwhile.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dtfs::base::{Rules, Tid, faults};
use dtfs::journal::{NewWork, WorkReason};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::hand::Hand;
use support::history::History;
use support::length::{asked_for, number};
use support::pair::{Pair, TIGHT_CAP};
use support::prng::Prng;
use support::process::{tool, wait_until};
use support::replica;
use support::scratch::{FileSystem, utf8};
use support::trees::{self, BUT_HOLES};

/// Rules over the names that histories use.
const POOL: &[&str] = &[
    "- f",
    "- a/",
    "- /b/",
    "- /b/c/",
    "- c/d",
    "- /d/*/e",
    "- **/c/a",
    "- /e/**",
    "- [ab]",
    "- /a/?",
    "- d/***",
    "+ /b/c/***",
    "+ b",
    "+ e/f",
    "+ /c/[a-c]",
    "+ /a/",
];

fn some_rules(prng: &mut Prng) -> Vec<&'static str> {
    (0..1 + prng.below(5)).map(|_| prng.pick(POOL)).collect()
}

/// Makes `copy` what rsync makes of `source` by the rules.
fn rsync(source: &Path, copy: &Path, rules: &[&str]) {
    // Without the window, times within the second that a directory was made in are not set.
    let how = ["-aHAX", "--numeric-ids", "--modify-window=-1", "--delete", "--delete-excluded"];
    let filters = rules.iter().map(|rule| format!("--filter={rule}"));
    let mut args: Vec<String> = how.into_iter().map(str::to_owned).chain(filters).collect();
    args.push("--filter=- /.dtfs".to_owned());
    args.extend([format!("{}/", utf8(source)), format!("{}/", utf8(copy))]);
    tool("rsync", &args.iter().map(String::as_str).collect::<Vec<_>>());
}

/// Waits until the target has everything, and holds it against what rsync makes of the source.
fn wait_as_rsync(pair: &Pair, rules: &[&str], context: &str) {
    pair.wait();
    let copy = pair.root().join("rsync");
    let _ = fs::remove_dir_all(&copy);
    fs::create_dir(&copy).unwrap();
    rsync(&pair.source(), &copy, rules);
    let report = dtfs::backing::compare::compare_trees(&copy, &pair.target(), &BUT_HOLES).unwrap();
    assert!(report.is_equal(), "{context}: what rsync makes of it and the target differ:\n{report}");
}

fn parse(rules: &[&str]) -> Rules {
    Rules::parse(rules.iter().copied()).unwrap()
}

/// Two lives by two sets of rules.
fn history(seed: u64) -> Result<(), String> {
    let outcome = std::panic::catch_unwind(|| {
        let (pair, tight) = match seed % 4 {
            0 => (Pair::tight(), true),
            _ => (Pair::in_memory(), false),
        };
        let mut prng = Prng::new(seed.wrapping_mul(7_919));
        let mut history = History::new(pair, seed, tight);
        let mut told = Vec::new();
        let lived = std::panic::catch_unwind(AssertUnwindSafe(|| {
            for life in ["the first rules", "other rules"] {
                let rules = some_rules(&mut prng);
                told.push(rules.clone());
                history.pair.rules = parse(&rules);
                history.restart_sender();
                history.run();
                wait_as_rsync(&history.pair, &rules, &format!("seed {seed}, {life}"));
                assert_eq!(history.pair.stack().journal().store().work_count(history.pair.id()).unwrap(), 0);
            }
        }));
        if lived.is_err() {
            eprintln!("seed {seed}: {told:?} {:?}\n{}", history.story, history.pair.explain());
        }
        lived.map_err(|_| ())
    });
    match outcome {
        Ok(Ok(())) => Ok(()),
        _ => Err(format!("DTFS_SEED={seed} repeats it")),
    }
}

fn failing(seeds: std::ops::Range<u64>) -> Vec<String> {
    let next = AtomicU64::new(seeds.start);
    let failed = parking_lot::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    failed.lock().extend(history(seed).err());
                }
            });
        }
    });
    failed.into_inner()
}

/// `DTFS_HISTORIES` says how many, `DTFS_SEED` names one.
#[test]
fn random_histories_end_as_rsync_would_have_them() {
    faults::arm_from_env().unwrap();
    let seeds = match asked_for("DTFS_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("DTFS_HISTORIES", 40),
    };
    assert_eq!(failing(seeds), Vec::<String>::new());
}

/// Runs one test of this file in a process of its own with rules broken: fault points are armed for all of a process.
fn run_broken(test: &str, faults: &str) -> (bool, String) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]);
    let output = command.envs([("DTFS_FAULTS", faults), ("DTFS_HISTORIES", "8")]).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn fails_when_broken(test: &str, faults: &str) {
    let (passes, said) = run_broken(test, faults);
    assert!(!passes, "{test} passes with {faults}: the rig sees nothing");
    assert!(said.contains("what rsync makes of it and the target differ"), "it fails for another reason:\n{said}");
}

/// Without the judgement of records the same histories show a target that differs.
#[test]
fn control_records_are_not_judged() {
    fails_when_broken("random_histories_end_as_rsync_would_have_them", "sender.rules=skip");
}

/// A target that lacks something does not believe that nothing is left; only where neither side looks does it stay so.
#[test]
fn control_what_is_listed_again_is_not_sent_again() {
    const TEST: &str = "what_comes_inside_again_with_its_directory_is_whole";
    fails_when_broken(TEST, "sender.listed_again=skip,applier.has_everything=skip");
    let (passes, said) = run_broken(TEST, "sender.listed_again=skip");
    assert!(passes, "the target does not ask for what it lacks:\n{said}");
}

/// Every path below `dir`, and whether it is a directory.
fn paths(dir: &Path, at: &Path, found: &mut BTreeSet<(String, bool)>) {
    for entry in fs::read_dir(at).unwrap() {
        let path = entry.unwrap().path();
        let is_dir = path.is_dir();
        found.insert((utf8(path.strip_prefix(dir).unwrap()).to_owned(), is_dir));
        if is_dir {
            paths(dir, &path, found);
        }
    }
}

#[test]
fn patterns_match_what_they_match_in_rsync() {
    const ATOMS: &[&str] = &[
        "a",
        "b",
        "ab",
        "*",
        "**",
        "?",
        "/",
        "/",
        "[ab]",
        "[!a]",
        "a*",
        "*b",
        "\\*",
        "[a-c]",
        ".x",
        "***",
        "[[:alpha:]]",
        "*/",
    ];
    let seed = number("DTFS_SEED", 1);
    let mut prng = Prng::new(seed);
    let dir = tempfile::tempdir().unwrap();
    let (source, copy) = (dir.path().join("source"), dir.path().join("copy"));
    let names = ["a", "b", "ab", "ba", "*", "a.x", "c", "\\"];
    for one in names {
        for two in names {
            fs::create_dir_all(source.join(one).join(two)).unwrap();
            for three in ["a", "b", "ab", ".x", "*b"] {
                fs::write(source.join(one).join(two).join(three), "").unwrap();
            }
        }
        fs::write(source.join(format!("{one}{one}")), "").unwrap();
    }
    fs::create_dir(&copy).unwrap();
    let mut all = BTreeSet::new();
    paths(&source, &source, &mut all);
    let mut tried = 0;
    while tried < 60 {
        let texts: Vec<String> = (0..1 + prng.below(4))
            .map(|_| {
                let pattern: String = (0..1 + prng.below(5)).map(|_| prng.pick(ATOMS)).collect();
                format!("{} {pattern}", if prng.chance(70) { "-" } else { "+" })
            })
            .collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let Ok(rules) = Rules::parse(texts.iter().copied()) else { continue };
        tried += 1;
        rsync(&source, &copy, &texts);
        let mut copied = BTreeSet::new();
        paths(&copy, &copy, &mut copied);
        let ours = all.iter().filter(|(path, is_dir)| !rules.excludes_at_any_level(path.as_bytes(), *is_dir));
        assert_eq!(ours.cloned().collect::<BTreeSet<_>>(), copied, "seed {seed}, rules {texts:?}");
    }
}

/// What is excluded is not read, not sent and not asked about; what crosses the edge is removed, or fetched whole.
#[test]
fn what_crosses_the_edge_goes_and_comes_whole() {
    let mut pair = Pair::new();
    let rules = ["- *.tmp", "- /cache/"];
    pair.rules = parse(&rules);
    let hand = Hand::new(pair.stack());
    hand.mkdir("cache").unwrap();
    hand.file("cache/large", &vec![7; 3 << 20]).unwrap();
    trees::fill(&pair.source().join("tree/deep"), 300);
    pair.start();
    wait_as_rsync(&pair, &rules, "mirror");
    assert!(pair.bytes_sent() < 1 << 20, "what is excluded was sent: {} bytes", pair.bytes_sent());
    let sent = pair.bytes_sent();
    hand.patch("cache/large", 5, &[9; 100_000]).unwrap();
    hand.file("tree/one.tmp", &vec![5; 500_000]).unwrap();
    wait_as_rsync(&pair, &rules, "changes of what is excluded");
    assert!(pair.bytes_sent() - sent < 10 << 10, "{} bytes were sent of what is excluded", pair.bytes_sent() - sent);
    // One name inside, one outside: it stays as long as one is inside.
    hand.link("tree/one.tmp", "tree/one").unwrap();
    wait_as_rsync(&pair, &rules, "a name inside");
    hand.patch("tree/one.tmp", 7, b"by its other name").unwrap();
    wait_as_rsync(&pair, &rules, "a change by the name outside");
    hand.unlink("tree/one").unwrap();
    hand.rename("tree", "cache/tree").unwrap();
    wait_as_rsync(&pair, &rules, "a tree went outside");
    let parked = fs::read_dir(pair.target().join(".dtfs/park")).unwrap().count();
    assert_eq!(parked, 0, "what went outside is still in the park");
    hand.patch("cache/tree/deep/file-00007", 0, b"changed outside").unwrap();
    hand.rename("cache/tree/deep", "back").unwrap();
    wait_as_rsync(&pair, &rules, "a part of it came back");
    hand.exchange("back", "cache/tree").unwrap();
    wait_as_rsync(&pair, &rules, "exchanged over the edge");
    assert_eq!(pair.target_errors(), Vec::<String>::new());
}

/// A file goes outside, and comes inside again because the directory that it is in does. It is read for itself, sent, and given
/// up by a target that knows no name of it; the listing that names it comes behind that.
#[test]
fn what_comes_inside_again_with_its_directory_is_whole() {
    faults::arm_from_env().unwrap();
    let mut pair = Pair::new();
    let rules = ["- /out/**"];
    pair.rules = parse(&rules);
    let hand = Hand::new(pair.stack());
    hand.mkdir("out").unwrap();
    // Too large to be read under the row of its directory.
    hand.file("large", &vec![7; 3 << 20]).unwrap();
    pair.start();
    wait_as_rsync(&pair, &rules, "mirror");
    for round in 0..10 {
        hand.rename("large", "out/large").unwrap();
        hand.rename("out", "in").unwrap();
        wait_as_rsync(&pair, &rules, &format!("it was outside for a moment, round {round}"));
        hand.rename("in/large", "large").unwrap();
        hand.rename("in", "out").unwrap();
        wait_as_rsync(&pair, &rules, &format!("back, round {round}"));
    }
}

fn set_rules(pair: &replica::Pair, rules: &[&str]) -> String {
    let file = pair.host.root().join("etc/dtfs/mounts.d/data.toml");
    let text = fs::read_to_string(&file).unwrap();
    let others: String =
        text.lines().filter(|line| !line.starts_with("rules")).map(|line| format!("{line}\n")).collect();
    let array = rules.iter().map(|rule| format!("{rule:?}")).collect::<Vec<_>>().join(", ");
    // In front of the tables of the targets.
    fs::write(&file, format!("rules = [{array}]\n{others}")).unwrap();
    pair.host.must(&["reload"])
}

fn as_rsync(pair: &replica::Pair, rules: &[&str], context: &str) {
    pair.wait();
    let copy = pair.source.with_file_name("rsync");
    let _ = fs::remove_dir_all(&copy);
    fs::create_dir(&copy).unwrap();
    rsync(&pair.source, &copy, rules);
    trees::assert_equal_in(&copy, &pair.target, &BUT_HOLES, context);
}

/// The whole, by the real program and on a mount: rules are written into the volume's file and changed, trees move over their
/// edges while servers and daemon are killed, and a verification finds nothing to complain of.
#[test]
fn rules_of_a_volumes_file_count_from_a_reload_on() {
    let seed = number("DTFS_SEED", 1);
    eprintln!("DTFS_SEED={seed} repeats it");
    let mut prng = Prng::new(seed);
    let mut pair = replica::Pair::mirrored(FileSystem::Ext4, |source| {
        for dir in ["tree/sub", "cache/deep", "tree/cache"] {
            trees::fill(&source.join(dir), 60);
        }
        fs::write(source.join("tree/x.tmp"), "temporary").unwrap();
        fs::write(source.join("tree/keep.tmp"), "kept").unwrap();
    });
    let rules = ["+ keep.tmp", "- *.tmp", "- /cache/", "- tree/c*"];
    let said = set_rules(&pair, &rules);
    assert!(said.contains("the rules have changed"), "{said}");
    let status: serde_json::Value = serde_json::from_str(&pair.host.must(&["status", "--json"])).unwrap();
    assert_eq!(status["volumes"][0]["rules"], serde_json::json!(rules), "{status:#}");
    as_rsync(&pair, &rules, "rules were set");
    assert!(pair.target.join("tree/keep.tmp").exists() && !pair.target.join("cache").exists());
    let places =
        ["tree", "cache", "tree/cache", "tree/sub", "other", "cache/deep", "tree/x.tmp", "other/y.tmp", "tree/z"];
    for round in 0..3 {
        for step in 0..60 {
            let (from, to) = (pair.source.join(prng.pick(&places)), pair.source.join(prng.pick(&places)));
            let _ = match prng.below(4) {
                0 => fs::create_dir(&to),
                1 if !from.is_dir() => fs::write(&from, format!("{round} {step}")),
                _ => fs::rename(&from, &to),
            };
            if step == 30 {
                pair.host.kill9_servers();
            }
        }
        if round == 1 {
            pair.host.kill9_and_wait();
            pair.host.start_and_mount();
        }
        as_rsync(&pair, &rules, &format!("round {round} of seed {seed}"));
    }
    pair.host.must(&["verify", "data", "target"]);
    let orphans = pair.host.must(&["orphans", "scan", "data", "target"]);
    assert!(!orphans.contains("tmp") && !orphans.contains("file-"), "what is excluded counts as orphan: {orphans}");
    let answer = pair.host.run(&["demote", "data"]);
    assert_eq!(answer.code, 7, "only this copy has what the rules exclude: {answer:?}");
    // Moved over the edges while nobody watches: listings tell, and no record does.
    pair.host.must(&["mounts", "unmount", "--all"]);
    for name in ["cache", "tree", "other"] {
        let path = pair.source.join(name);
        // What the rounds left there.
        let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
    }
    for dir in ["cache/inner", "tree/outer"] {
        trees::fill(&pair.source.join(dir), 20);
    }
    fs::rename(pair.source.join("cache/inner"), pair.source.join("other")).unwrap();
    fs::rename(pair.source.join("tree/outer"), pair.source.join("cache/outer")).unwrap();
    pair.host.must(&["mounts", "mount", "--all"]);
    as_rsync(&pair, &rules, "moved while it was not mounted");
    fs::write(pair.source.join("other/file-00003"), "written where it is now").unwrap();
    as_rsync(&pair, &rules, "and written after that");
    set_rules(&pair, &[]);
    pair.wait();
    pair.stop_and_compare("without rules again");
}

/// The programs that serve a target, stopped; they go on when this is dropped.
struct Frozen(Vec<Pid>);

impl Frozen {
    fn new(pair: &Pair) -> Frozen {
        let programs: Vec<Pid> = pair.programs().into_iter().map(Pid::from_raw).collect();
        assert_eq!(programs.len(), 1, "one session");
        programs.iter().for_each(|pid| kill(*pid, Signal::SIGSTOP).unwrap());
        Frozen(programs)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for pid in &self.0 {
            let _ = kill(*pid, Signal::SIGCONT);
        }
    }
}

/// A target hangs for as long as the journal takes to drop what is to be sent to it: the session goes on behind that, with and
/// without rules, and what moved by the records that were dropped is compared.
#[test]
fn what_is_dropped_under_a_session_is_passed_over() {
    for rules in [&[][..], &["- *.tmp", "- /out/"]] {
        let mut pair = Pair::tight().served_by_program();
        pair.rules = parse(rules);
        let hand = Hand::new(pair.stack());
        for dir in ["out", "out/deep", "out/far", "in", "in/sub", "in/late"] {
            hand.mkdir(dir).unwrap();
            for number in 0..20 {
                hand.file(&format!("{dir}/{number}"), format!("{dir} {number}").as_bytes()).unwrap();
            }
        }
        pair.start();
        wait_as_rsync(&pair, rules, "mirror");
        let tree = NewWork::whole_tree(WorkReason::Verify, Tid::ZERO);
        pair.stack().journal().store().work_renew(pair.id(), &[tree]).unwrap();
        let row = || pair.stack().journal().store().target_by_id(pair.id()).unwrap().unwrap();
        let errors = pair.status().errors;
        let frozen = Frozen::new(&pair);
        // More than a pipe holds: from here on nothing more is sent.
        hand.file("in/large", b"").unwrap();
        for piece in 0..4 {
            hand.patch("in/large", piece * (128 << 10), &vec![1; 128 << 10]).unwrap();
        }
        hand.rename("out/deep", "in/deep").unwrap();
        hand.rename("in/sub", "out/sub").unwrap();
        hand.rename("in/late", "in/deep/late").unwrap();
        hand.rename("in/1", "in/1.tmp").unwrap();
        hand.patch("out/far/3", 0, b"changed outside").unwrap();
        hand.rename("out/far/3", "in/three").unwrap();
        // Segments go when the log goes on to another one.
        let mut piece = 0;
        wait_until("the journal to drop what is not sent", Duration::from_secs(60), || {
            piece += 1;
            hand.patch("in/large", piece % 4 * (128 << 10), &vec![piece as u8; 128 << 10]).unwrap();
            (piece > 2 * TIGHT_CAP / (128 << 10) && row().covered > row().received).then_some(())
        });
        let covered = row().covered;
        drop(frozen);
        wait_as_rsync(&pair, rules, "records were passed over");
        assert!(row().received >= covered);
        assert_eq!(pair.status().errors, errors, "it was another session that went on: {}", pair.explain());
    }
}
