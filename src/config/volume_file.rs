//! `mounts.d/VOLUME.toml`: what is done with one volume.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{
    Bandwidth, ByteSize, ConfigError, Delay, Orphans, Paths, TargetName, TargetUrl, TimeSpan, Trusted, VolumeName,
    atomic, toml_text,
};
use crate::base::Rules;

/// The part this host plays for a volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Changes are made here and sent from here.
    #[default]
    Master,
}

/// Whether a target directory that already holds files may become the replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(from = "bool", into = "bool")]
pub enum Adoption {
    /// Only an empty directory, or one that is this volume's replica already.
    #[default]
    Refuse,
    /// `adopt = true`: what is there is compared and made equal; what the source does not have is moved to `.dtfs/orphans`.
    Allow,
}

impl From<bool> for Adoption {
    fn from(adopt: bool) -> Adoption {
        if adopt { Adoption::Allow } else { Adoption::Refuse }
    }
}

impl From<Adoption> for bool {
    fn from(adoption: Adoption) -> bool {
        adoption == Adoption::Allow
    }
}

/// One `[[target]]`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetEntry {
    /// Its name within the volume.
    pub name: TargetName,
    /// Where it is.
    pub url: TargetUrl,
    /// Whether it may take over a directory that is not empty.
    #[serde(default, rename = "adopt")]
    pub adoption: Adoption,
    /// How fast it may be sent to; `None` is as fast as it goes.
    #[serde(default)]
    pub bandwidth: Option<Bandwidth>,
    /// How many seconds it is left alone between two deliveries; `None` for not at all: it follows every change.
    #[serde(default)]
    pub period: Option<NonZeroU32>,
    /// What becomes of its orphans; without it they are told where it took over a tree, and removed where it did not.
    #[serde(default)]
    pub orphans: Option<Orphans>,
    /// How long orphans are kept before that; without it seven days.
    #[serde(default)]
    pub orphans_older_than: Option<TimeSpan>,
    /// How long it stays behind on purpose; `None` is not at all.
    #[serde(default)]
    pub delay: Option<Delay>,
    /// Whether it is sent to at all for now.
    #[serde(default, rename = "paused")]
    pub activity: Activity,
}

impl TargetEntry {
    /// One that follows every change as fast as it goes, and takes over nothing.
    pub fn new(name: TargetName, url: TargetUrl) -> TargetEntry {
        TargetEntry {
            name,
            url,
            adoption: Adoption::Refuse,
            bandwidth: None,
            period: None,
            orphans: None,
            orphans_older_than: None,
            delay: None,
            activity: Activity::Running,
        }
    }
}

/// `[source]`: a tree of this host that another one may write, through the daemon.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceEntry {
    /// The host, as `peers.toml` calls it.
    pub host: String,
    /// The tree. Absolute.
    pub dir: PathBuf,
    /// Whether a directory that is not empty may be taken over.
    #[serde(default, rename = "adopt")]
    pub adoption: Adoption,
    /// What the source is trusted with; `None` is what `dtfs.toml` says.
    #[serde(default)]
    pub trust: Option<Trusted>,
}

/// Whether a target is being sent to. One that is not keeps its place.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(from = "bool", into = "bool")]
pub enum Activity {
    /// It is.
    #[default]
    Running,
    /// `paused = true`: nothing is sent until it is resumed.
    Paused,
}

impl From<bool> for Activity {
    fn from(paused: bool) -> Activity {
        if paused { Activity::Paused } else { Activity::Running }
    }
}

impl From<Activity> for bool {
    fn from(activity: Activity) -> bool {
        activity == Activity::Paused
    }
}

/// What happens when a target does not follow and the journal is full.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JournalFull {
    /// The target keeps its place, and fetches again what changed meanwhile.
    #[default]
    Degrade,
    /// Programs that change something wait until the target follows.
    Block,
}

/// The whole file. A volume without a file is a master without targets.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeFile {
    /// The part this host plays.
    #[serde(default)]
    pub role: Role,
    /// Most bytes of journal to keep for slow targets; `None` is the built-in default.
    #[serde(default)]
    pub journal_cap: Option<ByteSize>,
    /// What happens when that much is kept.
    #[serde(default)]
    pub journal_full: JournalFull,
    /// How often each target is compared with the source; `None` for never.
    #[serde(default)]
    pub verify: Option<TimeSpan>,
    /// Which paths targets get: `+ PATTERN` and `- PATTERN`, the first that matches decides; see [`Rules`].
    #[serde(default, deserialize_with = "super::rules::read")]
    pub rules: Rules,
    /// For a copy of another host's volume: who writes it, and where it lies.
    #[serde(default)]
    pub source: Option<SourceEntry>,
    /// For a copy that was promoted: the host that wrote it. It may ask over tls:// and is told what became of the copy.
    #[serde(default)]
    pub former_source: Option<String>,
    /// Where changes are sent.
    #[serde(default, rename = "target")]
    pub targets: Vec<TargetEntry>,
}

/// A file of `mounts.d` and the volume that it is called after.
#[derive(Debug)]
pub struct NamedVolumeFile {
    /// The volume.
    pub volume: VolumeName,
    /// What reading the file gave.
    pub file: Result<VolumeFile, ConfigError>,
}

impl VolumeFile {
    /// Reads the file of `volume`; a missing one is the default.
    ///
    /// # Errors
    /// When it cannot be read, trusted or understood; the error names file and line.
    pub fn load(paths: &Paths, volume: &VolumeName) -> Result<VolumeFile, ConfigError> {
        let file = paths.volume_file(volume);
        match atomic::read_trusted(&file)? {
            Some(bytes) => VolumeFile::parse(&file, &bytes),
            None => Ok(VolumeFile::default()),
        }
    }

    /// Reads `bytes` as the content of `file`, which is only used in messages.
    ///
    /// # Errors
    /// As [`VolumeFile::load`].
    pub fn parse(file: &Path, bytes: &[u8]) -> Result<VolumeFile, ConfigError> {
        let otherwise = "correct the line; nothing of this volume runs until then";
        let parsed: VolumeFile = toml_text::parse(file, bytes, otherwise)?;
        parsed.refuse_twice(file)?;
        parsed.refuse_rules_of_a_copy(file)?;
        Ok(parsed)
    }

    /// Every volume that has a file, by name. Files that are not `NAME.toml` are no volumes.
    ///
    /// # Errors
    /// When the directory cannot be listed; a missing one is empty.
    pub fn load_all(paths: &Paths) -> Result<Vec<NamedVolumeFile>, ConfigError> {
        let dir = paths.volume_files_dir();
        let listing = match std::fs::read_dir(&dir) {
            Ok(listing) => listing,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(ConfigError::io(&dir, "list", e)),
        };
        let mut volumes: Vec<VolumeName> = listing
            .flatten()
            .filter_map(|entry| VolumeName::new(entry.file_name().to_str()?.strip_suffix(".toml")?).ok())
            .collect();
        volumes.sort();
        Ok(volumes
            .into_iter()
            .map(|volume| NamedVolumeFile { file: VolumeFile::load(paths, &volume), volume })
            .collect())
    }

    /// The target called `name`.
    pub fn target(&self, name: &TargetName) -> Option<&TargetEntry> {
        self.targets.iter().find(|target| target.name == *name)
    }

    /// A copy passes on what it has: rules count where changes are made.
    fn refuse_rules_of_a_copy(&self, file: &Path) -> Result<(), ConfigError> {
        match self.source.is_some() && !self.rules.is_empty() {
            true => Err(ConfigError::Conflict {
                file: file.to_owned(),
                problem: "rules are set for a copy of another host's volume".to_owned(),
                remedy: "remove the line; set them on the host where changes are made".to_owned(),
            }),
            false => Ok(()),
        }
    }

    fn refuse_twice(&self, file: &Path) -> Result<(), ConfigError> {
        for (i, target) in self.targets.iter().enumerate() {
            let twin = self.targets[..i].iter().find(|other| other.name == target.name || other.url == target.url);
            if let Some(twin) = twin {
                return Err(ConfigError::Conflict {
                    file: file.to_owned(),
                    problem: format!("targets {} and {} have the same name or place", twin.name, target.name),
                    remedy: "remove one of them, or change its name and url".to_owned(),
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "# data\nrole = \"master\"\njournal_cap = \"8G\"\n\n[[target]]\nname = \"one\"\nurl = \"local:/one\"\nadopt = true\ndelay = \"6h\"\n";

    fn parse(text: &str) -> Result<VolumeFile, ConfigError> {
        VolumeFile::parse(Path::new("data.toml"), text.as_bytes())
    }

    #[test]
    fn reads_the_whole_form() {
        let file = parse(SAMPLE).unwrap();
        assert_eq!(file.journal_cap, Some(ByteSize(8 << 30)));
        assert_eq!(file.targets[0].adoption, Adoption::Allow);
        assert_eq!(file.targets[0].delay.map(Delay::seconds), Some(6 * 3600));
        assert_eq!(parse("").unwrap(), VolumeFile::default());
    }

    #[test]
    fn reads_rules_and_names_the_line_of_one_that_is_none() {
        let file = parse("role = \"master\"\nrules = [\"+ /keep/\", \"- *.tmp\"]\n").unwrap();
        assert!(file.rules.excludes(b"a/b.tmp", false) && !file.rules.excludes(b"keep", true));
        let error = parse("role = \"master\"\nrules = [\"*.tmp\"]\n").unwrap_err();
        assert_eq!(error.line(), Some(2));
        assert!(error.to_string().contains("is not a rule"), "{error}");
    }

    #[test]
    fn rules_of_a_copy_are_refused() {
        let text = "rules = [\"- a\"]\n[source]\nhost = \"alpha\"\ndir = \"/srv/data\"\n";
        assert!(matches!(parse(text), Err(ConfigError::Conflict { .. })));
    }

    #[test]
    fn an_unknown_key_names_line_and_nearest() {
        let error = parse("role = \"master\"\njurnal_cap = \"8G\"\n").unwrap_err();
        assert_eq!(error.line(), Some(2));
        assert_eq!(error.remedy(), Some("did you mean \"journal_cap\"?"));
        let error = parse("[[target]]\nname = \"a\"\nulr = \"local:/a\"\n").unwrap_err();
        assert_eq!(error.line(), Some(3));
        assert_eq!(error.remedy(), Some("did you mean \"url\"?"));
    }

    #[test]
    fn bad_values_name_their_line() {
        let error = parse("\njournal_cap = \"many\"\n").unwrap_err();
        assert_eq!(error.line(), Some(2));
        assert!(error.to_string().contains("is not a size"), "{error}");
        let error = parse("[[target]]\nname = \"a\"\nurl = \"ftp://h/d\"\n").unwrap_err();
        assert!(error.to_string().contains("local:DIR"), "{error}");
    }

    #[test]
    fn the_same_target_twice_is_refused() {
        let twice = format!("{SAMPLE}[[target]]\nname = \"one\"\nurl = \"local:/two\"\n");
        assert!(matches!(parse(&twice), Err(ConfigError::Conflict { .. })));
    }
}
