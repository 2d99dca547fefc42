//! A copy that becomes a master, and the reverse.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::tid_text;
use crate::base::Tid;
use crate::config::VolumeName;

/// What `promote` is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Promotion {
    /// The directory of the copy, or what `define source` calls it.
    pub dir: PathBuf,
    /// The volume's name; `None` is the last component of the directory.
    pub name: Option<VolumeName>,
    /// Give up what was received behind this TID.
    pub at: Option<Tid>,
    /// Also a copy that is converging.
    pub even_converging: bool,
}

/// What becomes of versions that only this copy has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OwnVersions {
    /// They are copied to `.dtfs/fork-EPOCH` before they are overwritten.
    Keep,
    /// They are given up.
    Discard,
}

/// What `demote` did.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Demoted {
    /// The directory, which is a copy now.
    pub dir: PathBuf,
    /// The volume, for `define target` at the new source.
    pub shared_uuid: String,
    /// The last TID that this copy shares with the history it will follow.
    #[serde(with = "tid_text")]
    pub shared: Tid,
    /// The last TID given here.
    #[serde(with = "tid_text")]
    pub own: Tid,
    /// The changes that only this copy has, oldest first, as `dtfs log` shows them; no more than a thousand.
    pub only_here: Vec<super::LogEntry>,
    /// Objects that are asked for again.
    pub differing: u64,
    /// Where this copy's versions of them are, and how many.
    pub kept: Option<(PathBuf, u64)>,
}
