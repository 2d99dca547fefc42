//! Orphans: what may be asked of them, and the answer.

use serde::{Deserialize, Serialize};

/// What becomes of orphans.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrphanVerb {
    /// They are told.
    Scan,
    /// They are moved to `.dtfs/NAME` of the target.
    Move(String),
    /// They are removed.
    Delete,
}

/// What a target says of its orphans.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OrphansReply {
    /// Orphans that were looked at.
    pub count: u64,
    /// Bytes in them; of a directory its own.
    pub bytes: u64,
    /// Those that could not be moved or removed.
    pub failed: u64,
    /// Why the first of these could not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Orphans that are there now.
    pub left: u64,
    /// The first of those that were looked at.
    pub orphans: Vec<OrphanRow>,
}

/// One orphan.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OrphanRow {
    /// Where it was, relative to the target's root; bytes that are no text are escaped.
    pub path: String,
    /// Whether it is a directory, with what is in it.
    pub is_dir: bool,
    /// Size in bytes.
    pub size: u64,
    /// When it was set aside, RFC 3339.
    pub since: String,
}
