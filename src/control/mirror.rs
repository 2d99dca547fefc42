//! Mirrors: what may be asked of them, and how they stand.

use serde::{Deserialize, Serialize};

/// What to do with the mirror of a target.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MirrorAction {
    /// Send everything.
    Full,
    /// Compare attributes, and content where size or time of modification differ; send what differs.
    Difference,
    /// Compare all content; send what differs.
    Checksum,
    /// Give it up. What it has not done keeps the target from being consistent until one is started.
    Stop,
    /// Hold it.
    Pause,
    /// Let it go on.
    Resume,
}

/// How the mirror of a target stands.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MirrorReply {
    /// `full`, `difference` or `checksum`.
    pub mirror: String,
    /// `running`, `paused`, `stopped` or `done`.
    pub progress: String,
    /// When it began, RFC 3339.
    pub began: String,
    /// Objects read so far, directories too.
    pub objects: u64,
    /// Bytes of their content.
    pub bytes: u64,
    /// Objects of the whole tree, once they are counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_objects: Option<u64>,
    /// Bytes of content of the whole tree, once they are counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
    /// Objects read in a second, lately.
    pub objects_a_second: u64,
    /// Bytes of content read in a second, lately.
    pub bytes_a_second: u64,
    /// In how many seconds it ends if it goes on like this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds_left: Option<u64>,
    /// The directory or file that is read, relative to the volume's root, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
}

impl MirrorReply {
    /// Whether it goes on by itself.
    pub fn is_running(&self) -> bool {
        self.progress == "running"
    }
}
