//! Making trees and comparing them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use dtfs::backing::compare::{CompareOptions, compare_trees};

use super::both::xattrs;
use super::process::try_tool;
use super::scratch::utf8;

/// Panics with the list of differences unless both trees are equal in everything a target promises.
pub(crate) fn assert_equal(source: &Path, target: &Path, context: &str) {
    assert_equal_in(source, target, &CompareOptions::default(), context);
}

/// As [`assert_equal`], in what `options` say.
pub(crate) fn assert_equal_in(source: &Path, target: &Path, options: &CompareOptions, context: &str) {
    let report = compare_trees(source, target, options).expect("both trees can be read");
    if !report.is_equal() {
        let objects = report.differences.iter().take(5).flat_map(|difference| {
            let path = Path::new(OsStr::from_bytes(&difference.path));
            [describe(&source.join(path)), describe(&target.join(path))]
        });
        let objects: String = objects.collect();
        panic!("{context}: {} and {} differ:\n{report}\n{objects}", source.display(), target.display());
    }
    assert!(report.objects > 1, "{context}: nothing was compared");
}

/// An object in the words of the system's own tools.
fn describe(path: &Path) -> String {
    let said = |program: &str, args: &[&str]| {
        String::from_utf8_lossy(&try_tool(program, &[args, &[utf8(path)]].concat()).stdout).into_owned()
    };
    let stat = said("stat", &["--format", "%n: %F %a %U:%G %s bytes, mtime %y, %h links"]);
    let extents = if path.is_file() { said("filefrag", &["-v"]) } else { String::new() };
    stat + &extents + &said("getfattr", &["--absolute-names", "--no-dereference", "-d", "-m-", "-ehex"])
}

/// As [`assert_equal`], after a crash. Holes do not count: a range that is reserved and not written counts as data while the
/// page cache holds something of it, if only because somebody read it (mm/filemap.c, mapping_seek_hole_data), so what a
/// repair reads as data may be a hole once the cache is gone.
pub(crate) fn assert_equal_but_holes(source: &Path, target: &Path, context: &str) {
    assert_equal_in(source, target, &BUT_HOLES, context);
}

/// What [`assert_equal_but_holes`] compares.
pub(crate) const BUT_HOLES: CompareOptions = CompareOptions { holes: false, atime: false, keep: 100 };

/// `count` small files in `dir`, each with content of its own.
pub(crate) fn fill(dir: &Path, count: usize) {
    fs::create_dir_all(dir).expect("a directory");
    for i in 0..count {
        fs::write(dir.join(format!("file-{i:05}")), format!("content of file {i}\n")).expect("a small file");
    }
}

/// Every plain file below `dir` with its content, by path; empty when there is no such directory.
pub(crate) fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else if path.is_file() {
            let bytes = fs::read(&path).expect("a readable file");
            found.insert(path, bytes);
        }
    }
    found
}

/// What is below `dir`, by path: kind, mode, owner, links, names of xattrs, and content. No times, and no inode numbers.
pub(crate) fn described(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(path) = todo.pop() {
        let stat = fs::symlink_metadata(&path).expect("an object that was listed");
        let (links, content) = match stat.file_type() {
            kind if kind.is_file() => {
                (stat.nlink(), blake3::hash(&fs::read(&path).expect("a readable file")).to_string())
            }
            kind if kind.is_symlink() => {
                (stat.nlink(), format!("{:?}", fs::read_link(&path).expect("a readable link")))
            }
            kind if kind.is_dir() => {
                todo.extend(
                    fs::read_dir(&path).expect("a readable directory").map(|entry| entry.expect("an entry").path()),
                );
                (0, String::new())
            }
            _ => (stat.nlink(), format!("device {:x}", stat.rdev())),
        };
        let xattrs: Vec<_> = xattrs(&path).expect("readable xattrs").into_iter().map(|(name, _)| name).collect();
        let facts = format!("{:o} {}:{} links {links} {xattrs:?} {content}", stat.mode(), stat.uid(), stat.gid());
        found.insert(path.strip_prefix(dir).expect("a path below").to_owned(), facts);
    }
    found
}
