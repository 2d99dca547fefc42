//! The inbox of a replica: opened so that it continues the tree, or begun anew with the replica in doubt.

use std::os::fd::AsFd;
use std::path::Path;

use super::session::ServeError;
use crate::applier::Replica;
use crate::base::{Position, Tid};
use crate::journal::{ChainEnd, JournalError, LogOptions, SegmentLog};
use crate::record::MAX_RECORD_BYTES;
use crate::sys::{self, Errno};
use crate::wire::Hello;

/// An open inbox and what it tells.
pub(super) struct Inbox {
    pub(super) log: SegmentLog,
    /// What is durable in it.
    pub(super) received: Position,
    /// Up to here the tree may hold changes already: as far as the inbox reaches, or as far as the source can ever have sent
    /// when the inbox does not tell any more.
    pub(super) high_water: Tid,
}

/// Most that an inbox takes when nothing else is said.
const MOST_BYTES: u64 = 8 << 30;

/// The smaller of 8 GiB and a tenth of the filesystem that holds the inbox.
pub(super) fn default_cap(dir: &Path) -> Result<u64, ServeError> {
    let io = |errno: Errno| JournalError::Io { what: "statfs", path: dir.to_owned(), errno };
    let fd =
        std::fs::File::open(dir).map_err(|cause| io(Errno::from_raw(cause.raw_os_error().unwrap_or(libc::EIO))))?;
    let stat = sys::fstatfs(fd.as_fd()).map_err(io)?;
    Ok((stat.blocks * u64::from(stat.fragment_size) / 10).min(MOST_BYTES))
}

/// A handful of segments below the cap, each large enough for any batch.
pub(super) fn log_options(cap_bytes: u64, segment_bytes: Option<u64>) -> LogOptions {
    let most = LogOptions::default().segment_bytes;
    let fitting = || (cap_bytes / 8).clamp(4 * MAX_RECORD_BYTES as u64, most) / 4096 * 4096;
    LogOptions { segment_bytes: segment_bytes.unwrap_or_else(fitting), ..LogOptions::default() }
}

impl Inbox {
    /// Opens the inbox of `replica`. One that is damaged, or lacks records behind the cursor, leaves the replica in doubt.
    pub(super) fn open(replica: &mut Replica, hello: &Hello, options: LogOptions) -> Result<Inbox, ServeError> {
        if replica.doubt().is_some() {
            // A source that was put back to an older state must not overwrite unasked what was received from it before.
            if replica.reached().is_none()
                && let Some(reached) = Inbox::end(replica, hello, options)?
            {
                replica.note_reached(reached)?;
            }
            return Inbox::anew(replica, hello, options, (Position::START, hello.durable));
        }
        if let Some(after) = replica.jump() {
            let inbox = Inbox::anew(replica, hello, options, (after, after.tid))?;
            replica.finish_jump(after)?;
            return Ok(inbox);
        }
        let reason = match SegmentLog::open(&replica.inbox, hello.volume, hello.epoch, options) {
            Ok(log) => match continues(&log, replica.applied()) {
                Ok(received) => {
                    // The tree of a former source is ahead of its place, in its own way.
                    let ahead = match replica.reach().map_err(ServeError::Replica)? {
                        _ if replica.has_rejoined() => hello.durable,
                        reach => reach.map_or(received.tid, |reach| reach.clamp(replica.applied().tid, received.tid)),
                    };
                    return Ok(Inbox { high_water: ahead, log, received });
                }
                Err(error @ JournalError::Io { .. }) => return Err(error.into()),
                Err(error) => error.to_string(),
            },
            Err(error @ (JournalError::Damaged { .. } | JournalError::Format { .. } | JournalError::Record { .. })) => {
                error.to_string()
            }
            Err(error) => return Err(error.into()),
        };
        replica.cast_doubt(&format!("its inbox does not continue its tree: {reason}"))?;
        Inbox::anew(replica, hello, options, (Position::START, hello.durable))
    }

    /// Where the inbox of a replica without a cursor ends, when it can be read.
    fn end(replica: &Replica, hello: &Hello, options: LogOptions) -> Result<Option<Position>, ServeError> {
        let end = match SegmentLog::open(&replica.inbox, hello.volume, hello.epoch, options) {
            Ok(log) => log.chain_end(),
            Err(error @ JournalError::Io { .. }) => return Err(error.into()),
            Err(_) => return Ok(None),
        };
        let epoch =
            hello.epochs.iter().rev().find(|epoch| epoch.tid <= end.tid).map_or(hello.epoch, |found| found.epoch);
        Ok((end.tid > Tid::ZERO).then_some(Position { epoch, tid: end.tid, digest: end.digest }))
    }

    fn anew(
        replica: &Replica,
        hello: &Hello,
        options: LogOptions,
        (received, high_water): (Position, Tid),
    ) -> Result<Inbox, ServeError> {
        let base = ChainEnd { tid: received.tid, digest: received.digest };
        let log = SegmentLog::open_anew(&replica.inbox, hello.volume, hello.epoch, options, base)?;
        Ok(Inbox { log, received, high_water })
    }
}

/// The position at the end of the log, when its records continue `applied`.
pub(super) fn continues(log: &SegmentLog, applied: Position) -> Result<Position, JournalError> {
    let end = log.chain_end();
    let place = log.digest_at(applied.tid)?;
    if end.tid < applied.tid || place != Some(applied.digest) {
        return Err(JournalError::Order { prev: applied.tid, expected: end.tid });
    }
    Ok(Position { tid: end.tid, digest: end.digest, ..applied })
}
