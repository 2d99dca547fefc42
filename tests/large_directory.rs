//! A directory of very many entries, replicated, listed while half of them go. `scripts/posix.sh` runs it at full size;
//! `DTFS_ENTRIES` asks for another.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use support::length::number;
use support::process::peak_memory_kib;
use support::replica::Pair;
use support::scratch::FileSystem;

const FULL: usize = 1_000_000;
const SHORT: usize = 20_000;
const WAIT_SECONDS: u32 = 320;

fn name(number: usize) -> String {
    format!("entry-{number:07}")
}

/// How often each entry of `dir` is listed while those with even numbers are removed.
fn listed_while_half_goes(dir: &Path, count: usize) -> Vec<u8> {
    let mut seen = vec![0_u8; count];
    std::thread::scope(|scope| {
        scope.spawn(|| (0..count).step_by(2).for_each(|number| fs::remove_file(dir.join(name(number))).unwrap()));
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap().file_name();
            let number = entry.as_bytes().strip_prefix(b"entry-").expect("a name of ours");
            let number: usize = std::str::from_utf8(number).unwrap().parse().unwrap();
            seen[number] += 1;
        }
    });
    seen
}

fn wait(pair: &Pair) {
    // The longest wait that one command may take here, as often as full size needs under load.
    let waited = |_: &u32| pair.host.run(&["wait", "data", "--timeout", &WAIT_SECONDS.to_string()]).code == 0;
    assert!((0..6).any(|round| waited(&round)), "the target does not get there: {}", pair.host.status());
}

fn large_directory(count: usize) {
    // xfs makes inodes as they are needed.
    let pair = Pair::new(FileSystem::Xfs, |source| {
        fs::create_dir(source.join("many")).unwrap();
        (0..count).for_each(|number| drop(File::create(source.join("many").join(name(number))).unwrap()));
    });
    wait(&pair);
    let many = pair.source.join("many");
    let seen = listed_while_half_goes(&many, count);
    assert_eq!(seen.iter().position(|times| *times > 1), None, "an entry was listed twice");
    let lost = (1..count).step_by(2).find(|number| seen[*number] == 0);
    assert_eq!(lost, None, "an entry that stayed was not listed");
    assert_eq!(fs::read_dir(&many).unwrap().count(), count / 2);
    wait(&pair);
    let daemon = peak_memory_kib(pair.host.daemon_pid()).expect("the daemon runs");
    let target = pair.host.servers().into_iter().filter_map(peak_memory_kib).max();
    println!("{count} entries: daemon {daemon} KiB at most, target {target:?} KiB");
    // A directory is read whole for its state; beside that nothing may grow with it.
    assert!(daemon < 100_000 + count as u64 * 2 / 3, "the daemon took {daemon} KiB");
    pair.stop_and_compare("a large directory");
}

#[test]
fn a_large_directory_is_replicated_and_listed_while_it_shrinks() {
    large_directory(number("DTFS_ENTRIES", SHORT as u64) as usize);
}

#[test]
#[ignore = "minutes: scripts/posix.sh runs it"]
fn a_directory_of_a_million_entries() {
    large_directory(FULL);
}
