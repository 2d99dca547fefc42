//! Edits of `mounts.d/VOLUME.toml` that keep its comments.

use std::path::Path;

use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, value};

use super::{
    Activity, Adoption, ConfigError, EditLock, Paths, SourceEntry, TargetEntry, TargetName, VolumeFile, VolumeName,
    atomic,
};

/// Makes the file of a master volume; an existing one is left as it is.
///
/// # Errors
/// When an existing file cannot be understood, or the new one cannot be written.
pub fn create_volume_file(lock: &EditLock, paths: &Paths, volume: &VolumeName) -> Result<(), ConfigError> {
    let file = paths.volume_file(volume);
    match atomic::read_trusted(&file)? {
        Some(bytes) => VolumeFile::parse(&file, &bytes).map(|_| ()),
        None => lock.replace(&file, b"role = \"master\"\n"),
    }
}

/// Removes the file of `volume`; a missing one is fine.
///
/// # Errors
/// When the system refuses.
pub fn remove_volume_file(lock: &EditLock, paths: &Paths, volume: &VolumeName) -> Result<(), ConfigError> {
    lock.remove(&paths.volume_file(volume))
}

/// Adds a target to the file of `volume`, making the file when it is missing.
///
/// # Errors
/// When the file cannot be understood or written, or has such a target already.
pub fn add_target(
    lock: &EditLock,
    paths: &Paths,
    volume: &VolumeName,
    target: &TargetEntry,
) -> Result<(), ConfigError> {
    create_volume_file(lock, paths, volume)?;
    edit(lock, paths, volume, |document| {
        let mut table = Table::new();
        table.insert("name", value(target.name.as_str()));
        table.insert("url", value(target.url.to_string()));
        if target.adoption == Adoption::Allow {
            table.insert("adopt", value(true));
        }
        if let Some(period) = target.period {
            table.insert("period", value(i64::from(period.get())));
        }
        if let Some(delay) = target.delay {
            table.insert("delay", value(delay.to_string()));
        }
        let targets = document.entry("target").or_insert_with(|| Item::ArrayOfTables(ArrayOfTables::new()));
        match targets.as_array_of_tables_mut() {
            Some(tables) => tables.push(table),
            None => return Outcome::NotTables,
        }
        Outcome::Changed
    })
}

/// Writes whether a target is being sent to.
///
/// # Errors
/// When the file cannot be understood or written, or has no such target.
pub fn pause_target(
    lock: &EditLock,
    paths: &Paths,
    volume: &VolumeName,
    target: &TargetName,
    activity: Activity,
) -> Result<(), ConfigError> {
    edit(lock, paths, volume, |document| {
        let Some(tables) = document.get_mut("target").and_then(Item::as_array_of_tables_mut) else {
            return Outcome::NotTables;
        };
        let named = |table: &&mut Table| table.get("name").and_then(Item::as_str) == Some(target.as_str());
        match (tables.iter_mut().find(named), activity) {
            (None, _) => return Outcome::NotTables,
            (Some(table), Activity::Paused) => drop(table.insert("paused", value(true))),
            (Some(table), Activity::Running) => drop(table.remove("paused")),
        }
        Outcome::Changed
    })
}

/// Writes who may write the copy `volume` and where it lies; `None` takes that out.
///
/// # Errors
/// When the file cannot be understood or written.
pub fn set_source(
    lock: &EditLock,
    paths: &Paths,
    volume: &VolumeName,
    source: Option<&SourceEntry>,
) -> Result<(), ConfigError> {
    edit(lock, paths, volume, |document| {
        match source {
            None => drop(document.remove("source")),
            Some(source) => {
                let mut table = Table::new();
                table.insert("host", value(source.host.as_str()));
                table.insert("dir", value(source.dir.display().to_string()));
                if source.adoption == Adoption::Allow {
                    table.insert("adopt", value(true));
                }
                if let Some(trust) = source.trust {
                    table.insert("trust", value(trust.word()));
                }
                document.insert("source", Item::Table(table));
            }
        }
        Outcome::Changed
    })
}

/// The copy `volume` was promoted: its source is a former one.
///
/// # Errors
/// When the file cannot be understood or written.
pub fn retire_source(lock: &EditLock, paths: &Paths, volume: &VolumeName, host: &str) -> Result<(), ConfigError> {
    edit(lock, paths, volume, |document| {
        document.remove("source");
        document.insert("former_source", value(host));
        Outcome::Changed
    })
}

/// Takes a target out of the file of `volume`.
///
/// # Errors
/// When the file cannot be understood or written, or has no such target.
pub fn remove_target(
    lock: &EditLock,
    paths: &Paths,
    volume: &VolumeName,
    target: &TargetName,
) -> Result<(), ConfigError> {
    edit(lock, paths, volume, |document| {
        let Some(tables) = document.get_mut("target").and_then(Item::as_array_of_tables_mut) else {
            return Outcome::NotTables;
        };
        let before = tables.len();
        tables.retain(|table| table.get("name").and_then(Item::as_str) != Some(target.as_str()));
        if tables.len() < before { Outcome::Changed } else { Outcome::NotTables }
    })
}

enum Outcome {
    Changed,
    /// The key is missing or written as an inline array, which is left to the operator's editor.
    NotTables,
}

fn edit(
    lock: &EditLock,
    paths: &Paths,
    volume: &VolumeName,
    change: impl FnOnce(&mut DocumentMut) -> Outcome,
) -> Result<(), ConfigError> {
    let file = paths.volume_file(volume);
    let bytes = atomic::read_trusted(&file)?.unwrap_or_default();
    VolumeFile::parse(&file, &bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let mut document: DocumentMut =
        text.parse().map_err(|e: toml_edit::TomlError| conflict(&file, e.message(), "correct the file"))?;
    match change(&mut document) {
        Outcome::NotTables => return Err(conflict(&file, "no such [[target]] is there", "edit the file by hand")),
        Outcome::Changed => {}
    }
    let text = document.to_string();
    // What would not be read back is never written: it also finds a second target of the same name.
    VolumeFile::parse(&file, text.as_bytes())?;
    lock.replace(&file, text.as_bytes())
}

fn conflict(file: &Path, problem: &str, remedy: &str) -> ConfigError {
    ConfigError::Conflict { file: file.to_owned(), problem: problem.to_owned(), remedy: remedy.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(name: &str) -> TargetEntry {
        TargetEntry::new(TargetName::new(name).unwrap(), format!("local:/t/{name}").parse().unwrap())
    }

    #[test]
    fn comments_stay() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(Some(dir.path().to_owned()));
        let volume = VolumeName::new("data").unwrap();
        let lock = EditLock::take(&paths).unwrap();
        let text =
            "# ours\nrole = \"master\"  # since May\n\n# the cellar\n[[target]]\nname = \"a\"\nurl = \"local:/a\"\n";
        atomic::replace(&paths.volume_file(&volume), text.as_bytes()).unwrap();

        add_target(&lock, &paths, &volume, &target("b")).unwrap();
        let after = std::fs::read_to_string(paths.volume_file(&volume)).unwrap();
        assert!(after.starts_with(text), "{after}");
        assert_eq!(VolumeFile::load(&paths, &volume).unwrap().targets.len(), 2);

        assert!(add_target(&lock, &paths, &volume, &target("b")).is_err());
        let (one, active) = (TargetName::new("a").unwrap(), |name: &str| {
            let file = VolumeFile::load(&paths, &volume).unwrap();
            file.target(&TargetName::new(name).unwrap()).unwrap().activity
        });
        pause_target(&lock, &paths, &volume, &one, Activity::Paused).unwrap();
        assert_eq!((active("a"), active("b")), (Activity::Paused, Activity::Running));
        pause_target(&lock, &paths, &volume, &one, Activity::Running).unwrap();
        assert_eq!(std::fs::read_to_string(paths.volume_file(&volume)).unwrap(), after);
        remove_target(&lock, &paths, &volume, &TargetName::new("b").unwrap()).unwrap();
        assert_eq!(std::fs::read_to_string(paths.volume_file(&volume)).unwrap(), text);
        assert!(remove_target(&lock, &paths, &volume, &TargetName::new("b").unwrap()).is_err());
    }

    #[test]
    fn a_missing_file_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(Some(dir.path().to_owned()));
        let volume = VolumeName::new("data").unwrap();
        let lock = EditLock::take(&paths).unwrap();
        add_target(&lock, &paths, &volume, &target("b")).unwrap();
        let loaded = VolumeFile::load(&paths, &volume).unwrap();
        assert_eq!(loaded.targets, [target("b")]);
    }
}
