//! A place in a volume's history that cannot be mistaken for another.

use std::fmt;

use super::{EpochId, Tid};

/// Digest of every record up to a place, each continuing the one before. Two logs that show the same digest at the same
/// TID hold the same records up to there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct ChainDigest(pub [u8; ChainDigest::LEN]);

impl ChainDigest {
    /// Before the first record.
    pub const START: ChainDigest = ChainDigest([0; ChainDigest::LEN]);
    /// Size in bytes. With a record's header it fills one block of the hash, so that a record costs one round of it.
    pub const LEN: usize = 8;

    /// The digest behind a record with this header. The header carries the checksums of its fields and of its payload.
    pub fn then(self, header: &[u8; 56]) -> ChainDigest {
        let mut block = [0; ChainDigest::LEN + 56];
        block[..ChainDigest::LEN].copy_from_slice(&self.0);
        block[ChainDigest::LEN..].copy_from_slice(header);
        let mut out = [0; ChainDigest::LEN];
        out.copy_from_slice(&blake3::hash(&block).as_bytes()[..ChainDigest::LEN]);
        ChainDigest(out)
    }
}

/// A place in a volume's history: which epoch, which TID, and what came before.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Position {
    /// The epoch that the TID belongs to.
    pub epoch: EpochId,
    /// The last record before the place.
    pub tid: Tid,
    /// Digest of the records up to there.
    pub digest: ChainDigest,
}

impl Position {
    /// Before the first record of any history.
    pub const START: Position = Position { epoch: EpochId([0; 16]), tid: Tid::ZERO, digest: ChainDigest::START };
    /// Size of the encoded form.
    pub const LEN: usize = 16 + 8 + ChainDigest::LEN;

    /// Epoch, TID (little endian), digest.
    pub fn to_bytes(self) -> [u8; Position::LEN] {
        let mut out = [0; Position::LEN];
        out[..16].copy_from_slice(&self.epoch.0);
        out[16..24].copy_from_slice(&self.tid.0.to_le_bytes());
        out[24..].copy_from_slice(&self.digest.0);
        out
    }

    /// The inverse of [`Position::to_bytes`].
    pub fn from_bytes(bytes: [u8; Position::LEN]) -> Position {
        let mut position = Position::START;
        let mut tid = [0; 8];
        position.epoch.0.copy_from_slice(&bytes[..16]);
        tid.copy_from_slice(&bytes[16..24]);
        position.tid = Tid(u64::from_le_bytes(tid));
        position.digest.0.copy_from_slice(&bytes[24..]);
        position
    }
}

/// Names one state of a target that was made durable. Tree and catalog both hold it, and the source remembers the last one
/// it heard of: a copy that was put back to an older state, whole or in part, shows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Commit {
    /// Counts up.
    pub number: u64,
    /// Random: two histories of one target that count alike are told apart by it.
    pub nonce: u64,
}

impl Commit {
    /// Size of the encoded form.
    pub const LEN: usize = 16;

    /// Number, nonce, little endian.
    pub fn to_bytes(self) -> [u8; Commit::LEN] {
        let mut out = [0; Commit::LEN];
        out[..8].copy_from_slice(&self.number.to_le_bytes());
        out[8..].copy_from_slice(&self.nonce.to_le_bytes());
        out
    }

    /// The inverse of [`Commit::to_bytes`].
    pub fn from_bytes(bytes: [u8; Commit::LEN]) -> Commit {
        let word = |at: usize| bytes[at..at + 8].iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        Commit { number: word(0), nonce: word(8) }
    }
}

impl fmt::Display for ChainDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of epoch {} ({})", self.tid, self.epoch, self.digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_and_commits_round_trip() {
        let position = Position { epoch: EpochId([7; 16]), tid: Tid(9), digest: ChainDigest([3; 8]) };
        assert_eq!(Position::from_bytes(position.to_bytes()), position);
        let commit = Commit { number: 0x0102_0304_0506_0708, nonce: 5 };
        assert_eq!(Commit::from_bytes(commit.to_bytes()), commit);
    }

    #[test]
    fn a_digest_depends_on_every_record_and_on_their_order() {
        let chain = |headers: &[u8]| headers.iter().fold(ChainDigest::START, |digest, byte| digest.then(&[*byte; 56]));
        assert_ne!(chain(b"ab"), chain(b"ba"));
        assert_ne!(chain(b"ab"), chain(b"b"));
        assert_eq!(chain(b"ab"), chain(b"ab"));
    }
}
