//! A source whose disk is put back to an older image: its target has more than it. Nothing is sent until the operator says
//! that the source counts; then the target becomes equal by comparing, and every version of a file that only it had is kept.
//! `DTFS_SEED` repeats a run.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dtfs::backing::compare::{CompareOptions, compare_trees};
use dtfs::base::Tid;
use dtfs::journal::Own;
use dtfs::sender::SenderState;
use support::hand::Hand;
use support::host::Host;
use support::length::number;
use support::pair::Pair;
use support::power::enter_namespace;
use support::prng::Prng;
use support::process::{tool, try_tool, wait_until};
use support::scratch::{FileSystem, LoopDevice, keep_holes, utf8};
use support::trees;
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(120);

/// Content by path.
type Files = BTreeMap<PathBuf, Vec<u8>>;

/// A disk of which an image can be kept and put back.
struct Disk {
    kind: FileSystem,
    device: Option<LoopDevice>,
    dir: TempDir,
}

impl Disk {
    fn new(kind: FileSystem) -> Disk {
        let dir = tempfile::Builder::new().prefix("dtfs-image-").tempdir().unwrap();
        let mut disk = Disk { kind, device: None, dir };
        fs::create_dir(disk.point()).unwrap();
        fs::File::create(disk.image()).and_then(|file| file.set_len(320 << 20)).unwrap();
        kind.make(utf8(&disk.image()));
        disk.plug_in();
        disk
    }

    fn point(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    fn plug_in(&mut self) {
        let device = LoopDevice::attach(&self.image());
        tool("mount", &["-t", self.kind.name(), device.path(), utf8(&self.point())]);
        keep_holes(self.kind, &device);
        self.device = Some(device);
    }

    fn unplug(&mut self) {
        wait_until("a mount that nobody uses", LIMIT, || {
            try_tool("umount", &[utf8(&self.point())]).status.success().then_some(())
        });
        self.device = None;
    }

    fn kept(&self) -> PathBuf {
        self.dir.path().join("kept")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        try_tool("umount", &["--lazy", utf8(&self.point())]);
    }
}

/// A pair whose source and journal are on a [`Disk`]. The target is not.
struct Rig {
    pair: Pair,
    /// After the pair, which lies on it.
    disk: Disk,
    prng: Prng,
    /// Makes each content another.
    written: u64,
}

impl Rig {
    fn new(kind: FileSystem, seed: u64) -> Rig {
        Rig::with(kind, seed, Pair::on)
    }

    /// Its journal keeps little.
    fn tight(seed: u64) -> Rig {
        Rig::with(FileSystem::Ext4, seed, Pair::tight_on)
    }

    fn with(kind: FileSystem, seed: u64, pair_on: fn(&Path) -> Pair) -> Rig {
        enter_namespace();
        let disk = Disk::new(kind);
        let mut pair = pair_on(&disk.point()).served_by_program();
        for name in ["target", "states"] {
            fs::create_dir(disk.dir.path().join(name)).unwrap();
        }
        pair.move_target(&disk.dir.path().join("target"), &disk.dir.path().join("states"));
        pair.start();
        Rig { pair, disk, prng: Prng::new(seed), written: 0 }
    }

    fn shut(&mut self) {
        self.pair.close(true);
        self.disk.unplug();
    }

    fn open(&mut self) {
        self.disk.plug_in();
        self.pair.open();
    }

    fn keep_image(&mut self) {
        self.shut();
        tool("cp", &["--sparse=always", utf8(&self.disk.image()), utf8(&self.disk.kept())]);
        self.open();
        self.pair.start();
    }

    fn put_image_back(&mut self) {
        self.shut();
        tool("cp", &["--sparse=always", utf8(&self.disk.kept()), utf8(&self.disk.image())]);
        self.open();
    }

    /// A target that is ahead of the image that its source was put back to; what it has then, and what the source has.
    fn put_back_behind_its_target(&mut self) -> Files {
        self.work(60);
        self.pair.wait_equal("before");
        self.keep_image();
        self.work(80);
        self.pair.wait_equal("later");
        let before = self.target();
        self.put_image_back();
        before
    }

    /// The source goes on alone, until it keeps nothing any more of where its target stands. Then it is stopped and started:
    /// what lost its last name is held open no more.
    fn go_on_until_its_place_is_gone(&mut self, place: Tid) {
        let until = Instant::now() + LIMIT;
        while self.pair.stack().journal().oldest_kept() <= place {
            assert!(Instant::now() < until, "nothing is trimmed: {}", self.pair.explain());
            self.work(60);
            self.pair.stack().checkpoint().unwrap();
            let journal = self.pair.stack().journal();
            journal.commit(journal.last_tid()).unwrap();
        }
        self.pair.reopen(true);
    }

    /// Changes of all kinds among a few names. What does not work on the tree as it is does not count.
    fn work(&mut self, count: u64) {
        let hand = Hand::new(self.pair.stack());
        for _ in 0..count {
            let (a, b) = (self.path(), self.path());
            match self.prng.below(12) {
                0 => drop(hand.mkdir(&format!("/d{}", self.prng.below(4)))),
                1 => _ = hand.unlink(&a),
                2 => _ = hand.rename(&a, &b),
                3 => _ = hand.link(&a, &b),
                4 => _ = hand.rename(&format!("/d{}", self.prng.below(4)), &format!("/d{}", self.prng.below(4))),
                5 => _ = hand.truncate(&a, self.prng.below(200_000)),
                6 => _ = hand.chmod(&a, 0o640),
                7 => drop(hand.symlink(&a, b.as_bytes())),
                8 | 9 => {
                    let (at, data) = (self.prng.below(150_000), self.content());
                    let _ = hand.patch(&a, at, &data);
                }
                _ => {
                    let data = self.content();
                    let _ = hand.file(&a, &data);
                }
            }
        }
    }

    fn path(&mut self) -> String {
        let name = self.prng.below(16);
        match self.prng.below(5) {
            0 => format!("/f{name}"),
            dir => format!("/d{}/f{name}", dir - 1),
        }
    }

    fn content(&mut self) -> Vec<u8> {
        self.written += 1;
        let len = 20 + self.prng.below(3) * 70_000;
        [format!("content {}\n", self.written).as_bytes(), &self.prng.bytes(len as usize)].concat()
    }

    fn wait_refused(&self) -> String {
        wait_until("the refusal", LIMIT, || match self.pair.status().state {
            SenderState::Refused(reason) => Some(reason),
            _ => None,
        })
    }

    /// Regular files of the target.
    fn target(&self) -> Files {
        files(&self.pair.target())
    }

    /// What the target had `before`, the source had too, or it is in the target's tree still, under whatever name, or was kept.
    fn assert_nothing_is_lost(&self, (before, source): (&Files, &Files), context: &str) -> usize {
        let now: BTreeSet<Vec<u8>> = self.target().into_values().chain(source.values().cloned()).collect();
        let forks = forks(&self.pair.target());
        // A path may have been kept more than once, each time in a fork of its own.
        let kept: Vec<(PathBuf, Vec<u8>)> = forks.iter().flat_map(|fork| files(fork)).collect();
        for (path, content) in before {
            let there = now.contains(content) || kept.iter().any(|(_, kept)| kept == content);
            let names: Vec<_> = kept.iter().map(|(path, _)| path).collect();
            assert!(there, "{context}: what {} had is lost ({} bytes); kept: {names:?}", path.display(), content.len());
        }
        kept.len()
    }
}

fn files(dir: &Path) -> Files {
    let mut found = BTreeMap::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(at) = todo.pop() {
        for entry in fs::read_dir(&at).unwrap().map(Result::unwrap) {
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            if kind.is_dir() && entry.file_name() != ".dtfs" {
                todo.push(path);
            } else if kind.is_file() {
                found.insert(path.strip_prefix(dir).unwrap().to_owned(), fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// The directories in which versions are kept.
fn forks(target: &Path) -> Vec<PathBuf> {
    let own = fs::read_dir(target.join(".dtfs")).unwrap().map(|entry| entry.unwrap().path());
    own.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("fork-")).collect()
}

fn seed() -> u64 {
    let seed = number("DTFS_SEED", 1);
    println!("seed {seed} (DTFS_SEED repeats it)");
    seed
}

/// Where the target dies while it keeps what it has and is compared.
const POINTS: [&str; 6] = [
    "applier.keeping=abort",
    "applier.keep=abort@1",
    "applier.keep=abort@3",
    "receiver.jump=abort",
    "applier.after_sync=abort@2",
    "applier.put_out=abort@2",
];

fn put_back(kind: FileSystem, rounds: u64) {
    let seed = seed();
    let mut rig = Rig::new(kind, seed);
    let mut kept = 0;
    for round in 0..rounds {
        let context = format!("{kind:?}, seed {seed}, round {round}");
        rig.work(60);
        rig.pair.wait_equal(&context);
        rig.keep_image();
        rig.work(80);
        rig.pair.wait_equal(&context);
        let before = rig.target();
        rig.put_image_back();
        // What it has now and removes itself is no loss either.
        let put_back = files(&rig.pair.source());
        // As many changes as were lost, or none.
        rig.work(60 * (round % 2));
        rig.pair.start();
        let reason = rig.wait_refused();
        assert!(reason.contains("put back") || reason.contains("another history"), "{context}: {reason}");
        assert_eq!(rig.target(), before, "{context}: it was changed unasked");
        let mut source = files(&rig.pair.source());
        source.extend(put_back.into_iter().map(|(path, content)| (Path::new("put back").join(path), content)));
        rig.pair.arm(POINTS[(seed + round) as usize % POINTS.len()]);
        rig.pair.rejoin(Own::Keep);
        // The source goes on meanwhile.
        rig.work(40);
        rig.pair.wait_equal(&context);
        kept = rig.assert_nothing_is_lost((&before, &source), &context);
        rig.work(20);
        rig.pair.wait_equal(&context);
        rig.pair.stop();
        rig.pair.start();
        rig.pair.wait_equal(&context);
    }
    println!("{kind:?}: {kept} files kept in {rounds} rounds, {} targets killed", rig.pair.killed());
    assert!(kept > 0, "nothing was kept: the rig is blind");
}

#[test]
fn an_image_put_back_on_ext4() {
    put_back(FileSystem::Ext4, 4);
}

#[test]
fn an_image_put_back_on_xfs() {
    put_back(FileSystem::Xfs, 3);
}

/// Inode numbers and generations come again after it: an oid names two objects.
#[test]
fn an_image_put_back_on_btrfs() {
    put_back(FileSystem::Btrfs, 3);
}

/// Negative control: what is there is given up.
#[test]
fn control_nothing_is_kept() {
    let mut rig = Rig::new(FileSystem::Ext4, 1);
    let before = rig.put_back_behind_its_target();
    rig.pair.start();
    rig.wait_refused();
    rig.pair.rejoin(Own::Discard);
    rig.pair.wait_equal("discarded");
    let now: BTreeSet<Vec<u8>> = rig.target().into_values().collect();
    assert!(before.values().any(|content| !now.contains(content)), "nothing is lost: the rig is blind");
    assert_eq!(forks(&rig.pair.target()), Vec::<PathBuf>::new());
}

/// The source has as many changes as the target, and more, in the same epoch; no digest tells any more whose they are.
fn put_back_and_trimmed(seed: u64) -> (Rig, Files) {
    let mut rig = Rig::tight(seed);
    let place = |rig: &Rig| rig.pair.stack().journal().last_tid();
    rig.work(60);
    rig.pair.wait_equal("before");
    rig.keep_image();
    rig.work(80);
    rig.pair.wait_equal("later");
    let (before, at) = (rig.target(), place(&rig));
    rig.put_image_back();
    assert!(place(&rig) < at, "the image is as new as the target");
    rig.go_on_until_its_place_is_gone(at);
    (rig, before)
}

/// Its own word proves nothing: it says a TID and a digest that nobody can check. But it was never sent as much.
#[test]
fn a_place_that_is_not_kept_any_more_is_not_taken_for_ours() {
    for round in 0..2 {
        let seed = seed() + round;
        let (mut rig, before) = put_back_and_trimmed(seed);
        let context = format!("seed {seed}");
        rig.pair.start();
        let reason = rig.wait_refused();
        assert!(reason.contains("put back"), "{context}: {reason}");
        assert_eq!(rig.target(), before, "{context}: it was changed unasked");
        let source = files(&rig.pair.source());
        // It dies before it has taken the new place: what it has does not become ours by that.
        rig.pair.arm(if round == 0 { "applier.keeping=abort" } else { "receiver.jump=abort" });
        rig.pair.rejoin(Own::Keep);
        rig.pair.wait_equal(&context);
        assert!(rig.assert_nothing_is_lost((&before, &source), &context) > 0, "{context}: nothing was kept");
        // From here on it follows, and may fall behind as far as any.
        rig.work(20);
        rig.pair.wait_equal(&context);
        let at = rig.pair.stack().journal().last_tid();
        rig.pair.stop();
        rig.go_on_until_its_place_is_gone(at);
        rig.pair.start();
        rig.pair.wait_equal(&context);
    }
}

/// Negative control: everything that it has is believed to have been sent.
#[test]
fn control_whatever_a_target_has_was_sent() {
    let (mut rig, before) = put_back_and_trimmed(1);
    let store = rig.pair.stack().journal().store();
    let said = store.target_by_id(rig.pair.id()).unwrap().unwrap().said.unwrap();
    store.session_begins(rig.pair.id(), &said).unwrap();
    let source = files(&rig.pair.source());
    rig.pair.start();
    rig.pair.wait();
    let now: BTreeSet<Vec<u8>> = rig.target().into_values().chain(source.into_values()).collect();
    let lost = before.values().filter(|content| !now.contains(*content)).count();
    let report = compare_trees(&rig.pair.source(), &rig.pair.target(), &CompareOptions::default()).unwrap();
    println!("{lost} contents are lost; equal: {}", report.is_equal());
    assert!(lost > 0 || !report.is_equal(), "nothing is lost, and the trees are equal: the rig is blind");
}

/// The source has never met it under this name: nothing says what it was sent. It is compared, and what it has is kept.
#[test]
fn a_target_that_is_defined_anew_loses_nothing() {
    let seed = seed();
    let (mut rig, before) = put_back_and_trimmed(seed);
    let source = files(&rig.pair.source());
    rig.pair.forget_target();
    rig.pair.start();
    rig.pair.wait_equal("defined anew");
    assert!(rig.assert_nothing_is_lost((&before, &source), &format!("seed {seed}")) > 0, "nothing was kept");
    let events = rig.pair.events().join("\n");
    assert!(
        events.contains("which history it followed") && events.contains("is kept there in .dtfs/fork-"),
        "{events}"
    );
}

/// A target whose catalog is lost does not know its place, but its inbox does.
#[test]
fn a_doubtful_target_loses_nothing() {
    let seed = seed();
    let mut rig = Rig::new(FileSystem::Ext4, seed);
    let before = rig.put_back_behind_its_target();
    for path in catalogs(&rig.pair.states()) {
        fs::remove_file(path).unwrap();
    }
    rig.work(60);
    rig.pair.start();
    let reason = rig.wait_refused();
    assert!(reason.contains("put back") || reason.contains("another history"), "{reason}");
    assert_eq!(rig.target(), before, "it was changed unasked");
    let source = files(&rig.pair.source());
    rig.pair.arm("applier.keep=abort@2");
    rig.pair.rejoin(Own::Keep);
    rig.work(20);
    rig.pair.wait_equal("rejoined");
    assert!(rig.assert_nothing_is_lost((&before, &source), &format!("seed {seed}")) > 0, "nothing was kept");
}

/// The catalogs below `dir`, with their logs.
fn catalogs(dir: &Path) -> Vec<PathBuf> {
    let found = tool("find", &[utf8(dir), "-name", "catalog.db*"]);
    let paths: Vec<PathBuf> = found.lines().map(PathBuf::from).collect();
    assert!(!paths.is_empty(), "no catalog below {}", dir.display());
    paths
}

/// As an operator does it. Files and journal come from a copy, so the inodes are others than they were.
#[test]
fn an_operator_decides() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, target) = (dir.path().join("tree"), dir.path().join("target"));
    fs::create_dir(&tree).unwrap();
    let mut host = Host::new();
    host.define_volume("data", &tree);
    host.start_and_mount();
    host.define_target("data", &target);
    fs::write(tree.join("changed"), b"as it was").unwrap();
    fs::write(tree.join("same"), b"the same").unwrap();
    host.wait("data", 120);
    let undecided = host.run(&["rejoin", "data", "target"]);
    assert_eq!(undecided.code, 2, "{undecided:?}");
    assert!(undecided.stderr.contains("nothing to decide"), "{undecided:?}");
    host.stop();
    let state = host.root().join("var/lib/dtfs/data");
    let kept = dir.path().join("kept");
    fs::create_dir(&kept).unwrap();
    for (from, to) in [(&tree, kept.join("tree")), (&state, kept.join("state"))] {
        tool("cp", &["-a", "--preserve=all", utf8(from), utf8(&to)]);
    }
    host.start_and_mount();
    fs::write(tree.join("changed"), b"as it became").unwrap();
    fs::write(tree.join("new"), b"only later").unwrap();
    host.wait("data", 120);
    host.stop();
    for (to, from) in [(&tree, kept.join("tree")), (&state, kept.join("state"))] {
        tool("find", &[utf8(to), "-mindepth", "1", "-delete"]);
        tool("cp", &["-a", "--preserve=all", &format!("{}/.", utf8(&from)), utf8(to)]);
    }
    host.start_and_mount();
    let refused = wait_until("the refusal", LIMIT, || {
        let reason = host.target("data")["reason"].as_str().unwrap_or_default().to_owned();
        reason.contains("dtfs rejoin").then_some(reason)
    });
    assert!(refused.contains("put back"), "{refused}");
    assert_eq!(fs::read(target.join("new")).unwrap(), b"only later");
    let told = host.must(&["rejoin", "data", "target"]);
    assert!(told.contains("kept in .dtfs/fork-"), "{told}");
    host.wait("data", 120);
    trees::assert_equal(&tree, &target, "rejoined");
    let forks = forks(&target);
    let [fork] = &forks[..] else { panic!("{forks:?}") };
    assert_eq!(fs::read(fork.join("new")).unwrap(), b"only later");
    assert_eq!(fs::read(fork.join("changed")).unwrap(), b"as it became");
    let events = host.must(&["events", "data"]);
    assert!(events.contains("by an operator's word") && events.contains("is kept there in .dtfs/fork-"), "{events}");
    fs::write(tree.join("live"), b"goes on").unwrap();
    host.wait("data", 120);
    host.stop();
    assert_eq!(fs::read(target.join("live")).unwrap(), b"goes on");
}
