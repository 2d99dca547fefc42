//! `dtfs verify`: nothing that is done to a target behind its back stays unseen, nothing that the source does looks like a
//! difference, and mending touches only what differs.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::host::Answer;
use support::length::number;
use support::replica::Pair;
use support::scratch::FileSystem;
use support::tampering::{CONSEQUENCES, TAMPERINGS, Tampering, fill, write_at};
use support::trees;
use support::workload::{Workload, worker_was_asked};

#[test]
fn workload_worker() {
    worker_was_asked();
}

fn verify(pair: &Pair, extra: &[&str]) -> (Answer, Value) {
    let args = [&["verify", "data", "target", "--json"], extra].concat();
    let answer = pair.host.run(&args);
    let json = serde_json::from_str(&answer.stdout).unwrap_or_else(|error| panic!("{error}: {answer:#?}"));
    (answer, json)
}

/// What was found, as (what, path).
fn found(json: &Value) -> BTreeSet<(String, String)> {
    let rows = json.get("differences").and_then(Value::as_array).cloned().unwrap_or_default();
    let text = |row: &Value, key: &str| row[key].as_str().expect("a text").to_owned();
    rows.iter().map(|row| (text(row, "what"), text(row, "path"))).collect()
}

#[test]
fn every_tampering_is_found_and_only_that_is_mended() {
    let pair = Pair::mirrored(FileSystem::Ext4, |source| fill(source, 50));
    let (answer, json) = verify(&pair, &[]);
    assert_eq!((answer.code, found(&json)), (0, BTreeSet::new()), "{json:#}");
    assert!(json["objects"].as_u64().unwrap() > 70, "{json:#}");
    for tampering in TAMPERINGS {
        (tampering.change)(&pair.behind().join(tampering.path));
    }
    let (answer, json) = verify(&pair, &[]);
    assert_eq!(answer.code, 6, "{answer:#?}");
    let seen = found(&json);
    for Tampering { what, path, .. } in TAMPERINGS {
        assert!(seen.contains(&((*what).to_owned(), (*path).to_owned())), "{what} of {path} was not found: {json:#}");
    }
    let explained = |(what, path): &&(String, String)| {
        let mut known = TAMPERINGS.iter().map(|t| (t.what, t.path)).chain(CONSEQUENCES.iter().copied());
        // An object that was deleted is missing by its place, by itself, and by its content.
        known.any(|known| known == (what.as_str(), path.as_str()))
    };
    let strange: Vec<_> = seen.iter().filter(|row| !explained(row)).collect();
    assert!(strange.is_empty(), "found what nobody did: {strange:?}");
    mend(pair);
}

/// Only what differs is written: an untouched file keeps its ctime.
fn mend(pair: Pair) {
    let untouched: Vec<PathBuf> = (0..50).map(|i| pair.target.join(format!("many/file-{i:05}"))).collect();
    let ctimes = |paths: &[PathBuf]| paths.iter().map(|p| fs::metadata(p).unwrap().ctime_nsec()).collect::<Vec<_>>();
    let before = ctimes(&untouched);
    let sent = pair.bytes_sent();
    let (answer, json) = verify(&pair, &["--repair"]);
    assert_eq!(answer.code, 0, "{answer:#?}");
    assert!(json["found"].as_u64().unwrap() >= TAMPERINGS.len() as u64 && json["left"] == 0, "{json:#}");
    assert_eq!(ctimes(&untouched), before);
    let cost = pair.bytes_sent() - sent;
    assert!(cost < 4 << 20, "mending some blocks sent {cost} bytes");
    let (answer, json) = verify(&pair, &[]);
    assert_eq!((answer.code, found(&json)), (0, BTreeSet::new()), "{json:#}");
    pair.stop_and_compare("mended");
}

/// Every kind of change by several processes, verified again and again meanwhile: nothing may be found. Then one tampering,
/// in the middle of a storm, is.
fn storm(kind: FileSystem, seed: u64, seconds: u64) {
    println!("storm: seed {seed} (DTFS_SEED={seed} repeats it)");
    let pair = Pair::mirrored(kind, |source| fill(source, 50));
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut runs = 0;
    while runs == 0 || Instant::now() < until {
        let storm = Workload::start(&pair.source.join("many"), seed + runs, 4, 4000);
        let (answer, json) = verify(&pair, &[]);
        assert!(found(&json).is_empty() && answer.code != 6, "false, with seed {}: {json:#}", seed + runs);
        storm.finish();
        runs += 1;
    }
    let storm = Workload::start(&pair.source.join("many"), seed + runs, 4, 4000);
    write_at(&pair.behind().join("dir/big"), &[2], (23 << 20) - 1);
    let (answer, json) = verify(&pair, &["--repair"]);
    assert_eq!((answer.code, json["left"].as_u64()), (0, Some(0)), "{json:#}");
    assert_eq!(found(&json), BTreeSet::from([("content".to_owned(), "dir/big".to_owned())]));
    storm.finish();
    let (answer, json) = verify(&pair, &[]);
    assert_eq!((answer.code, found(&json)), (0, BTreeSet::new()), "at rest, seed {seed}: {json:#}");
    pair.stop_and_compare(&format!("after the storm, seed {seed}"));
}

/// `DTFS_VERIFY_SECONDS` makes it longer: `scripts/soak.sh` runs it for ten minutes.
#[test]
fn a_storm_looks_like_no_difference_on_ext4() {
    storm(FileSystem::Ext4, number("DTFS_SEED", 1), number("DTFS_VERIFY_SECONDS", 5));
}

#[test]
fn a_storm_looks_like_no_difference_on_xfs() {
    storm(FileSystem::Xfs, number("DTFS_SEED", 2), number("DTFS_VERIFY_SECONDS", 1));
}

#[test]
fn it_goes_on_when_the_target_dies_and_says_when_there_is_none() {
    let pair = Pair::mirrored(FileSystem::Ext4, |source| {
        trees::fill(&source.join("many"), 300);
        fs::write(source.join("big"), vec![5; 24 << 20]).unwrap();
    });
    write_at(&pair.behind().join("big"), &[6], 1 << 20);
    std::thread::scope(|scope| {
        // Slow enough to be met by the kill.
        let verifying = scope.spawn(|| verify(&pair, &["--bandwidth", "8M"]));
        support::process::wait_until("the verification to begin", Duration::from_secs(60), || {
            pair.host.target("data")["verify"]["objects"].as_u64().is_some_and(|objects| objects > 0).then_some(())
        });
        let second = pair.host.run(&["verify", "data", "target"]);
        assert_eq!(second.code, 5, "{second:#?}");
        pair.host.kill9_server();
        let (answer, json) = verifying.join().unwrap();
        assert_eq!(answer.code, 6, "{answer:#?}");
        assert_eq!(found(&json), BTreeSet::from([("content".to_owned(), "big".to_owned())]));
        assert_eq!(json["objects"], 303, "{json:#}");
    });
    let answer = pair.host.run(&["verify", "data", "nobody"]);
    assert_eq!(answer.code, 2, "{answer:#?}");
    let table = pair.host.run(&["verify", "data", "target"]);
    assert_eq!(table.code, 6);
    assert!(table.stdout.contains("content") && table.stdout.contains("1 differences"), "{table:#?}");
}
