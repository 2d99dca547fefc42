//! Making trees and comparing them.

use std::fs;
use std::path::Path;

use dtfs::backing::compare::{CompareOptions, compare_trees};

/// Panics with the list of differences unless both trees are equal in everything a target promises.
pub(crate) fn assert_equal(source: &Path, target: &Path, context: &str) {
    let report = compare_trees(source, target, &CompareOptions::default()).expect("both trees can be read");
    assert!(report.is_equal(), "{context}: {} and {} differ:\n{report}", source.display(), target.display());
    assert!(report.objects > 1, "{context}: nothing was compared");
}

/// `count` small files in `dir`, each with content of its own.
pub(crate) fn fill(dir: &Path, count: usize) {
    fs::create_dir_all(dir).expect("a directory");
    for i in 0..count {
        fs::write(dir.join(format!("file-{i:05}")), format!("content of file {i}\n")).expect("a small file");
    }
}
