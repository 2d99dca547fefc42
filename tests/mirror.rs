//! `dtfs mirror`: each kind finds what it promises to find, sends little more than that, and comes to its end whatever is
//! killed on the way.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

#[path = "mirror/matrix.rs"]
mod matrix;
#[path = "mirror/removed.rs"]
mod removed;
mod support;

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::process::{tool, wait_until};
use support::replica::Pair;
use support::scratch::{FileSystem, utf8};
use support::trees;

const PATIENCE: Duration = Duration::from_secs(120);

fn fill(source: &Path) {
    trees::fill(&source.join("many"), 200);
    let dir = source.join("dir");
    fs::create_dir_all(dir.join("sub")).unwrap();
    for name in ["content", "size", "mode", "owner", "xattr", "mtime", "gone", "replaced"] {
        fs::write(dir.join(name), name.repeat(5000)).unwrap();
    }
    let big = File::create(dir.join("big")).unwrap();
    big.set_len(40 << 20).unwrap();
    big.write_all_at(&vec![3; 8 << 20], 20 << 20).unwrap();
    fs::write(dir.join("secret"), vec![7; 4 << 20]).unwrap();
    fs::write(dir.join("linked"), "one object, two names").unwrap();
    fs::hard_link(dir.join("linked"), dir.join("sub/link")).unwrap();
    symlink("nowhere", dir.join("symlink")).unwrap();
    fs::write(dir.join("sub/leaf"), "leaf").unwrap();
}

/// Does it without a trace in the times of `path`.
fn unseen(path: &Path, change: impl FnOnce()) {
    let times = |path: &Path| {
        let stat = fs::symlink_metadata(path).unwrap();
        fs::FileTimes::new().set_modified(stat.modified().unwrap()).set_accessed(stat.accessed().unwrap())
    };
    let before = times(path);
    change();
    File::open(path).unwrap().set_times(before).unwrap();
}

fn write_at(path: &Path, bytes: &[u8], offset: u64) {
    File::options().write(true).open(path).unwrap().write_all_at(bytes, offset).unwrap();
}

/// What every kind finds: something of what the object is has changed.
fn tamper_openly(target: &Path) {
    let dir = target.join("dir");
    write_at(&dir.join("content"), b"CHANGED", 12_345);
    write_at(&dir.join("big"), b"CHANGED", 27 << 20);
    unseen(&dir.join("size"), || File::options().write(true).open(dir.join("size")).unwrap().set_len(7).unwrap());
    fs::set_permissions(dir.join("mode"), Permissions::from_mode(0o4777)).unwrap();
    chown(dir.join("owner"), Some(4711), None).unwrap();
    tool("setfattr", &["-n", "user.new", "-v", "1", utf8(&dir.join("xattr"))]);
    File::open(dir.join("mtime")).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    fs::remove_file(dir.join("gone")).unwrap();
    fs::remove_file(dir.join("replaced")).unwrap();
    fs::write(dir.join("replaced"), "of another").unwrap();
    fs::write(dir.join("extra"), "of another").unwrap();
    fs::rename(dir.join("sub/leaf"), target.join("many/leaf")).unwrap();
    fs::remove_file(dir.join("symlink")).unwrap();
    symlink("elsewhere", dir.join("symlink")).unwrap();
    fs::remove_dir_all(target.join("many")).unwrap();
}

/// What only a comparison of content finds.
fn tamper_in_secret(target: &Path) {
    let path = target.join("dir/secret");
    unseen(&path, || write_at(&path, b"SECRET", 1 << 20));
}

fn mirror(pair: &Pair) -> Value {
    pair.host.target("data")["mirror"].clone()
}

fn start(pair: &Pair, kind: &str) -> String {
    pair.host.must(&["mirror", "start", "data", "target", kind, "--wait"])
}

fn is_secret_there(pair: &Pair) -> bool {
    let mut found = [0; 6];
    File::open(pair.target.join("dir/secret")).unwrap().read_exact_at(&mut found, 1 << 20).unwrap();
    &found == b"SECRET"
}

/// Tampers, mirrors by that kind, and returns the bytes that were sent.
fn mend_by(pair: &Pair, kind: &str) -> u64 {
    tamper_openly(&pair.behind().path());
    tamper_in_secret(&pair.behind().path());
    let sent = pair.bytes_sent();
    start(pair, kind);
    let reply = mirror(pair);
    assert_eq!((&reply["mirror"], &reply["progress"]), (&kind[2..].into(), &"done".into()), "{reply:#}");
    pair.bytes_sent() - sent
}

#[test]
fn each_kind_mends_what_it_promises() {
    let pair = Pair::mirrored(FileSystem::Ext4, |source| fill(source));
    let first = mirror(&pair);
    assert_eq!((&first["mirror"], &first["progress"]), (&"full".into(), &"done".into()), "{first:#}");
    assert!(first["objects"].as_u64().unwrap() > 200, "{first:#}");
    // What has the same size and time is believed.
    let cost = mend_by(&pair, "--difference");
    assert!(is_secret_there(&pair), "a comparison by attributes has read content");
    assert!(cost < 4 << 20, "blocks that did not differ were sent: {cost} bytes");
    let cost = mend_by(&pair, "--checksum");
    assert!(!is_secret_there(&pair) && cost < 4 << 20, "{cost} bytes were sent");
    let cost = mend_by(&pair, "--full");
    assert!(!is_secret_there(&pair) && cost > 8 << 20, "{cost} bytes were sent");
    pair.stop_and_compare("after a mirror of each kind");
}

/// What is equal costs next to nothing, and changes are in time beside a mirror.
#[test]
fn a_mirror_of_what_is_equal_sends_little_and_changes_go_on() {
    let pair = Pair::mirrored(FileSystem::Xfs, |source| fill(source));
    for kind in ["--difference", "--checksum"] {
        let sent = pair.bytes_sent();
        pair.host.must(&["mirror", "start", "data", "target", kind]);
        fs::write(pair.source.join("beside"), kind).unwrap();
        fs::rename(pair.source.join("beside"), pair.source.join("dir/beside")).unwrap();
        pair.wait();
        assert_eq!(fs::read_to_string(pair.target.join("dir/beside")).unwrap(), kind);
        let cost = pair.bytes_sent() - sent;
        assert!(cost < 300_000, "{kind}: {cost} bytes were sent");
    }
    pair.stop_and_compare("beside changes");
}

fn objects(pair: &Pair) -> u64 {
    mirror(pair)["objects"].as_u64().unwrap_or(0)
}

#[test]
fn it_is_held_goes_on_is_given_up_and_begins_anew() {
    let mut pair = Pair::mirrored(FileSystem::Ext4, |source| fill(source));
    let code = |pair: &Pair, args: &[&str]| pair.host.run(&[&["mirror"], args, &["data", "target"]].concat()).code;
    assert_eq!((code(&pair, &["pause"]), code(&pair, &["resume"]), code(&pair, &["stop"])), (5, 5, 5), "none runs");
    assert_eq!(pair.host.run(&["mirror", "start", "data", "nobody"]).code, 2);
    // Nothing is read before the target is told, so it can be held before it has read much.
    pair.host.must(&["replication", "pause", "data", "target"]);
    pair.host.must(&["mirror", "start", "data", "target", "--full"]);
    assert_eq!(code(&pair, &["pause"]), 0);
    assert_eq!(code(&pair, &["start"]), 5, "one is there already");
    pair.host.must(&["replication", "resume", "data", "target"]);
    // Changes go on, also after another start; the target is consistent at no TID.
    pair.host.stop();
    pair.host.start_and_mount();
    fs::write(pair.source.join("while-held"), "x").unwrap();
    wait_until("a change to arrive", PATIENCE, || pair.target.join("while-held").exists().then_some(()));
    let status = pair.host.target("data");
    assert_eq!((&status["mirror"]["progress"], objects(&pair)), (&"paused".into(), 0), "{status:#}");
    assert!(status["consistent_at"].is_null() && status["state"] == "mirroring", "{status:#}");
    assert!(pair.host.must(&["status"]).contains("its mirror is paused"));
    assert_eq!(code(&pair, &["stop"]), 0);
    assert_eq!(code(&pair, &["resume"]), 5, "it was given up");
    assert_eq!(pair.host.target("data")["mirror"]["progress"], "stopped");
    assert_eq!(pair.host.run(&["wait", "data", "--timeout", "1"]).code, 4);
    tamper_openly(&pair.behind().path());
    assert!(start(&pair, "--checksum").contains("done"));
    assert!(objects(&pair) > 200, "{:#}", mirror(&pair));
    pair.stop_and_compare("after stop and start");
}

/// Begins a mirror that takes its time.
fn hold_back(pair: &Pair, rate: &str, kind: &str) {
    pair.host.must(&["replication", "pause", "data", "target"]);
    let file = pair.host.root().join("etc/dtfs/mounts.d/data.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("paused = true", &format!("bandwidth = \"{rate}\"\npaused = true"))).unwrap();
    pair.host.must(&["mirror", "start", "data", "target", kind]);
    pair.host.must(&["replication", "resume", "data", "target"]);
}

#[derive(Clone, Copy, PartialEq)]
enum Side {
    Source,
    Target,
}

/// What may be sent once more: two groups that are being made durable, and what is under way.
const AGAIN_MOST_BYTES: u64 = 16 << 20;

/// Kills one side when a mirror has read `percent` of the tree; it comes to its end, little is sent once more, and changes
/// that are made meanwhile do not wait for it.
fn killed_at(percent: u64, side: Side) {
    let count = 1500;
    let mut pair = Pair::mirrored(FileSystem::Ext4, |source| {
        let mut noise = vec![0; 40_000];
        for folder in 0..count / 100 {
            fs::create_dir(source.join(format!("d{folder}"))).unwrap();
            for file in 0..100 {
                blake3::Hasher::new().update(&[folder as u8, file]).finalize_xof().fill(&mut noise);
                fs::write(source.join(format!("d{folder}/f{file}")), &noise).unwrap();
            }
        }
    });
    let whole = pair.bytes_sent();
    assert!(whole > count * 40_000, "noise does not shrink");
    for folder in 0..count / 100 {
        fs::remove_dir_all(pair.behind().join(format!("d{folder}"))).unwrap();
    }
    hold_back(&pair, "20M", "--full");
    let before = pair.bytes_sent();
    wait_until("the mirror to get there", PATIENCE, || (objects(&pair) * 100 >= count * percent).then_some(()));
    fs::write(pair.source.join("beside"), "x").unwrap();
    wait_until("a change to arrive", PATIENCE, || pair.target.join("beside").exists().then_some(()));
    assert_eq!(mirror(&pair)["progress"], "running", "it was over before it could be killed");
    let sent = pair.bytes_sent() - before;
    match side {
        Side::Target => pair.host.kill9_server(),
        Side::Source => {
            pair.host.kill9_and_wait();
            let refused = pair.host.run(&["promote", utf8(&pair.target), "--as", "heir"]);
            assert_eq!(refused.code, 7, "a tree that is being mirrored was promoted: {refused:?}");
            pair.host.start_and_mount();
        }
    }
    pair.wait();
    let reply = mirror(&pair);
    assert_eq!((&reply["mirror"], &reply["progress"]), (&"full".into(), &"done".into()), "{reply:#}");
    // A daemon counts from its own start.
    let in_all = if side == Side::Target { pair.bytes_sent() - before } else { sent + pair.bytes_sent() };
    let again = in_all.saturating_sub(whole);
    println!("killed at {percent} %: {again} of {whole} bytes were sent once more");
    assert!(again < AGAIN_MOST_BYTES, "killed at {percent} %: {again} of {whole} bytes were sent once more");
    pair.stop_and_compare(&format!("killed at {percent} %"));
}

#[test]
fn a_killed_target_goes_on_with_its_mirror() {
    for percent in [10, 50, 90] {
        killed_at(percent, Side::Target);
    }
}

#[test]
fn a_killed_source_goes_on_with_its_mirror() {
    for percent in [10, 50, 90] {
        killed_at(percent, Side::Source);
    }
}

/// A target held back so far that the last directory of the source is read long after the first one.
struct Slow {
    pair: Pair,
    first: PathBuf,
    last: PathBuf,
}

fn slow() -> Slow {
    let mut noise = vec![0; 15_000];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    let pair = Pair::mirrored(FileSystem::Ext4, |source| {
        for folder in 0..60 {
            fs::create_dir(source.join(format!("d{folder}"))).unwrap();
            for file in 0..6 {
                noise[0] = file;
                fs::write(source.join(format!("d{folder}/f{file}")), &noise).unwrap();
            }
        }
    });
    let listed = fs::read_dir(&pair.source).unwrap().map(|entry| entry.unwrap().file_name().into());
    let dirs: Vec<PathBuf> = listed.filter(|name: &PathBuf| name.as_os_str() != ".dtfs").collect();
    let (first, last) = (dirs.first().unwrap().clone(), dirs.last().unwrap().clone());
    Slow { pair, first, last }
}

/// Moves from a directory that is not read yet into one that was, what only a comparison of content finds: a file, a
/// directory, and a file by a second name. Returns whether that found it.
fn moves_are_met(faults: &str) -> bool {
    let Slow { mut pair, first, last } = slow();
    pair.host.stop();
    pair.host.start_with_faults(faults);
    pair.host.must(&["mounts", "mount", "--all"]);
    let tamper = |path: &Path| unseen(path, || write_at(path, b"SECRET", 10_000));
    fs::create_dir(pair.source.join(&last).join("sub")).unwrap();
    fs::copy(pair.source.join(&last).join("f0"), pair.source.join(&last).join("sub/leaf")).unwrap();
    pair.wait();
    for name in ["f1", "f2", "f3", "sub/leaf"] {
        tamper(&pair.behind().join(&last).join(name));
    }
    hold_back(&pair, "500K", "--checksum");
    wait_until("the first directory to be read", PATIENCE, || (objects(&pair) > 10).then_some(()));
    let (from, to) = (pair.source.join(&last), pair.source.join(&first));
    fs::rename(from.join("f1"), to.join("moved")).unwrap();
    fs::rename(from.join("sub"), to.join("moved-dir")).unwrap();
    fs::hard_link(from.join("f2"), to.join("linked")).unwrap();
    fs::remove_file(from.join("f2")).unwrap();
    let read = objects(&pair);
    assert!(read < 300, "{read} objects were read before the move: too late to prove anything");
    pair.wait();
    pair.host.stop();
    let same = |a: &str| fs::read(to.join(a)).unwrap() == fs::read(pair.target.join(&first).join(a)).unwrap();
    let met = [same("moved"), same("moved-dir/leaf"), same("linked")];
    assert!(met.iter().all(|one| *one == met[0]), "{met:?}");
    met[0]
}

#[test]
fn what_moves_while_a_tree_is_compared_is_met() {
    assert!(moves_are_met(""));
    assert!(!moves_are_met("sender.moved=skip"), "the rig would not have seen it");
}

/// The same for a verification.
#[test]
fn what_moves_while_a_target_is_verified_is_met() {
    let Slow { pair, first, last } = slow();
    let behind = pair.behind();
    let path = behind.join(&last).join("f1");
    unseen(&path, || write_at(&path, b"SECRET", 10_000));
    // It reads the last directory first.
    let (first, last) = (last, first);
    let path = behind.join(&last).join("f1");
    unseen(&path, || write_at(&path, b"SECRET", 10_000));
    drop(behind);
    let answer = std::thread::scope(|scope| {
        let verify = || pair.host.run(&["verify", "data", "target", "--json", "--bandwidth", "500K"]);
        let verifying = scope.spawn(verify);
        wait_until("the verification to begin", PATIENCE, || {
            pair.host.target("data")["verify"]["objects"].as_u64().is_some_and(|objects| objects > 10).then_some(())
        });
        let to = pair.source.join(&first).join("moved");
        fs::rename(pair.source.join(&last).join("f1"), to).unwrap();
        verifying.join().unwrap()
    });
    let json: Value = serde_json::from_str(&answer.stdout).unwrap();
    let rows = json["differences"].as_array().cloned().unwrap_or_default();
    let found = |path: &Path| rows.iter().any(|row| row["path"] == utf8(path) && row["what"] == "content");
    assert!(found(&first.join("f1")) && found(&first.join("moved")), "{json:#}");
}

fn orphans(pair: &Pair, args: &[&str]) -> Value {
    let answer = pair.host.must(&[&["orphans"], args, &["data", "target", "--json"]].concat());
    serde_json::from_str(&answer).unwrap()
}

fn paths(reply: &Value) -> Vec<&str> {
    let mut paths: Vec<&str> =
        reply["orphans"].as_array().unwrap().iter().map(|row| row["path"].as_str().unwrap()).collect();
    paths.sort_unstable();
    paths
}

/// What the source does not have is set aside with its path, and becomes what is asked for; what is in use of the volume is
/// never removed with it.
#[test]
fn orphans_are_told_moved_and_removed() {
    let pair = Pair::mirrored(FileSystem::Ext4, |source| fill(source));
    assert_eq!(orphans(&pair, &["scan"])["count"], 0);
    let litter = |name: &str| {
        let behind = pair.behind();
        let dir = behind.join("dir").join(name);
        fs::create_dir_all(dir.join("deep/er")).unwrap();
        fs::write(dir.join("deep/er/file"), name).unwrap();
        fs::write(behind.join("many").join(name), name).unwrap();
    };
    litter("one");
    start(&pair, "--checksum");
    pair.wait();
    let found = orphans(&pair, &["scan"]);
    assert_eq!(paths(&found), ["dir/one", "many/one"], "{found:#}");
    assert_eq!(orphans(&pair, &["delete", "--older-than", "1h"])["count"], 0, "they are young");
    assert_eq!(pair.host.run(&["orphans", "move", "data", "target", "--to", "../out"]).code, 2);
    assert_eq!(pair.host.run(&["orphans", "move", "data", "target", "--to", "park"]).code, 8);
    let moved = orphans(&pair, &["move", "--to", "found"]);
    assert_eq!((&moved["count"], &moved["left"]), (&2.into(), &0.into()), "{moved:#}");
    let kept = pair.target.join(".dtfs/found");
    assert_eq!(fs::read_to_string(kept.join("dir/one/deep/er/file")).unwrap(), "one");
    assert_eq!(fs::read_to_string(kept.join("many/one")).unwrap(), "one");
    litter("two");
    // A directory of another that has got hold of objects of the volume.
    let behind = pair.behind();
    fs::rename(behind.join("dir/sub"), behind.join("dir/two/deep/sub")).unwrap();
    fs::rename(behind.join("dir/mode"), behind.join("dir/two/deep/mode")).unwrap();
    drop(behind);
    start(&pair, "--checksum");
    pair.wait();
    let removed = orphans(&pair, &["delete"]);
    assert_eq!((paths(&removed), &removed["left"]), (vec!["dir/two", "many/two"], &0.into()), "{removed:#}");
    assert_eq!(fs::read_dir(pair.target.join(".dtfs/orphans")).unwrap().count(), 0);
    // By what the file says.
    litter("three");
    let file = pair.host.root().join("etc/dtfs/mounts.d/data.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.clone() + "orphans = \"delete\"\norphans_older_than = \"1s\"\n").unwrap();
    pair.host.must(&["reload"]);
    start(&pair, "--checksum");
    // The policy is done at the beginning of a session: as soon as they are old enough they are gone.
    wait_until("the orphans to be removed", PATIENCE, || {
        pair.host.must(&["replication", "pause", "data", "target"]);
        pair.host.must(&["replication", "resume", "data", "target"]);
        pair.wait();
        let status = wait_until("the policy to be done", PATIENCE, || {
            Some(pair.host.target("data")["orphans"].clone()).filter(|orphans| !orphans.is_null())
        });
        (status == 0).then_some(())
    });
    assert_eq!(orphans(&pair, &["scan"])["count"], 0);
    pair.stop_and_compare("with orphans");
}

/// How far a mirror is, for programs, for people, and as a bar for whoever sits at a terminal; bounded by `-b` it takes long
/// enough for all of them to see it.
#[test]
fn how_far_a_bounded_mirror_is_shows_everywhere() {
    let pair = Pair::mirrored(FileSystem::Ext4, |source| fill(source));
    let begun = Instant::now();
    let mut run = pair.host.spawn("bounded", &["mirror", "start", "data", "target", "--full", "--wait", "-b", "4M"]);
    let watch = pair.host.spawn("watch", &["status", "--watch"]);
    let whole = |reply: &Value| {
        ["objects", "bytes", "total_objects", "total_bytes", "bytes_a_second", "seconds_left"]
            .iter()
            .all(|key| reply[*key].as_u64().is_some_and(|number| number > 0))
            && reply["current"].as_str().is_some_and(|path| !path.is_empty())
    };
    // Objects, bytes and estimate, and the path that is read.
    let tells_all = |shown: &str| [" objects, ", " (about ", "reads "].iter().all(|word| shown.contains(word));
    let seen = wait_until("everything about a mirror that runs", PATIENCE, || {
        let reply = mirror(&pair);
        (whole(&reply) || run.ended().is_some()).then_some(reply)
    });
    assert_eq!(seen["progress"], "running", "it was never told whole: {seen:#}");
    wait_until("status --watch to tell", PATIENCE, || {
        let shown = pair.host.printed("watch");
        (tells_all(&shown) || run.ended().is_some()).then_some(())
    });
    let shown = pair.host.printed("watch");
    assert!(tells_all(&shown), "{shown}");
    drop(watch);
    assert!(run.wait("the mirror", PATIENCE).success());
    assert!(begun.elapsed() >= Duration::from_secs(2), "12 MiB were read faster than 4 MiB a second");
    let printed = pair.host.printed("bounded");
    assert!(printed.contains("done, ") && !printed.contains("/s"), "a bar without a terminal: {printed}");
    let dtfs = format!("{} --root {}", env!("CARGO_BIN_EXE_dtfs"), utf8(pair.host.root()));
    let command = format!("stty cols 160; exec {dtfs} mirror start data target --full -b 4M");
    let shown = tool("script", &["-qec", &command, "/dev/null"]);
    assert!(shown.contains("% ") && shown.contains(" objects, ") && shown.contains("/s"), "no bar: {shown:?}");
    assert!(shown.contains("done, "), "it did not follow the mirror to its end: {shown:?}");
    // The bound ends with its mirror.
    let begun = Instant::now();
    start(&pair, "--full");
    eprintln!("without a bound it took {:?}", begun.elapsed());
    pair.stop_and_compare("after bounded mirrors");
}
