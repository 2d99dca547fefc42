//! The messages of a session.

use crate::base::{
    AtimeMode, ChainDigest, Commit, EpochId, Guarded, History, Oid, Position, Spaces, StoredTimes, Tid, Timespec,
    VolumeUuid, faults, is_unprintable,
};
use crate::record::{DecodeError, Difference, FieldReader, FieldWriter, OrphanList, OrphanOrder};

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
}

/// Something the target must have to go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Need {
    /// The object.
    pub oid: Oid,
    /// First byte of the range, 0 with `len` 0 for the whole object.
    pub offset: u64,
    /// Length of the range; 0 for the whole object.
    pub len: u64,
}

/// How far the target is. All positions are cumulative.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ack {
    /// Every batch up to this one was taken in (in the inbox, or applied): it no longer fills the window.
    pub batch_taken: u64,
    /// Every batch up to this one is durable in the tree.
    pub batch_durable: u64,
    /// Last TID durable in the inbox.
    pub received: Tid,
    /// Last TID durable in the tree.
    pub applied: Tid,
    /// The state that tree and catalog were last made durable in.
    pub commit: Commit,
    /// What the target takes itself for, also when its source is gone: the last word on that which is durable there.
    pub convergence: Convergence,
    /// How many objects could not be brought to their state.
    pub blocked: u32,
    /// One of them.
    pub blocked_oid: Oid,
    /// Its errno, else 0.
    pub blocked_errno: i32,
    /// Why nothing goes on for now, though the session lives; 0 when it does. A full disk, mostly.
    pub stalled_errno: i32,
    /// Where it does not go on.
    pub stalled_at: Stall,
    /// What the target must be sent.
    pub needs: Vec<Need>,
}

impl Default for Ack {
    fn default() -> Ack {
        Ack {
            batch_taken: 0,
            batch_durable: 0,
            received: Tid::ZERO,
            applied: Tid::ZERO,
            commit: Commit::default(),
            convergence: Convergence::Converging,
            blocked: 0,
            blocked_oid: Oid::ROOT,
            blocked_errno: 0,
            stalled_errno: 0,
            stalled_at: Stall::No,
            needs: Vec::new(),
        }
    }
}

/// Which part of a target waits for its disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Stall {
    /// None.
    #[default]
    No,
    /// Its inbox.
    Inbox,
    /// Its tree.
    Tree,
}

/// What stands against a target's being a past state of its source, as far as the source knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Convergence {
    /// Nothing.
    Consistent,
    /// Objects must still be sent or compared.
    Converging,
}

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

/// Most needs in one ack.
const MAX_NEEDS: u32 = 4096;
const MAX_TEXT_BYTES: usize = 1024;
/// Most differences in one answer to a check.
const MAX_FOUND: u32 = 4096;

impl Need {
    /// Offset that stands, with length 0, for a directory's entries without what is in them.
    const LISTING: u64 = 1;

    /// The entries of the directory `oid`, without what is in them.
    pub fn listing(oid: Oid) -> Need {
        Need { oid, offset: Need::LISTING, len: 0 }
    }

    /// Whether it is for a directory's entries alone.
    pub fn is_listing(&self) -> bool {
        self.offset == Need::LISTING && self.len == 0
    }
}

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

impl Hello {
    fn encode(&self, out: &mut FieldWriter) {
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

    fn decode(r: &mut FieldReader<'_>) -> Result<Hello, DecodeError> {
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
    fn encode(&self, out: &mut FieldWriter) {
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
    }

    fn decode(r: &mut FieldReader<'_>) -> Result<HelloReply, DecodeError> {
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
        let (stored_times, guarded) = (stored_times(r)?, guarded(r)?);
        Ok(HelloReply { version, replica, state, received, applied, commit, high_water, doubt, stored_times, guarded })
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

fn convergence(r: &mut FieldReader<'_>) -> Result<Convergence, DecodeError> {
    Ok(if r.flag("convergence")? { Convergence::Converging } else { Convergence::Consistent })
}

fn superseded(body: &[u8]) -> Result<Message, DecodeError> {
    let bad = DecodeError::Value { what: "history", offset: 0, value: body.len() as u64 };
    History::from_bytes(body).map(Message::Superseded).ok_or(bad)
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

impl Ack {
    fn encode(&self, out: &mut FieldWriter) {
        out.u64(self.batch_taken);
        out.u64(self.batch_durable);
        out.u64(self.received.0);
        out.u64(self.applied.0);
        out.0.extend_from_slice(&self.commit.to_bytes());
        out.u8(self.convergence as u8);
        out.u32(self.blocked);
        out.oid(self.blocked_oid);
        out.u32(self.blocked_errno as u32);
        out.u8(self.stalled_at as u8);
        out.u32(self.stalled_errno as u32);
        out.u32(self.needs.len() as u32);
        for need in &self.needs {
            out.oid(need.oid);
            out.u64(need.offset);
            out.u64(need.len);
        }
    }

    fn decode(r: &mut FieldReader<'_>) -> Result<Ack, DecodeError> {
        let (batch_taken, batch_durable) = (r.u64("batch taken")?, r.u64("batch durable")?);
        let (received, applied) = (Tid(r.u64("received")?), Tid(r.u64("applied")?));
        let (commit, convergence) = (Commit::from_bytes(r.fixed("commit")?), convergence(r)?);
        let (blocked, blocked_oid) = (r.u32("blocked")?, r.oid("blocked")?);
        let blocked_errno = r.u32("errno")? as i32;
        let offset = r.offset();
        let stalled_at = match r.u8("stall")? {
            0 => Stall::No,
            1 => Stall::Inbox,
            2 => Stall::Tree,
            other => return Err(DecodeError::Value { what: "stall", offset, value: u64::from(other) }),
        };
        let stalled_errno = r.u32("errno")? as i32;
        let count = r.bounded_u32("need count", MAX_NEEDS)?;
        let needs = (0..count)
            .map(|_| Ok(Need { oid: r.oid("need")?, offset: r.file_u64("offset")?, len: r.file_u64("length")? }))
            .collect::<Result<_, DecodeError>>()?;
        Ok(Ack {
            batch_taken,
            batch_durable,
            received,
            applied,
            commit,
            convergence,
            blocked,
            blocked_oid,
            blocked_errno,
            stalled_at,
            stalled_errno,
            needs,
        })
    }
}

impl Message {
    /// Most differences that one answer to a check can carry; the rest is only counted.
    pub const MAX_FOUND: usize = MAX_FOUND as usize;
}

impl Ack {
    /// Most needs that one ack can carry; the rest goes with the next.
    pub const MAX_NEEDS: usize = MAX_NEEDS as usize;
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

fn position(r: &mut FieldReader<'_>, what: &'static str) -> Result<Position, DecodeError> {
    let epoch = EpochId(r.fixed(what)?);
    let tid = Tid(r.u64(what)?);
    Ok(Position { epoch, tid, digest: ChainDigest(r.fixed(what)?) })
}

fn clip(text: &str) -> &[u8] {
    &text.as_bytes()[..text.floor_char_boundary(MAX_TEXT_BYTES)]
}

/// Text from a peer is shown to people: what a terminal would act on does not get through.
fn text(r: &mut FieldReader<'_>) -> Result<String, DecodeError> {
    let offset = r.offset();
    let bytes = r.short_bytes("text")?;
    if bytes.len() > MAX_TEXT_BYTES {
        return Err(DecodeError::Value { what: "text length", offset, value: bytes.len() as u64 });
    }
    let mut text: String =
        String::from_utf8_lossy(bytes).chars().map(|c| if is_unprintable(c) { '?' } else { c }).collect();
    // Three bytes stand for one that is not UTF-8.
    text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Space;

    fn samples() -> Vec<Message> {
        let oid = Oid { space: Space(9), generation: 8, ino: 7 };
        vec![
            Message::Hello(Hello {
                version: 1,
                volume: VolumeUuid([1; 16]),
                spaces: Spaces::new(Space(6), [Space(5)]),
                epoch: EpochId([2; 16]),
                durable: Tid(77),
                access_times: AtimeMode::EachRead,
                label: "data".into(),
                epochs: vec![Position { epoch: EpochId([2; 16]), tid: Tid(7), digest: ChainDigest([8; 8]) }],
                delay_seconds: 3600,
            }),
            Message::HelloReply(HelloReply {
                version: 1,
                replica: VolumeUuid([3; 16]),
                state: ReplicaState::Replica,
                received: Position { epoch: EpochId([4; 16]), tid: Tid(5), digest: ChainDigest([5; 8]) },
                applied: Position::START,
                commit: Commit { number: 6, nonce: 7 },
                high_water: Tid(8),
                doubt: "no catalog".into(),
                stored_times: StoredTimes::Coarse,
                guarded: Guarded::Restored,
            }),
            Message::Refuse { code: RefuseCode::Wrong, text: "no".into() },
            Message::Keep { epoch: EpochId([7; 16]) },
            Message::Start { after: Position { tid: Tid(6), ..Position::START }, jump: true },
            Message::Records { batch: 1, prev: Tid(6), first: Tid(7), last: Tid(9), count: 3, body: vec![1, 2, 3] },
            Message::State { batch: 2, body: vec![4, 5] },
            Message::Ack(Ack {
                batch_taken: 2,
                batch_durable: 1,
                received: Tid(9),
                applied: Tid(7),
                commit: Commit { number: 3, nonce: 4 },
                convergence: Convergence::Consistent,
                blocked: 1,
                blocked_oid: oid,
                blocked_errno: 27,
                stalled_errno: 28,
                stalled_at: Stall::Tree,
                needs: vec![Need { oid, offset: 0, len: 0 }],
            }),
            Message::Flush,
            Message::Ping,
            Message::Pong { clock_micros: 11 },
            Message::Bye,
            Message::Convergence(Convergence::Converging),
            Message::Superseded(History { volume: VolumeUuid([1; 16]), epochs: vec![Position::START] }),
        ]
    }

    #[test]
    fn every_message_round_trips() {
        for message in samples() {
            assert_eq!(Message::decode(message.kind(), message.encode()), Ok(message));
        }
    }

    #[test]
    fn a_cut_message_is_an_error_and_never_a_panic() {
        for message in samples() {
            let body = message.encode();
            let keeps_rest =
                matches!(message, Message::Records { .. } | Message::State { .. } | Message::Superseded(_));
            for len in 0..body.len() {
                let outcome = Message::decode(message.kind(), body[..len].to_vec());
                assert!(outcome.is_err() || keeps_rest, "{message:?} cut at {len}");
            }
        }
    }

    #[test]
    fn text_from_a_peer_cannot_reach_the_terminal_raw() {
        let message = Message::Refuse { code: RefuseCode::Busy, text: "a\x1b[2Jb".into() };
        let decoded = Message::decode(message.kind(), message.encode()).unwrap();
        assert_eq!(decoded, Message::Refuse { code: RefuseCode::Busy, text: "a?[2Jb".into() });
    }

    #[test]
    fn long_text_is_cut_between_characters_on_both_sides() {
        let message = Message::Refuse { code: RefuseCode::Busy, text: "\u{e9}".repeat(MAX_TEXT_BYTES) };
        let Ok(Message::Refuse { text, .. }) = Message::decode(message.kind(), message.encode()) else { panic!() };
        assert_eq!(text, "\u{e9}".repeat(MAX_TEXT_BYTES / 2));
        let mut body = FieldWriter::default();
        body.u8(0);
        body.short_bytes(&[0xff; MAX_TEXT_BYTES]);
        let decoded = Message::decode(3, body.0).unwrap();
        assert_eq!(Message::decode(decoded.kind(), decoded.encode()), Ok(decoded));
    }
}
