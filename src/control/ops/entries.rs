//! The entries of `dtfs_mounts`: listed, added, removed, mounted and unmounted.

use std::path::Path;

use super::which::find_entry;
use super::{Told, Which, tell, unexpected};
use crate::config::{
    EditLock, Edits, MountEntry, MountOptions, MountsFile, OpenFiles, Paths, check_entry, check_store_dir,
    check_volume_dir,
};
use crate::control::{
    Client, ExitCode, Failure, MountReply, MountVerdict, MountsReply, Problem, Reply, Request, Selection, Verdict,
    VolumeState, not_an_entry, try_connect,
};

/// Whether a mount is done or only tried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rehearsal {
    /// `--dry-run`: say what would happen.
    DryRun,
    /// Do it.
    ForReal,
}

/// How entries are mounted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MountHow {
    /// Done or tried out.
    pub rehearsal: Rehearsal,
    /// Whether files that are open for writing below the path stop the mount.
    pub open_files: OpenFiles,
}

/// How entries are unmounted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Detach {
    /// Busy while somebody uses the mount.
    WhenUnused,
    /// `--lazy`: hidden now, ended when the last user is gone.
    Lazy,
}

/// The entries with their states, as far as a daemon can tell.
///
/// # Errors
/// When the file cannot be read. Bad lines are in the answer.
pub fn list_entries(paths: &Paths) -> Result<MountsReply, Failure> {
    let Some(mut client) = try_connect(paths)? else {
        return Ok(MountsReply::from_file(&MountsFile::load(paths)?, |_| None));
    };
    match client.call(&Request::MountsList)? {
        Reply::Mounts(mounts) => Ok(mounts),
        other => Err(unexpected(&other)),
    }
}

/// Adds `dir` to the file after all checks, and tells the daemon. Nothing is mounted.
///
/// # Errors
/// Code 2 or 7 when the directory or the options are refused; nothing is changed then.
pub fn add_entry(paths: &Paths, dir: &Path, options: &MountOptions) -> Result<(MountEntry, Told), Failure> {
    let lock = EditLock::take(paths)?;
    let entry = write_entry(&lock, paths, dir, options)?;
    drop(lock);
    Ok((entry, tell(paths, &Request::Reload)?))
}

/// The part of [`add_entry`] that edits the file.
pub(super) fn write_entry(
    lock: &EditLock,
    paths: &Paths,
    dir: &Path,
    options: &MountOptions,
) -> Result<MountEntry, Failure> {
    let mut mounts = MountsFile::load(paths)?;
    let dir = check_volume_dir(paths, &absolute(dir), &mounts)?;
    let entry = mounts.add(&dir, options)?.clone();
    if let Some(store) = &options.store {
        check_store_dir(store, &mounts)?;
    }
    mounts.save(lock)?;
    Ok(entry)
}

/// A relative path is taken from the working directory.
fn absolute(path: &Path) -> std::path::PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Takes the entry of `dir` out of the file, and tells the daemon. Files, journal and targets are not touched.
///
/// # Errors
/// Code 2 when there is no such entry, code 5 while it is mounted.
pub fn remove_entry(paths: &Paths, dir: &Path) -> Result<(MountEntry, Told), Failure> {
    let lock = EditLock::take(paths)?;
    let mut mounts = MountsFile::load(paths)?;
    let path = find_entry(&mounts, dir).map(|entry| entry.path.clone()).ok_or_else(|| not_an_entry(&mounts, dir))?;
    refuse_mounted(paths, &path)?;
    let entry = mounts.remove(&path).ok_or_else(|| not_an_entry(&mounts, dir))?;
    mounts.save(&lock)?;
    drop(lock);
    Ok((entry, tell(paths, &Request::Reload)?))
}

/// Busy while the daemon has `path` mounted.
pub(super) fn refuse_mounted(paths: &Paths, path: &Path) -> Result<(), Failure> {
    let listed = list_entries(paths)?;
    // A failed volume may still be mounted: its callers get errors until somebody unmounts it.
    let in_use = |state: &VolumeState| matches!(state, VolumeState::Mounted | VolumeState::Failed { .. });
    let mounted = listed.mounts.iter().any(|row| row.path == path && row.state.as_ref().is_some_and(in_use));
    match mounted {
        true => Err(Failure::new(ExitCode::Busy, format!("{} is mounted", path.display()))
            .with_remedy(format!("unmount it first: dtfs mounts unmount {}", path.display()))),
        false => Ok(()),
    }
}

/// Mounts entries. A dry run also works without a daemon.
///
/// # Errors
/// Code 3 without a daemon, and what it answers. What became of each entry is in the answer.
pub fn mount(paths: &Paths, which: &Which, how: MountHow) -> Result<MountReply, Failure> {
    let mounts = MountsFile::load(paths)?;
    let which = which.select(&mounts);
    let dry_run = how.rehearsal == Rehearsal::DryRun || paths.edits() == Edits::Rehearsed;
    let mut client = match try_connect(paths)? {
        None if dry_run => return Ok(rehearse(paths, &which, &mounts)),
        None => Client::connect(paths)?,
        Some(client) => client,
    };
    let allow_open = how.open_files == OpenFiles::Allow;
    verdicts(client.call(&Request::Mount { which, dry_run, allow_open })?)
}

/// Unmounts entries; the daemon stays.
///
/// # Errors
/// As [`mount`].
pub fn unmount(paths: &Paths, which: &Which, detach: Detach) -> Result<MountReply, Failure> {
    let which = which.select(&MountsFile::load(paths)?);
    let lazy = detach == Detach::Lazy;
    verdicts(Client::connect(paths)?.call(&Request::Unmount { which, lazy, dry_run: false })?)
}

fn verdicts(reply: Reply) -> Result<MountReply, Failure> {
    match reply {
        Reply::Verdicts(verdicts) => Ok(verdicts),
        other => Err(unexpected(&other)),
    }
}

/// What the checks say of each entry. Open files are only seen by the daemon, at the mount.
fn rehearse(paths: &Paths, which: &Selection, mounts: &MountsFile) -> MountReply {
    let judge = |entry: &MountEntry| match check_entry(paths, entry, mounts) {
        Ok(_) => MountVerdict::of(entry, Verdict::WouldMount),
        Err(refusal) => MountVerdict::of(entry, Verdict::NotDone(refusal.into())),
    };
    let verdicts = which.resolve(mounts).into_iter().map(|found| found.map_or_else(|verdict| *verdict, judge));
    MountReply { verdicts: verdicts.collect(), problems: mounts.errors().iter().map(Problem::from).collect() }
}
