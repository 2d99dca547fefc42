//! Where a target is.

use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::TargetName;

/// The place of a target's tree and the way there.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[non_exhaustive]
pub enum TargetUrl {
    /// `local:DIR`: a directory of this host. Absolute, without `.` and `..`.
    Local(PathBuf),
}

/// Text that is not a target's URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlProblem {
    /// Another transport.
    #[error("\"{0}\" is not understood: this version only knows local:DIR, a directory of this host")]
    Unknown(String),
    /// `local:` with a relative path or with `..` in it.
    #[error("\"{0}\" needs an absolute path without \"..\", such as local:/srv/replica")]
    NotAbsolute(String),
}

impl FromStr for TargetUrl {
    type Err = UrlProblem;

    fn from_str(text: &str) -> Result<TargetUrl, UrlProblem> {
        let shown = || text.escape_debug().to_string();
        let dir = text.strip_prefix("local:").ok_or_else(|| UrlProblem::Unknown(shown()))?;
        let dir = Path::new(dir);
        // Collecting components also drops doubled and trailing slashes.
        match dir.is_absolute() && !dir.components().any(|part| part == Component::ParentDir) {
            true => Ok(TargetUrl::Local(dir.components().collect())),
            false => Err(UrlProblem::NotAbsolute(shown())),
        }
    }
}

impl TargetUrl {
    /// What the target is called unless the operator says otherwise: for a directory its last component.
    pub fn default_name(&self) -> Option<TargetName> {
        match self {
            TargetUrl::Local(dir) => TargetName::new(dir.file_name()?.to_str()?).ok(),
        }
    }
}

impl fmt::Display for TargetUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TargetUrl::Local(dir) => f.pad(&format!("local:{}", dir.display())),
        }
    }
}

impl TryFrom<String> for TargetUrl {
    type Error = UrlProblem;

    fn try_from(text: String) -> Result<TargetUrl, UrlProblem> {
        text.parse()
    }
}

impl From<TargetUrl> for String {
    fn from(url: TargetUrl) -> String {
        url.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_local_directories() {
        assert_eq!("local:/a//b/".parse(), Ok(TargetUrl::Local("/a/b".into())));
        assert_eq!("local:/a/b".parse::<TargetUrl>().unwrap().to_string(), "local:/a/b");
        assert_eq!("local:/a/b".parse::<TargetUrl>().unwrap().default_name(), TargetName::new("b").ok());
        assert!(matches!("local:b".parse::<TargetUrl>(), Err(UrlProblem::NotAbsolute(_))));
        assert!(matches!("local:/a/../b".parse::<TargetUrl>(), Err(UrlProblem::NotAbsolute(_))));
        let ssh = "ssh://host/dir".parse::<TargetUrl>().unwrap_err().to_string();
        assert!(ssh.contains("only knows local:DIR"), "{ssh}");
    }
}
