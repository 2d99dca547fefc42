//! A bound on what a mirror reads, where its operator has set one. Changes are never held up by it.

use std::time::{Duration, Instant};

use super::work::Reading;
use crate::journal::{JournalError, Store, TargetId};

/// Sets how many bytes a second a mirror of the target may read from now on, until it ends; `None` for as fast as it goes.
/// Whoever sends to the target must be told.
///
/// # Errors
/// When the journal's database cannot be written.
pub fn limit_mirror(store: &Store, target: TargetId, bytes_a_second: Option<u64>) -> Result<(), JournalError> {
    store.meta_set(&key(target), &bytes_a_second.map(u64::to_le_bytes).map_or(Vec::new(), |bytes| bytes.to_vec()))
}

/// Key in the journal's `meta`.
fn key(target: TargetId) -> String {
    format!("rate.{}", target.0)
}

/// What a session keeps of it.
pub(super) struct Limit {
    target: TargetId,
    bytes_a_second: Option<u64>,
    ready_at: Instant,
}

impl Limit {
    pub(super) fn open(store: &Store, target: TargetId) -> Result<Limit, JournalError> {
        let bytes = store.meta_get(&key(target))?.unwrap_or_default();
        let bytes_a_second = bytes.try_into().ok().map(u64::from_le_bytes);
        Ok(Limit { target, bytes_a_second, ready_at: Instant::now() })
    }

    /// How long nothing may be read.
    pub(super) fn due_in(&self) -> Option<Duration> {
        let left = self.ready_at.saturating_duration_since(Instant::now());
        (left > Duration::ZERO).then_some(left)
    }

    /// These were read.
    pub(super) fn spend(&mut self, readings: &[Reading]) {
        let Some(rate) = self.bytes_a_second else { return };
        let bytes: u64 = readings.iter().map(|reading| reading.covered.max(reading.bytes() as u64)).sum();
        self.ready_at = self.ready_at.max(Instant::now()) + Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
    }

    /// The mirror has ended, and its bound with it.
    pub(super) fn end(&mut self, store: &Store) -> Result<(), JournalError> {
        if self.bytes_a_second.take().is_some() {
            limit_mirror(store, self.target, None)?;
        }
        Ok(())
    }
}
