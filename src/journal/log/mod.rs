//! API first.
use super::error::JournalError;
use crate::base::{EpochId, Tid, VolumeUuid};
use std::path::Path;
#[derive(Clone, Copy, Debug)]
pub struct LogOptions {
    pub segment_bytes: u64,
}
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Position {
    pub segment: u64,
    pub offset: u64,
}
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chunk {
    pub prev_tid: Tid,
    pub first: Tid,
    pub last: Tid,
    pub body: Vec<u8>,
}
pub struct SegmentLog;
pub struct SegmentReader;
impl SegmentLog {
    pub fn open(
        _dir: &Path,
        _volume: VolumeUuid,
        _epoch: EpochId,
        _options: LogOptions,
    ) -> Result<SegmentLog, JournalError> {
        unimplemented!()
    }
    pub fn last_tid(&self) -> Tid {
        unimplemented!()
    }
    pub fn durable_tid(&self) -> Tid {
        unimplemented!()
    }
    pub fn oldest_kept(&self) -> Tid {
        unimplemented!()
    }
    pub fn append(
        &self,
        _prev_tid: Tid,
        _first: Tid,
        _last: Tid,
        _count: u32,
        _parts: &[&[u8]],
    ) -> Result<Position, JournalError> {
        unimplemented!()
    }
    pub fn sync(&self) -> Result<Tid, JournalError> {
        unimplemented!()
    }
    pub fn reader(&self, _after: Tid) -> Result<SegmentReader, JournalError> {
        unimplemented!()
    }
    pub fn trim_upto(&self, _tid: Tid) -> Result<(), JournalError> {
        unimplemented!()
    }
    pub fn reset(&self, _base: Tid) -> Result<(), JournalError> {
        unimplemented!()
    }
    pub fn bytes_used(&self) -> u64 {
        unimplemented!()
    }
}
impl SegmentReader {
    /// durable records with tid > place and <= upto
    pub fn next_chunk(
        &mut self,
        _upto: Tid,
        _max_bytes: usize,
    ) -> Result<Option<Chunk>, JournalError> {
        unimplemented!()
    }
}
