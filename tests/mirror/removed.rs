//! What a target has lost behind its own back without a trace: an object that is removed but open, a directory that nothing names.

use std::fs::{self, File};
use std::os::fd::AsFd;

use dtfs::backing::compare::{CompareOptions, compare_trees};
use dtfs::base::Oid;
use dtfs::sys;

use super::support::process::wait_until;
use super::support::replica::Pair;
use super::support::scratch::FileSystem;
use super::support::trees;
use super::{PATIENCE, mirror};

/// A volume with a directory of a few files, on a daemon with these faults.
fn with_dir(faults: &str) -> Pair {
    let mut pair = Pair::mirrored(FileSystem::Ext4, |source| trees::fill(&source.join("held"), 20));
    pair.host.stop();
    pair.host.start_with_faults(faults);
    pair.host.must(&["mounts", "mount", "--all"]);
    pair.wait();
    pair
}

/// A directory loses its last name behind the target's back while somebody has it open, so that its handle still leads to it.
/// Returns whether a mirror gets over that.
fn what_was_removed_comes_back(faults: &str) -> bool {
    let pair = with_dir(faults);
    let open = File::open(pair.behind().join("held")).unwrap();
    fs::remove_dir_all(pair.behind().join("held")).unwrap();
    pair.host.must(&["mirror", "start", "data", "target", "--full"]);
    let is_refused = || pair.host.log().contains("state-dir of").then_some(false);
    let is_done = || (mirror(&pair)["mirror"] == "full" && mirror(&pair)["progress"] == "done").then_some(true);
    let done = wait_until("the mirror to end or to get stuck", PATIENCE, || is_done().or_else(is_refused));
    drop(open);
    pair.wait();
    pair.stop_and_compare("after a directory was removed");
    done
}

#[test]
fn a_directory_that_was_removed_in_use_comes_back() {
    assert!(what_was_removed_comes_back(""));
    assert!(!what_was_removed_comes_back("applier.is_removed=skip"), "the rig would not have seen it");
}

/// A directory waits for a name that nothing will give it. Returns whether the trees are equal in the end.
fn what_has_no_name_gets_one(faults: &str) -> bool {
    let mut pair = with_dir(faults);
    let behind = pair.behind();
    let held = behind.join("held");
    let oid = sys::getxattr(File::open(&held).unwrap().as_fd(), c"trusted.dtfs.oid").unwrap();
    let oid = Oid::from_bytes(oid.try_into().unwrap());
    fs::rename(&held, behind.join(format!(".dtfs/park/{oid}"))).unwrap();
    pair.host.kill9_server();
    fs::write(pair.source.join("beside"), "x").unwrap();
    pair.wait();
    pair.host.stop();
    compare_trees(&pair.source, &pair.target, &CompareOptions::default()).unwrap().is_equal()
}

#[test]
fn a_directory_without_a_name_casts_doubt() {
    assert!(what_has_no_name_gets_one(""));
    assert!(!what_has_no_name_gets_one("applier.nameless_dir=skip"), "the rig would not have seen it");
}
