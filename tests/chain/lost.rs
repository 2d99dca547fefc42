//! What becomes of a chain that loses a part, or has no room for what a part lacks.

use std::fs;

use super::support::process::{tool, wait_until};
use super::support::scratch::utf8;
use super::support::trees;
use super::{B, Chain, LIMIT, kill9, noise, over_ssh};

/// A and B are lost. C goes on as a master, and B becomes its target: by comparison, with nothing sent anew.
#[test]
fn the_end_of_a_chain_is_promoted() {
    let mut chain = Chain::without_a();
    wait_until("B to be left", LIMIT, || chain.sshd.servers().is_empty().then_some(()));
    chain.b.must(&["forget", "target", "data", "c"]);
    let told = chain.b.must(&["promote", utf8(&chain.end), "--as", "third"]);
    chain.b.adopt_volume(&chain.end);
    assert!(told.contains("is the master volume third now"), "{told}");
    fs::write(chain.end.join("after"), noise(4, 1 << 20)).unwrap();
    fs::remove_file(chain.end.join("many/file-00000")).unwrap();
    fs::rename(chain.end.join("many/file-00001"), chain.end.join("moved")).unwrap();
    chain.b.must(&["forget", "source", "data"]);
    chain.b.must(&["define", "target", "third", &format!("local:{}", utf8(&chain.middle)), "--as", "b"]);
    chain.b.wait("third", 120);
    let b = chain.b.target("third");
    assert!(b["mirror"].is_null() || b["mirror"]["mirror"] != "full", "{b:#}");
    assert!(b["bytes_sent"].as_u64().unwrap() < 3 << 20, "{b:#}");
    chain.b.stop();
    trees::assert_equal(&chain.end, &chain.middle, "B behind a promoted C");
    assert!(chain.middle.join("after").exists() && !chain.middle.join("many/file-00000").exists());
}

/// C is far behind B, which has everything, when B is lost: A has kept what C lacks. Returns what A's events say then.
fn c_comes_to_a(faults_of_a: &str) -> (Chain, String) {
    // Below 60 % of the cap all counts that somebody has not applied.
    let mut chain = Chain::with("journal_cap = \"256M\"\n", "");
    chain.a.stop();
    chain.a.start_with_faults(faults_of_a);
    chain.a.must(&["mounts", "mount", "--all"]);
    chain.link_c();
    chain.wait();
    chain.wait_settled();
    chain.b.must(&["replication", "pause", "data", "c"]);
    // More than is written between two checkpoints, behind which only targets hold the log.
    for at in 0..24 {
        fs::write(chain.source.join(format!("own-{at}")), noise(at, 4 << 20)).unwrap();
    }
    chain.a.must(&["wait", "data", B, "--timeout", "120"]);
    if !faults_of_a.is_empty() {
        wait_until("A to free its log", LIMIT, || {
            fs::write(chain.source.join("more"), b"and again").unwrap();
            let volume = &chain.a.status()["volumes"][0];
            (volume["journal_bytes"].as_u64().unwrap() < 70 << 20).then_some(())
        });
    }
    kill9(&chain.sshd.servers());
    chain.b.kill9_and_wait();
    chain.a.must(&["replication", "pause", "data", B]);
    chain.b.must(&["forget", "target", "data", "c"]);
    chain.a.must(&["define", "target", "data", &over_ssh(&chain.end), "--as", "c"]);
    chain.a.must(&["wait", "data", "c", "--timeout", "120"]);
    let events = chain.a.must(&["events", "data"]);
    (chain, events)
}

#[test]
fn the_origin_keeps_what_the_end_lacks() {
    let (mut chain, events) = c_comes_to_a("");
    let c = chain.of_a("c");
    assert!(c["mirror"].is_null() && c["work_left"] == 0, "nothing was compared: {c:#}");
    assert!(events.contains("another source brought it to"), "{events}");
    chain.a.stop();
    wait_until("the other end to stop", LIMIT, || chain.sshd.servers().is_empty().then_some(()));
    trees::assert_equal(&chain.source, &chain.end, "C behind A");
}

#[test]
fn control_what_the_end_lacks_is_not_kept() {
    let (mut chain, events) = c_comes_to_a("journal.downstream=skip");
    assert!(events.contains("the whole tree is compared"), "the rig does not see that A kept nothing for C: {events}");
    chain.a.stop();
    wait_until("the other end to stop", LIMIT, || chain.sshd.servers().is_empty().then_some(()));
    trees::assert_equal(&chain.source, &chain.end, "C behind A, compared");
}

/// C does not follow, and B's inbox has a cap: B follows A all the same, and what of it C lacks becomes work.
#[test]
fn an_inbox_at_its_cap_holds_nothing_for_the_end() {
    const CAP: u64 = 64 << 20;
    const SLACK: u64 = 16 << 20;
    let chain = Chain::new();
    fs::write(chain.b.root().join("etc/dtfs/dtfs.toml"), "inbox_cap = \"64M\"\n").unwrap();
    chain.a.wait("data", 120);
    // It counts from the next session on.
    kill9(&chain.sshd.servers());
    chain.link_c();
    chain.wait();
    chain.wait_settled();
    chain.b.must(&["replication", "pause", "data", "c"]);
    for at in 0..30 {
        fs::write(chain.source.join(format!("own-{}", at % 10)), noise(at, 4 << 20)).unwrap();
        fs::remove_file(chain.source.join(format!("many/file-{at:05}"))).unwrap();
    }
    chain.a.must(&["wait", "data", B, "--timeout", "120"]);
    let inboxes = chain.b.root().join("var/lib/dtfs/replicas");
    let sizes = tool("find", &[utf8(&inboxes), "-path", "*/inbox/*", "-printf", "%s\n"]);
    let used: u64 = sizes.lines().map(|size| size.parse::<u64>().unwrap()).sum();
    assert!(used <= CAP + SLACK, "the inbox has {used} bytes");
    let events = chain.b.must(&["events", "data"]);
    assert!(events.contains("becomes work"), "the inbox was to overflow: {events}");
    chain.b.must(&["replication", "resume", "data", "c"]);
    chain.wait();
    let events = chain.b.must(&["events", "data"]);
    let whole = |line: &&str| line.contains("the whole tree is");
    assert_eq!(events.lines().filter(whole).count(), 1, "it was mirrored once, at its beginning: {events}");
    chain.finish("B's inbox at its cap");
}

/// A master whose tree is empty, and that is not mounted, is no place for a copy: not for the source that it had either.
#[test]
fn an_empty_master_that_is_not_mounted_is_not_taken_for_a_new_copy() {
    let mut chain = Chain::new();
    fs::remove_dir_all(chain.source.join("many")).unwrap();
    chain.a.must(&["wait", "data", B, "--timeout", "120"]);
    chain.a.must(&["replication", "pause", "data", B]);
    wait_until("B to be left", LIMIT, || chain.sshd.servers().is_empty().then_some(()));
    chain.b.must(&["promote", "data"]);
    chain.b.adopt_volume(&chain.middle);
    chain.b.must(&["mounts", "unmount", "--all"]);
    let _ = fs::remove_dir_all(chain.middle.join(".dtfs"));
    assert_eq!(fs::read_dir(&chain.middle).unwrap().count(), 0, "nothing is there that speaks for the volume");
    fs::write(chain.source.join("only at A"), b"and to stay there").unwrap();
    chain.a.must(&["replication", "resume", "data", B]);
    wait_until("A to be refused", LIMIT, || {
        chain.of_a(B)["reason"].as_str().is_some_and(|reason| reason.contains("not mounted now")).then_some(())
    });
    assert_eq!(fs::read_dir(&chain.middle).unwrap().count(), 0, "nothing was made there");
    // Mounted again, it says what its history is.
    chain.b.must(&["mounts", "mount", "--all"]);
    wait_until("A to learn of the promotion", LIMIT, || {
        chain.of_a(B)["reason"].as_str().is_some_and(|reason| reason.contains("was promoted")).then_some(())
    });
    chain.stop();
}
