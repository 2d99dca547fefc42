//! Conformance: pjdfstest and fsx find on the mount of a replicated volume what they find on the bare directory, and
//! afterwards source and target are equal. `scripts/posix.sh` runs what is ignored here: every filesystem, full length.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::path::Path;

use support::conformance::{self, Verdicts};
use support::fuzzer::{Access, Fuzzer};
use support::replica::Pair;
use support::scratch::FileSystem;

/// Tests of pjdfstest that differ on the mount; each stands in src/stack/SEMANTICS.md.
const EXPLAINED: [&str; 1] = ["link::link_count_max"];
/// Operations and seeds at full length; `DTFS_OPS` and `DTFS_SEEDS` ask for other numbers.
const FULL_OPS: u64 = 200_000;
const FULL_SEEDS: u64 = 5;
const SHORT_OPS: u64 = 4_000;

fn failures(verdicts: &Verdicts) -> Vec<(&String, &String)> {
    verdicts.iter().filter(|(_, verdict)| *verdict != "ok" && *verdict != "skipped").collect()
}

fn same_verdicts(bare: &Verdicts, mount: &Verdicts) {
    let differ = |name: &&String| bare.get(*name) != mount.get(*name) && !EXPLAINED.contains(&name.as_str());
    let names = bare.keys().chain(mount.keys()).filter(differ);
    let lines: Vec<_> =
        names.map(|name| format!("{name}: bare {:?}, mount {:?}", bare.get(name), mount.get(name))).collect();
    assert!(lines.is_empty(), "verdicts differ:\n{}", lines.join("\n"));
}

fn pjdfstest_on(kind: FileSystem) {
    let pair = Pair::mirrored(kind, |_| {});
    let bare = conformance::pjdfstest(&pair.scratch.dir("bare"));
    let mount = conformance::pjdfstest(&pair.source);
    let count = |verdict| mount.values().filter(|found| *found == verdict).count();
    println!("{kind:?}: {} ok, {} skipped, {} failed", count("ok"), count("skipped"), failures(&mount).len());
    same_verdicts(&bare, &mount);
    if kind == FileSystem::Ext4 {
        assert!(failures(&mount).is_empty(), "{:?}", failures(&mount));
    }
    std::fs::write(pair.source.join("end"), b"so that there is something to compare").unwrap();
    pair.stop_and_compare(&format!("pjdfstest on {kind:?}"));
}

#[test]
fn pjdfstest_finds_the_same_with_writes_back() {
    let pair = Pair::with_options(FileSystem::Ext4, "writes=back");
    let bare = conformance::pjdfstest(&pair.scratch.dir("bare"));
    let mount = conformance::pjdfstest(&pair.source);
    same_verdicts(&bare, &mount);
    std::fs::write(pair.source.join("end"), b"so that there is something to compare").unwrap();
    pair.stop_and_compare("pjdfstest with writes=back");
}

#[test]
fn pjdfstest_finds_the_same_on_ext4() {
    pjdfstest_on(FileSystem::Ext4);
}

#[test]
fn pjdfstest_finds_the_same_on_xfs() {
    pjdfstest_on(FileSystem::Xfs);
}

#[test]
fn pjdfstest_finds_the_same_on_btrfs() {
    pjdfstest_on(FileSystem::Btrfs);
}

/// fsx with all it has, then what it lacks (zeroed and collapsed ranges, O_DIRECT) by our own fuzzer.
fn exercise(dir: &Path, seed: u64, ops: u64) {
    conformance::fsx(&dir.join(format!("fsx-{seed}")), seed, ops);
    for access in [Access::Buffered, Access::Direct] {
        let file = dir.join(format!("fuzzer-{access:?}-{seed}"));
        Fuzzer::new(&file, seed, access).run(ops);
    }
}

fn asked(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().map_or(default, |text| text.parse().expect("a number"))
}

fn at_full_length(kind: FileSystem) {
    fsx_on(kind, asked("DTFS_SEEDS", FULL_SEEDS), asked("DTFS_OPS", FULL_OPS));
}

fn fsx_on(kind: FileSystem, seeds: u64, ops: u64) {
    let pair = Pair::mirrored(kind, |_| {});
    let bare = pair.scratch.dir("bare");
    exercise(&bare, 1, ops.min(SHORT_OPS));
    for seed in 1..=seeds {
        exercise(&pair.source, seed, ops);
        println!("{kind:?}: seed {seed}, {ops} operations");
    }
    pair.stop_and_compare(&format!("fsx on {kind:?}"));
}

#[test]
fn fsx_finds_nothing() {
    fsx_on(FileSystem::Ext4, 1, SHORT_OPS);
}

#[test]
#[ignore = "minutes: scripts/posix.sh runs it"]
fn fsx_at_full_length_on_ext4() {
    at_full_length(FileSystem::Ext4);
}

#[test]
#[ignore = "minutes: scripts/posix.sh runs it"]
fn fsx_at_full_length_on_xfs() {
    at_full_length(FileSystem::Xfs);
}

#[test]
#[ignore = "minutes: scripts/posix.sh runs it"]
fn fsx_at_full_length_on_btrfs() {
    at_full_length(FileSystem::Btrfs);
}
