//! Each kind of mirror, after each tampering of the target, through each fault: what it promises is mended, and what it cannot
//! see by its definition is left, exactly.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use dtfs::backing::compare::{CompareOptions, compare_trees};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::PATIENCE;
use crate::support::behind::Behind;
use crate::support::host::Host;
use crate::support::link::{FAR, Link};
use crate::support::process::wait_until;
use crate::support::scratch::{FileSystem, Scratch, utf8};
use crate::support::tampering::{self, TAMPERINGS};
use crate::support::trees;

const PORT: u16 = 6320;
/// Directories are read from the root down, so one of these is met at the beginning of a mirror, and the other at its end.
const PLACES: [&str; 2] = ["", "late/1/2/3"];
/// What is met between the two: files of which every tenth gets another content and size.
const BULK: u64 = 3000;

#[derive(Clone, Copy, PartialEq, Debug)]
enum Fault {
    None,
    KillOfSource,
    KillOfTarget,
    CutLink,
}

const FAULTS: [Fault; 4] = [Fault::None, Fault::KillOfSource, Fault::KillOfTarget, Fault::CutLink];

/// A volume and its target on another network. The fields are dropped in this order.
struct Rig {
    near: Host,
    far: Host,
    source: PathBuf,
    target: PathBuf,
    link: Link,
    _scratch: Scratch,
}

impl Rig {
    /// Mirrored; mirrors from then on take some seconds.
    fn new() -> Rig {
        let scratch = Scratch::with_size(FileSystem::Ext4, 1024);
        let (source, target) = (scratch.dir("source"), scratch.path().join("target"));
        for place in PLACES {
            tampering::fill(&source.join(place), 20);
        }
        for folder in 0..BULK / 500 {
            trees::fill(&source.join(format!("bulk/x/{folder}")), 500);
        }
        let link = Link::new();
        let (mut near, mut far) = (Host::new(), Host::new());
        near.put_on_network(link.near.keeper());
        far.put_on_network(link.far.keeper());
        near.define_volume("data", &source);
        let settings = far.root().join("etc/dtfs/dtfs.toml");
        fs::create_dir_all(settings.parent().unwrap()).unwrap();
        fs::write(&settings, format!("listen = \"{FAR}:{PORT}\"\n")).unwrap();
        far.start();
        near.start_and_mount();
        far.must(&["peer", "add", "near", near.must(&["peer", "show"]).trim()]);
        near.must(&["peer", "add", FAR, far.must(&["peer", "show"]).trim()]);
        far.must(&["define", "source", "copy", "near", utf8(&target)]);
        near.must(&["define", "target", "data", &format!("tls://{FAR}/copy"), "--as", "target"]);
        let rig = Rig { near, far, source, target, link, _scratch: scratch };
        rig.near.wait("data", 300);
        assert_eq!(rig.differing(), BTreeSet::new(), "after the first mirror");
        rig.near.must(&["replication", "pause", "data", "target"]);
        let file = rig.near.root().join("etc/dtfs/mounts.d/data.toml");
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.replace("paused = true", "bandwidth = \"100K\"\npaused = true")).unwrap();
        rig.near.must(&["replication", "resume", "data", "target"]);
        rig
    }

    /// Where the trees differ.
    fn differing(&self) -> BTreeSet<String> {
        let options = CompareOptions { keep: 1000, ..CompareOptions::default() };
        let report = compare_trees(&self.source, &self.target, &options).unwrap();
        report.differences.iter().map(|found| String::from_utf8_lossy(&found.path).into_owned()).collect()
    }

    fn tamper(&self) {
        let behind = Behind::of(&self.target);
        for place in PLACES {
            TAMPERINGS.iter().for_each(|one| (one.change)(&behind.path().join(place).join(one.path)));
        }
        // Wherever a fault strikes, something is to be mended that every kind sees.
        for file in (0..BULK).step_by(10) {
            let path = behind.path().join(format!("bulk/x/{}/file-{:05}", file / 500, file % 500));
            fs::write(path, "of another").unwrap();
        }
        let differing = self.differing();
        for path in paths(|_| true) {
            // That one is another object, equal in everything that is compared.
            let is_seen = differing.contains(&path) || path.ends_with("dir/replaced");
            assert!(is_seen, "{path} is as it was: {differing:?}");
        }
    }

    /// Waits until so many objects of the bulk were sent by the mirror that runs.
    fn wait_for_objects(&self, count: u64) {
        wait_until("the mirror to get there", PATIENCE, || {
            let mirror = self.near.target("data")["mirror"].clone();
            assert!(mirror["progress"] == "running", "it was over before it could be met: {mirror:#}");
            (mirror["objects"].as_u64()? >= count).then_some(())
        });
    }

    fn inject(&mut self, fault: Fault) {
        if fault == Fault::None {
            return;
        }
        self.wait_for_objects(BULK / 3);
        match fault {
            Fault::None => {}
            Fault::KillOfSource => {
                self.near.kill9();
                self.near.start_and_mount();
            }
            Fault::KillOfTarget => {
                // What is sent from now on is lost with it.
                let servers = self.far.servers();
                servers.iter().for_each(|pid| kill(Pid::from_raw(*pid), Signal::SIGSTOP).unwrap());
                self.wait_for_objects(BULK / 3 + 1000);
                self.far.kill9_server();
            }
            Fault::CutLink => {
                let errors = self.near.target("data")["errors"].as_u64();
                self.link.reset_connections(PORT);
                wait_until("the session to end", PATIENCE, || {
                    (self.near.target("data")["errors"].as_u64() > errors).then_some(())
                });
                self.link.reset_nothing();
            }
        }
    }

    /// What differs after a mirror of that kind through that fault.
    fn left_by(&mut self, kind: &str, fault: Fault) -> BTreeSet<String> {
        self.tamper();
        self.near.must(&["mirror", "start", "data", "target", kind]);
        self.inject(fault);
        self.near.wait("data", 300);
        let mirror = self.near.target("data")["mirror"].clone();
        assert_eq!((&mirror["mirror"], &mirror["progress"]), (&kind[2..].into(), &"done".into()), "{mirror:#}");
        self.differing()
    }
}

/// Paths of those tamperings in all places.
fn paths(which: impl Fn(&tampering::Tampering) -> bool) -> BTreeSet<String> {
    let of = |place: &str| {
        let path = |one: &tampering::Tampering| utf8(&Path::new(place).join(one.path)).to_owned();
        TAMPERINGS.iter().filter(|one| which(one)).map(path).collect::<Vec<_>>()
    };
    PLACES.iter().flat_map(|place| of(place)).collect()
}

fn mends(kind: &str, leaves: impl Fn(&tampering::Tampering) -> bool) {
    let mut rig = Rig::new();
    for fault in FAULTS {
        let left = rig.left_by(kind, fault);
        assert_eq!(left, paths(&leaves), "{kind} through {fault:?}");
        rig.near.must(&["mirror", "start", "data", "target", "--checksum", "--wait"]);
        rig.near.wait("data", 300);
        assert_eq!(rig.differing(), BTreeSet::new(), "compared after {kind} through {fault:?}");
    }
    rig.near.stop();
    trees::assert_equal(&rig.source, &rig.target, kind);
}

#[test]
fn full_mirrors_mend_everything_through_every_fault() {
    mends("--full", |_| false);
}

/// It believes size and time of modification, so bytes and holes that were changed behind them stay.
#[test]
fn difference_mirrors_leave_what_only_content_tells_through_every_fault() {
    mends("--difference", |one| one.is_in_content_only());
}

#[test]
fn checksum_mirrors_mend_everything_through_every_fault() {
    mends("--checksum", |_| false);
}

/// A source that forgets what is to do once it is sent leaves tamperings behind where what was sent is lost.
#[test]
fn control_a_row_ends_before_it_is_acknowledged() {
    let mut rig = Rig::new();
    rig.near.stop();
    rig.near.start_with_faults("sender.acked=skip");
    rig.near.must(&["mounts", "mount", "--all"]);
    rig.near.wait("data", 300);
    let left = rig.left_by("--full", Fault::KillOfTarget);
    assert!(!left.is_empty(), "the rig would not have seen it");
}
