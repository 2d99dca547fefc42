//! What a verification is asked for, where it is asked for, and how it stands.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::base::{Tid, Timespec};
use crate::journal::{JournalError, Level, Store, TargetId};
use crate::record::DifferenceKind;

/// What becomes of what differs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Repair {
    /// It is reported.
    #[default]
    No,
    /// It is made equal to the source.
    Yes,
}

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VerifyRequest {
    /// What becomes of what differs.
    pub repair: Repair,
    /// Most bytes a second that are read at each side; `None` for as many as go.
    pub bandwidth_bytes: Option<u64>,
}

/// A difference with its path.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Found {
    /// Where, relative to the root; empty for the root itself.
    pub path: Vec<u8>,
    /// What differs.
    pub kind: DifferenceKind,
    /// First byte of the range, for content and holes.
    pub offset: u64,
    /// Name of the xattr, for one.
    pub xattr: Vec<u8>,
}

/// How a verification stands, or ended.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct VerifyProgress {
    /// Its number; counts since the sender was started.
    pub id: u64,
    /// It is over.
    pub is_done: bool,
    /// Stamps of the first and the last reading.
    pub position: (Tid, Tid),
    /// Objects compared.
    pub objects: u64,
    /// Bytes of content compared.
    pub bytes: u64,
    /// What was read last.
    pub current: Vec<u8>,
    /// Differences found.
    pub found: u64,
    /// Of those, how many are left after mending; all of them when nothing is to be mended.
    pub left: u64,
    /// Objects that changed too fast, or are not at the target yet, every time they were looked at.
    pub unsettled: u64,
    /// Objects that could not be read here.
    pub unreadable: u64,
    /// The first differences.
    pub differences: Arc<Vec<Found>>,
}

/// Where a verification is asked for.
#[derive(Default)]
pub(super) struct VerifyDesk {
    /// Protects what is asked for. Rank: a leaf; held for assignments only.
    state: Mutex<DeskState>,
}

#[derive(Default)]
struct DeskState {
    last_id: u64,
    wanted: Option<(u64, VerifyRequest)>,
    is_running: bool,
}

impl VerifyDesk {
    /// Asks for a verification; `None` while one is wanted or runs.
    pub(super) fn ask(&self, request: VerifyRequest) -> Option<u64> {
        let mut state = self.state.lock();
        if state.wanted.is_some() || state.is_running {
            return None;
        }
        state.last_id += 1;
        state.wanted = Some((state.last_id, request));
        Some(state.last_id)
    }

    pub(super) fn is_wanted(&self) -> bool {
        self.state.lock().wanted.is_some()
    }

    pub(super) fn take(&self) -> Option<(u64, VerifyRequest)> {
        let mut state = self.state.lock();
        let wanted = state.wanted.take();
        state.is_running |= wanted.is_some();
        wanted
    }

    pub(super) fn end(&self) {
        self.state.lock().is_running = false;
    }
}

/// Writes down when the target was verified and what came of it.
pub(super) fn remember(store: &Store, target: TargetId, progress: &VerifyProgress) -> Result<(), JournalError> {
    store.meta_set(&last_verify_key(target), &Timespec::now().sec.to_le_bytes())?;
    let VerifyProgress { objects, bytes, found, left, unsettled, unreadable, position: (_, upto), .. } = progress;
    let level = if *found + *unreadable > 0 { Level::Warning } else { Level::Info };
    let text = format!(
        "verified up to {upto}: {objects} objects and {bytes} bytes compared, {found} differences, {left} left, \
         {unsettled} unsettled, {unreadable} unreadable"
    );
    store.event(level, Some(target), &text)
}

/// Key in the journal's `meta`: when the target was last verified, seconds since 1970.
fn last_verify_key(target: TargetId) -> String {
    format!("verified.{}", target.0)
}

/// When the target was last verified; `None` when it never was.
///
/// # Errors
/// When the journal's database cannot be read.
pub fn last_verified(store: &Store, target: TargetId) -> Result<Option<Timespec>, JournalError> {
    let bytes = store.meta_get(&last_verify_key(target))?;
    let sec = bytes.and_then(|bytes| bytes.try_into().ok()).map(i64::from_le_bytes);
    Ok(sec.map(|sec| Timespec { sec, nsec: 0 }))
}
