//! Questions that only a daemon can answer.

use super::unexpected;
use crate::base::Tid;
use crate::config::{ByteSize, Paths, TargetName, VolumeName};
use crate::control::{
    Client, EventEntry, Failure, LogEntry, MirrorAction, MirrorProgress, MirrorRun, OrphanVerb, OrphansReply,
    PfsStatus, Reply, Request, StatusReply, VerifyReply,
};

/// How one volume or all of them stand.
///
/// # Errors
/// Code 3 without a daemon, and what it answers.
pub fn status(paths: &Paths, volume: Option<VolumeName>) -> Result<StatusReply, Failure> {
    match Client::connect(paths)?.call(&Request::Status { volume })? {
        Reply::Status(status) => Ok(status),
        other => Err(unexpected(&other)),
    }
}

/// What to wait for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WaitFor {
    /// Which volume.
    pub volume: VolumeName,
    /// One target, or all of the volume.
    pub target: Option<TargetName>,
    /// Which TID; `None` is everything up to now.
    pub tid: Option<Tid>,
    /// Milliseconds; `None` waits for ever.
    pub timeout_ms: Option<u64>,
}

/// Waits until targets are consistent at a TID; returns the TID and the targets.
///
/// # Errors
/// Code 4 when the time runs out, code 3 without a daemon, and what it answers.
pub fn wait(paths: &Paths, what: WaitFor) -> Result<(Tid, Vec<TargetName>), Failure> {
    let WaitFor { volume, target, tid, timeout_ms } = what;
    match Client::connect(paths)?.call(&Request::Wait { volume, target, tid, timeout_ms })? {
        Reply::Waited { tid, targets } => Ok((tid, targets)),
        other => Err(unexpected(&other)),
    }
}

/// A barrier; everything up to the TID that is returned is durable in the journal.
///
/// # Errors
/// Code 3 without a daemon, and what it answers.
pub fn sync_tid(paths: &Paths, volume: VolumeName) -> Result<Tid, Failure> {
    match Client::connect(paths)?.call(&Request::SyncTid { volume })? {
        Reply::Tid { tid } => Ok(tid),
        other => Err(unexpected(&other)),
    }
}

/// What a volume is, in HAMMER's words.
///
/// # Errors
/// Code 3 without a daemon, and what it answers.
pub fn pfs_status(paths: &Paths, volume: VolumeName) -> Result<PfsStatus, Failure> {
    match Client::connect(paths)?.call(&Request::PfsStatus { volume })? {
        Reply::Pfs(status) => Ok(status),
        other => Err(unexpected(&other)),
    }
}

/// One session to a target that the daemon does not serve by itself; `show` hears how far it is. Returns its end.
///
/// # Errors
/// Code 3 without a daemon, code 5 when another session to the target is there, what the daemon answers, and what `show`
/// returns.
pub fn mirror(
    paths: &Paths,
    volume: VolumeName,
    run: MirrorRun,
    show: &mut dyn FnMut(&MirrorProgress) -> Result<(), Failure>,
) -> Result<MirrorProgress, Failure> {
    let mut hear = |reply: Reply| match reply {
        Reply::Mirror(progress) => show(&progress),
        other => Err(unexpected(&other)),
    };
    match Client::connect(paths)?.stream(&Request::Mirror { volume, run }, &mut hear)? {
        Reply::Mirror(progress) => Ok(progress),
        other => Err(unexpected(&other)),
    }
}

/// Which records of the journal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogRange {
    /// Which volume.
    pub volume: VolumeName,
    /// The first TID; `None` is the oldest that is kept.
    pub from: Option<Tid>,
    /// Go on with new records until the caller ends.
    pub follow: bool,
    /// At most this many records.
    pub limit: Option<u64>,
}

/// Hands records to `show` as they come.
///
/// # Errors
/// Code 3 without a daemon, what it answers, and what `show` returns.
pub fn log(
    paths: &Paths,
    range: LogRange,
    show: &mut dyn FnMut(&[LogEntry]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let LogRange { volume, from, follow, limit } = range;
    let mut take = |reply: Reply| match reply {
        Reply::Log(entries) => show(&entries),
        other => Err(unexpected(&other)),
    };
    let last = Client::connect(paths)?.stream(&Request::Log { volume, from, follow, limit }, &mut take)?;
    take(last)
}

/// What to verify, and how.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VerifyWhat {
    /// Which volume.
    pub volume: VolumeName,
    /// Which target.
    pub target: TargetName,
    /// Whether what differs is made equal to the source.
    pub repair: bool,
    /// Most bytes a second that are read at each side.
    pub bandwidth: Option<ByteSize>,
}

/// Compares a target with its source while both are in use; `show` hears now and then how far it is.
///
/// # Errors
/// Code 4 when the target is not connected, code 5 while it is verified already, code 3 without a daemon.
pub fn verify(paths: &Paths, what: VerifyWhat, show: &mut dyn FnMut(&VerifyReply)) -> Result<VerifyReply, Failure> {
    let VerifyWhat { volume, target, repair, bandwidth } = what;
    let request = Request::Verify { volume, target, repair, bandwidth: bandwidth.map(|size| size.0) };
    let mut part = |reply: Reply| match reply {
        Reply::Verified(reply) => {
            show(&reply);
            Ok(())
        }
        other => Err(unexpected(&other)),
    };
    match Client::connect(paths)?.stream(&request, &mut part)? {
        Reply::Verified(reply) => Ok(reply),
        other => Err(unexpected(&other)),
    }
}

/// Looks at the orphans of a target, or does something with those that are old enough.
///
/// # Errors
/// Code 4 when the target is not connected, code 2 for one that there is not, code 3 without a daemon.
pub fn orphans(
    paths: &Paths,
    volume: VolumeName,
    target: TargetName,
    verb: OrphanVerb,
    older_than_sec: u64,
) -> Result<OrphansReply, Failure> {
    match Client::connect(paths)?.call(&Request::Orphans { volume, target, what: verb, older_than_sec })? {
        Reply::Orphans(reply) => Ok(reply),
        other => Err(unexpected(&other)),
    }
}

/// Begins a mirror of a target, which reads at most `rate_bytes` a second, or does something with the one that runs.
///
/// # Errors
/// Code 2 for a target that there is not, code 5 when it does not fit how the mirror stands, code 3 without a daemon.
pub fn set_mirror(
    paths: &Paths,
    volume: VolumeName,
    target: TargetName,
    action: MirrorAction,
    rate_bytes: Option<u64>,
) -> Result<(), Failure> {
    match Client::connect(paths)?.call(&Request::SetMirror { volume, target, action, rate_bytes })? {
        Reply::Done => Ok(()),
        other => Err(unexpected(&other)),
    }
}

/// Makes the daemon read its files again; says what changed, one sentence each. A dry run says what would change.
///
/// # Errors
/// Code 3 without a daemon, and what it answers.
pub fn reload(paths: &Paths) -> Result<Vec<String>, Failure> {
    match Client::connect(paths)?.call(&Request::Reload)? {
        Reply::Notes(notes) => Ok(notes),
        other => Err(unexpected(&other)),
    }
}

/// Which events.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EventRange {
    /// One volume, or all.
    pub volume: Option<VolumeName>,
    /// Go on with new ones until the caller ends.
    pub follow: bool,
    /// At most this many of the newest of each volume to begin with.
    pub limit: usize,
}

/// Hands events to `show` as they come.
///
/// # Errors
/// Code 3 without a daemon, what it answers, and what `show` returns.
pub fn events(
    paths: &Paths,
    range: EventRange,
    show: &mut dyn FnMut(&[EventEntry]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let EventRange { volume, follow, limit } = range;
    let mut take = |reply: Reply| match reply {
        Reply::Events(entries) => show(&entries),
        other => Err(unexpected(&other)),
    };
    let last = Client::connect(paths)?.stream(&Request::Events { volume, follow, limit }, &mut take)?;
    take(last)
}
