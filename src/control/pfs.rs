//! A volume in the words of HAMMER's pfs directives: the same keys in the same order.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::tid_text;
use crate::base::{Tid, VolumeUuid};

/// A pfs directive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PfsVerb {
    /// Make a directory a master volume.
    Master {
        /// The directory; made when it is missing.
        dir: PathBuf,
    },
    /// Make an empty directory a copy that only a source of this volume may fill.
    Slave {
        /// The directory; made when it is missing.
        dir: PathBuf,
        /// The volume.
        shared: VolumeUuid,
    },
    /// Show what a volume, or a copy on this host, is.
    Status {
        /// Volume name, a path inside it, or the directory of a copy.
        volume: String,
    },
}

/// The part that a tree plays.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PfsRole {
    /// Changes are made here.
    Master,
    /// It follows a source.
    Slave,
}

/// What `pfs-status` shows.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PfsStatus {
    /// The end of what is durable here.
    #[serde(with = "tid_text")]
    pub end_tid: Tid,
    /// Names the volume and all its copies.
    pub shared_uuid: String,
    /// Names this copy.
    pub unique_uuid: String,
    /// Its name, for people.
    pub label: String,
    /// What it is.
    pub role: PfsRole,
    /// Where snapshots of a master go.
    pub snapshots: Option<PathBuf>,
}

impl fmt::Display for PfsStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = Tid(1);
        writeln!(f, "    sync-beg-tid={first}")?;
        writeln!(f, "    sync-end-tid={}", self.end_tid.max(first))?;
        writeln!(f, "    shared-uuid={}", self.shared_uuid)?;
        writeln!(f, "    unique-uuid={}", self.unique_uuid)?;
        if self.role == PfsRole::Slave {
            writeln!(f, "    slave")?;
        }
        writeln!(f, "    label=\"{}\"", self.label)?;
        writeln!(f, "    prune-min=00:00:00")?;
        let name = if self.role == PfsRole::Master { "MASTER" } else { "SLAVE" };
        writeln!(f, "    operating as a {name}")?;
        match &self.snapshots {
            Some(dir) => write!(f, "    snapshots directory for master defaults to {}", dir.display()),
            None => write!(f, "    snapshots directory not set for slave"),
        }
    }
}

/// How long a session that a command asked for goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MirrorMode {
    /// Until the target is consistent at the TID that was the last one at the start.
    Copy,
    /// Until the caller ends.
    Stream,
}

/// A session that a command asks for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MirrorRun {
    /// The name of a target, or where it is (`local:DIR`, or just DIR).
    pub target: String,
    /// How long.
    pub mode: MirrorMode,
    /// Most bytes on the wire in a second; `None` is as fast as it goes.
    pub rate_bytes: Option<u64>,
}

/// How far such a session is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MirrorProgress {
    /// The target's name.
    pub target: String,
    /// Where the target was when it began.
    #[serde(with = "tid_text")]
    pub from: Tid,
    /// The last TID at the start.
    #[serde(with = "tid_text")]
    pub to: Tid,
    /// Durable in the target's tree up to here.
    #[serde(with = "tid_text")]
    pub applied: Tid,
    /// Objects still to be sent or compared.
    pub work_left: u64,
    /// Bytes on the wire since it began.
    pub bytes_sent: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_are_hammers_in_its_order() {
        let master = PfsStatus {
            end_tid: Tid(0x1f),
            shared_uuid: "s".into(),
            unique_uuid: "u".into(),
            label: "data".into(),
            role: PfsRole::Master,
            snapshots: Some("/var/lib/dtfs/data/snapshots".into()),
        };
        assert_eq!(
            master.to_string(),
            "    sync-beg-tid=0x0000000000000001\n    sync-end-tid=0x000000000000001f\n    shared-uuid=s\n    \
             unique-uuid=u\n    label=\"data\"\n    prune-min=00:00:00\n    operating as a MASTER\n    snapshots \
             directory for master defaults to /var/lib/dtfs/data/snapshots"
        );
        let slave = PfsStatus { role: PfsRole::Slave, end_tid: Tid(0), snapshots: None, ..master };
        let text = slave.to_string();
        let keys: Vec<&str> = text.lines().map(|line| line.trim().split('=').next().unwrap_or_default()).collect();
        assert_eq!(
            keys,
            [
                "sync-beg-tid",
                "sync-end-tid",
                "shared-uuid",
                "unique-uuid",
                "slave",
                "label",
                "prune-min",
                "operating as a SLAVE",
                "snapshots directory not set for slave"
            ]
        );
        assert!(text.contains("sync-end-tid=0x0000000000000001"), "beginning and end of what has nothing are 1");
    }
}
