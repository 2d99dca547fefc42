//! Everyday programs on a mount that is being replicated: they do what they do elsewhere, and afterwards source and target
//! are equal.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::ffi::OsStr;
use std::fmt::Write;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use support::length::{either, filesystems};
use support::prng::Prng;
use support::replica::Pair;
use support::scratch::{FileSystem, utf8};
use support::trees;

/// Runs a program to its end in `dir`; panics with all it printed unless it succeeds.
fn run(program: &str, dir: &Path, args: &[&str]) -> String {
    let mut command = Command::new(program);
    command.current_dir(dir).args(args).stdin(Stdio::null());
    // Neither the configuration of whoever runs the tests nor the cargo around them counts.
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1").env("LC_ALL", "C.UTF-8");
    for who in ["GIT_AUTHOR", "GIT_COMMITTER"] {
        command.env(format!("{who}_NAME"), "someone").env(format!("{who}_EMAIL"), "someone@example.org");
    }
    for name in ["CARGO_TARGET_DIR", "CARGO_BUILD_TARGET", "CARGO_MAKEFLAGS", "MAKEFLAGS", "RUSTFLAGS", "RUSTC_WRAPPER"]
    {
        command.env_remove(name);
    }
    let output = command.output().unwrap_or_else(|error| panic!("{program} (scripts/setup.sh installs it): {error}"));
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{program} {args:?}: {}\n{stdout}{stderr}", output.status);
    stdout
}

/// Files in a few directories, some of them long, some executable, a symlink; `turn` changes every third.
fn write_project(dir: &Path, files: usize, turn: u64) {
    for number in (0..files).filter(|number| turn == 0 || number % 3 == 0) {
        let place = dir.join(format!("part-{}", number % 9)).join(format!("deep-{}", number % 4));
        fs::create_dir_all(&place).unwrap();
        let mut random = Prng::new(number as u64 * 1000 + turn);
        let lines = random.below(if number % 50 == 0 { 20_000 } else { 60 });
        let text: String = (0..lines).map(|line| format!("{line} {:x}\n", random.below(u64::MAX))).collect();
        let path = place.join(format!("file {number}.txt"));
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(if number % 7 == 0 { 0o755 } else { 0o644 })).unwrap();
    }
    let link = dir.join("link");
    let _ = fs::remove_file(&link);
    symlink(format!("part-{turn}"), link).unwrap();
}

/// A repository with some history and a branch.
fn write_repository(dir: &Path, files: usize) {
    fs::create_dir(dir).unwrap();
    run("git", dir, &["init", "-q", "-b", "main"]);
    for turn in 0..4 {
        write_project(dir, files, turn);
        run("git", dir, &["add", "-A"]);
        run("git", dir, &["commit", "-q", "-m", &format!("turn {turn}")]);
        run("git", dir, &["tag", &format!("turn-{turn}")]);
    }
}

fn git(kind: FileSystem) {
    let pair = Pair::mirrored(kind, |_| {});
    let origin = pair.scratch.path().join("origin");
    write_repository(&origin, either(300, 5_000));
    let clone = pair.source.join("clone");
    let git = |args: &[&str]| run("git", &clone, args);
    // By its address, so that objects travel as a pack and are not linked.
    run("git", &pair.source, &["clone", "-q", &format!("file://{}", utf8(&origin)), "clone"]);
    assert_eq!(git(&["status", "--porcelain"]), "", "a fresh clone is clean");
    assert_eq!(git(&["rev-parse", "HEAD"]), run("git", &origin, &["rev-parse", "HEAD"]));
    git(&["checkout", "-q", "-b", "older", "turn-1"]);
    assert_eq!(git(&["status", "--porcelain"]), "", "clean after a checkout");
    write_project(&clone, 90, 77);
    git(&["commit", "-q", "-a", "-m", "on a branch"]);
    git(&["checkout", "-q", "main"]);
    git(&["merge", "-q", "-s", "ours", "-m", "both", "older"]);
    git(&["gc", "-q", "--prune=now"]);
    git(&["fsck", "--strict", "--no-progress"]);
    assert_eq!(git(&["status", "--porcelain"]), "", "clean after gc");
    git(&["worktree", "add", "-q", "../tree", "turn-2"]);
    run("git", &origin, &["checkout", "-q", "turn-2"]);
    let (mut there, mut here) = (trees::contents(&origin), trees::contents(&pair.source.join("tree")));
    there.retain(|path, _| !path.strip_prefix(&origin).unwrap().starts_with(".git"));
    here.retain(|path, _| !path.ends_with(".git"));
    assert!(there.len() > 200 && there.values().eq(here.values()), "a worktree of the clone is what the origin has");
    pair.stop_and_compare(&format!("git on {kind:?}"));
}

#[test]
fn git_clone_and_gc() {
    filesystems(FileSystem::Btrfs).into_iter().for_each(git);
}

/// A crate with `modules` modules that call each other, and what its program prints.
fn write_crate(dir: &Path, modules: u64) -> String {
    fs::create_dir_all(dir.join("src")).unwrap();
    fs::write(dir.join("Cargo.toml"), "[package]\nname = \"made\"\nversion = \"0.1.0\"\nedition = \"2021\"\n").unwrap();
    let mut lib = String::new();
    let mut sum = 0;
    for number in 0..modules {
        let before = number.checked_sub(1).map_or("0".to_owned(), |before| format!("crate::part_{before}::value()"));
        let text = format!("/// Made.\npub fn value() -> u64 {{\n    {before} + {}\n}}\n", number * 3);
        fs::write(dir.join(format!("src/part_{number}.rs")), text).unwrap();
        writeln!(lib, "pub mod part_{number};").unwrap();
        sum += number * 3;
    }
    fs::write(dir.join("src/lib.rs"), lib).unwrap();
    let main = format!("fn main() {{\n    println!(\"{{}}\", made::part_{}::value());\n}}\n", modules - 1);
    fs::write(dir.join("src/main.rs"), main).unwrap();
    format!("{sum}\n")
}

fn cargo_build(kind: FileSystem) {
    let pair = Pair::mirrored(kind, |_| {});
    let dir = pair.source.join("made");
    let expected = write_crate(&dir, either(30, 300));
    let cargo = std::env::var("CARGO").expect("cargo runs the tests");
    run(&cargo, &dir, &["build", "--offline", "--quiet"]);
    let program = dir.join("target/debug/made");
    assert_eq!(run(utf8(&program), &dir, &[]), expected);
    // One module changes: cargo must see it by its time, and replace a program that has just run.
    let text = fs::read_to_string(dir.join("src/part_0.rs")).unwrap().replace("+ 0", "+ 1000");
    fs::write(dir.join("src/part_0.rs"), text).unwrap();
    run(&cargo, &dir, &["build", "--offline", "--quiet"]);
    let sum: u64 = expected.trim().parse().unwrap();
    assert_eq!(run(utf8(&program), &dir, &[]), format!("{}\n", sum + 1000));
    run(&cargo, &dir, &["build", "--offline", "--quiet", "--release"]);
    assert_eq!(run(utf8(&dir.join("target/release/made")), &dir, &[]), format!("{}\n", sum + 1000));
    pair.stop_and_compare(&format!("cargo build on {kind:?}"));
}

#[test]
fn cargo_builds_and_the_program_runs() {
    filesystems(FileSystem::Xfs).into_iter().for_each(cargo_build);
}

/// Of everything that rsync -aHAX carries.
fn write_all_kinds(dir: &Path, files: usize) {
    fs::create_dir(dir).unwrap();
    write_project(dir, files, 0);
    let sparse = File::create(dir.join("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    sparse.write_all_at(b"in the middle", 33 << 20).unwrap();
    for name in ["hard", "harder", "part-1/hardest"] {
        fs::hard_link(dir.join("sparse"), dir.join(name)).unwrap();
    }
    symlink("nowhere", dir.join("dangling")).unwrap();
    let odd = OsStr::from_bytes(b"odd \xff\n\\ name");
    fs::write(dir.join(odd), "odd").unwrap();
    fs::write(dir.join("suid"), "suid").unwrap();
    fs::set_permissions(dir.join("suid"), fs::Permissions::from_mode(0o6711)).unwrap();
    chown(dir.join("part-2"), Some(4321), Some(2_200_000_000)).unwrap();
    run("setfacl", dir, &["-m", "u:1234:rwx,g:77:r,d:u:99:rx", "part-2"]);
    run("setfacl", dir, &["-m", "u:1234:---", "part-2/deep-0/file 20.txt"]);
    for (name, value) in [("user.flavour", "sweet"), ("trusted.for", "root"), ("security.mark", "x")] {
        run("setfattr", dir, &["-n", name, "-v", value, "suid"]);
    }
    run("setfattr", dir, &["-n", "user.on", "-v", "a directory", "part-3"]);
    for (name, kind) in [("fifo", &["p"][..]), ("block", &["b", "7", "99"]), ("character", &["c", "1", "3"])] {
        run("mknod", dir, &[&[name], kind].concat());
    }
    run("touch", dir, &["-h", "-d", "1960-01-02 03:04:05.678", "suid"]);
    run("touch", dir, &["-h", "-d", "2040-01-02 03:04:05.678", "dangling"]);
}

fn rsync(kind: FileSystem) {
    let pair = Pair::mirrored(kind, |_| {});
    let (origin, copy) = (pair.scratch.path().join("origin"), pair.source.join("copy"));
    write_all_kinds(&origin, either(500, 20_000));
    let from = format!("{}/", utf8(&origin));
    // By itself rsync leaves a time that is right to the second.
    let sync = |more: &[&str]| {
        run(
            "rsync",
            &pair.source,
            &[&["-aHAX", "--sparse", "--modify-window=-1", "--itemize-changes"], more, &[&from, utf8(&copy)]].concat(),
        )
    };
    let context = format!("rsync on {kind:?}");
    assert!(sync(&[]).lines().count() > 500, "{context}: the first run carries everything");
    assert_eq!(sync(&[]), "", "{context}: the second run has nothing to do");
    assert_eq!(sync(&["--checksum"]), "", "{context}: the content is the same, too");
    trees::assert_equal(&origin, &copy, &context);
    // Changes of every kind, once by a new file in the old one's place and once in place.
    for (turn, way) in [(1, "--delete-after"), (2, "--inplace")] {
        write_project(&origin, 200, turn);
        fs::rename(origin.join(format!("part-{}", turn + 4)), origin.join(format!("moved-{turn}"))).unwrap();
        fs::remove_file(origin.join(["hard", "fifo"][turn as usize - 1])).unwrap();
        assert_ne!(sync(&[way, "--delete"]), "");
        assert_eq!(sync(&[way, "--delete"]), "", "{context}: again after {way}");
        trees::assert_equal(&origin, &copy, &format!("{context}, {way}"));
    }
    pair.stop_and_compare(&context);
}

#[test]
fn rsync_carries_everything_once() {
    filesystems(FileSystem::Ext4).into_iter().for_each(rsync);
}
