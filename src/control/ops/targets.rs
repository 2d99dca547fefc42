//! Targets: defined and forgotten.

use std::num::NonZeroU32;
use std::path::Path;

use super::{Told, tell};
use crate::config::{
    Activity, Adoption, Delay, EditLock, MountsFile, Paths, TargetEntry, TargetName, TargetUrl, VolumeFile, VolumeName,
    add_target, check_target_dir, nearest, pause_target, remove_target,
};
use crate::control::{Client, ExitCode, Failure, Request, try_connect};
use crate::sys::Mount;

/// A target that shall be defined.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewTarget {
    /// Where it is.
    pub url: TargetUrl,
    /// Its name; `None` takes it from the URL.
    pub name: Option<TargetName>,
    /// Whether it may take over a directory that is not empty.
    pub adoption: Adoption,
    /// How many seconds it is left alone between two deliveries.
    pub period: Option<NonZeroU32>,
    /// How long it stays behind on purpose.
    pub delay: Option<Delay>,
}

/// Writes a target to the volume's file, and tells the daemon, which starts to send.
///
/// # Errors
/// Code 2 or 7 when the directory is refused or the name is taken; nothing is changed then.
pub fn define_target(paths: &Paths, volume: &VolumeName, new: NewTarget) -> Result<(TargetEntry, Told), Failure> {
    let lock = EditLock::take(paths)?;
    let mounts = MountsFile::load(paths)?;
    let is_copy = VolumeFile::load(paths, volume)?.source.is_some();
    if mounts.find_volume(volume).is_none() && !is_copy {
        let message = format!("the volume {volume} has no entry in {}", mounts.file().display());
        return Err(Failure::new(ExitCode::Usage, message)
            .with_remedy(format!("define it first: dtfs define volume {volume} DIR")));
    }
    let entry = complete(new)?;
    refuse_taken(paths, volume, &entry)?;
    let entry = match entry.url.local_dir() {
        // Written without symlinks, so that it stays the place that was checked.
        Some(dir) => TargetEntry { url: TargetUrl::Local(check_target_dir(paths, dir, &mounts)?), ..entry },
        None => entry,
    };
    add_target(&lock, paths, volume, &entry)?;
    drop(lock);
    let told = tell(paths, &Request::DefineTarget { volume: volume.clone(), target: entry.name.clone() })?;
    Ok((entry, told))
}

fn complete(new: NewTarget) -> Result<TargetEntry, Failure> {
    let NewTarget { url, name, adoption, period, delay } = new;
    match name.or_else(|| url.default_name()) {
        Some(name) => Ok(TargetEntry { adoption, period, delay, ..TargetEntry::new(name, url) }),
        None => Err(Failure::new(ExitCode::Usage, format!("{url} gives no name for the target"))
            .with_remedy("name it with: --as NAME")),
    }
}

fn refuse_taken(paths: &Paths, volume: &VolumeName, entry: &TargetEntry) -> Result<(), Failure> {
    match VolumeFile::load(paths, volume)?.target(&entry.name) {
        None => Ok(()),
        Some(taken) => {
            let message = format!("the target {} of {volume} exists already: {}", taken.name, taken.url);
            Err(Failure::new(ExitCode::Usage, message).with_remedy("choose another name with: --as NAME"))
        }
    }
}

/// Forgets a target with its cursor; returns where it is. Its tree stays as it is.
///
/// # Errors
/// Code 2 when there is none of that name.
pub fn forget_target(paths: &Paths, volume: &VolumeName, target: &TargetName) -> Result<TargetUrl, Failure> {
    let url = need_target(paths, volume, target)?;
    if let Some(mut client) = try_connect(paths)? {
        client.call(&Request::Forget { volume: volume.clone(), target: Some(target.clone()) })?;
    }
    let lock = EditLock::take(paths)?;
    remove_target(&lock, paths, volume, target)?;
    Ok(url)
}

/// How the tree in `dir` is given to others again, when a copy's cover still keeps them out. It is not taken away by itself:
/// another source may go on with the copy, and would have to verify all of it.
pub fn covered(dir: &Path) -> Option<String> {
    let dir = dir.canonicalize().ok()?;
    let is_cover = |mount: &&Mount| mount.point == dir && mount.options.split(',').any(|option| option == "ro");
    let count = crate::sys::mounts().ok()?.iter().filter(is_cover).count();
    let often = if count > 1 { format!(", {count} times") } else { String::new() };
    let dir = dir.display();
    (count > 0).then(|| {
        format!(
            "others still find {dir} read-only, for another source to go on with it; to end that: umount {dir}{often}"
        )
    })
}

/// Stops sending to a target, or goes on. It keeps its place in the journal, also while the daemon does not run.
///
/// # Errors
/// Code 2 when there is none of that name.
pub fn set_activity(
    paths: &Paths,
    volume: &VolumeName,
    target: &TargetName,
    activity: Activity,
) -> Result<Told, Failure> {
    need_target(paths, volume, target)?;
    let lock = EditLock::take(paths)?;
    pause_target(&lock, paths, volume, target, activity)?;
    drop(lock);
    tell(paths, &Request::Reload)
}

/// What becomes of what only a target has that followed another history.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnlyThere {
    /// It is kept there, in `.dtfs/fork-EPOCH`.
    Kept,
    /// It is given up.
    GivenUp,
}

/// Lets a target that followed another history follow the volume again: its whole tree is compared.
///
/// # Errors
/// Code 2 when it is not refused for that, code 3 without a daemon.
pub fn rejoin(paths: &Paths, volume: &VolumeName, target: &TargetName, own: OnlyThere) -> Result<Told, Failure> {
    need_target(paths, volume, target)?;
    let discard = own == OnlyThere::GivenUp;
    Client::connect(paths)?.call(&Request::Rejoin { volume: volume.clone(), target: target.clone(), discard })?;
    Ok(Told::Daemon(Vec::new()))
}

fn need_target(paths: &Paths, volume: &VolumeName, target: &TargetName) -> Result<TargetUrl, Failure> {
    let file = VolumeFile::load(paths, volume)?;
    let Some(found) = file.target(target) else {
        let known: Vec<&str> = file.targets.iter().map(|t| t.name.as_str()).collect();
        let remedy = match nearest(target.as_str(), known.iter().copied()) {
            Some(name) => format!("did you mean \"{name}\"?"),
            None if known.is_empty() => "the volume has no targets".to_owned(),
            None => format!("targets of {volume}: {}", known.join(", ")),
        };
        return Err(Failure::new(ExitCode::Usage, format!("{volume} has no target {target}")).with_remedy(remedy));
    };
    Ok(found.url.clone())
}
