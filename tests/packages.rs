//! What is installed: the layout, the manual, the completions, the service's files, the start script, and mount(8)'s helper.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use support::host::{Host, is_dtfs};
use support::process::{tool, try_tool};
use support::scratch::{FileSystem, Scratch, utf8};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_dtfs");
const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");

fn must(output: Output, what: &str) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{what}: {}\n{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// Installs below a root of its own.
fn install(root: &Path) {
    let mut command = Command::new(format!("{REPOSITORY}/scripts/install.sh"));
    must(command.env("DESTDIR", root).env("BINARY", PROGRAM).output().unwrap(), "install.sh");
}

fn installed() -> TempDir {
    let root = TempDir::new().unwrap();
    install(root.path());
    root
}

#[test]
fn everything_is_installed_and_an_operators_files_are_kept() {
    let root = installed();
    let at = |path: &str| root.path().join(path);
    let layout = fs::read_to_string(format!("{REPOSITORY}/packaging/layout")).unwrap();
    let rows = layout.lines().filter(|line| !line.starts_with('#'));
    let rows: Vec<Vec<&str>> = rows.map(|line| line.split_whitespace().collect()).collect();
    assert!(rows.len() > 15);
    for row in &rows {
        let [source, to, mode] = row[..] else { panic!("{row:?}") };
        let path = at(to);
        if mode == "link" {
            assert_eq!(fs::read_link(&path).unwrap(), Path::new(source));
            assert!(path.exists(), "{to} leads nowhere");
        } else {
            let found = fs::symlink_metadata(&path).unwrap_or_else(|error| panic!("{to}: {error}"));
            assert_eq!(format!("{:o}", found.mode() & 0o7777), mode, "{to}");
            assert!(found.len() > 0, "{to} is empty");
        }
    }
    assert_eq!(fs::metadata(at("etc/dtfs")).unwrap().permissions().mode() & 0o777, 0o700);
    // The installed files are what the installed program reads without a complaint.
    let list =
        Command::new(at("usr/bin/dtfs")).arg("--root").arg(root.path()).args(["mounts", "list"]).output().unwrap();
    assert!(must(list, "mounts list").contains("no entries"));

    fs::write(at("etc/dtfs/dtfs_mounts"), "# mine\n").unwrap();
    fs::write(at("usr/share/man/man8/dtfs.8"), "old").unwrap();
    install(root.path());
    assert_eq!(fs::read_to_string(at("etc/dtfs/dtfs_mounts")).unwrap(), "# mine\n");
    assert!(fs::read_to_string(at("usr/share/man/man8/dtfs.8")).unwrap().len() > 1000);
}

#[test]
fn the_manual_is_set_without_a_warning_and_says_everything() {
    let root = installed();
    let page = |path: &str| -> String {
        let file = root.path().join("usr/share/man").join(path);
        let mut groff = Command::new("groff");
        groff.args(["-t", "-man", "-Tutf8", "-ww", "-P-c", "-rLL=110n"]).arg(&file);
        let output = groff.output().expect("groff");
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{path}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        // Bold and underlined letters are doubled with a backspace.
        let text = String::from_utf8(output.stdout).unwrap();
        let mut plain = String::new();
        for c in text.chars() {
            match c {
                '\u{8}' => plain.truncate(plain.len() - plain.chars().next_back().map_or(0, char::len_utf8)),
                c => plain.push(c),
            }
        }
        let words: Vec<&str> = plain.split_whitespace().collect();
        words.join(" ").replace(['\u{2010}', '\u{2212}'], "-")
    };
    let commands = page("man8/dtfs.8");
    for word in
        ["dtfs mounts add", "dtfs define target", "1.3.1.1", "mirror-stream", "zumastor", "converging", "SIGHUP"]
    {
        assert!(commands.contains(word), "dtfs(8) does not say {word:?}:\n{commands}");
    }
    let mounts = page("man5/dtfs_mounts.5");
    // Every option that the program knows.
    let help = tool(PROGRAM, &["mounts", "add", "--help"]);
    for option in ["volume=", "atime", "norepatime", "allow-open", "submounts=", "writes=", "store="] {
        assert!(mounts.contains(option), "dtfs_mounts(5) does not say {option}");
    }
    assert!(help.contains("volume=NAME"));
    let daemon = page("man5/dtfs.toml.5");
    let sample = fs::read_to_string(format!("{REPOSITORY}/mounts.d/dtfs.toml")).unwrap();
    let keys = sample.lines().filter_map(|line| line.trim_start_matches("# ").split_once(" = ")).map(|(key, _)| key);
    let keys: BTreeSet<&str> = keys.filter(|key| !key.contains(' ')).collect();
    assert!(keys.len() >= 4, "{keys:?}");
    for key in keys {
        assert!(daemon.contains(&format!("{key} =")), "dtfs.toml(5) does not say {key}");
    }
    assert!(page("man8/mount.dtfs.8").contains("-t fuse.dtfs"));
    // man(1) itself finds and shows it.
    let man =
        Command::new("man").args(["-l", "--warnings"]).arg(root.path().join("usr/share/man/man8/dtfs.8")).output();
    let man = man.expect("man");
    assert!(man.status.success() && man.stderr.is_empty(), "{}", String::from_utf8_lossy(&man.stderr));
}

#[test]
fn a_shell_completes_commands_volumes_and_targets() {
    let (root, scratch) = (installed(), Scratch::new(FileSystem::Ext4));
    let mut host = Host::new();
    host.define_volume("accounts", &scratch.dir("accounts"));
    host.define_volume("archive", &scratch.dir("archive"));
    host.define_target("accounts", &scratch.dir("cellar"));
    host.define_target("archive", &scratch.dir("attic"));
    let script = root.path().join("usr/share/bash-completion/completions/dtfs");
    let complete = |line: &str| -> BTreeSet<String> {
        let words: Vec<&str> = line.split(' ').collect();
        let last = words.len() - 1;
        let shell = format!(
            "source {}; COMP_WORDS=({} ''); COMP_CWORD={last}; [ -n \"{}\" ] && COMP_WORDS[{last}]={}; COMP_TYPE=9; \
             _clap_complete_dtfs dtfs \"{}\" x; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            utf8(&script),
            words[..last].join(" "),
            words[last],
            words[last],
            words[last]
        );
        let path = format!("{}:/usr/bin:/bin", utf8(&root.path().join("usr/bin")));
        let mut bash = Command::new("bash");
        bash.args(["--norc", "-c", &shell]).env("PATH", path).env("DTFS_ROOT", host.root());
        let text = must(bash.output().expect("bash"), line);
        text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()
    };
    let set = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<BTreeSet<_>>();
    assert!(complete("dtfs mou").contains("mounts"));
    assert_eq!(complete("dtfs status a"), set(&["accounts", "archive"]));
    assert_eq!(complete("dtfs status acc"), set(&["accounts"]));
    assert_eq!(complete("dtfs wait archive a"), set(&["attic"]));
    assert!(complete("dtfs wait accounts c").contains("cellar"));
    for shell in ["usr/share/zsh/vendor-completions/_dtfs", "usr/share/fish/vendor_completions.d/dtfs.fish"] {
        assert!(fs::read_to_string(root.path().join(shell)).unwrap().contains("COMPLETE="), "{shell}");
    }
}

#[test]
fn systemd_takes_the_unit_and_the_drop_ins() {
    let root = installed();
    let units = root.path().join("usr/lib/systemd/system");
    // Units of the servers, as their packages have them in essence.
    for server in ["smbd", "nfs-server", "nfs-ganesha"] {
        fs::write(units.join(format!("{server}.service")), "[Service]\nExecStart=/usr/bin/dtfs\n").unwrap();
    }
    for target in ["sysinit", "basic", "shutdown", "local-fs", "network-online", "time-sync", "multi-user"] {
        fs::write(units.join(format!("{target}.target")), "[Unit]\nDescription=stand-in\nDefaultDependencies=no\n")
            .unwrap();
    }
    fs::create_dir_all(root.path().join("bin")).unwrap();
    fs::copy("/bin/kill", root.path().join("bin/kill")).unwrap();
    let verify = |unit: &str| {
        let mut command = Command::new("systemd-analyze");
        command.args(["verify", "--man=no", "--root"]).arg(root.path()).arg(unit);
        command.output().expect("systemd-analyze (package systemd)")
    };
    for unit in ["dtfs.service", "smbd.service", "nfs-server.service", "nfs-ganesha.service"] {
        let output = verify(unit);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && said.is_empty(), "{unit}: {said}");
    }
    // It does look.
    let unit = units.join("dtfs.service");
    let text = fs::read_to_string(&unit).unwrap();
    fs::write(&unit, text.replace("WatchdogSec=", "WatchdogSecs=").replace("daemon", "")).unwrap();
    assert!(!verify("dtfs.service").stderr.is_empty());
    for server in ["smbd", "nfs-server", "nfs-ganesha"] {
        let drop_in = fs::read_to_string(units.join(format!("{server}.service.d/dtfs.conf"))).unwrap();
        assert!(drop_in.contains("After=dtfs.service") && drop_in.contains("Requires=dtfs.service"));
    }
}

#[test]
fn the_start_script_starts_and_stops_the_daemon() {
    let (root, scratch) = (installed(), Scratch::new(FileSystem::Ext4));
    let mut host = Host::new();
    let dir = scratch.dir("data");
    host.define_volume("data", &dir);
    let script = |verb: &str| {
        let mut command = Command::new(root.path().join("etc/init.d/dtfs"));
        command.arg(verb).env("DTFS", PROGRAM).env("DTFS_ROOT", host.root()).output().unwrap()
    };
    assert_eq!(script("status").status.code(), Some(3));
    must(script("start"), "start");
    assert!(is_dtfs(&dir), "it returns when everything is mounted");
    must(script("status"), "status");
    must(script("start"), "a second start is no error");
    host.define_target("data", &scratch.dir("copy"));
    must(script("reload"), "reload");
    assert!(is_dtfs(&dir));
    must(script("stop"), "stop");
    assert!(!is_dtfs(&dir));
    assert_eq!(script("status").status.code(), Some(3));
    must(script("stop"), "a second stop is no error");
    // Its own file may name a process that is somebody else's by now: ours.
    fs::write(host.root().join("run/dtfs/dtfs.pid"), std::process::id().to_string()).unwrap();
    must(script("stop"), "a stop with a stale file");
    assert_eq!(script("nonsense").status.code(), Some(2));
}

/// mount(8) looks for its helpers in /sbin only, so it runs where /sbin has ours: in a mount namespace of its own.
fn mount_with_helper(host: &Host, helpers: &Path, fstab: &str, arguments: &str) -> Output {
    let file = host.root().join("fstab");
    fs::write(&file, fstab).unwrap();
    let script = format!(
        "mount -t overlay overlay -o lowerdir={}:$(readlink -f /sbin) $(readlink -f /sbin) && exec mount --fstab {} {arguments}",
        utf8(helpers),
        utf8(&file)
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script]).env("DTFS_ROOT", host.root());
    command.output().expect("unshare")
}

fn helpers(scratch: &Scratch) -> PathBuf {
    let dir = scratch.dir("helpers");
    for name in ["mount.dtfs", "mount.fuse.dtfs"] {
        std::os::unix::fs::symlink(PROGRAM, dir.join(name)).unwrap();
    }
    dir
}

#[test]
fn mount_takes_both_forms_of_fstab() {
    let scratch = Scratch::new(FileSystem::Ext4);
    let helpers = helpers(&scratch);
    let (old, new) = (scratch.dir("level1"), scratch.dir("level2"));
    let (old, new) = (utf8(&old).to_owned(), utf8(&new).to_owned());
    let mut host = Host::new();
    let fstab = format!(
        "dtfs {old} dtfs norepatime 0 0\n{new} {new} fuse.dtfs volume=second,repatime,_netdev,x-systemd.requires=dtfs.service,nofail 0 0\n"
    );
    let without = mount_with_helper(&host, &helpers, &fstab, &old);
    assert_eq!(without.status.code(), Some(32), "no daemon runs: {without:?}");
    assert!(String::from_utf8_lossy(&without.stderr).contains("no daemon answers"), "{without:?}");
    assert!(!host.root().join("etc/dtfs/dtfs_mounts").exists(), "a mount that failed left an entry");

    host.start();
    host.adopt_volume(Path::new(&old));
    host.adopt_volume(Path::new(&new));
    let fake = mount_with_helper(&host, &helpers, &fstab, &format!("--fake {old}"));
    must(fake, "a rehearsal");
    assert!(!is_dtfs(Path::new(&old)));
    must(mount_with_helper(&host, &helpers, &fstab, &old), "the historical form");
    assert!(is_dtfs(Path::new(&old)));
    must(mount_with_helper(&host, &helpers, &fstab, "-a -t dtfs,fuse.dtfs"), "all of the file");
    assert!(is_dtfs(Path::new(&new)));
    let listed: serde_json::Value = serde_json::from_str(&host.must(&["mounts", "list", "--json"])).unwrap();
    let rows = listed["mounts"].as_array().unwrap();
    assert_eq!(rows.len(), 2, "{listed:#}");
    assert!(rows.iter().any(
        |row| row["volume"] == "second" && row["options"].as_str().unwrap().split(',').any(|word| word == "atime")
    ));
    fs::write(format!("{old}/file"), "x").unwrap();

    // What contradicts the entry, or cannot be, is refused with both places, and nothing changes.
    let before = host.config();
    for (line, said) in [
        (format!("dtfs {old} dtfs repatime 0 0\n"), "dtfs_mounts:1"),
        (format!("dtfs {old} dtfs ro 0 0\n"), "cannot be \"ro\""),
        (format!("dtfs {old} dtfs norepatim 0 0\n"), "did you mean \"norepatime\"?"),
        (format!("/elsewhere {old} dtfs norepatime 0 0\n"), "over itself"),
    ] {
        host.must(&["mounts", "unmount", &old]);
        let refused = mount_with_helper(&host, &helpers, &line, &old);
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && text.contains(said), "{line}: {text}");
        assert!(!is_dtfs(Path::new(&old)), "{line}");
        host.must(&["mounts", "mount", &old]);
    }
    assert_eq!(host.config(), before);
    host.stop();
}

#[test]
fn the_menu_answers_to_its_old_name() {
    let root = installed();
    let mut menu = Command::new(root.path().join("usr/bin/DTSetup"));
    let output = menu.env("DTFS_ROOT", root.path()).stdin(std::process::Stdio::null()).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("Setup tasks"), "{output:?}");
}

/// A whole system to install into: this one, with a layer above it that takes the changes.
struct System {
    root: PathBuf,
    _layer: Scratch,
}

impl System {
    fn new() -> System {
        let layer = Scratch::new(FileSystem::Ext4);
        let (upper, work, root) = (layer.dir("upper"), layer.dir("work"), layer.dir("root"));
        let options = format!("lowerdir=/,upperdir={},workdir={}", utf8(&upper), utf8(&work));
        tool("mount", &["-t", "overlay", "overlay", "-o", &options, utf8(&root)]);
        let system = System { root, _layer: layer };
        for dir in ["proc", "dev", "run"] {
            let to = system.root.join(dir);
            match dir {
                "run" => tool("mount", &["-t", "tmpfs", "tmpfs", utf8(&to)]),
                dir => tool("mount", &["--rbind", &format!("/{dir}"), utf8(&to)]),
            };
        }
        system
    }

    fn run(&self, command: &[&str]) -> Output {
        Command::new("chroot").arg(&self.root).args(command).env("DEBIAN_FRONTEND", "noninteractive").output().unwrap()
    }
}

impl Drop for System {
    fn drop(&mut self) {
        for dir in ["proc", "dev", "run", ""] {
            try_tool("umount", &["--recursive", "--lazy", utf8(&self.root.join(dir))]);
        }
    }
}

#[test]
fn a_package_installs_upgrades_under_a_live_mount_and_goes() {
    let out = TempDir::new().unwrap();
    let package = out.path().join("dtfs.deb");
    let mut build = Command::new(format!("{REPOSITORY}/scripts/deb.sh"));
    must(build.arg(&package).env("BINARY", PROGRAM).output().unwrap(), "deb.sh");
    let system = System::new();
    let inside = |path: &str| system.root.join(path.trim_start_matches('/'));
    fs::copy(&package, inside("/root/dtfs.deb")).unwrap();
    must(system.run(&["dpkg", "--install", "/root/dtfs.deb"]), "dpkg --install");
    assert!(must(system.run(&["dtfs", "--version"]), "dtfs --version").starts_with("dtfs "));
    assert!(must(system.run(&["dtfs", "mounts", "list"]), "mounts list").contains("no entries"));
    assert_eq!(fs::read_link(inside("/usr/sbin/mount.dtfs")).unwrap(), Path::new("../bin/dtfs"));

    // A daemon of the installed program, with a live mount and a target.
    fs::create_dir_all(inside("/srv/live")).unwrap();
    fs::create_dir_all(inside("/srv/copy")).unwrap();
    let scratch = Scratch::new(FileSystem::Ext4);
    tool("mount", &["--bind", utf8(&scratch.dir("live")), utf8(&inside("/srv/live"))]);
    tool("mount", &["--bind", utf8(&scratch.dir("copy")), utf8(&inside("/srv/copy"))]);
    must(system.run(&["dtfs", "define", "volume", "live", "/srv/live"]), "define volume");
    must(system.run(&["/etc/init.d/dtfs", "start"]), "start");
    let stop = Stop(&system);
    must(system.run(&["dtfs", "define", "target", "live", "local:/srv/copy"]), "define target");
    fs::write(inside("/srv/live/before"), "x").unwrap();
    let pid = fs::read_to_string(inside("/run/dtfs/dtfs.pid")).unwrap();
    must(system.run(&["dpkg", "--install", "/root/dtfs.deb"]), "the upgrade");
    assert_eq!(fs::read_to_string(inside("/run/dtfs/dtfs.pid")).unwrap(), pid);
    assert!(Path::new("/proc").join(pid.trim()).exists(), "the daemon was stopped by the upgrade");
    assert!(is_dtfs(&inside("/srv/live")), "the upgrade unmounted a live tree");
    fs::write(inside("/srv/live/after"), "y").unwrap();
    must(system.run(&["dtfs", "wait", "live", "--timeout", "120"]), "wait");
    assert_eq!(fs::read_to_string(inside("/srv/copy/after")).unwrap(), "y");
    let mounts = fs::read_to_string(inside("/etc/dtfs/dtfs_mounts")).unwrap();
    assert!(mounts.contains("/srv/live"), "the upgrade replaced the operator's file");
    drop(stop);

    must(system.run(&["dpkg", "--remove", "dtfs"]), "dpkg --remove");
    assert!(!inside("/usr/bin/dtfs").exists());
    assert!(inside("/etc/dtfs/dtfs_mounts").exists() && inside("/var/lib/dtfs/live").exists());
}

/// Stops the daemon of a system, also when a test fails.
struct Stop<'s>(&'s System);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.run(&["/etc/init.d/dtfs", "stop"]);
        for dir in ["srv/live", "srv/copy"] {
            let dir = self.0.root.join(dir);
            while try_tool("umount", &["--lazy", utf8(&dir)]).status.success() {}
        }
    }
}

#[test]
fn the_deadlines_of_the_unit_fit_the_daemons() {
    let unit = fs::read_to_string(format!("{REPOSITORY}/packaging/systemd/dtfs.service")).unwrap();
    let value =
        |key: &str| unit.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_else(|| panic!("{key}")).to_owned();
    let stop: dtfs::config::Seconds = value("TimeoutStopSec=").replace("min", "m").parse().unwrap();
    let sample = fs::read_to_string(format!("{REPOSITORY}/mounts.d/dtfs.toml")).unwrap();
    let sample = dtfs::config::DaemonFile::parse(Path::new("dtfs.toml"), sample.as_bytes()).unwrap();
    assert!(stop.0 > sample.drain.unwrap().0 + Duration::from_secs(60));
    assert_eq!(value("Type="), "notify");
}
