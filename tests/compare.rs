//! The comparison against a second opinion: what rsync copies faithfully must compare equal, on a tree of every kind.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::path::Path;

use dtfs::backing::compare::{CompareOptions, CompareReport, What, compare_trees};
use support::process::tool;
use support::scratch::{FileSystem, Scratch, utf8};
use support::workload::{Workload, worker_was_asked};

#[test]
fn workload_worker() {
    if !worker_was_asked() {
        wild_trees_copied_by_rsync_compare_equal();
    }
}

fn wild_trees_copied_by_rsync_compare_equal() {
    let scratch = Scratch::new(FileSystem::Ext4);
    let (source, copy) = (scratch.dir("source"), scratch.dir("copy"));
    Workload::start(&source, 7, 4, 10_000).finish();
    rsync(&source, &copy);
    let report = compare(&source, &copy);
    assert!(report.is_equal(), "{report}");
    assert!(report.objects > 100, "{report}");

    // Everything that changes from here on is seen by both.
    Workload::start(&source, 8, 4, 200).finish();
    let report = compare(&source, &copy);
    assert!(!report.is_equal());
    let kinds =
        report.differences.iter().map(|d| std::mem::discriminant(&d.what)).collect::<std::collections::HashSet<_>>();
    assert!(kinds.len() > 4, "{report}");
    assert!(report.differences.iter().any(|d| matches!(d.what, What::Mtime { .. })), "{report}");
}

fn rsync(from: &Path, to: &Path) {
    // The window of -1: times are compared to the nanosecond.
    tool(
        "rsync",
        &["-aHAXS", "--numeric-ids", "--modify-window=-1", &format!("{}/", utf8(from)), &format!("{}/", utf8(to))],
    );
}

fn compare(a: &Path, b: &Path) -> CompareReport {
    // rsync -S makes a hole of every run of zeros.
    compare_trees(a, b, &CompareOptions { holes: false, ..CompareOptions::default() }).unwrap()
}
