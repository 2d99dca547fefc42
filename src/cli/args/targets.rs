//! Commands about one target: replication, mirror, orphans, rejoin, verify.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::values::duration;
use crate::config::{ByteSize, TargetName};
use crate::control::MirrorAction;

/// `dtfs replication ...`.
#[derive(Subcommand, Clone, Debug)]
pub enum ReplicationCommand {
    /// Send nothing until it is resumed, also after a restart
    #[command(after_help = "Example:\n  dtfs replication pause data beta")]
    Pause(TargetArgs),
    /// Go on where it stopped
    #[command(after_help = "Example:\n  dtfs replication resume data beta")]
    Resume(TargetArgs),
}

/// `dtfs mirror ...`.
#[derive(Subcommand, Clone, Debug)]
pub enum MirrorCommand {
    /// Make a target equal to its source, whatever it has
    #[command(
        after_help = "Examples:\n  dtfs mirror start data replica --checksum\n  dtfs mirror start data replica --full --wait"
    )]
    Start(MirrorStartArgs),
    /// Give the mirror up; the target is consistent at no TID until one is started and done
    #[command(after_help = "Example:\n  dtfs mirror stop data replica")]
    Stop(TargetArgs),
    /// Hold it until it is resumed, also after a restart
    #[command(after_help = "Example:\n  dtfs mirror pause data replica")]
    Pause(TargetArgs),
    /// Go on where it was paused
    #[command(after_help = "Example:\n  dtfs mirror resume data replica")]
    Resume(TargetArgs),
}

/// `dtfs orphans ...`.
#[derive(Subcommand, Clone, Debug)]
pub enum OrphansCommand {
    /// Show them
    #[command(after_help = "Example:\n  dtfs orphans scan data replica --older-than 7d")]
    Scan(OrphansArgs),
    /// Move them to a directory below the target's .dtfs, with the paths that they had
    #[command(after_help = "Example:\n  dtfs orphans move data replica --to found --older-than 7d")]
    Move {
        #[command(flatten)]
        args: OrphansArgs,
        /// The directory's name
        #[arg(long, value_name = "NAME")]
        to: String,
    },
    /// Remove them, directories with all that is in them
    #[command(after_help = "Example:\n  dtfs orphans delete data replica --older-than 30d")]
    Delete(OrphansArgs),
}

/// Which orphans.
#[derive(Args, Clone, Debug)]
pub struct OrphansArgs {
    /// Of what.
    #[command(flatten)]
    pub which: TargetArgs,
    /// Only those that were set aside so long ago, such as 1h or 7d
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub older_than: Option<Duration>,
    /// For programs
    #[arg(long)]
    pub json: bool,
}

/// `dtfs mirror start ...`.
#[derive(Args, Clone, Debug)]
pub struct MirrorStartArgs {
    /// Of what.
    #[command(flatten)]
    pub which: TargetArgs,
    /// How.
    #[command(flatten)]
    pub kind: MirrorKindArgs,
    /// Most bytes a second that are read, such as 512K or 10M; changes are sent beside that as they are made
    #[arg(short = 'b', long = "bandwidth", value_name = "RATE")]
    pub rate: Option<ByteSize>,
    /// Wait until it is done, also where no terminal shows how far it is
    #[arg(short, long)]
    pub wait: bool,
}

/// What is done with what the target has.
#[derive(Args, Clone, Debug)]
#[group(multiple = false)]
pub struct MirrorKindArgs {
    /// Send everything
    #[arg(long)]
    pub full: bool,
    /// Believe size and time of modification, compare the rest; send what differs (this is done when none is chosen)
    #[arg(long)]
    pub difference: bool,
    /// Compare all content; send what differs
    #[arg(long)]
    pub checksum: bool,
}

impl MirrorStartArgs {
    /// Which kind was chosen.
    pub fn action(&self) -> MirrorAction {
        match (self.kind.full, self.kind.checksum) {
            (true, _) => MirrorAction::Full,
            (_, true) => MirrorAction::Checksum,
            _ => MirrorAction::Difference,
        }
    }
}

/// A volume and one of its targets.
#[derive(Args, Clone, Debug)]
pub struct TargetArgs {
    /// Volume name, or a path inside it
    #[arg(value_name = "VOL")]
    pub volume: String,
    /// The target
    #[arg(value_name = "TARGET")]
    pub target: TargetName,
}

/// `dtfs rejoin ...`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
The source was put back to an older state, and its target has what came after. Then nothing is sent to it until this\n\
command says that the source counts: the target is compared with it, and what differs becomes as the source has it. What\n\
was there instead, and what only the target has, is moved to .dtfs/fork-EPOCH in the target's directory. To make the\n\
target's state count, copy what you need from it first.\n\n\
Example:\n  dtfs rejoin data replica")]
pub struct RejoinArgs {
    #[command(flatten)]
    pub which: TargetArgs,
    /// Give up what only the target has, instead of keeping it there
    #[arg(long)]
    pub discard: bool,
}

/// `dtfs verify ...`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Examples:\n  dtfs verify data replica\n  dtfs verify data replica --repair --bandwidth 50M\n\n\
Exit codes: 0 equal, or everything mended; 6 differences are left; 8 some objects could not be compared."
)]
pub struct VerifyArgs {
    /// Volume name, or a path inside it
    #[arg(value_name = "VOL")]
    pub volume: String,
    /// The target
    #[arg(value_name = "TARGET")]
    pub target: TargetName,
    /// Make what differs equal to the source, and nothing else
    #[arg(long)]
    pub repair: bool,
    /// Most bytes a second that are read at each side, such as 50M
    #[arg(short, long, value_name = "RATE")]
    pub bandwidth: Option<ByteSize>,
    /// For programs
    #[arg(long)]
    pub json: bool,
}
