//! A target that is away while ten times the journal's cap is written, by the real program on a real mount.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use support::host::Host;
use support::prng::Prng;
use support::process::wait_until;
use support::scratch::{FileSystem, Scratch};
use support::trees;

const WAIT_SECONDS: u32 = 240;
const CAP_MIB: u64 = 32;
/// Lies in the tree from the beginning, does not compress and does not change.
const QUIET_BYTES: usize = 64 << 20;
/// What changes, over and over.
const FILES: u64 = 8;
const FILE_BYTES: usize = 1 << 20;

fn cap_the_journal(host: &Host) {
    let file = host.root().join("etc/dtfs/mounts.d/data.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("journal_cap = \"{CAP_MIB}M\"\n{text}")).unwrap();
}

#[test]
fn a_target_that_was_away_for_ten_caps_is_sent_what_changed() {
    let scratch = Scratch::with_size(FileSystem::Ext4, 2048);
    let (source, place) = (scratch.dir("source"), scratch.dir("place"));
    let target = place.join("target");
    let mut prng = Prng::new(1);
    fs::write(source.join("quiet"), prng.bytes(QUIET_BYTES)).unwrap();
    trees::fill(&source.join("many"), 500);
    let mut host = Host::new();
    host.define_volume("data", &source);
    cap_the_journal(&host);
    host.start_and_mount();
    host.define_target("data", &target);
    host.wait("data", WAIT_SECONDS);

    // Its disk is not there: no session comes up.
    let away = scratch.path().join("away");
    fs::rename(&place, &away).unwrap();
    host.kill9_servers();
    let before = host.bytes_sent("data");
    let files: Vec<File> = (0..FILES).map(|n| File::create(source.join(format!("busy-{n}"))).unwrap()).collect();
    let mut written = 0;
    while written < 10 * (CAP_MIB << 20) {
        let file = &files[prng.below(FILES) as usize];
        file.write_all_at(&prng.bytes(FILE_BYTES), 0).unwrap();
        written += FILE_BYTES as u64;
    }
    fs::rename(source.join("many"), source.join("moved")).unwrap();
    fs::remove_file(source.join("moved/file-00007")).unwrap();
    let journal = host.status()["volumes"][0]["journal_bytes"].as_u64().unwrap();
    assert!(journal <= CAP_MIB << 20, "the journal takes {journal} bytes");

    fs::rename(&away, &place).unwrap();
    wait_until("a session", Duration::from_secs(120), || (!host.servers().is_empty()).then_some(()));
    host.wait("data", WAIT_SECONDS);
    let sent = host.bytes_sent("data") - before;
    println!("{written} bytes were written, {sent} were sent");
    // What is still in the journal comes as records; what is not, once.
    let most = (CAP_MIB << 20) + FILES * FILE_BYTES as u64 + (2 << 20);
    assert!(sent < most, "{sent} bytes were sent, {most} are enough");
    host.stop();
    trees::assert_equal_but_holes(&source, &target, "after ten caps");
}
