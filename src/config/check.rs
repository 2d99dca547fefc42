//! The checks that a directory passes before it becomes a volume, a store or a target.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::refusal::Relation;
use super::{MountEntry, MountsFile, Paths, Refusal, SourceEntry, TargetEntry, VolumeFile, VolumeName};

/// Filesystems that show the kernel's state and hold no files of users.
const PSEUDO: [&str; 21] = [
    "proc",
    "sysfs",
    "devtmpfs",
    "devpts",
    "cgroup",
    "cgroup2",
    "debugfs",
    "tracefs",
    "securityfs",
    "pstore",
    "bpf",
    "configfs",
    "selinuxfs",
    "efivarfs",
    "mqueue",
    "hugetlbfs",
    "fusectl",
    "rpc_pipefs",
    "binfmt_misc",
    "autofs",
    "nsfs",
];

/// The type of our own mounts in the kernel's table.
const OUR_TYPE: &str = "fuse.dtfs";

/// Checks a directory that shall become a new volume, and returns it without symlinks.
///
/// # Errors
/// The first rule that it breaks. Nothing is changed by the check.
pub fn check_volume_dir(paths: &Paths, dir: &Path, mounts: &MountsFile) -> Result<PathBuf, Refusal> {
    let dir = existing_dir(dir)?;
    check_place(paths, &dir)?;
    check_against_volumes(&dir, mounts, None)?;
    check_against_targets(paths, &dir, None)?;
    Ok(dir)
}

/// Checks an entry of the file again before it is mounted, and returns its directory without symlinks. The same rules
/// as [`check_volume_dir`], with the entry's store; its own line is no conflict.
///
/// # Errors
/// The first rule that it breaks.
pub fn check_entry(paths: &Paths, entry: &MountEntry, mounts: &MountsFile) -> Result<PathBuf, Refusal> {
    let dir = match hidden_by_dead(&entry.path) {
        Some(dir) => dir,
        None => existing_dir(&entry.path)?,
    };
    check_place(paths, &dir)?;
    check_against_volumes(&dir, mounts, Some(entry))?;
    check_against_targets(paths, &dir, None)?;
    if let Some(store) = &entry.options.store {
        check_store_dir(store, mounts)?;
    }
    Ok(dir)
}

/// Checks an entry that is mounted now: how it lies to the others. What its mount hides was checked when it was mounted.
///
/// # Errors
/// The first rule that it breaks.
pub fn check_mounted_entry(paths: &Paths, entry: &MountEntry, mounts: &MountsFile) -> Result<(), Refusal> {
    let dir = resolved(&entry.path)?;
    check_against_volumes(&dir, mounts, Some(entry))?;
    check_against_targets(paths, &dir, None)?;
    match &entry.options.store {
        Some(store) => check_store_dir(store, mounts).map(|_| ()),
        None => Ok(()),
    }
}

/// Checks `store=DIR`: a journal never lies inside a volume, nor a volume inside a journal. The directory may be
/// missing; it is returned without symlinks as far as it exists.
///
/// # Errors
/// The first rule that it breaks.
pub fn check_store_dir(store: &Path, mounts: &MountsFile) -> Result<PathBuf, Refusal> {
    let store = resolved(store)?;
    refuse_root(&store)?;
    for entry in mounts.entries() {
        refuse_overlap(&store, &resolved(&entry.path)?, &entry.volume)?;
    }
    Ok(store)
}

/// Checks the directory of a `local:` target of this host. It may be missing; it is returned without symlinks as far
/// as it exists. Whether it is empty is for the receiving end to see.
///
/// # Errors
/// The first rule that it breaks.
pub fn check_target_dir(paths: &Paths, dir: &Path, mounts: &MountsFile) -> Result<PathBuf, Refusal> {
    check_replica(paths, dir, mounts, None)
}

/// Checks the directory of a `[source]` again: the same rules as [`check_target_dir`], where it is no conflict itself.
///
/// # Errors
/// The first rule that it breaks.
pub fn check_source_entry(
    paths: &Paths,
    volume: &VolumeName,
    source: &SourceEntry,
    mounts: &MountsFile,
) -> Result<(), Refusal> {
    check_replica(paths, &source.dir, mounts, Some(Own::Source(volume))).map(drop)
}

/// Checks a target of a volume's file again before it is used: the same rules as [`check_target_dir`], where the
/// target itself is no conflict.
///
/// # Errors
/// The first rule that it breaks.
pub fn check_target_entry(
    paths: &Paths,
    volume: &VolumeName,
    target: &TargetEntry,
    mounts: &MountsFile,
) -> Result<(), Refusal> {
    match target.url.local_dir() {
        Some(dir) => check_replica(paths, dir, mounts, Some(Own::Target(volume, target))).map(drop),
        // The other host checks what lies there.
        None => Ok(()),
    }
}

/// What is being checked, and so no conflict.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Own<'a> {
    Target(&'a VolumeName, &'a TargetEntry),
    Source(&'a VolumeName),
}

fn check_replica(paths: &Paths, dir: &Path, mounts: &MountsFile, own: Option<Own<'_>>) -> Result<PathBuf, Refusal> {
    let dir = resolved(dir)?;
    match fs::metadata(&dir) {
        Ok(meta) if !meta.is_dir() => return Err(Refusal::NotDirectory(dir)),
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(Refusal::Unreadable { path: dir, source }),
    }
    check_place(paths, &dir)?;
    for entry in mounts.entries() {
        refuse_overlap(&dir, &resolved(&entry.path)?, &entry.volume)?;
        if let Some(store) = &entry.options.store {
            refuse_overlap(&dir, &resolved(store)?, &entry.volume)?;
        }
    }
    check_against_targets(paths, &dir, own)?;
    Ok(dir)
}

/// The path without symlinks, when the mount of a daemon that is gone lies there and answers nothing. What it hides was
/// checked when it was mounted.
fn hidden_by_dead(path: &Path) -> Option<PathBuf> {
    let dead = crate::sys::is_dead(path);
    let (parent, name) = (path.parent()?, path.file_name()?);
    fs::canonicalize(parent).ok().filter(|_| dead).map(|parent| parent.join(name))
}

fn existing_dir(path: &Path) -> Result<PathBuf, Refusal> {
    if !path.is_absolute() {
        return Err(Refusal::NotAbsolute(path.to_owned()));
    }
    let unreadable = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => Refusal::Missing(path.to_owned()),
        io::ErrorKind::NotADirectory => Refusal::NotDirectory(path.to_owned()),
        _ => Refusal::Unreadable { path: path.to_owned(), source },
    };
    let real = fs::canonicalize(path).map_err(unreadable)?;
    let meta = fs::metadata(&real).map_err(unreadable)?;
    match (meta.is_dir(), real.to_str()) {
        (false, _) => Err(Refusal::NotDirectory(path.to_owned())),
        (true, None) => Err(Refusal::NotUtf8(real)),
        (true, Some(_)) => Ok(real),
    }
}

/// For paths that may be missing in part: what `..` leads to is then not known.
fn check_spelling(path: &Path) -> Result<(), Refusal> {
    if path.to_str().is_none() {
        return Err(Refusal::NotUtf8(path.to_owned()));
    }
    match path.is_absolute() && !path.components().any(|part| part == Component::ParentDir) {
        true => Ok(()),
        false => Err(Refusal::NotAbsolute(path.to_owned())),
    }
}

/// The path with the symlinks of its existing part followed; a dead mount on the way is taken by its spelling.
fn resolved(path: &Path) -> Result<PathBuf, Refusal> {
    check_spelling(path)?;
    let mut missing = Vec::new();
    let mut existing = path;
    loop {
        if let Ok(real) = fs::canonicalize(existing) {
            return Ok(missing.iter().rev().fold(real, |real, name| real.join(name)));
        }
        match (existing.parent(), existing.file_name()) {
            (Some(parent), Some(name)) => {
                missing.push(name);
                existing = parent;
            }
            _ => return Ok(path.to_owned()),
        }
    }
}

/// What no volume and no target may be, wherever the others are.
fn check_place(paths: &Paths, dir: &Path) -> Result<(), Refusal> {
    refuse_root(dir)?;
    for own in paths.own_dirs() {
        let own = resolved(&own)?;
        if let Some(relation) = relation(dir, &own) {
            return Err(Refusal::OwnState { path: dir.to_owned(), relation, own });
        }
    }
    match filesystem_at(dir) {
        Some((mount_point, kind)) if kind == OUR_TYPE && !(mount_point == dir && hidden_by_dead(dir).is_some()) => {
            Err(Refusal::MountedAlready { path: dir.to_owned(), mount_point })
        }
        Some((mount_point, kind)) if PSEUDO.contains(&kind.as_str()) || mount_point == Path::new("/dev") => {
            Err(Refusal::PseudoFileSystem { path: dir.to_owned(), kind })
        }
        _ => Ok(()),
    }
}

fn refuse_root(dir: &Path) -> Result<(), Refusal> {
    match dir == Path::new("/") {
        true => Err(Refusal::Root { candidates: root_candidates() }),
        false => Ok(()),
    }
}

/// The directories right below `/` that are neither pseudo filesystems nor the system itself.
fn root_candidates() -> Vec<PathBuf> {
    let system = ["bin", "boot", "dev", "etc", "lib", "lost+found", "proc", "run", "sbin", "sys", "tmp", "usr", "var"];
    let Ok(listing) = fs::read_dir("/") else { return Vec::new() };
    let mut found: Vec<PathBuf> = listing
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter(|entry| !system.iter().any(|name| entry.file_name() == *name))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

fn check_against_volumes(dir: &Path, mounts: &MountsFile, own: Option<&MountEntry>) -> Result<(), Refusal> {
    for entry in mounts.entries() {
        let is_own = own.is_some_and(|own| own.path == entry.path);
        if !is_own {
            let other = resolved(&entry.path)?;
            if dir == other {
                return Err(Refusal::Duplicate { path: other, volume: entry.volume.clone() });
            }
            refuse_overlap(dir, &other, &entry.volume)?;
        }
        if let Some(store) = &entry.options.store {
            refuse_overlap(dir, &resolved(store)?, &entry.volume)?;
        }
    }
    Ok(())
}

/// `own` is no conflict. A volume file that cannot be read does not stop the check: its volume does not run either.
fn check_against_targets(paths: &Paths, dir: &Path, own: Option<Own<'_>>) -> Result<(), Refusal> {
    for named in VolumeFile::load_all(paths)? {
        let Ok(file) = named.file else { continue };
        if let Some(source) = file.source.as_ref().filter(|_| own != Some(Own::Source(&named.volume))) {
            refuse_overlap(dir, &resolved(&source.dir)?, &named.volume)?;
        }
        for target in file.targets.iter().filter(|target| own != Some(Own::Target(&named.volume, target))) {
            if let Some(other) = target.url.local_dir() {
                refuse_overlap(dir, &resolved(other)?, &named.volume)?;
            }
        }
    }
    Ok(())
}

fn refuse_overlap(path: &Path, other: &Path, volume: &VolumeName) -> Result<(), Refusal> {
    match relation(path, other) {
        None => Ok(()),
        Some(relation) => {
            Err(Refusal::Nested { path: path.to_owned(), relation, other: other.to_owned(), volume: volume.clone() })
        }
    }
}

fn relation(path: &Path, other: &Path) -> Option<Relation> {
    match (path.starts_with(other), other.starts_with(path)) {
        (true, true) => Some(Relation::Is),
        (true, false) => Some(Relation::LiesIn),
        (false, true) => Some(Relation::Holds),
        (false, false) => None,
    }
}

/// Mount point and type of the filesystem that `path` lies on, by the kernel's table; `None` when it cannot be read.
fn filesystem_at(path: &Path) -> Option<(PathBuf, String)> {
    let mounts = crate::sys::mounts().ok()?;
    // The last of several mounts on one point is the visible one.
    mounts
        .into_iter()
        .filter(|mount| path.starts_with(&mount.point))
        .max_by_key(|mount| mount.point.components().count())
        .map(|mount| (mount.point, mount.kind))
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
