//! Which runs of history led to where a volume is, and whose objects it may speak of.

use super::{EpochId, Position, Space, VolumeUuid};

/// The volume instances whose objects may be spoken of: first the one that gives its space to newborns, then those before
/// it whose objects are still there.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Spaces(Vec<Space>);

impl Spaces {
    /// Most that are kept. Each promotion adds one.
    pub const MOST: usize = 64;

    /// `own`, and those before it, each once.
    pub fn new(own: Space, before: impl IntoIterator<Item = Space>) -> Spaces {
        let mut all = vec![own];
        for space in before {
            if !all.contains(&space) && all.len() < Spaces::MOST {
                all.push(space);
            }
        }
        Spaces(all)
    }

    /// The instance that gives its space to newborns; none when nothing is known.
    pub fn own(&self) -> Option<Space> {
        self.0.first().copied()
    }

    /// Whether objects of `space` may be spoken of.
    pub fn contains(&self, space: Space) -> bool {
        self.0.contains(&space)
    }

    /// Whether everything in it is in `other`.
    pub fn is_within(&self, other: &Spaces) -> bool {
        self.0.iter().all(|space| other.contains(*space))
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = Space> + '_ {
        self.0.iter().copied()
    }

    /// Four bytes each, little endian.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|space| space.0.to_le_bytes()).collect()
    }

    /// The inverse of [`Spaces::to_bytes`]; `None` for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Option<Spaces> {
        let (words, rest) = bytes.as_chunks();
        let whole = rest.is_empty() && words.len() <= Spaces::MOST;
        whole.then(|| Spaces(words.iter().map(|word| Space(u32::from_le_bytes(*word))).collect()))
    }
}

impl From<Space> for Spaces {
    fn from(own: Space) -> Spaces {
        Spaces(vec![own])
    }
}

/// A volume's epochs, oldest first: each with the last place that it shares with the one before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct History {
    /// The volume.
    pub volume: VolumeUuid,
    /// Name of the epoch, and TID and digest where it begins.
    pub epochs: Vec<Position>,
}

impl History {
    /// Most epochs that are told of; older ones are left out.
    pub const MOST: usize = 64;

    /// `epochs`, but no more than are told of.
    pub fn new(volume: VolumeUuid, mut epochs: Vec<Position>) -> History {
        epochs.drain(..epochs.len().saturating_sub(History::MOST));
        History { volume, epochs }
    }

    /// The epoch that a history took which was in `ours` for its last common part; `None` when they have nothing in
    /// common, or when `ours` goes on where this one ends.
    pub fn leaves(&self, ours: &[Position]) -> Option<Position> {
        let known = |epoch: EpochId| ours.iter().any(|own| own.epoch == epoch);
        let common = self.epochs.iter().rposition(|own| known(own.epoch))?;
        self.epochs.get(common + 1).copied()
    }

    /// The epochs up to `epoch`, and it alone when it is not known.
    pub fn up_to(&self, epoch: EpochId) -> Vec<Position> {
        match self.epochs.iter().position(|own| own.epoch == epoch) {
            Some(at) => self.epochs[..=at].to_vec(),
            None => vec![Position { epoch, ..Position::START }],
        }
    }

    /// The volume, then each epoch as a position.
    pub fn to_bytes(&self) -> Vec<u8> {
        let epochs = self.epochs.iter().flat_map(|epoch| epoch.to_bytes());
        self.volume.0.into_iter().chain(epochs).collect()
    }

    /// The inverse of [`History::to_bytes`]; `None` for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Option<History> {
        let (volume, rest) = bytes.split_first_chunk()?;
        let (epochs, rest) = rest.as_chunks();
        let whole = rest.is_empty() && epochs.len() <= History::MOST;
        let epochs = epochs.iter().map(|bytes| Position::from_bytes(*bytes)).collect();
        whole.then_some(History { volume: VolumeUuid(*volume), epochs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{ChainDigest, Tid};

    fn epoch(name: u8, tid: u64) -> Position {
        Position { epoch: EpochId([name; 16]), tid: Tid(tid), digest: ChainDigest([name; 8]) }
    }

    #[test]
    fn spaces_and_histories_round_trip() {
        let spaces = Spaces::new(Space(1), [Space(2), Space(1), Space(3)]);
        assert_eq!(spaces.iter().collect::<Vec<_>>(), [Space(1), Space(2), Space(3)]);
        assert_eq!(Spaces::from_bytes(&spaces.to_bytes()), Some(spaces.clone()));
        assert!(Spaces::from(Space(2)).is_within(&spaces) && !spaces.is_within(&Space(2).into()));
        assert_eq!(Spaces::from_bytes(&[1; 5]), None);
        let history = History::new(VolumeUuid([9; 16]), vec![epoch(1, 0), epoch(2, 5)]);
        assert_eq!(History::from_bytes(&history.to_bytes()), Some(history));
        assert_eq!(History::from_bytes(&[0; 17]), None);
    }

    #[test]
    fn a_history_that_was_left_is_told_where() {
        let theirs = History::new(VolumeUuid([9; 16]), vec![epoch(1, 0), epoch(2, 5), epoch(3, 9)]);
        assert_eq!(theirs.leaves(&[epoch(1, 0)]), Some(epoch(2, 5)));
        assert_eq!(theirs.leaves(&[epoch(1, 0), epoch(7, 6)]), Some(epoch(2, 5)), "both went on, each its way");
        assert_eq!(theirs.leaves(&[epoch(1, 0), epoch(2, 5)]), Some(epoch(3, 9)));
        assert_eq!(theirs.leaves(&[epoch(3, 9)]), None);
        assert_eq!(theirs.leaves(&[epoch(8, 0)]), None, "nothing in common");
        assert_eq!(theirs.up_to(EpochId([2; 16])), [epoch(1, 0), epoch(2, 5)]);
        assert_eq!(theirs.up_to(EpochId([8; 16])), [Position { epoch: EpochId([8; 16]), ..Position::START }]);
    }
}
