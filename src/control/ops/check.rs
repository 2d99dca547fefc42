//! `dtfs check`: everything that the files say, without a daemon and without touching anything.

use std::path::{Path, PathBuf};

use crate::config::{
    ConfigError, MountsFile, Paths, Peers, Refusal, SourceEntry, VolumeFile, VolumeName, check_entry,
    check_mounted_entry, check_source_entry, check_target_entry,
};
use crate::control::{ExitCode, Failure, Problem};

/// What is wrong with the files of `paths`, and with the directories that they name; nothing when all is good.
///
/// # Errors
/// When a file cannot be read at all.
pub fn check(paths: &Paths) -> Result<Vec<Problem>, Failure> {
    let mounts = MountsFile::load(paths)?;
    let mut problems: Vec<Problem> = mounts.errors().iter().map(Problem::from).collect();
    for entry in mounts.entries() {
        let checked = match check_entry(paths, entry, &mounts) {
            Err(Refusal::MountedAlready { path, mount_point }) if path == mount_point => {
                check_mounted_entry(paths, entry, &mounts)
            }
            checked => checked.map(|_| ()),
        };
        if let Err(refusal) = checked {
            let message = format!("{}:{}: {refusal}", mounts.file().display(), entry.line);
            problems.push(Problem { message, remedy: Some(refusal.remedy()) });
        }
    }
    for named in VolumeFile::load_all(paths)? {
        let file = paths.volume_file(&named.volume);
        match &named.file {
            Err(error) => problems.push(error.into()),
            Ok(settings) => problems.extend(check_volume(paths, &file, &named.volume, settings, &mounts)),
        }
    }
    Ok(problems)
}

/// The files belong together: each volume file has its entry, and its targets lie where targets may.
fn check_volume(
    paths: &Paths,
    file: &Path,
    volume: &VolumeName,
    settings: &VolumeFile,
    mounts: &MountsFile,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    if let Some(source) = &settings.source {
        problems.extend(check_source(paths, file, volume, source, mounts));
    } else if mounts.find_volume(volume).is_none() {
        let message = format!("{}: no line of {} is the volume {volume}", file.display(), mounts.file().display());
        let remedy = format!("add one: dtfs mounts add PATH -o volume={volume}; or remove the file");
        problems.push(Problem { message, remedy: Some(remedy) });
    }
    for target in &settings.targets {
        if let Err(refusal) = check_target_entry(paths, volume, target, mounts) {
            let message = format!("{}: target {}: {refusal}", file.display(), target.name);
            problems.push(Problem { message, remedy: Some(refusal.remedy()) });
        }
    }
    problems
}

/// A copy that another host writes is no volume here, its host is known, and it lies where targets may.
fn check_source(
    paths: &Paths,
    file: &Path,
    volume: &VolumeName,
    source: &SourceEntry,
    mounts: &MountsFile,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut add = |what: String, remedy: String| {
        problems.push(Problem { message: format!("{}: {what}", file.display()), remedy: Some(remedy) });
    };
    if let Some(entry) = mounts.find_volume(volume) {
        let what = format!(
            "{} writes this copy, but {}:{} makes it a volume of this host",
            source.host,
            mounts.file().display(),
            entry.line
        );
        add(what, format!("dtfs forget source {volume}, or dtfs mounts remove {}", entry.path.display()));
    } else if let Err(refusal) = check_source_entry(paths, volume, source, mounts) {
        add(format!("source: {refusal}"), refusal.remedy());
    }
    match Peers::load(paths) {
        Err(error) => problems.push((&error).into()),
        Ok(peers) if peers.get(&source.host).is_none() => {
            let what = format!("the key of {} is not known: it cannot call", source.host.escape_debug());
            problems.push(Problem {
                message: format!("{}: {what}", file.display()),
                remedy: Some(format!("dtfs peer add {} KEY (there: dtfs peer show)", source.host.escape_debug())),
            });
        }
        Ok(_) => {}
    }
    problems
}

/// What is wrong with single files, by what each is called: `dtfs_mounts` or `VOLUME.toml`. The directories that
/// they name are not looked at, so that files of another host can be checked.
///
/// # Errors
/// When a file cannot be read, or its name says neither.
pub fn check_files(files: &[PathBuf]) -> Result<Vec<Problem>, Failure> {
    let mut problems = Vec::new();
    for file in files {
        let failed = |e: std::io::Error| Failure::new(ExitCode::Failed, format!("cannot read {}: {e}", file.display()));
        let bytes = std::fs::read(file).map_err(failed)?;
        match check_file(file, &bytes) {
            Ok(Some(found)) => problems.extend(found),
            Ok(None) => {
                let message = format!("{} is neither called dtfs_mounts nor VOLUME.toml", file.display());
                return Err(Failure::new(ExitCode::Usage, message).with_remedy("give it the name it has on a host"));
            }
            Err(error) => problems.push((&error).into()),
        }
    }
    Ok(problems)
}

/// `None` for a name that says nothing.
fn check_file(file: &Path, bytes: &[u8]) -> Result<Option<Vec<Problem>>, ConfigError> {
    if file.file_name().is_some_and(|name| name == "dtfs_mounts") {
        let mounts = MountsFile::parse(file, bytes);
        return Ok(Some(mounts.errors().iter().map(Problem::from).collect()));
    }
    match volume_of(file) {
        Some(_) => VolumeFile::parse(file, bytes).map(|_| Some(Vec::new())),
        None => Ok(None),
    }
}

fn volume_of(file: &Path) -> Option<VolumeName> {
    VolumeName::new(file.file_name()?.to_str()?.strip_suffix(".toml")?).ok()
}
