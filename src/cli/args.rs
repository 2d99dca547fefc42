//! The grammar of the command line.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand};

use super::{Action, Invocation, Verbosity};
use crate::base::{Fingerprint, Tid, VolumeUuid};
use crate::config::{Adoption, ByteSize, Edits, MountOptions, Paths, TargetName, TargetUrl, VolumeName};
use crate::control::{MirrorAction, PfsVerb, Promotion};

const EXAMPLES: &str = "\
Examples:
  dtfs demo                                     see it work on two directories of this host
  dtfs define volume data /srv/data             make /srv/data a volume
  dtfs define target data local:/mnt/replica    replicate it to another directory
  dtfs mounts mount --all                       mount everything that is defined
  dtfs status                                   see how everything stands

Exit codes: 0 ok, 1 failed, 2 usage or configuration, 3 daemon not running, 4 behind or timeout,
5 busy (try again), 6 differences, 7 refused for safety, 8 partly done.";

/// A live directory tree, replicated.
#[derive(Parser, Debug)]
#[command(name = "dtfs", version, after_help = EXAMPLES, max_term_width = 120)]
pub(super) struct Arguments {
    /// Keep all of dtfs's own files below DIR (volumes are not prefixed)
    #[arg(long, global = true, env = "DTFS_ROOT", value_name = "DIR")]
    root: Option<PathBuf>,
    /// Say more; up to -vvv
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
    /// Say only what went wrong
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Check everything and say what would be done; change nothing
    #[arg(long, global = true)]
    dry_run: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Mount every entry, serve targets and answer commands until stopped
    #[command(after_help = "Examples:\n  dtfs daemon &\n  systemctl start dtfs")]
    Daemon,
    /// The receiving end of one session; started by the source
    #[command(after_help = "Example:\n  ssh root@beta dtfs serve --stdio /srv/copy")]
    Serve(ServeArgs),
    /// Replicate a real tree between two directories of this host, check it, and clean up
    #[command(after_help = "Examples:\n  dtfs demo\n  dtfs demo --keep")]
    Demo(DemoArgs),
    /// Make a copy on this host a master volume: its source is gone
    #[command(after_help = "Example:\n  dtfs promote /mnt/replica --as data")]
    Promote(PromoteArgs),
    #[command(flatten)]
    Pfs(PfsCommand),
    #[command(flatten)]
    Operator(OperatorCommand),
}

/// `dtfs serve --stdio DIR [--adopt]`.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// Speak the protocol on standard input and output
    #[arg(long, required = true)]
    pub stdio: bool,
    /// The directory that is the replica
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Take over a directory that is not empty: it is compared and made equal
    #[arg(long)]
    pub adopt: bool,
}

impl ServeArgs {
    /// `--adopt` as the type that the configuration uses.
    pub fn adoption(&self) -> Adoption {
        self.adopt.into()
    }
}

/// `dtfs promote ...`.
#[derive(Args, Clone, Debug)]
struct PromoteArgs {
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
enum PfsCommand {
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

/// `dtfs demo [--keep]`.
#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// Leave the directories for a look
    #[arg(long)]
    pub keep: bool,
}

/// The commands that [`super::run`] does.
#[derive(Subcommand, Clone, Debug)]
pub enum OperatorCommand {
    /// The entries of dtfs_mounts: list, add, remove, mount, unmount
    #[command(subcommand)]
    Mounts(MountsCommand),
    /// Define a volume or a target
    #[command(subcommand)]
    Define(DefineCommand),
    /// Forget a volume or a target; user files are never touched
    #[command(subcommand)]
    Forget(ForgetCommand),
    /// Stop sending to a target for a while, or go on; it keeps its place
    #[command(subcommand)]
    Replication(ReplicationCommand),
    /// Let a target that has more than this source follow it again, after the source was put back to an older state
    Rejoin(RejoinArgs),
    /// Begin a mirror of a target anew, or hold the one that runs; changes are sent all the while
    #[command(subcommand)]
    Mirror(MirrorCommand),
    /// What a target's tree held and its source does not have: look at it, move it away, remove it
    #[command(subcommand)]
    Orphans(OrphansCommand),
    /// Hosts that may call this one, and that it calls: show, add, list, forget
    #[command(subcommand)]
    Peer(PeerCommand),
    /// How volumes and targets stand
    #[command(after_help = "Examples:\n  dtfs status\n  dtfs status data --watch\n  dtfs status --json")]
    Status(StatusArgs),
    /// Compare a target with its source while both are in use
    Verify(VerifyArgs),
    /// Check the configuration, without a daemon; says nothing when all is good
    #[command(after_help = "Examples:\n  dtfs check\n  dtfs check mounts.d/dtfs_mounts mounts.d/data.toml")]
    Check {
        /// Single files, called as on a host; the directories that they name are not looked at
        #[arg(value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Make the daemon read its files again, and show what changed
    #[command(after_help = "Examples:\n  dtfs reload --dry-run\n  dtfs reload")]
    Reload,
    /// What happened: losses of power, full disks, targets that cannot follow
    #[command(after_help = "Examples:\n  dtfs events\n  dtfs events data --follow --json")]
    Events(EventsArgs),
    /// One line and an exit code for Nagios: 0 fine, 1 warning, 2 critical, 3 unknown
    #[command(after_help = "Example:\n  dtfs monitor --warn-lag 1m --max-lag 5m")]
    Monitor(MonitorArgs),
    /// Look for what stands in the way of replication; exit code 6 when something is found
    #[command(after_help = "Example:\n  dtfs doctor")]
    Doctor {
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Wait until targets are consistent
    Wait(WaitArgs),
    /// A barrier: print a TID up to which every change is durable in the journal
    #[command(after_help = "Example:\n  dtfs wait data --tid $(dtfs synctid data)")]
    Synctid {
        /// Volume name, or a path inside it
        #[arg(value_name = "VOL")]
        volume: String,
    },
    /// Show the records of a volume's journal
    #[command(after_help = "Examples:\n  dtfs log data --from 0x0000000000000100\n  dtfs log data --follow --json")]
    Log(LogArgs),
    /// Make a master volume a copy that another source brings up to date: after a failover, or before one
    Demote(DemoteArgs),
    /// Bring a target up to everything that there is now, and end
    #[command(after_help = "Example:\n  dtfs mirror-copy data /mnt/replica -b 10M")]
    MirrorCopy(MirrorArgs),
    /// Bring a target up to date and keep it so until this command is ended; a second one ends at once with code 5
    #[command(after_help = "Example:\n  dtfs mirror-stream data /mnt/replica")]
    MirrorStream(MirrorArgs),
    /// Write the manual pages and the completion scripts, for packages
    #[command(hide = true)]
    Pages {
        /// Where to
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
    /// The menu, with DTSetup's numbers
    #[command(after_help = "Examples:\n  dtfs setup\n  dtfs setup 1.3.1.1 /srv/data n\n  dtfs setup 1.3.1.3")]
    Setup {
        /// A number of the menu and the answers to its questions
        #[arg(value_name = "NUMBER [ANSWER]")]
        start: Vec<String>,
    },
}

/// `dtfs mounts ...`.
#[derive(Subcommand, Clone, Debug)]
pub enum MountsCommand {
    /// Show the entries
    #[command(after_help = "Example:\n  dtfs mounts list")]
    List {
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Add a directory; it becomes a volume named after its last component
    #[command(after_help = "Examples:\n  dtfs mounts add /srv/data\n  dtfs mounts add /home -o atime,volume=homes")]
    Add {
        /// The directory
        path: PathBuf,
        /// atime or norepatime, volume=NAME, allow-open, submounts=refuse|ignore, writes=through|back, store=DIR; separated by commas
        #[arg(short, value_name = "OPTS", default_value = "", hide_default_value = true, value_parser = mount_options)]
        options: MountOptions,
    },
    /// Remove an entry; files, journal and targets stay
    #[command(after_help = "Example:\n  dtfs mounts remove /srv/data")]
    Remove {
        /// The directory
        path: PathBuf,
    },
    /// Mount entries now
    #[command(after_help = "Examples:\n  dtfs mounts mount --all\n  dtfs mounts mount /srv/data --allow-open")]
    Mount {
        #[command(flatten)]
        which: WhichArgs,
        /// Mount although files are open for writing below the path; they are compared until they are closed
        #[arg(long)]
        allow_open: bool,
    },
    /// Unmount entries; the daemon stays
    #[command(after_help = "Examples:\n  dtfs mounts unmount /srv/data\n  dtfs mounts unmount --all --lazy")]
    Unmount {
        #[command(flatten)]
        which: WhichArgs,
        /// Hide the mount now, end it when its last user is gone
        #[arg(long)]
        lazy: bool,
    },
}

/// Some entries or all.
#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = false)]
pub struct WhichArgs {
    /// The directories
    #[arg(value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// Every entry of dtfs_mounts
    #[arg(long)]
    pub all: bool,
}

/// `dtfs define ...`.
#[derive(Subcommand, Clone, Debug)]
pub enum DefineCommand {
    /// Make a directory a volume
    #[command(after_help = "Example:\n  dtfs define volume data /srv/data")]
    Volume {
        /// The name it gets
        #[arg(value_name = "VOL")]
        volume: VolumeName,
        /// The directory
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
    /// Say in a volume's file that this host is its source, which every volume is from the start
    #[command(after_help = "Example:\n  dtfs define master data")]
    Master {
        /// Volume name, or a path inside it
        #[arg(value_name = "VOL")]
        volume: String,
    },
    /// Let another host write a copy here, over tls://
    #[command(
        after_help = "Example:\n  dtfs peer add alpha $(ssh root@alpha dtfs peer show)\n  dtfs define source data alpha /srv/copy"
    )]
    Source {
        /// What the copy is called: tls://THIS-HOST/VOL
        #[arg(value_name = "VOL")]
        volume: VolumeName,
        /// Who may write it, as `dtfs peer list` has it
        #[arg(value_name = "HOST", value_parser = host)]
        host: String,
        /// Where it lies; empty or missing
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// Take over a directory that is not empty: it is compared and made equal
        #[arg(long)]
        adopt: bool,
    },
    /// Replicate a volume to a place
    #[command(
        after_help = "Example:\n  dtfs define target data local:/mnt/replica --as cellar\n  dtfs define target data ssh://root@beta/srv/copy"
    )]
    Target {
        /// Volume name, or a path inside it
        #[arg(value_name = "VOL")]
        volume: String,
        /// local:DIR, ssh://[user@]host[:port]/DIR or tls://host[:port]/VOLUME
        #[arg(value_name = "URL")]
        url: TargetUrl,
        /// The target's name; otherwise the host, or for local: the last component of the directory
        #[arg(long = "as", value_name = "NAME")]
        name: Option<TargetName>,
        /// Take over a directory that is not empty: it is compared and made equal
        #[arg(long)]
        adopt: bool,
        /// Leave it alone for so many seconds after each delivery; otherwise it follows every change
        #[arg(short, long, value_name = "SEC", value_parser = seconds)]
        period: Option<NonZeroU32>,
    },
}

/// A name or an address, as a URL may have it.
fn host(text: &str) -> Result<String, String> {
    let bracketed = if text.contains(':') { format!("[{text}]") } else { text.to_owned() };
    match format!("tls://{bracketed}/x").parse::<TargetUrl>() {
        Ok(TargetUrl::Tls(place)) => Ok(place.host),
        _ => Err("write a host's name or address".to_owned()),
    }
}

/// `dtfs forget ...`.
#[derive(Subcommand, Clone, Debug)]
pub enum ForgetCommand {
    /// Forget a volume with its journal and its targets; the trees stay
    #[command(after_help = "Example:\n  dtfs forget volume data")]
    Volume {
        /// Volume name, or a path inside it
        #[arg(value_name = "VOL")]
        volume: String,
    },
    /// Let nobody write a copy any more; its tree stays
    #[command(after_help = "Example:\n  dtfs forget source data")]
    Source {
        /// What the copy is called
        #[arg(value_name = "VOL")]
        volume: VolumeName,
    },
    /// Forget a target with its place in the journal; its tree stays
    #[command(after_help = "Example:\n  dtfs forget target data beta")]
    Target {
        /// Volume name, or a path inside it
        #[arg(value_name = "VOL")]
        volume: String,
        /// The target
        #[arg(value_name = "NAME")]
        target: TargetName,
    },
}

/// `dtfs peer ...`.
#[derive(Subcommand, Clone, Debug)]
pub enum PeerCommand {
    /// Print the fingerprint of this host's key, for the other host's `dtfs peer add`
    #[command(after_help = "Example:\n  dtfs peer show")]
    Show,
    /// Know a host by the fingerprint of its key
    #[command(after_help = "Example:\n  dtfs peer add beta $(ssh root@beta dtfs peer show)")]
    Add {
        /// The host, as it stands in tls://HOST/VOLUME and in `define source VOL HOST`
        #[arg(value_name = "HOST", value_parser = host)]
        host: String,
        /// What `dtfs peer show` prints there
        #[arg(value_name = "KEY")]
        fingerprint: Fingerprint,
    },
    /// Show the hosts that are known
    #[command(after_help = "Example:\n  dtfs peer list")]
    List,
    /// Forget a host; its sessions end
    #[command(after_help = "Example:\n  dtfs peer forget beta")]
    Forget {
        /// The host
        #[arg(value_name = "HOST")]
        host: String,
    },
}

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

/// `dtfs status ...`.
#[derive(Args, Clone, Debug)]
pub struct StatusArgs {
    /// Volume name, or a path inside it; otherwise all
    #[arg(value_name = "VOL")]
    pub volume: Option<String>,
    /// For programs
    #[arg(long)]
    pub json: bool,
    /// Show it again every two seconds: repainted on a terminal, one after the other elsewhere
    #[arg(long)]
    pub watch: bool,
}

/// `dtfs events ...`.
#[derive(Args, Clone, Debug)]
pub struct EventsArgs {
    /// Volume name, or a path inside it; otherwise all
    #[arg(value_name = "VOL")]
    pub volume: Option<String>,
    /// Go on with new events
    #[arg(long)]
    pub follow: bool,
    /// At most so many of the newest of each volume
    #[arg(short = 'n', long, value_name = "N", default_value = "100")]
    pub lines: usize,
    /// One JSON object a line, for programs
    #[arg(long)]
    pub json: bool,
}

/// `dtfs monitor ...`.
#[derive(Args, Clone, Debug)]
pub struct MonitorArgs {
    /// Volume name, or a path inside it; otherwise all
    #[arg(value_name = "VOL")]
    pub volume: Option<String>,
    /// Critical when a target is further behind, such as 90s, 5m or 1h
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration)]
    pub max_lag: Duration,
    /// Warning when a target is further behind; otherwise half of --max-lag
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub warn_lag: Option<Duration>,
}

/// `dtfs wait ...`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:\n  dtfs wait data\n  dtfs wait data replica --tid $(dtfs synctid data) --timeout 60")]
pub struct WaitArgs {
    /// Volume name, or a path inside it
    #[arg(value_name = "VOL")]
    pub volume: String,
    /// One target; otherwise all of the volume
    #[arg(value_name = "TARGET")]
    pub target: Option<TargetName>,
    /// Until this change; otherwise everything up to now
    #[arg(long, value_name = "T")]
    pub tid: Option<Tid>,
    /// Give up after so many seconds, with exit code 4
    #[arg(long, value_name = "S", value_parser = milliseconds)]
    pub timeout: Option<u64>,
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

/// `dtfs log ...`.
#[derive(Args, Clone, Debug)]
pub struct LogArgs {
    /// Volume name, or a path inside it
    #[arg(value_name = "VOL")]
    pub volume: String,
    /// Begin at this change; otherwise at the oldest that is kept
    #[arg(long, value_name = "TID")]
    pub from: Option<Tid>,
    /// Go on with new changes
    #[arg(long)]
    pub follow: bool,
    /// One JSON object a line, for programs
    #[arg(long)]
    pub json: bool,
}

/// The problem and its remedy in one sentence, as clap shows only one.
fn mount_options(text: &str) -> Result<MountOptions, String> {
    text.parse::<MountOptions>().map_err(|problem| format!("{problem}; {}", problem.remedy()))
}

/// A number with ms, s, m, h or d; without one, seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
    let unit = units.iter().find_map(|(unit, ms)| Some((text.strip_suffix(unit)?, *ms)));
    let (digits, ms): (&str, u64) = unit.unwrap_or((text, 1000));
    let number = digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<u64>().ok()).flatten();
    let duration = number.and_then(|n| n.checked_mul(ms)).map(Duration::from_millis);
    duration.ok_or_else(|| "write a time such as 90s, 5m or 1h".to_owned())
}

/// Whole seconds, at least one.
fn seconds(text: &str) -> Result<NonZeroU32, String> {
    text.parse().map_err(|_| "write whole seconds, at least 1".to_owned())
}

/// Seconds with an optional fraction, as milliseconds.
fn milliseconds(text: &str) -> Result<u64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds.is_finite() && (0.0..1e12).contains(&seconds) => Ok((seconds * 1000.0) as u64),
        _ => Err("write seconds, such as 30 or 0.5".to_owned()),
    }
}

impl Arguments {
    pub(super) fn into_invocation(self) -> Invocation {
        let verbosity = match (self.quiet, self.verbose) {
            (true, _) => Verbosity::Quiet,
            (false, 0) => Verbosity::Normal,
            (false, 1) => Verbosity::Info,
            (false, 2) => Verbosity::Debug,
            (false, _) => Verbosity::Trace,
        };
        let action = match self.command {
            Command::Daemon => Action::Daemon,
            Command::Serve(args) => Action::Serve(args),
            Command::Demo(args) => Action::Demo(args),
            Command::Operator(OperatorCommand::Peer(PeerCommand::Show)) => Action::ShowIdentity,
            Command::Promote(args) => Action::Promote(args.into()),
            Command::Pfs(command) => Action::Pfs(command.into()),
            Command::Operator(command) => Action::Operator(command),
        };
        let edits = if self.dry_run { Edits::Rehearsed } else { Edits::Written };
        Invocation { paths: Paths::new(self.root).with_edits(edits), verbosity, action }
    }
}
