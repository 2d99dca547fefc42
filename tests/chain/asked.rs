//! What an operator asks on the middle of a chain: its targets are answered for as a source's are, and what only the origin can
//! do is refused with a sentence that says where to ask.

use std::fs;

use serde_json::Value;

use super::support::behind::Behind;
use super::support::process::wait_until;
use super::support::trees;
use super::support::workload::Workload;
use super::{Chain, LIMIT, noise};

fn json(chain: &Chain, code: i32, args: &[&str]) -> Value {
    let answer = chain.b.run(args);
    assert_eq!(answer.code, code, "{args:?}: {answer:#?}");
    serde_json::from_str(&answer.stdout).unwrap_or_else(|error| panic!("{error}: {answer:#?}"))
}

#[test]
fn the_middle_verifies_mirrors_and_tells_as_a_source_does() {
    let chain = Chain::new();
    fs::write(chain.source.join("large"), noise(5, 4 << 20)).unwrap();
    fs::write(chain.source.join("small"), b"as it is to be").unwrap();
    chain.link_c();
    chain.wait();
    chain.wait_settled();

    // Nothing is false while A's tree changes, and what was done behind C's back is found and mended.
    let load = Workload::start(&chain.source, 31, 2, 1_500);
    let verified = json(&chain, 0, &["verify", "data", "c", "--json"]);
    load.finish();
    assert!(verified["objects"].as_u64().unwrap() > 300, "{verified:#}");
    assert_eq!(verified["found"], 0, "{verified:#}");
    chain.wait();
    fs::write(Behind::of(&chain.end).join("small"), b"as it is not so").unwrap();
    let found = json(&chain, 6, &["verify", "data", "c", "--json"]);
    assert!(found["differences"].as_array().unwrap().iter().any(|row| row["path"] == "small"), "{found:#}");
    let mended = json(&chain, 0, &["verify", "data", "c", "--repair", "--json"]);
    assert_eq!(mended["left"], 0, "{mended:#}");
    assert_eq!(fs::read(Behind::of(&chain.end).join("small")).unwrap(), b"as it is to be");

    // A mirror finds it as well.
    let ours = chain.c()["bytes_sent"].as_u64().unwrap();
    fs::remove_file(Behind::of(&chain.end).join("small")).unwrap();
    chain.b.must(&["mirror", "start", "data", "c", "--checksum", "--wait"]);
    assert_eq!(fs::read(chain.end.join("small")).unwrap(), b"as it is to be");
    let c = chain.c();
    assert_eq!((&c["mirror"]["mirror"], &c["mirror"]["progress"]), (&"checksum".into(), &"done".into()), "{c:#}");
    assert!(c["bytes_sent"].as_u64().unwrap() - ours < 2 << 20, "what C has was sent again: {c:#}");
    assert_eq!(c["verify"]["left"], 0, "{c:#}");
    let orphans = json(&chain, 0, &["orphans", "scan", "data", "c", "--json"]);
    assert!(orphans["count"].is_u64(), "{orphans:#}");
    for events in [chain.b.must(&["events", "data"]), chain.b.must(&["events"])] {
        assert!(events.contains("verified up to") && events.contains("a mirror begins: checksum"), "{events}");
    }
    the_doctor_sees_its_targets(&chain);
    what_only_the_origin_can_do_is_refused(&chain);
    chain.finish("asked");
}

fn the_doctor_sees_its_targets(chain: &Chain) {
    chain.b.must(&["define", "target", "data", "tls://127.0.0.1:1/data", "--as", "lost"]);
    wait_until("the doctor to find the lost target", LIMIT, || {
        let answer = chain.b.run(&["doctor", "--json"]);
        let found: Value = serde_json::from_str(&answer.stdout).ok()?;
        let lost = |finding: &Value| {
            finding["id"] == "target-offline" && finding["what"].as_str().is_some_and(|what| what.contains("to lost"))
        };
        found["findings"].as_array()?.iter().any(lost).then_some(())
    });
    chain.b.must(&["forget", "target", "data", "lost"]);
}

fn what_only_the_origin_can_do_is_refused(chain: &Chain) {
    for command in [
        &["synctid", "data"][..],
        &["log", "data"],
        &["mirror-copy", "data", "c"],
        &["rejoin", "data", "c"],
        &["demote", "data"],
    ] {
        let answer = chain.b.run(command);
        assert_eq!(answer.code, 2, "{command:?}: {answer:#?}");
        assert!(answer.stderr.contains("alpha writes it"), "{command:?}: {answer:#?}");
        assert!(answer.stderr.contains("ask on alpha"), "{command:?}: {answer:#?}");
    }
}

/// B has what the rules leave, and C has what B has: also when what is excluded comes inside and goes again.
#[test]
fn what_rules_leave_of_a_tree_goes_on() {
    let mut chain = Chain::with("rules = [\"+ /cache/keep/\", \"- /cache/*\", \"- *.tmp\"]\n", "");
    let tree = |name: &str| {
        let dir = chain.source.join(name);
        fs::create_dir_all(dir.join("sub")).unwrap();
        fs::write(dir.join("sub/a.tmp"), noise(1, 9_000)).unwrap();
        fs::write(dir.join("sub/b"), noise(2, 9_000)).unwrap();
    };
    tree("cache/keep");
    tree("cache/lost");
    chain.a.wait("data", 120);
    chain.link_c();
    chain.wait();
    tree("cache/more");
    tree("plain");
    fs::rename(chain.source.join("plain/sub/b"), chain.source.join("plain/sub/b.tmp")).unwrap();
    fs::rename(chain.source.join("plain/sub/a.tmp"), chain.source.join("plain/sub/a")).unwrap();
    fs::rename(chain.source.join("cache/lost"), chain.source.join("found")).unwrap();
    fs::rename(chain.source.join("plain"), chain.source.join("cache/plain")).unwrap();
    fs::rename(chain.source.join("cache/keep/sub"), chain.source.join("cache/sub")).unwrap();
    Workload::start(&chain.source.join("cache/keep"), 41, 2, 400).finish();
    fs::rename(chain.source.join("cache/sub"), chain.source.join("back")).unwrap();
    chain.wait();
    chain.b.must(&["verify", "data", "c"]);
    chain.stop();
    trees::assert_equal(&chain.middle, &chain.end, "C behind rules");
    for (inside, path) in [
        (true, "found/sub/b"),
        (false, "found/sub/a.tmp"),
        (true, "back/b"),
        (false, "cache/plain"),
        (false, "cache/more"),
        (true, "cache/keep"),
    ] {
        for tree in [&chain.middle, &chain.end] {
            assert_eq!(tree.join(path).exists(), inside, "{path} in {}", tree.display());
        }
    }
}
