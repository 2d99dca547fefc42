//! What travels on the socket.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::mirror::MirrorAction;
use super::orphans::{OrphanVerb, OrphansReply};
use super::status::{StatusReply, VolumeState};
use super::verify::VerifyReply;
use super::{Demoted, ExitCode, Failure, Holders, MirrorProgress, MirrorRun, OwnVersions, PfsStatus, tid_text};
use crate::base::Tid;
use crate::config::{MountEntry, MountsFile, TargetName, VolumeName};

/// What may be asked of the daemon.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// The entries of `dtfs_mounts` with their states. Answer: [`Reply::Mounts`].
    MountsList,
    /// Mount entries. Answer: [`Reply::Verdicts`], one per entry.
    Mount {
        /// Which.
        which: Selection,
        /// Only say what would happen.
        dry_run: bool,
        /// Mount although files are open for writing below the path.
        allow_open: bool,
    },
    /// Unmount entries; the daemon stays. Answer: [`Reply::Verdicts`], one per entry.
    Unmount {
        /// Which.
        which: Selection,
        /// Detach now, finish when the last user is gone.
        lazy: bool,
        /// Only say what would happen.
        #[serde(default)]
        dry_run: bool,
    },
    /// Read all files again: start what is new, stop targets that are gone; never mounts or unmounts. Answer:
    /// [`Reply::Notes`].
    Reload,
    /// A target was written to the volume's file: read the file and start it. Answer: [`Reply::Done`].
    DefineTarget {
        /// Of which volume.
        volume: VolumeName,
        /// Which.
        target: TargetName,
    },
    /// Let go of a volume (busy while it is mounted) or of one target with its cursor. The caller edits the files
    /// after the answer, and removes the state of a forgotten volume. Never touches user files. Answer: [`Reply::Done`].
    Forget {
        /// Which volume.
        volume: VolumeName,
        /// One target, or the whole volume.
        target: Option<TargetName>,
    },
    /// How everything stands. Answer: [`Reply::Status`].
    Status {
        /// One volume, or all.
        volume: Option<VolumeName>,
    },
    /// Wait until targets are consistent at a TID. Answer: [`Reply::Waited`], or a failure with code 4 at the timeout.
    Wait {
        /// Which volume.
        volume: VolumeName,
        /// One target, or all of the volume.
        target: Option<TargetName>,
        /// Which TID; `None` is everything up to now.
        #[serde(with = "tid_text::option")]
        tid: Option<Tid>,
        /// Milliseconds; `None` waits for ever.
        timeout_ms: Option<u64>,
    },
    /// A barrier: everything up to the TID in the answer is durable in the journal. Answer: [`Reply::Tid`].
    SyncTid {
        /// Which volume.
        volume: VolumeName,
    },
    /// Records of the journal. Answer: any number of [`Reply::Log`], the last one flagged (perhaps empty).
    Log {
        /// Which volume.
        volume: VolumeName,
        /// The first TID; `None` is the oldest that is kept, or with `follow` the next change.
        #[serde(with = "tid_text::option")]
        from: Option<Tid>,
        /// Go on with new records until the caller hangs up.
        follow: bool,
        /// At most this many records.
        limit: Option<u64>,
    },
    /// What a volume is, in HAMMER's words. Answer: [`Reply::Pfs`].
    PfsStatus {
        /// Which volume.
        volume: VolumeName,
    },
    /// A session to a target that the daemon does not serve by itself. Answer: any number of [`Reply::Mirror`], the last
    /// one flagged; a failure with code 5 when another session to it is there.
    Mirror {
        /// Which volume.
        volume: VolumeName,
        /// To which target, and how.
        run: MirrorRun,
    },
    /// Make a volume a copy: its mount goes, its sessions end. The caller forgets the volume after the answer. Answer:
    /// [`Reply::Demoted`].
    Demote {
        /// Which volume.
        volume: VolumeName,
        /// What becomes of what only it has.
        own: OwnVersions,
    },
    /// Compare a target with the source. Answer: any number of [`Reply::Verified`] that say how far it is, the last one the
    /// outcome.
    Verify {
        /// Which volume.
        volume: VolumeName,
        /// Which target.
        target: TargetName,
        /// Make what differs equal to the source.
        repair: bool,
        /// Most bytes a second that are read at each side; `None` for as many as go.
        bandwidth: Option<u64>,
    },
    /// Let a target that followed another history follow the volume again. Answer: [`Reply::Done`].
    Rejoin {
        /// Which volume.
        volume: VolumeName,
        /// Which target.
        target: TargetName,
        /// Give up what only the target has, instead of keeping it there.
        discard: bool,
    },
    /// Begin a mirror of a target, or do something with the one that runs. Answer: [`Reply::Done`]; how far it is, tells
    /// [`Request::Status`].
    SetMirror {
        /// Which volume.
        volume: VolumeName,
        /// Which target.
        target: TargetName,
        /// What.
        action: MirrorAction,
        /// Most bytes a second that a mirror which begins reads; `None` for as many as it can.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rate_bytes: Option<u64>,
    },
    /// Look at the orphans of a target, or do something with them. Answer: [`Reply::Orphans`].
    Orphans {
        /// Which volume.
        volume: VolumeName,
        /// Which target.
        target: TargetName,
        /// What.
        what: OrphanVerb,
        /// Only those that have been set aside for at least so many seconds.
        older_than_sec: u64,
    },
    /// What [`Request::Reload`] would do. Answer: [`Reply::Notes`].
    PlanReload,
    /// What was written down to be read later. Answer: any number of [`Reply::Events`], the last one flagged (perhaps
    /// empty).
    Events {
        /// One volume, or all.
        volume: Option<VolumeName>,
        /// Go on with new events until the caller hangs up.
        follow: bool,
        /// At most this many of the newest to begin with.
        limit: usize,
    },
    /// Stop the daemon cleanly: no new ops, journal committed, mounts gone. Answer: [`Reply::Done`] when it begins.
    Stop,
}

impl Request {
    /// What is asked in its place in a dry run; `None` for what is not asked, because it would follow an edit that is not
    /// written.
    ///
    /// # Errors
    /// Code 2 for what cannot be tried out.
    pub(super) fn rehearsed(&self) -> Result<Option<Request>, Failure> {
        let mut request = self.clone();
        match &mut request {
            Request::MountsList
            | Request::Status { .. }
            | Request::Wait { .. }
            | Request::SyncTid { .. }
            | Request::Log { .. }
            | Request::Events { .. }
            | Request::PlanReload => {}
            Request::Mount { dry_run, .. } | Request::Unmount { dry_run, .. } => *dry_run = true,
            // Also what follows an edit: the files are as they were, so it says how they differ from what runs.
            Request::Reload => request = Request::PlanReload,
            Request::DefineTarget { .. } | Request::Forget { .. } => return Ok(None),
            _ => {
                let message = "the daemon cannot try this out: nothing was done";
                return Err(Failure::new(ExitCode::Usage, message).with_remedy("leave --dry-run out to do it"));
            }
        }
        Ok(Some(request))
    }

    /// Who may ask it. What is not named here is for root alone: records of the journal too, for they tell the names of all
    /// files, whoever may see them.
    pub fn access(&self) -> Access {
        match self {
            Request::MountsList | Request::Status { .. } | Request::Wait { .. } => Access::Read,
            _ => Access::Change,
        }
    }
}

/// What a caller may do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Access {
    /// Ask how things stand, and wait.
    Read,
    /// Everything.
    Change,
}

/// Some entries or all of them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Selection {
    /// Every entry of `dtfs_mounts`.
    All,
    /// The entries of these directories, as they are written in `dtfs_mounts`.
    Paths(Vec<PathBuf>),
}

impl Selection {
    /// The chosen entries of `mounts`; for a path that is no entry the verdict that says so.
    pub fn resolve<'a>(&self, mounts: &'a MountsFile) -> Vec<Result<&'a MountEntry, Box<MountVerdict>>> {
        let find = |path: &PathBuf| {
            mounts.entries().find(|entry| entry.path == *path).ok_or_else(|| {
                let verdict = Verdict::NotDone(not_an_entry(mounts, path));
                Box::new(MountVerdict { path: path.clone(), volume: None, verdict, holders: Holders::default() })
            })
        };
        match self {
            Selection::All => mounts.entries().map(Ok).collect(),
            Selection::Paths(paths) => paths.iter().map(find).collect(),
        }
    }
}

/// The failure for a path that no line of `mounts` names.
pub(super) fn not_an_entry(mounts: &MountsFile, path: &Path) -> Failure {
    let message = format!("{} is no entry of {}", path.display(), mounts.file().display());
    Failure::new(ExitCode::Usage, message).with_remedy("dtfs mounts list shows the entries")
}

/// One answer, or one part of a streamed answer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", content = "data", rename_all = "snake_case")]
pub enum Reply {
    /// It is done.
    Done,
    /// It is done; what happened, one sentence each.
    Notes(Vec<String>),
    /// The entries of `dtfs_mounts`.
    Mounts(MountsReply),
    /// What became of each entry.
    Verdicts(MountReply),
    /// How everything stands.
    Status(StatusReply),
    /// The targets are consistent at `tid`.
    Waited {
        /// The TID that was waited for.
        #[serde(with = "tid_text")]
        tid: Tid,
        /// Which targets.
        targets: Vec<TargetName>,
    },
    /// The TID of a barrier.
    Tid {
        /// The TID.
        #[serde(with = "tid_text")]
        tid: Tid,
    },
    /// A target's orphans.
    Orphans(OrphansReply),
    /// How a verification stands, or how it ended.
    Verified(VerifyReply),
    /// Records, oldest first.
    Log(Vec<LogEntry>),
    /// What a volume is.
    Pfs(PfsStatus),
    /// The volume is a copy.
    Demoted(Demoted),
    /// How far a session is that a command asked for.
    Mirror(MirrorProgress),
    /// Events, oldest first.
    Events(Vec<EventEntry>),
}

/// The entries of `dtfs_mounts`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct MountsReply {
    /// In the order of the file.
    pub mounts: Vec<MountRow>,
    /// Lines that mean nothing.
    pub problems: Vec<Problem>,
}

/// One entry of `dtfs_mounts`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MountRow {
    /// Its line, counted from 1.
    pub line: usize,
    /// The directory.
    pub path: PathBuf,
    /// The volume.
    pub volume: VolumeName,
    /// The options as they would be written.
    pub options: String,
    /// Whether it is mounted; `None`, and no key in JSON, when no daemon runs that could tell.
    #[serde(flatten)]
    pub state: Option<VolumeState>,
}

impl MountsReply {
    /// The rows and problems of `file`, with the state of each entry as `state` knows it.
    pub fn from_file(file: &MountsFile, state: impl Fn(&MountEntry) -> Option<VolumeState>) -> MountsReply {
        let row = |entry: &MountEntry| MountRow {
            line: entry.line,
            path: entry.path.clone(),
            volume: entry.volume.clone(),
            options: entry.options.to_string(),
            state: state(entry),
        };
        MountsReply {
            mounts: file.entries().map(row).collect(),
            problems: file.errors().iter().map(Problem::from).collect(),
        }
    }
}

/// A line of a configuration file that means nothing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Problem {
    /// File, line and problem in one sentence.
    pub message: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.remedy {
            Some(remedy) => write!(f, "{} ({remedy})", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl From<&crate::config::ConfigError> for Problem {
    fn from(error: &crate::config::ConfigError) -> Problem {
        Problem { message: error.to_string(), remedy: error.remedy().map(str::to_owned) }
    }
}

/// What became of each entry of a mount or unmount.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct MountReply {
    /// One per entry, in the order of the file.
    pub verdicts: Vec<MountVerdict>,
    /// Lines that mean nothing.
    pub problems: Vec<Problem>,
}

impl MountReply {
    /// How the command ends: one code when all ended alike, [`ExitCode::Partly`] when some were done. A bad line
    /// counts as an entry that was not done.
    pub fn exit_code(&self) -> ExitCode {
        let verdicts = self.verdicts.iter().map(|verdict| match &verdict.verdict {
            Verdict::NotDone(failure) => failure.code,
            _ => ExitCode::Ok,
        });
        let mut codes: Vec<ExitCode> = verdicts.chain(self.problems.iter().map(|_| ExitCode::Usage)).collect();
        codes.dedup();
        match codes[..] {
            [] => ExitCode::Ok,
            [code] => code,
            _ if codes.contains(&ExitCode::Ok) => ExitCode::Partly,
            _ => ExitCode::Failed,
        }
    }
}

/// What became of one entry.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MountVerdict {
    /// The directory.
    pub path: PathBuf,
    /// The volume, when the path is an entry.
    pub volume: Option<VolumeName>,
    /// What became of it.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// Who holds files open below the path, as far as it matters.
    #[serde(flatten)]
    pub holders: Holders,
}

impl MountVerdict {
    /// A verdict without holders.
    pub fn of(entry: &MountEntry, verdict: Verdict) -> MountVerdict {
        MountVerdict {
            path: entry.path.clone(),
            volume: Some(entry.volume.clone()),
            verdict,
            holders: Holders::default(),
        }
    }
}

/// What became of one entry. In JSON the key `verdict`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// It is mounted now.
    Mounted,
    /// It was mounted before.
    AlreadyMounted,
    /// `--dry-run`: nothing speaks against it.
    WouldMount,
    /// It is not mounted any more.
    Unmounted,
    /// `--dry-run`: nothing speaks against it.
    WouldUnmount,
    /// It was not mounted before.
    NotMounted,
    /// It was not done; the failure's code says whether it is busy, refused or failed.
    NotDone(Failure),
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Verdict::Mounted => f.write_str("mounted"),
            Verdict::AlreadyMounted => f.write_str("was mounted already"),
            Verdict::WouldMount => f.write_str("would be mounted"),
            Verdict::Unmounted => f.write_str("unmounted"),
            Verdict::WouldUnmount => f.write_str("would be unmounted"),
            Verdict::NotMounted => f.write_str("was not mounted"),
            Verdict::NotDone(failure) => match &failure.remedy {
                Some(remedy) => write!(f, "not done: {failure} ({remedy})"),
                None => write!(f, "not done: {failure}"),
            },
        }
    }
}

/// Something that was written down to be read later.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EventEntry {
    /// When it happened, RFC 3339.
    pub time: String,
    /// `info`, `warning` or `error`.
    pub level: String,
    /// Of which volume.
    pub volume: VolumeName,
    /// The target it is about, if about one.
    pub target: Option<String>,
    /// What happened, in one sentence.
    pub text: String,
}

/// One record of the journal, for people and programs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LogEntry {
    /// Its TID.
    #[serde(with = "tid_text")]
    pub tid: Tid,
    /// When it happened, RFC 3339; `None` when the record does not say.
    pub time: Option<String>,
    /// What kind of change, one word.
    pub op: String,
    /// The object's id.
    pub object: String,
    /// The rest: names, offsets, lengths.
    pub detail: String,
}
