//! API first.
use super::error::JournalError;
use super::log::Chunk;
use super::store::Store;
use crate::base::{EpochId, Space, Tid, VolumeUuid};
use crate::record::Draft;
use std::{marker::PhantomData, path::Path, sync::Arc, time::Duration};
#[derive(Clone, Copy, Debug)]
pub struct JournalOptions {
    pub segment_bytes: u64,
    pub cap_bytes: u64,
    pub ring_bytes: usize,
    pub commit_interval: Duration,
}
impl Default for JournalOptions {
    fn default() -> JournalOptions {
        unimplemented!()
    }
}
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    pub volume: VolumeUuid,
    pub space: Space,
    pub epoch: EpochId,
    pub format: u16,
}
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LastStop {
    New,
    Clean,
    Unclean { reason: String },
}
pub struct Journal;
pub struct JournalReader;
pub struct Reservation<'a>(PhantomData<&'a ()>);
impl Reservation<'_> {
    pub fn commit(self, _draft: Draft) -> Tid {
        unimplemented!()
    }
}
impl JournalReader {
    pub fn next_chunk(&mut self, _max_bytes: usize) -> Result<Option<Chunk>, JournalError> {
        unimplemented!()
    }
}
impl Journal {
    pub fn open(
        _dir: &Path,
        _options: JournalOptions,
    ) -> Result<(Arc<Journal>, LastStop), JournalError> {
        unimplemented!()
    }
    pub fn identity(&self) -> Identity {
        unimplemented!()
    }
    pub fn reserve(&self, _bytes: usize) -> Result<Reservation<'_>, JournalError> {
        unimplemented!()
    }
    pub fn last_tid(&self) -> Tid {
        unimplemented!()
    }
    pub fn durable_tid(&self) -> Tid {
        unimplemented!()
    }
    pub fn commit(&self, _upto: Tid) -> Result<(), JournalError> {
        unimplemented!()
    }
    pub fn wait_durable_past(&self, _tid: Tid, _timeout: Duration) -> Tid {
        unimplemented!()
    }
    pub fn reader(&self, _after: Tid) -> Result<JournalReader, JournalError> {
        unimplemented!()
    }
    pub fn oldest_kept(&self) -> Tid {
        unimplemented!()
    }
    pub fn trim(&self) -> Result<(), JournalError> {
        unimplemented!()
    }
    pub fn bytes_used(&self) -> u64 {
        unimplemented!()
    }
    pub fn close_clean(&self) -> Result<(), JournalError> {
        unimplemented!()
    }
    pub fn failed(&self) -> Option<String> {
        unimplemented!()
    }
    pub fn store(&self) -> &Store {
        unimplemented!()
    }
}
