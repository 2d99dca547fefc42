//! What the host and its files tell, without a daemon.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::{Finding, Severity};
use crate::config::{MountEntry, MountsFile, Paths, TargetUrl, VolumeFile, VolumeName};
use crate::control::ops::check;
use crate::control::{Failure, Objects, look_below};
use crate::sys;

/// The first kernel with every feature that a mount asks for.
const KERNEL: (u32, u32) = (5, 12);
/// Programs that serve files to others, and the files that say which.
const SERVERS: [(&str, &str, &str); 3] = [
    ("nfs", "nfs-server.service", "etc/exports"),
    ("ganesha", "nfs-ganesha.service", "etc/ganesha/ganesha.conf"),
    ("samba", "smbd.service", "etc/samba/smb.conf"),
];

pub(super) fn look(paths: &Paths) -> Result<Vec<Finding>, Failure> {
    let mounts = MountsFile::load(paths)?;
    let mut findings = machine();
    for problem in check(paths)? {
        let fix = problem.remedy.clone().unwrap_or_else(|| "correct the file".to_owned());
        findings.push(Finding::new("config", Severity::Error, problem.message, fix));
    }
    for entry in mounts.entries() {
        findings.extend(entry_findings(paths, entry));
    }
    findings.extend(served(paths, &mounts));
    findings.extend(left_over(paths, &mounts));
    Ok(findings)
}

fn machine() -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Err(error) = fs::OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        let what = format!("/dev/fuse cannot be opened: {error}");
        findings.push(Finding::new(
            "fuse-device",
            Severity::Error,
            what,
            "load the module: modprobe fuse; in a container, pass /dev/fuse in",
        ));
    }
    if !nix::unistd::geteuid().is_root() {
        findings.push(Finding::new(
            "not-root",
            Severity::Error,
            "this is not run as root",
            "run it as root: mounting and owners need it",
        ));
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    if kernel_version(&release).is_some_and(|version| version < KERNEL) {
        let what = format!("the kernel is {}, older than {}.{}", release.trim(), KERNEL.0, KERNEL.1);
        findings.push(Finding::new("kernel-old", Severity::Error, what, "use a newer kernel"));
    }
    if !has_magic(Path::new("/dev/shm"), libc::TMPFS_MAGIC) {
        findings.push(Finding::new(
            "shared-memory",
            Severity::Warning,
            "/dev/shm is no filesystem in memory: what a kill would lose is on a disk",
            "mount a tmpfs there",
        ));
    }
    if clock_is_free() {
        findings.push(Finding::new(
            "clock",
            Severity::Warning,
            "the clock is not kept right by anything: lag and times on two hosts cannot be compared",
            "run chrony or systemd-timesyncd",
        ));
    }
    findings
}

fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// The kernel's own view (adjtimex(2)) needs a call that changes things on a slip; the synchronisers leave a mark each.
fn clock_is_free() -> bool {
    let marks = ["/run/systemd/timesync/synchronized", "/run/chrony", "/run/ntpd.pid", "/run/ntpsec"];
    !marks.iter().any(|mark| Path::new(mark).exists())
}

fn has_magic(path: &Path, magic: i64) -> bool {
    fs::File::open(path).is_ok_and(|dir| sys::fstatfs(dir.as_fd()).is_ok_and(|stat| stat.magic == magic))
}

fn entry_findings(paths: &Paths, entry: &MountEntry) -> Vec<Finding> {
    let (volume, path) = (&entry.volume, &entry.path);
    if sys::is_dead(path) {
        let what =
            format!("{volume}: a daemon that is gone left its mount at {}: programs get ENOTCONN", path.display());
        return vec![Finding::new(
            "dead-mount",
            Severity::Error,
            what,
            "start the daemon, it replaces the mount; or: dtfs mounts unmount",
        )];
    }
    let mut findings = Vec::new();
    let mounted = sys::mount_at(path).ok().flatten().is_some_and(|mount| mount.kind == "fuse.dtfs");
    if !mounted {
        let what = format!("{volume}: {} is not mounted: changes there are not recorded", path.display());
        findings.push(Finding::new(
            "not-mounted",
            Severity::Error,
            what,
            format!("dtfs mounts mount {}", path.display()),
        ));
        findings.extend(bare_directory(entry));
    }
    findings.extend(journal_space(paths, entry));
    findings.extend(local_targets(paths, entry));
    findings
}

/// What a mount would meet.
fn bare_directory(entry: &MountEntry) -> Vec<Finding> {
    let (volume, path) = (&entry.volume, &entry.path);
    let mut findings = Vec::new();
    let Ok(dir) = fs::File::open(path) else { return findings };
    if sys::name_to_handle_at(dir.as_fd(), c"").is_err() {
        let what = format!("{volume}: the filesystem of {} gives no handles", path.display());
        findings.push(Finding::new("no-handles", Severity::Error, what, "put the tree on ext4, xfs or btrfs"));
    }
    let inner: Vec<String> = sys::mounts()
        .unwrap_or_default()
        .into_iter()
        .filter(|mount| mount.point != *path && mount.point.starts_with(path))
        .map(|mount| mount.point.display().to_string())
        .collect();
    if !inner.is_empty() {
        let what = format!("{volume}: filesystems are mounted below {}: {}", path.display(), inner.join(", "));
        findings.push(Finding::new(
            "inner-mounts",
            Severity::Warning,
            what,
            "unmount them before, and give each an entry of its own; or submounts=ignore",
        ));
    }
    findings.extend(open_files(volume, path));
    findings
}

/// Processes that hold files below `path` open for writing, or may.
fn open_files(volume: &VolumeName, path: &Path) -> Option<Finding> {
    let dev = fs::symlink_metadata(path).ok()?.dev();
    let mut holders = look_below(dev, path, Objects::Named).holders();
    holders.openers.retain(|opener| opener.writes);
    let writers: Vec<String> = holders.lines().collect();
    let what =
        format!("{volume}: files below {} are open for writing, or may be: {}", path.display(), writers.join(", "));
    let fix = "end these programs before the mount; or --allow-open";
    (!writers.is_empty()).then(|| Finding::new("open-files", Severity::Warning, what, fix))
}

fn journal_space(paths: &Paths, entry: &MountEntry) -> Vec<Finding> {
    let store = entry.options.store.clone().unwrap_or_else(|| paths.volume_state(&entry.volume));
    let volume = &entry.volume;
    let mut findings = Vec::new();
    let Some(existing) = store.ancestors().find(|dir| dir.exists()) else { return findings };
    let Ok(dir) = fs::File::open(existing) else { return findings };
    let Ok(stat) = sys::fstatfs(dir.as_fd()) else { return findings };
    let (free, all) = (stat.blocks_available, stat.blocks.max(1));
    if free * 100 / all < 10 {
        let what = format!("{volume}: less than a tenth is free where the journal lies ({})", store.display());
        findings.push(Finding::new(
            "journal-space",
            Severity::Error,
            what,
            "make room, or move it: store=DIR in dtfs_mounts",
        ));
    }
    if store.is_dir() && fs::metadata(&store).is_ok_and(|meta| meta.permissions().mode() & 0o077 != 0) {
        let what = format!(
            "{volume}: others may look into the journal ({}), which holds private and deleted data",
            store.display()
        );
        findings.push(Finding::new("journal-mode", Severity::Warning, what, format!("chmod 700 {}", store.display())));
    }
    if same_device(existing, &entry.path) {
        let what = format!("{volume}: journal and tree share a filesystem: they share its load, and its end");
        findings.push(Finding::new(
            "journal-beside-tree",
            Severity::Info,
            what,
            "put the journal on another disk: store=DIR in dtfs_mounts",
        ));
    }
    findings
}

fn same_device(one: &Path, other: &Path) -> bool {
    let devices = (device_below(one), device_below(other));
    devices.0.is_some() && devices.0 == devices.1
}

/// The device that `path` lies on, below a mount of ours when there is one.
fn device_below(path: &Path) -> Option<String> {
    let mounts =
        sys::mounts().ok()?.into_iter().filter(|mount| mount.kind != "fuse.dtfs" && path.starts_with(&mount.point));
    mounts.max_by_key(|mount| mount.point.components().count()).map(|mount| mount.device)
}

fn local_targets(paths: &Paths, entry: &MountEntry) -> Vec<Finding> {
    let volume = &entry.volume;
    let Ok(file) = VolumeFile::load(paths, volume) else { return Vec::new() };
    if file.targets.is_empty() {
        let what = format!("{volume}: it has no target, so nothing is replicated");
        return vec![Finding::new("no-target", Severity::Warning, what, format!("dtfs define target {volume} URL"))];
    }
    let mut findings = Vec::new();
    for target in &file.targets {
        #[allow(irrefutable_let_patterns, reason = "other kinds of targets are on other hosts")]
        if let TargetUrl::Local(dir) = &target.url
            && same_device(dir, &entry.path)
        {
            let what = format!(
                "{volume}: target {} is on the filesystem of its source: one disk's end takes both",
                target.name
            );
            findings.push(Finding::new(
                "target-same-disk",
                Severity::Warning,
                what,
                "choose a directory on another disk, or another host",
            ));
        }
    }
    findings
}

/// Servers that would show the bare directory when the mount is not there.
fn served(paths: &Paths, mounts: &MountsFile) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, unit, config) in SERVERS {
        let file = paths.system_file(config);
        let Ok(text) = fs::read_to_string(&file) else { continue };
        let served: Vec<&MountEntry> = mounts.entries().filter(|entry| names(&text, &entry.path)).collect();
        let Some(first) = served.first() else { continue };
        if !is_ordered(paths, unit) {
            let what =
                format!("{name}: {} serves {}, and {unit} may start before dtfs", file.display(), first.path.display());
            findings.push(Finding::new(
                "server-order",
                Severity::Warning,
                what,
                format!("order it: a drop-in for {unit} with After=dtfs.service and Requires=dtfs.service"),
            ));
        }
        let guarded = |line: &str| line.contains("mountpoint") || line.contains("root preexec");
        if name != "ganesha" && !text.lines().any(guarded) {
            let what = format!(
                "{name}: {} serves {} also when the mount is not there: changes would not be recorded",
                file.display(),
                first.path.display()
            );
            let fix = match name {
                "nfs" => "add the option mountpoint to the export",
                _ => "root preexec = findmnt -n -t fuse.dtfs --mountpoint %P, and root preexec close = yes",
            };
            findings.push(Finding::new("server-unguarded", Severity::Warning, what, fix));
        }
    }
    findings
}

/// Whether a line that is no comment names the directory, one below it or one above it that is no root.
fn names(text: &str, path: &Path) -> bool {
    let lines = text.lines().map(str::trim_start).filter(|line| !line.starts_with(['#', ';']));
    lines
        .flat_map(|line| line.split(|c: char| c.is_whitespace() || "=\";,".contains(c)))
        .filter(|word| word.len() > 1 && word.starts_with('/'))
        .any(|word| path.starts_with(word) || Path::new(word).starts_with(path))
}

fn is_ordered(paths: &Paths, unit: &str) -> bool {
    let dirs = ["etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"];
    let drop_ins = dirs.iter().flat_map(|dir| {
        let files = fs::read_dir(paths.system_file(&format!("{dir}/{unit}.d"))).into_iter().flatten().flatten();
        files.map(|file| file.path()).collect::<Vec<_>>()
    });
    drop_ins.into_iter().any(|file| fs::read_to_string(file).is_ok_and(|text| text.contains("dtfs")))
}

/// Journals of volumes that nobody defines any more.
fn left_over(paths: &Paths, mounts: &MountsFile) -> Vec<Finding> {
    let listing = fs::read_dir(paths.state_dir()).into_iter().flatten().flatten();
    let dirs: Vec<PathBuf> = listing.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    dirs.iter()
        .filter_map(|dir| {
            let volume = VolumeName::new(dir.file_name()?.to_str()?).ok()?;
            let unknown = mounts.find_volume(&volume).is_none() && *dir != paths.replicas_dir();
            let what = format!("{}: the journal of a volume that is not in dtfs_mounts", dir.display());
            unknown.then(|| Finding::new("left-over", Severity::Info, what, "remove it when nobody needs it any more"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_told_apart() {
        assert_eq!(kernel_version("6.1.0-38-amd64\n"), Some((6, 1)));
        assert!(kernel_version("5.4.0").is_some_and(|version| version < KERNEL));
    }

    #[test]
    fn exports_and_shares_are_found() {
        let data = Path::new("/srv/data");
        assert!(names("/srv/data *(rw)\n", data) && names("path = /srv/data/x\n", data) && names("/srv *(ro)\n", data));
        assert!(!names("# /srv/data\n", data) && !names("/srv/database *(rw)\n", data) && !names("/ *(ro)", data));
    }
}
