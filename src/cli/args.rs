//! The grammar of the command line.

mod roles;
mod targets;
mod values;

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand};

pub(super) use self::roles::{DemoteArgs, MirrorArgs};
use self::roles::{PfsCommand, PromoteArgs};
pub(super) use self::targets::{
    MirrorCommand, MirrorStartArgs, OrphansArgs, OrphansCommand, RejoinArgs, ReplicationCommand, TargetArgs, VerifyArgs,
};
use self::values::{duration, host, milliseconds, mount_options, seconds};
use super::{Action, Invocation, Verbosity};
use crate::base::{Fingerprint, Tid};
use crate::config::{Adoption, Delay, Edits, MountOptions, Paths, TargetName, TargetUrl, Trusted, VolumeName};

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
    /// Let another host write a copy here, over tls://, or name one that it writes over ssh
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
        /// What HOST is trusted with: full, or restricted, which takes no device nodes, set-user-ID and set-group-ID bits and
        /// xattrs of trusted.* and security.*; otherwise what dtfs.toml says
        #[arg(long, value_name = "TRUST")]
        trust: Option<Trusted>,
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
        /// Let it stay behind on purpose, such as 6h: what it receives is durable there at once, and performed so much later
        #[arg(long, value_name = "TIME")]
        delay: Option<Delay>,
    },
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
