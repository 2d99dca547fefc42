//! Local records: what a journal notes for itself between the changes. They have no TID and never leave it. SEGMENTS.md
//! has the bytes.

use crate::base::{EpochId, Oid, Tid};
use crate::journal::log::Position;
use crate::record::{DecodeError, FieldReader, FieldWriter};

/// Bytes of a file that one intent covers.
pub const REGION_BYTES: u64 = 64 << 20;

const INTENT: u8 = 1;
const CHECKPOINT: u8 = 2;
const GAP: u8 = 3;
/// In the place of a region's number: all of the object.
const WHOLE: u32 = u32::MAX;

/// What of an object an intent covers; its attributes always.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Region {
    /// Bytes from this multiple of [`REGION_BYTES`] on. Of a directory, region 0 is all of it.
    Number(u32),
    /// All of it: its size is to change.
    Whole,
}

/// An object, or part of one, that may change until the next checkpoint.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Intent {
    /// The object.
    pub oid: Oid,
    /// What of it.
    pub region: Region,
}

/// One local record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Local {
    /// Written before the change it announces.
    Intent(Intent),
    /// Every change up to `tid` is durable in tree and log.
    Checkpoint {
        tid: Tid,
        /// A recovery reads the log from here.
        from: Position,
        /// What was touched under an older intent since the checkpoint began, and still counts as announced.
        since: Vec<Intent>,
    },
    /// The history goes on in a new epoch, with a jump of TIDs.
    Gap { epoch: EpochId, next: Tid },
}

impl Region {
    /// The region that byte `offset` lies in.
    pub fn of(offset: u64) -> Region {
        match u32::try_from(offset / REGION_BYTES) {
            Ok(number) if number != WHOLE => Region::Number(number),
            _ => Region::Whole,
        }
    }

    fn to_number(self) -> u32 {
        match self {
            Region::Number(number) => number,
            Region::Whole => WHOLE,
        }
    }

    fn from_number(number: u32) -> Region {
        if number == WHOLE { Region::Whole } else { Region::Number(number) }
    }
}

/// Encoded length of an intent.
pub(super) const INTENT_BYTES: usize = 1 + ENTRY_BYTES;
/// Encoded length of one intent in a checkpoint.
pub(super) const ENTRY_BYTES: usize = Oid::LEN + 4;
/// Encoded length of a checkpoint without its intents.
pub(super) const CHECKPOINT_BYTES: usize = 1 + 8 + 16 + 4;

impl Local {
    /// Appends the encoded record.
    pub(super) fn encode(&self, out: &mut FieldWriter) {
        match self {
            Local::Intent(intent) => {
                out.u8(INTENT);
                put_intent(out, intent);
            }
            Local::Checkpoint { tid, from, since } => {
                out.u8(CHECKPOINT);
                out.u64(tid.0);
                out.u64(from.segment);
                out.u64(from.offset);
                out.u32(since.len() as u32);
                since.iter().for_each(|intent| put_intent(out, intent));
            }
            Local::Gap { epoch, next } => {
                out.u8(GAP);
                out.0.extend_from_slice(&epoch.0);
                out.u64(next.0);
            }
        }
    }

    /// Decodes the records of one frame.
    pub(super) fn decode_all(body: &[u8]) -> Result<Vec<Local>, DecodeError> {
        let mut reader = FieldReader::new(body);
        let mut all = Vec::new();
        while reader.offset() < body.len() {
            all.push(take(&mut reader)?);
        }
        Ok(all)
    }
}

fn put_intent(out: &mut FieldWriter, intent: &Intent) {
    out.oid(intent.oid);
    out.u32(intent.region.to_number());
}

fn take_intent(reader: &mut FieldReader<'_>) -> Result<Intent, DecodeError> {
    let oid = reader.oid("oid")?;
    Ok(Intent { oid, region: Region::from_number(reader.u32("region")?) })
}

fn take(reader: &mut FieldReader<'_>) -> Result<Local, DecodeError> {
    let offset = reader.offset();
    match reader.u8("local record")? {
        INTENT => take_intent(reader).map(Local::Intent),
        CHECKPOINT => {
            let tid = Tid(reader.u64("tid")?);
            let from = Position { segment: reader.u64("segment")?, offset: reader.u64("offset")? };
            let count = reader.u32("count")?;
            let since = (0..count).map(|_| take_intent(reader)).collect::<Result<_, _>>()?;
            Ok(Local::Checkpoint { tid, from, since })
        }
        GAP => {
            let mut epoch = [0; 16];
            epoch.copy_from_slice(reader.take("epoch", 16)?);
            Ok(Local::Gap { epoch: EpochId(epoch), next: Tid(reader.u64("next")?) })
        }
        kind => Err(DecodeError::Value { what: "local record", offset, value: u64::from(kind) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Space;

    fn intent(ino: u64, region: Region) -> Intent {
        Intent { oid: Oid { space: Space(3), generation: 7, ino }, region }
    }

    #[test]
    fn local_records_round_trip_and_nothing_else_is_taken() {
        let all = [
            Local::Intent(intent(1, Region::Whole)),
            Local::Checkpoint {
                tid: Tid(9),
                from: Position { segment: 4, offset: 8192 },
                since: vec![intent(2, Region::Number(0)), intent(3, Region::Number(7))],
            },
            Local::Gap { epoch: EpochId([5; 16]), next: Tid(1 << 32) },
        ];
        let mut out = FieldWriter::default();
        all.iter().for_each(|record| record.encode(&mut out));
        assert_eq!(out.0.len(), INTENT_BYTES + CHECKPOINT_BYTES + 2 * ENTRY_BYTES + 25);
        assert_eq!(Local::decode_all(&out.0).unwrap(), all);
        for len in (1..out.0.len()).filter(|len| ![INTENT_BYTES, out.0.len() - 25].contains(len)) {
            assert!(Local::decode_all(&out.0[..len]).is_err(), "{len}");
        }
        assert!(Local::decode_all(&[9]).is_err());
    }

    #[test]
    fn regions_tile_a_file() {
        assert_eq!(Region::of(0), Region::of(REGION_BYTES - 1));
        assert_eq!(Region::of(REGION_BYTES), Region::Number(1));
        assert_eq!(Region::of(u64::MAX >> 1), Region::Whole);
    }
}
