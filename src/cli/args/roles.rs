//! Commands about who is the source: promote, demote, and HAMMER's directives.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::base::{Tid, VolumeUuid};
use crate::config::{ByteSize, VolumeName};
use crate::control::{PfsVerb, Promotion};

/// `dtfs promote ...`.
#[derive(Args, Clone, Debug)]
pub(super) struct PromoteArgs {
    /// The directory of the copy, or what `define source` calls it
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// The volume's name; otherwise that of the copy, or the last component of the directory
    #[arg(long = "as", value_name = "NAME")]
    name: Option<VolumeName>,
    /// Give up what was received behind this change
    #[arg(long, value_name = "TID")]
    at: Option<Tid>,
    /// Also a copy that is converging: it is no past state of its source, and objects may be missing or mixed
    #[arg(long)]
    force: bool,
}

impl From<PromoteArgs> for Promotion {
    fn from(args: PromoteArgs) -> Promotion {
        let PromoteArgs { dir, name, at, force } = args;
        Promotion { dir, name, at, even_converging: force }
    }
}

/// `dtfs demote ...`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Example:\n  dtfs demote data")]
pub struct DemoteArgs {
    /// Volume name, or a path inside it
    #[arg(value_name = "VOL")]
    pub volume: String,
    /// Give up versions that only this copy has; otherwise they are kept in .dtfs/fork-EPOCH
    #[arg(long)]
    pub discard: bool,
}

/// HAMMER's pfs directives.
#[derive(Subcommand, Clone, Debug)]
pub(super) enum PfsCommand {
    /// Make a directory a master volume, and show what it is
    #[command(name = "pfs-master", after_help = "Example:\n  dtfs pfs-master /srv/data")]
    Master {
        /// The directory; it is made when it is missing
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
    /// Make an empty directory a copy that only a source of this volume may fill
    #[command(
        name = "pfs-slave",
        after_help = "Example:
  dtfs pfs-slave /mnt/replica shared-uuid=9043570e-b3d9-4de9-9bef-011617202aa6"
    )]
    Slave {
        /// The directory; it is made when it is missing
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// The volume, as pfs-status shows it
        #[arg(value_name = "shared-uuid=UUID", value_parser = shared_uuid)]
        shared: VolumeUuid,
    },
    /// Show what a volume or a copy is
    #[command(name = "pfs-status", after_help = "Example:\n  dtfs pfs-status data")]
    Status {
        /// Volume name, a path inside it, or the directory of a copy
        #[arg(value_name = "VOL")]
        volume: String,
    },
}

impl From<PfsCommand> for PfsVerb {
    fn from(command: PfsCommand) -> PfsVerb {
        match command {
            PfsCommand::Master { dir } => PfsVerb::Master { dir },
            PfsCommand::Slave { dir, shared } => PfsVerb::Slave { dir, shared },
            PfsCommand::Status { volume } => PfsVerb::Status { volume },
        }
    }
}

fn shared_uuid(text: &str) -> Result<VolumeUuid, String> {
    let uuid = text.strip_prefix("shared-uuid=").and_then(|uuid| uuid.parse().ok());
    uuid.ok_or_else(|| "write shared-uuid=UUID, as dtfs pfs-status shows it at the source".to_owned())
}

/// `dtfs mirror-copy ...` and `dtfs mirror-stream ...`.
#[derive(Args, Clone, Debug)]
pub struct MirrorArgs {
    /// Volume name, or a path inside it
    #[arg(value_name = "VOL")]
    pub volume: String,
    /// A target's name, or where it is: local:DIR, or just DIR
    #[arg(value_name = "TARGET")]
    pub target: String,
    /// Most bytes on the wire in a second, such as 512K or 10M
    #[arg(short = 'b', long = "bandwidth", value_name = "RATE")]
    pub rate: Option<ByteSize>,
}
