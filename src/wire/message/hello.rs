//! What both sides say first: who they are and where they stand.

use super::fields::{clip, position, text};
use crate::base::{AtimeMode, Commit, EpochId, Guarded, History, Position, Spaces, StoredTimes, Tid, VolumeUuid};
use crate::record::{DecodeError, FieldReader, FieldWriter};

/// What the source says first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// Protocol version it speaks.
    pub version: u16,
    /// The volume it wants to replicate.
    pub volume: VolumeUuid,
    /// The volume instances whose objects it has, its own first.
    pub spaces: Spaces,
    /// The run of history its TIDs belong to.
    pub epoch: EpochId,
    /// Last TID that is durable at the source.
    pub durable: Tid,
    /// When an access time is recorded there.
    pub access_times: AtimeMode,
    /// Name of the volume, for people.
    pub label: String,
    /// The volume's epochs, oldest first; the last one is `epoch`.
    pub epochs: Vec<Position>,
    /// How many seconds old a record is to be when the target performs it.
    pub delay_seconds: u64,
}

/// What the target's tree is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReplicaState {
    /// It has nothing yet: an empty directory, or one that is taken over.
    Fresh,
    /// It is a replica of this volume.
    Replica,
    /// A directory with files that an operator allowed to be taken over.
    Adopted,
    /// A replica of this volume that cannot vouch for its tree; `doubt` says why. All of it must be compared.
    Doubtful,
    /// It was a source of this volume up to `received`, and asks for what it changed since.
    Rejoined,
}

/// What the target answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HelloReply {
    /// Protocol version it speaks.
    pub version: u16,
    /// Unique id of this copy.
    pub replica: VolumeUuid,
    /// What its tree is.
    pub state: ReplicaState,
    /// What is durable in its inbox.
    pub received: Position,
    /// What is durable in its tree.
    pub applied: Position,
    /// The state that tree and catalog were last made durable in.
    pub commit: Commit,
    /// Up to here the tree may hold changes from before a crash: until they are passed it is no past state of the source.
    pub high_water: Tid,
    /// Why it is doubtful; empty when it is not.
    pub doubt: String,
    /// How it stores access times.
    pub stored_times: StoredTimes,
    /// Who else can change its tree.
    pub guarded: Guarded,
    /// What it was told last by [`Message::Settled`](super::Message::Settled), while nothing stands against it; else 0.
    pub settled: u64,
}

impl Hello {
    pub(super) fn encode(&self, out: &mut FieldWriter) {
        out.u16(self.version);
        out.0.extend_from_slice(&self.volume.0);
        out.short_bytes(&self.spaces.to_bytes());
        out.0.extend_from_slice(&self.epoch.0);
        out.u64(self.durable.0);
        out.u8(self.access_times as u8);
        out.short_bytes(clip(&self.label));
        let epochs: Vec<u8> = self.epochs.iter().flat_map(|epoch| epoch.to_bytes()).collect();
        out.short_bytes(&epochs);
        out.u64(self.delay_seconds);
    }

    pub(super) fn decode(r: &mut FieldReader<'_>) -> Result<Hello, DecodeError> {
        Ok(Hello {
            version: r.u16("version")?,
            volume: VolumeUuid(r.fixed("volume")?),
            spaces: spaces(r)?,
            epoch: EpochId(r.fixed("epoch")?),
            durable: Tid(r.u64("durable TID")?),
            access_times: match r.flag("access times")? {
                false => AtimeMode::AtClose,
                true => AtimeMode::EachRead,
            },
            label: text(r)?,
            epochs: epochs(r)?,
            delay_seconds: r.u64("delay")?,
        })
    }
}

impl HelloReply {
    pub(super) fn encode(&self, out: &mut FieldWriter) {
        out.u16(self.version);
        out.0.extend_from_slice(&self.replica.0);
        out.u8(self.state as u8);
        out.0.extend_from_slice(&self.received.to_bytes());
        out.0.extend_from_slice(&self.applied.to_bytes());
        out.0.extend_from_slice(&self.commit.to_bytes());
        out.u64(self.high_water.0);
        out.short_bytes(clip(&self.doubt));
        out.u8(self.stored_times as u8);
        out.u8(self.guarded as u8);
        out.u64(self.settled);
    }

    pub(super) fn decode(r: &mut FieldReader<'_>) -> Result<HelloReply, DecodeError> {
        let version = r.u16("version")?;
        let replica = VolumeUuid(r.fixed("replica")?);
        let offset = r.offset();
        let state = match r.u8("state")? {
            0 => ReplicaState::Fresh,
            1 => ReplicaState::Replica,
            2 => ReplicaState::Adopted,
            3 => ReplicaState::Doubtful,
            4 => ReplicaState::Rejoined,
            other => {
                return Err(DecodeError::Value { what: "state", offset, value: u64::from(other) });
            }
        };
        let (received, applied) = (position(r, "received")?, position(r, "applied")?);
        let (commit, high_water) = (Commit::from_bytes(r.fixed("commit")?), Tid(r.u64("high water")?));
        let doubt = text(r)?;
        let (stored_times, guarded, settled) = (stored_times(r)?, guarded(r)?, r.u64("settled")?);
        Ok(HelloReply {
            version,
            replica,
            state,
            received,
            applied,
            commit,
            high_water,
            doubt,
            stored_times,
            guarded,
            settled,
        })
    }
}

fn spaces(r: &mut FieldReader<'_>) -> Result<Spaces, DecodeError> {
    let offset = r.offset();
    let bytes = r.short_bytes("spaces")?;
    let bad = DecodeError::Value { what: "spaces", offset, value: bytes.len() as u64 };
    Spaces::from_bytes(bytes).filter(|spaces| spaces.own().is_some()).ok_or(bad)
}

fn epochs(r: &mut FieldReader<'_>) -> Result<Vec<Position>, DecodeError> {
    let offset = r.offset();
    let bytes = r.short_bytes("epochs")?;
    let (epochs, rest) = bytes.as_chunks();
    match rest.is_empty() && epochs.len() <= History::MOST {
        true => Ok(epochs.iter().map(|bytes| Position::from_bytes(*bytes)).collect()),
        false => Err(DecodeError::Value { what: "epochs", offset, value: bytes.len() as u64 }),
    }
}

fn stored_times(r: &mut FieldReader<'_>) -> Result<StoredTimes, DecodeError> {
    let offset = r.offset();
    match r.u8("stored times")? {
        0 => Ok(StoredTimes::Exact),
        1 => Ok(StoredTimes::Coarse),
        2 => Ok(StoredTimes::Moving),
        other => Err(DecodeError::Value { what: "stored times", offset, value: u64::from(other) }),
    }
}

fn guarded(r: &mut FieldReader<'_>) -> Result<Guarded, DecodeError> {
    let offset = r.offset();
    match r.u8("guarded")? {
        0 => Ok(Guarded::Kept),
        1 => Ok(Guarded::Restored),
        2 => Ok(Guarded::Off),
        3 => Ok(Guarded::Refused),
        other => Err(DecodeError::Value { what: "guarded", offset, value: u64::from(other) }),
    }
}
