//! `dtfs log`: the journal's records as lines.

use std::time::Duration;

use super::volume::{Volume, VolumeError};
use crate::base::{Tid, Timespec};
use crate::control::{Failure, LogEntry, Reply, ReplySink, rfc3339};
use crate::record::{Fate, Op, Record, RecordIter, Slot};
use crate::sys::InodeFlags;

/// Whether to go on when the end is reached.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Follow {
    /// Stop at the end.
    No,
    /// Wait for more.
    Yes,
}

/// Bytes of records read at a time; their lines stay far below the longest reply.
const CHUNK_BYTES: usize = 64 << 10;
const ENTRIES: usize = 256;

/// Sends the durable records behind `from` (from the oldest kept without one), at most `limit`.
pub(super) fn log(
    volume: &Volume,
    from: Option<Tid>,
    follow: Follow,
    limit: Option<u64>,
    sink: &mut dyn ReplySink,
) -> Result<Reply, Failure> {
    // What was changed a moment ago is shown too; of a failed volume, what is durable.
    if volume.journal.failed().is_none() {
        volume.journal.commit(volume.journal.last_tid()).map_err(VolumeError::from)?;
    }
    let oldest = volume.journal.oldest_kept();
    // `from` is the first wanted; a cursor stands behind the last one that is not.
    let after = from.map_or(oldest, |tid| Tid(tid.0.saturating_sub(1)).max(oldest));
    let mut reader = volume.journal.reader(after).map_err(VolumeError::from)?;
    let mut left = limit.unwrap_or(u64::MAX);
    let mut at = after;
    loop {
        while let Some(chunk) = reader.next_chunk(Tid(u64::MAX), CHUNK_BYTES).map_err(VolumeError::from)? {
            at = chunk.last;
            send(&chunk.body, &mut left, sink)?;
            if left == 0 || !sink.is_wanted() {
                return Ok(Reply::Log(Vec::new()));
            }
        }
        if follow == Follow::No || !sink.is_wanted() || volume.journal.failed().is_some() {
            return Ok(Reply::Log(Vec::new()));
        }
        volume.journal.wait_durable_past(at, Duration::from_millis(500));
    }
}

/// Shows each durable record behind `after` that is kept to `show`, until it wants no more.
pub(super) fn each(volume: &Volume, after: Tid, show: &mut dyn FnMut(LogEntry) -> bool) -> Result<(), Failure> {
    let after = after.max(volume.journal.oldest_kept());
    let mut reader = volume.journal.reader(after).map_err(VolumeError::from)?;
    while let Some(chunk) = reader.next_chunk(Tid(u64::MAX), CHUNK_BYTES).map_err(VolumeError::from)? {
        for record in RecordIter::new(&chunk.body) {
            let record = record.map_err(|error| Failure::new(crate::control::ExitCode::Failed, error))?;
            if !show(entry(&record)) {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn send(body: &[u8], left: &mut u64, sink: &mut dyn ReplySink) -> Result<(), Failure> {
    let mut entries = Vec::new();
    for record in RecordIter::new(body) {
        let record = record.map_err(|error| Failure::new(crate::control::ExitCode::Failed, error))?;
        if *left == 0 {
            break;
        }
        *left -= 1;
        entries.push(entry(&record));
        if entries.len() == ENTRIES {
            sink.send(Reply::Log(std::mem::take(&mut entries)))?;
        }
    }
    match entries.is_empty() {
        true => Ok(()),
        false => sink.send(Reply::Log(entries)),
    }
}

fn entry(record: &Record<'_>) -> LogEntry {
    let time = Timespec {
        sec: record.time_ns.div_euclid(1_000_000_000),
        nsec: record.time_ns.rem_euclid(1_000_000_000) as u32,
    };
    LogEntry {
        tid: record.tid,
        time: Some(rfc3339(time)),
        op: record.op.word().to_owned(),
        object: record.oid.to_string(),
        detail: detail(&record.op, record.payload.len()),
    }
}

fn flags_text(flags: &InodeFlags) -> String {
    let InodeFlags { flags, xflags, project, extent_size, .. } = flags;
    format!("flags {flags:#x} xflags {xflags:#x} project {project} extent size {extent_size}")
}

fn detail(op: &Op, payload_len: usize) -> String {
    let slot = |slot: &Slot| format!("{} in {}", slot.name, slot.parent);
    match op {
        Op::Create { slot: to, attrs, .. } => {
            format!("{} mode {:o} owner {}:{}", slot(to), attrs.mode, attrs.uid, attrs.gid)
        }
        Op::Link { slot: to, .. } => slot(to),
        Op::Unlink { slot: from, fate: Fate::Gone, .. } => slot(from),
        Op::Unlink { slot: from, fate: Fate::Kept, .. } => format!("{}, still in use", slot(from)),
        Op::Rename { from, to, .. } => format!("{} to {}", slot(from), slot(to)),
        Op::Exchange { from, to, other, .. } => format!("{} with {other}, {}", slot(from), slot(to)),
        Op::Write { offset, attrs } => format!("{payload_len} bytes at {offset}, size {}", attrs.size),
        Op::Truncate { attrs } => format!("size {}", attrs.size),
        Op::Allocate { mode, offset, len, .. } => format!("mode {mode:#x}, {len} bytes at {offset}"),
        Op::SetAttr { attrs } => format!("mode {:o} owner {}:{}", attrs.mode, attrs.uid, attrs.gid),
        Op::SetXattr { xattr, .. } => format!("{} ({} bytes)", xattr.name.escape_ascii(), xattr.value.len()),
        Op::RemoveXattr { name, .. } => name.escape_ascii().to_string(),
        Op::SetFlags { flags, .. } => flags_text(flags),
        _ => String::new(),
    }
}
