//! The options of one entry in `dtfs_mounts`.

use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::escape::{escape, unescape};
use super::{NameProblem, VolumeName, nearest};

/// Whether reads leave a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessTimes {
    /// `norepatime`: no; an access time that moved is recorded once, when the file is closed.
    #[default]
    NoRepAtime,
    /// `atime`: every access time is recorded.
    Atime,
}

/// What to do about files that somebody holds open below the path at mount.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OpenFiles {
    /// Refuse the mount when one is open for writing: its writes would never be seen.
    #[default]
    Refuse,
    /// `allow-open`: mount all the same and compare these files until they are closed.
    Allow,
}

/// What to do about other filesystems that are mounted below the path.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Submounts {
    /// `submounts=refuse`: refuse the mount and name them, because it would hide them.
    #[default]
    Refuse,
    /// `submounts=ignore`: mount over them. The volume holds the directories that they cover.
    Ignore,
}

/// When programs' writes are recorded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Writes {
    /// `writes=through`: with each write(2), in the order in which they were made.
    #[default]
    Through,
    /// `writes=back`: when the page cache is written back, at the latest at fsync or close.
    Back,
}

/// The options of one entry, as far as they are written.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MountOptions {
    /// `volume=NAME`; without it the volume is called after the last component of the path.
    pub volume: Option<VolumeName>,
    /// `atime` or `norepatime`.
    pub access_times: AccessTimes,
    /// `allow-open`.
    pub open_files: OpenFiles,
    /// `submounts=refuse` or `submounts=ignore`.
    pub submounts: Submounts,
    /// `writes=through` or `writes=back`.
    pub writes: Writes,
    /// `store=DIR`: the journal lies there and not below dtfs's state directory.
    pub store: Option<PathBuf>,
}

/// An option that is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionProblem {
    /// A word nobody knows.
    #[error("unknown option \"{option}\"")]
    Unknown {
        /// The word.
        option: String,
        /// The nearest known option.
        suggestion: Option<&'static str>,
    },
    /// The same option twice, or two that exclude each other.
    #[error("option \"{0}\" contradicts or repeats an earlier one")]
    Repeated(String),
    /// A value that its option does not take.
    #[error("option \"{option}\": {problem}")]
    Value {
        /// The option as written.
        option: String,
        /// What is wrong with its value.
        problem: String,
    },
}

const KNOWN: [&str; 7] = ["volume=", "atime", "norepatime", "allow-open", "submounts=", "writes=", "store="];

impl OptionProblem {
    /// What to do next.
    pub fn remedy(&self) -> String {
        match self {
            OptionProblem::Unknown { suggestion: Some(word), .. } => format!("did you mean \"{word}\"?"),
            OptionProblem::Unknown { suggestion: None, .. } => {
                "known options: volume=NAME, atime, norepatime, allow-open, submounts=refuse|ignore, writes=through|back, \
                 store=DIR"
                    .to_owned()
            }
            OptionProblem::Repeated(_) => "keep one of them".to_owned(),
            OptionProblem::Value { .. } => "correct the value or remove the option".to_owned(),
        }
    }

    fn value(option: &str, problem: impl fmt::Display) -> OptionProblem {
        OptionProblem::Value { option: option.to_owned(), problem: problem.to_string() }
    }
}

impl FromStr for MountOptions {
    type Err = OptionProblem;

    /// Reads options separated by commas; empty text means none.
    fn from_str(text: &str) -> Result<MountOptions, OptionProblem> {
        let mut options = MountOptions::default();
        let mut seen: Vec<&str> = Vec::new();
        for option in text.split(',').filter(|o| !o.is_empty()) {
            let (key, value) = match option.split_once('=') {
                Some((key, value)) => (key, Some(value)),
                None => (option, None),
            };
            let family = if key == "norepatime" { "atime" } else { key };
            if seen.contains(&family) {
                return Err(OptionProblem::Repeated(option.to_owned()));
            }
            seen.push(family);
            options.set(option, key, value)?;
        }
        Ok(options)
    }
}

impl MountOptions {
    fn set(&mut self, option: &str, key: &str, value: Option<&str>) -> Result<(), OptionProblem> {
        match (key, value) {
            ("atime", None) => self.access_times = AccessTimes::Atime,
            ("norepatime", None) => self.access_times = AccessTimes::NoRepAtime,
            ("allow-open", None) => self.open_files = OpenFiles::Allow,
            ("volume", Some(name)) => {
                let name = VolumeName::new(name).map_err(|e: NameProblem| OptionProblem::value(option, e))?;
                self.volume = Some(name);
            }
            ("submounts", Some("refuse")) => self.submounts = Submounts::Refuse,
            ("submounts", Some("ignore")) => self.submounts = Submounts::Ignore,
            ("submounts", Some(_)) => return Err(OptionProblem::value(option, "it takes refuse or ignore")),
            ("writes", Some("through")) => self.writes = Writes::Through,
            ("writes", Some("back")) => self.writes = Writes::Back,
            ("writes", Some(_)) => return Err(OptionProblem::value(option, "it takes through or back")),
            ("store", Some(dir)) => self.store = Some(store_dir(option, dir)?),
            ("volume" | "store" | "submounts" | "writes", None) => {
                return Err(OptionProblem::value(option, "it needs \"=\" and a value"));
            }
            ("atime" | "norepatime" | "allow-open", Some(_)) => {
                return Err(OptionProblem::value(option, "it takes no value"));
            }
            _ => {
                let suggestion = nearest(key, KNOWN).or_else(|| nearest(&format!("{key}="), KNOWN));
                return Err(OptionProblem::Unknown { option: option.to_owned(), suggestion });
            }
        }
        Ok(())
    }
}

fn store_dir(option: &str, text: &str) -> Result<PathBuf, OptionProblem> {
    let bytes = unescape(text.as_bytes()).map_err(|_| OptionProblem::value(option, "a broken \\ooo escape"))?;
    let dir = String::from_utf8(bytes).map_err(|_| OptionProblem::value(option, "the path is not UTF-8"))?;
    let dir = Path::new(&dir);
    match dir.is_absolute() && !dir.components().any(|part| part == Component::ParentDir) {
        true => Ok(dir.components().collect()),
        false => Err(OptionProblem::value(option, "the path must be absolute and without \"..\"")),
    }
}

impl fmt::Display for MountOptions {
    /// The form that is written to the file; always names the choice about access times.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.access_times {
            AccessTimes::Atime => "atime",
            AccessTimes::NoRepAtime => "norepatime",
        })?;
        if let Some(volume) = &self.volume {
            write!(f, ",volume={volume}")?;
        }
        if self.open_files == OpenFiles::Allow {
            f.write_str(",allow-open")?;
        }
        if self.submounts == Submounts::Ignore {
            f.write_str(",submounts=ignore")?;
        }
        if self.writes == Writes::Back {
            f.write_str(",writes=back")?;
        }
        match &self.store {
            Some(store) => write!(f, ",store={}", escape(&store.to_string_lossy())),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips() {
        let text = "atime,volume=data,allow-open,submounts=ignore,writes=back,store=/x\\040y\\054z";
        let options: MountOptions = text.parse().unwrap();
        assert_eq!(options.store.as_deref(), Some(Path::new("/x y,z")));
        assert_eq!(options.to_string(), text);
        assert_eq!("".parse(), Ok(MountOptions::default()));
    }

    #[test]
    fn an_unknown_option_names_the_nearest() {
        let problem = "norepatme".parse::<MountOptions>().unwrap_err();
        assert_eq!(problem.remedy(), "did you mean \"norepatime\"?");
        let problem = "volme=x".parse::<MountOptions>().unwrap_err();
        assert_eq!(problem.remedy(), "did you mean \"volume=\"?");
    }

    #[test]
    fn contradictions_and_bad_values() {
        assert!(matches!("atime,norepatime".parse::<MountOptions>(), Err(OptionProblem::Repeated(_))));
        for bad in [
            "volume",
            "volume=",
            "volume=a/b",
            "store=x",
            "store=/a/../b",
            "atime=yes",
            "submounts",
            "submounts=no",
            "writes",
            "writes=no",
        ] {
            assert!(matches!(bad.parse::<MountOptions>(), Err(OptionProblem::Value { .. })), "{bad}");
        }
    }
}
