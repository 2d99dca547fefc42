//! The messages of a session.

mod ack;
mod fields;
mod hello;

use crate::base::{EpochId, History, Position, Tid, Timespec, faults};
use crate::record::{DecodeError, Difference, FieldReader, FieldWriter, OrphanList, OrphanOrder};
use ack::convergence;
use fields::{clip, position, text};

pub use ack::{Ack, Convergence, Need, Stall};
pub use hello::{Hello, HelloReply, ReplicaState};

/// Why a session is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RefuseCode {
    /// Another session is there.
    Busy,
    /// The target belongs to another volume, or is not a replica and not empty.
    Wrong,
    /// The versions do not fit.
    Version,
    /// The target cannot go on (I/O error).
    Failed,
    /// What was durable at the target may be durable no more: all of it must be compared.
    Doubt,
}

/// One message.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // each variant names its fields
pub enum Message {
    /// Source: who I am.
    Hello(Hello),
    /// Target: who I am and where I stand.
    HelloReply(HelloReply),
    /// Either: no, and why.
    Refuse { code: RefuseCode, text: String },
    /// Source: the next record follows `after`. `jump` when the target must take that as its position although it did not
    /// receive everything up to there (the difference comes as state).
    Start { after: Position, jump: bool },
    /// Source: before a Start with `jump`: what the target has and this source has not is kept, in a place that is named
    /// after the epoch. It followed a history that this source does not have any more.
    Keep { epoch: EpochId },
    /// Source: records, encoded one behind the other. `prev` is the TID before the first.
    Records { batch: u64, prev: Tid, first: Tid, last: Tid, count: u32, body: Vec<u8> },
    /// Source: state records, encoded one behind the other. They go where they stand in the stream.
    State { batch: u64, body: Vec<u8> },
    /// Target: how far I am.
    Ack(Ack),
    /// Source: make everything durable now and say so.
    Flush,
    /// Either: are you there?
    Ping,
    /// Either: yes, and what my clock says, in microseconds since 1970.
    Pong { clock_micros: u64 },
    /// Source: the session is over.
    Bye,
    /// Source: whether rows of work are left for this target. While they are, its tree is no past state of the source.
    Convergence(Convergence),
    /// Source: everything that had come into doubt for all targets when it had this mark is good at this one. A copy that has
    /// the mark of a source needs only records from it, whoever brought it there.
    Settled { mark: u64 },
    /// Target: this tree is no target any more, it was promoted. Where its history went.
    Superseded(History),
    /// Source: what is to become of the objects in the target's tree that the source does not have.
    Orphans(OrphanOrder),
    /// Target: what became of them.
    OrphansDone(OrphanList),
    /// Source: state records to compare with what the target has; they change nothing.
    Check { batch: u64, body: Vec<u8> },
    /// Target: what differs from the records of a check; `more` differences found no place.
    Checked { batch: u64, more: u64, found: Vec<Difference> },
}

/// Most differences in one answer to a check.
const MAX_FOUND: u32 = 4096;

impl Message {
    /// A sign of life, with the time of this host.
    pub fn pong() -> Message {
        // The fault is a host whose clock was never set.
        let now = if faults::skipped("wire.clock") { 0 } else { Timespec::now().as_nanos().max(0) as u64 };
        Message::Pong { clock_micros: now / 1000 }
    }

    /// Number of the kind in the frame header.
    pub fn kind(&self) -> u8 {
        match self {
            Message::Hello(_) => 1,
            Message::HelloReply(_) => 2,
            Message::Refuse { .. } => 3,
            Message::Start { .. } => 4,
            Message::Keep { .. } => 40,
            Message::Records { .. } => 5,
            Message::State { .. } => 6,
            Message::Ack(_) => 7,
            Message::Flush => 8,
            Message::Ping => 9,
            Message::Pong { .. } => 10,
            Message::Bye => 11,
            Message::Convergence(_) => 30,
            Message::Settled { .. } => 32,
            Message::Superseded(_) => 31,
            Message::Check { .. } => 12,
            Message::Checked { .. } => 13,
            Message::Orphans(_) => 14,
            Message::OrphansDone(_) => 15,
        }
    }

    /// Whether it carries a batch number that acks speak of.
    pub fn is_batch(&self) -> bool {
        matches!(self, Message::Records { .. } | Message::State { .. } | Message::Check { .. })
    }

    /// The frame body.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = FieldWriter::default();
        match self {
            Message::Hello(hello) => hello.encode(&mut out),
            Message::HelloReply(reply) => reply.encode(&mut out),
            Message::Refuse { code, text } => {
                out.u8(*code as u8);
                out.short_bytes(clip(text));
            }
            Message::Keep { epoch } => out.0.extend_from_slice(&epoch.0),
            Message::Start { after, jump } => {
                out.0.extend_from_slice(&after.to_bytes());
                out.u8(u8::from(*jump));
            }
            Message::Records { batch, prev, first, last, count, body } => {
                out.0.reserve(body.len() + 40);
                out.u64(*batch);
                out.u64(prev.0);
                out.u64(first.0);
                out.u64(last.0);
                out.u32(*count);
                out.0.extend_from_slice(body);
            }
            Message::State { batch, body } | Message::Check { batch, body } => {
                out.0.reserve(body.len() + 8);
                out.u64(*batch);
                out.0.extend_from_slice(body);
            }
            Message::Ack(ack) => ack.encode(&mut out),
            Message::Pong { clock_micros } => out.u64(*clock_micros),
            Message::Flush | Message::Ping | Message::Bye => {}
            Message::Convergence(state) => out.u8(*state as u8),
            Message::Settled { mark } => out.u64(*mark),
            Message::Superseded(history) => out.0.extend_from_slice(&history.to_bytes()),
            Message::Orphans(order) => order.encode(&mut out),
            Message::OrphansDone(list) => list.encode(&mut out),
            Message::Checked { batch, more, found } => {
                out.u64(*batch);
                out.u64(*more);
                out.u32(found.len() as u32);
                found.iter().for_each(|difference| difference.encode(&mut out));
            }
        }
        out.0
    }

    /// The inverse of [`Message::encode`].
    ///
    /// # Errors
    /// [`DecodeError`] says what is wrong where.
    pub fn decode(kind: u8, mut body: Vec<u8>) -> Result<Message, DecodeError> {
        let mut r = FieldReader::new(&body);
        let message = match kind {
            1 => Message::Hello(Hello::decode(&mut r)?),
            2 => Message::HelloReply(HelloReply::decode(&mut r)?),
            3 => Message::Refuse { code: refuse_code(&mut r)?, text: text(&mut r)? },
            40 => Message::Keep { epoch: EpochId(r.fixed("epoch")?) },
            4 => Message::Start { after: position(&mut r, "after")?, jump: r.flag("jump")? },
            5 => {
                let (batch, prev) = (r.u64("batch")?, Tid(r.u64("previous TID")?));
                let (first, last, count) = (Tid(r.u64("first TID")?), Tid(r.u64("last TID")?), r.u32("count")?);
                if !(prev < first && first <= last) {
                    return Err(DecodeError::Value { what: "first TID", offset: 16, value: first.0 });
                }
                let at = r.offset();
                return Ok(Message::Records { batch, prev, first, last, count, body: body.split_off(at) });
            }
            6 | 12 => {
                let batch = r.u64("batch")?;
                let at = r.offset();
                let body = body.split_off(at);
                return Ok(if kind == 6 { Message::State { batch, body } } else { Message::Check { batch, body } });
            }
            7 => Message::Ack(Ack::decode(&mut r)?),
            8 => Message::Flush,
            9 => Message::Ping,
            10 => Message::Pong { clock_micros: r.u64("clock")? },
            11 => Message::Bye,
            14 => Message::Orphans(OrphanOrder::decode(&mut r)?),
            15 => Message::OrphansDone(OrphanList::decode(&mut r)?),
            30 => Message::Convergence(convergence(&mut r)?),
            32 => Message::Settled { mark: r.u64("mark")? },
            31 => return superseded(&body),
            13 => {
                let (batch, more) = (r.u64("batch")?, r.u64("more")?);
                let count = r.bounded_u32("difference count", MAX_FOUND)?;
                let found = (0..count).map(|_| Difference::decode(&mut r)).collect::<Result<_, _>>()?;
                Message::Checked { batch, more, found }
            }
            _ => {
                return Err(DecodeError::Value { what: "message kind", offset: 0, value: u64::from(kind) });
            }
        };
        r.end()?;
        Ok(message)
    }
}

fn superseded(body: &[u8]) -> Result<Message, DecodeError> {
    let bad = DecodeError::Value { what: "history", offset: 0, value: body.len() as u64 };
    History::from_bytes(body).map(Message::Superseded).ok_or(bad)
}

impl Message {
    /// Most differences that one answer to a check can carry; the rest is only counted.
    pub const MAX_FOUND: usize = MAX_FOUND as usize;
}

fn refuse_code(r: &mut FieldReader<'_>) -> Result<RefuseCode, DecodeError> {
    let offset = r.offset();
    match r.u8("reason")? {
        0 => Ok(RefuseCode::Busy),
        1 => Ok(RefuseCode::Wrong),
        2 => Ok(RefuseCode::Version),
        3 => Ok(RefuseCode::Failed),
        4 => Ok(RefuseCode::Doubt),
        other => Err(DecodeError::Value { what: "reason", offset, value: u64::from(other) }),
    }
}

#[cfg(test)]
mod tests;
