//! The answer to `verify`.

use serde::{Deserialize, Serialize};

use super::tid_text;
use crate::base::Tid;
use crate::config::{TargetName, VolumeName};

/// How a verification stands, or how it ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VerifyReply {
    /// Which volume.
    pub volume: VolumeName,
    /// Which target.
    pub target: TargetName,
    /// Change up to which the first object was compared.
    #[serde(with = "tid_text")]
    pub from_tid: Tid,
    /// Change up to which the last object was compared.
    #[serde(with = "tid_text")]
    pub upto_tid: Tid,
    /// Objects compared.
    pub objects: u64,
    /// Bytes of content compared.
    pub bytes: u64,
    /// The directory that is read, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    /// Differences found.
    pub found: u64,
    /// How many of them are left: none when all were mended.
    pub left: u64,
    /// Objects that nothing can be said of: whenever they were looked at, their state was still on its way.
    pub unsettled: u64,
    /// Objects of the source that could not be read.
    pub unreadable: u64,
    /// The first differences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<DifferenceRow>,
}

/// One difference.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DifferenceRow {
    /// Where, relative to the volume's root, which is `.`; bytes that are no text are escaped.
    pub path: String,
    /// What: missing, extra, replaced, type, content, holes, size, mode, owner, mtime, link-text, device, xattr or flags.
    pub what: String,
    /// First byte that differs, for content and holes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// Name of the xattr, for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xattr: Option<String>,
}
