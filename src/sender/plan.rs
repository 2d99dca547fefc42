//! How a session begins: a pure function of where both sides are.

use std::fmt;

use crate::base::Tid;
use crate::journal::{Said, Sent};
use crate::wire::{HelloReply, ReplicaState};

/// What the source knows of itself and of the target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ours {
    /// Last durable TID.
    pub durable: Tid,
    /// The oldest place that can be streamed from.
    pub oldest_kept: Tid,
    /// The target's place: whatever lies before it was received, or is queued as work.
    pub place: Tid,
    /// Rows of work cover what it had not received up to here.
    pub covered: Tid,
    /// Whether its initial mirror was ever queued.
    pub mirrored: bool,
    /// What the target said last.
    pub said: Option<Said>,
    /// What it can have been sent.
    pub sent: Option<Sent>,
    /// Where the target's position lies, seen from our own history.
    pub standing: Standing,
    /// What is done with a target that followed another history.
    pub forked: Forked,
    /// The mark of what is known to be in doubt here.
    pub mark: u64,
    /// The place that is kept for a copy which this history left, and up to where rows of work cover what it lacks.
    pub awaited: Option<(Tid, Tid)>,
}

/// Where a position lies, seen from a history.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// On it: the same records led there.
    Ours,
    /// On it by its epoch and TID; what led there is forgotten.
    Forgotten,
    /// In one of its epochs, behind the last record that epoch has here.
    Ahead,
    /// Other records led there.
    Elsewhere,
}

/// What is done with a target that holds what this source does not know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Forked {
    /// It is refused: what it holds may be the only copy.
    Refuse,
    /// The operator wants it to become equal to this source.
    Compare,
    /// As before, and what it has and this source has not is kept there.
    Keep,
}

/// How a session begins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Plan {
    /// The records behind what it has received; work that is queued goes on beside them.
    Stream,
    /// The records behind `to`, which it has not reached: what lies between is queued as work.
    Jump {
        /// Its new place.
        to: Tid,
    },
    /// As [`Plan::Stream`], with a copy that another source brought to where it is.
    Resume,
    /// The whole tree is sent, records from our end on beside it.
    Mirror,
    /// The whole tree is compared, records from our end on beside it.
    Compare(Cause),
    /// Nothing is sent.
    Refuse(Fork),
}

/// Why a whole tree is compared.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Cause {
    /// Its files were there before it was a replica.
    TakenOver,
    /// The target is in doubt itself.
    Doubt(String),
    /// Not the copy that was there last time.
    OtherCopy,
    /// It was put back to an older state.
    PutBack,
    /// Its records are not kept any more.
    LostPlace,
    /// It followed another history, and the operator has decided.
    Forked,
    /// It may have followed another history: nothing is left that would tell.
    Unproven,
}

/// Why a target is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fork {
    /// It has received what this source lost: the source was put back to an older state.
    Ahead,
    /// It followed another source.
    Elsewhere,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::TakenOver => f.write_str("it held files before it became a target"),
            Cause::Doubt(text) => write!(f, "it cannot vouch for itself: {text}"),
            Cause::OtherCopy => f.write_str("it is not the copy that answered last time"),
            Cause::PutBack => f.write_str("it was put back to an older state than it had acknowledged"),
            Cause::LostPlace => f.write_str("the records it lacks are not kept any more"),
            Cause::Forked => f.write_str("it followed another history, which is given up"),
            Cause::Unproven => {
                f.write_str("the records that would tell which history it followed are not kept any more")
            }
        }
    }
}

impl fmt::Display for Fork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fork::Ahead => {
                "it holds changes that this source does not have any more: the source was put back to an older state"
            }
            Fork::Elsewhere => "it followed another history than this source's",
        })
    }
}

/// Decides how to begin with a target that answers `theirs`.
pub fn plan(ours: &Ours, theirs: &HelloReply) -> Plan {
    match theirs.state {
        ReplicaState::Fresh => return Plan::Mirror,
        ReplicaState::Adopted => return Plan::Compare(Cause::TakenOver),
        ReplicaState::Doubtful | ReplicaState::Replica | ReplicaState::Rejoined => {}
    }
    let standing = match ours.standing {
        Standing::Forgotten if theirs.state != ReplicaState::Rejoined => match ours.vouches_for(theirs) {
            Some(true) => Standing::Forgotten,
            // In our own epoch, but further than it can have followed us.
            Some(false) => Standing::Ahead,
            None => return Plan::Compare(Cause::Unproven),
        },
        standing => standing,
    };
    match (standing, ours.forked) {
        // Whatever it is in doubt of: what it had reached was ours, as far as it is known.
        (Standing::Ours | Standing::Forgotten, _) if theirs.state == ReplicaState::Doubtful => {
            Plan::Compare(Cause::Doubt(theirs.doubt.clone()))
        }
        (Standing::Ours | Standing::Forgotten, _) if theirs.state == ReplicaState::Rejoined => take_back(ours, theirs),
        (Standing::Ours | Standing::Forgotten, _) => continue_with(ours, theirs),
        (_, Forked::Compare | Forked::Keep) => Plan::Compare(Cause::Forked),
        (Standing::Ahead, Forked::Refuse) => Plan::Refuse(Fork::Ahead),
        (Standing::Elsewhere, Forked::Refuse) => Plan::Refuse(Fork::Elsewhere),
    }
}

impl Ours {
    /// Whether a copy can have come to its place by what this source sent; `None` for a copy that was not met before.
    fn vouches_for(&self, theirs: &HelloReply) -> Option<bool> {
        let sent = self.sent.filter(|sent| sent.copy == theirs.replica)?;
        Some(theirs.received.tid <= sent.upto)
    }
}

/// A former source: it is at the last place that both histories share, and asks for what it changed since.
fn take_back(ours: &Ours, theirs: &HelloReply) -> Plan {
    let at = theirs.received.tid;
    match ours.awaited {
        _ if at >= ours.oldest_kept => Plan::Stream,
        Some((place, covered)) if at >= place && covered > at && covered >= ours.oldest_kept => {
            Plan::Jump { to: covered }
        }
        _ => Plan::Compare(Cause::LostPlace),
    }
}

fn continue_with(ours: &Ours, theirs: &HelloReply) -> Plan {
    let Some(said) = ours.said.filter(|said| ours.mirrored && said.copy == theirs.replica) else {
        // Whoever brought it there: whatever is in doubt here is good there, and records tell the rest.
        let has_all = theirs.settled != 0 && theirs.settled == ours.mark && ours.standing == Standing::Ours;
        return match has_all && theirs.received.tid >= ours.oldest_kept {
            true => Plan::Resume,
            false => Plan::Compare(Cause::OtherCopy),
        };
    };
    // Rows that were done then are not done now, and records that it had are not kept for its sake.
    if went_back(&said, theirs) {
        return Plan::Compare(Cause::PutBack);
    }
    let received = theirs.received.tid;
    let to = ours.place.max(ours.covered);
    match received >= ours.place && received >= ours.oldest_kept && ours.standing == Standing::Ours {
        true => Plan::Stream,
        false if to > received && to >= ours.oldest_kept => Plan::Jump { to },
        false => Plan::Compare(Cause::LostPlace),
    }
}

/// Whether a target is older than it said last.
fn went_back(said: &Said, theirs: &HelloReply) -> bool {
    let (then, now) = (said.commit, theirs.commit);
    let other = now.number < then.number || now.number == then.number && now.nonce != then.nonce;
    other || theirs.applied.tid < said.applied || theirs.received.tid < said.received
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{ChainDigest, Commit, EpochId, Position, VolumeUuid};

    const COPY: VolumeUuid = VolumeUuid([1; 16]);
    const COMMIT: Commit = Commit { number: 8, nonce: 80 };
    const SAID: Said = Said { copy: COPY, received: Tid(70), applied: Tid(60), commit: COMMIT };
    const OURS: Ours = Ours {
        durable: Tid(100),
        oldest_kept: Tid(50),
        place: Tid(70),
        covered: Tid(0),
        mirrored: true,
        said: Some(SAID),
        sent: Some(Sent { copy: COPY, upto: Tid(80) }),
        standing: Standing::Ours,
        forked: Forked::Refuse,
        mark: 5,
        awaited: None,
    };

    fn at(tid: u64) -> Position {
        Position { epoch: EpochId([9; 16]), tid: Tid(tid), digest: ChainDigest::START }
    }

    fn replica(received: u64, applied: u64) -> HelloReply {
        HelloReply {
            version: 1,
            replica: COPY,
            state: ReplicaState::Replica,
            received: at(received),
            applied: at(applied),
            commit: COMMIT,
            high_water: Tid(0),
            doubt: String::new(),
            stored_times: crate::base::StoredTimes::Exact,
            guarded: crate::base::Guarded::Kept,
            settled: 0,
        }
    }

    #[test]
    fn a_target_goes_on_where_it_is() {
        assert_eq!(plan(&OURS, &replica(80, 60)), Plan::Stream);
        assert_eq!(plan(&OURS, &replica(100, 100)), Plan::Stream);
        // It made something durable and its ack was lost.
        let later = HelloReply { commit: Commit { number: 9, nonce: 1 }, ..replica(80, 80) };
        assert_eq!(plan(&OURS, &later), Plan::Stream);
        // Its place was moved while it was away.
        let moved = Ours { place: Tid(90), ..OURS };
        assert_eq!(plan(&moved, &replica(80, 60)), Plan::Jump { to: Tid(90) });
        let lost = Ours { oldest_kept: Tid(95), place: Tid(70), ..OURS };
        assert_eq!(plan(&lost, &replica(80, 60)), Plan::Compare(Cause::LostPlace));
        let forgotten = Ours { standing: Standing::Forgotten, ..OURS };
        assert_eq!(plan(&forgotten, &replica(80, 60)), Plan::Compare(Cause::LostPlace));
        let covered = Ours { covered: Tid(90), oldest_kept: Tid(90), ..forgotten };
        assert_eq!(plan(&covered, &replica(80, 60)), Plan::Jump { to: Tid(90) });
    }

    #[test]
    fn a_target_whose_records_became_work_goes_on_behind_them() {
        let ours = Ours { covered: Tid(90), oldest_kept: Tid(90), ..OURS };
        assert_eq!(plan(&ours, &replica(70, 60)), Plan::Jump { to: Tid(90) });
        assert_eq!(plan(&ours, &replica(75, 75)), Plan::Jump { to: Tid(90) });
        assert_eq!(plan(&ours, &replica(95, 60)), Plan::Stream);
        assert_eq!(plan(&ours, &replica(69, 60)), Plan::Compare(Cause::PutBack), "it lost what it had acknowledged");
        let dropped = Ours { covered: Tid(89), ..ours };
        assert_eq!(plan(&dropped, &replica(70, 60)), Plan::Compare(Cause::LostPlace));
    }

    #[test]
    fn a_target_that_is_new_or_unknown_is_filled_or_compared() {
        let state = |state| HelloReply { state, doubt: "no catalog".into(), ..replica(0, 0) };
        assert_eq!(plan(&OURS, &state(ReplicaState::Fresh)), Plan::Mirror);
        assert_eq!(plan(&OURS, &state(ReplicaState::Adopted)), Plan::Compare(Cause::TakenOver));
        let doubt = Plan::Compare(Cause::Doubt("no catalog".into()));
        assert_eq!(plan(&OURS, &state(ReplicaState::Doubtful)), doubt);
        let other = HelloReply { replica: VolumeUuid([2; 16]), ..replica(80, 80) };
        assert_eq!(plan(&OURS, &other), Plan::Compare(Cause::OtherCopy));
        let never = Ours { mirrored: false, ..OURS };
        assert_eq!(plan(&never, &replica(80, 80)), Plan::Compare(Cause::OtherCopy));
    }

    #[test]
    fn a_copy_that_another_source_has_brought_up_goes_on_only_when_nothing_came_into_doubt_since() {
        let never = Ours { mirrored: false, said: None, place: Tid(0), ..OURS };
        let settled = |mark| HelloReply { settled: mark, ..replica(80, 80) };
        assert_eq!(plan(&never, &settled(5)), Plan::Resume);
        assert_eq!(plan(&never, &settled(4)), Plan::Compare(Cause::OtherCopy));
        assert_eq!(plan(&never, &settled(0)), Plan::Compare(Cause::OtherCopy));
        assert_eq!(plan(&Ours { mark: 0, ..never }, &settled(0)), Plan::Compare(Cause::OtherCopy));
        let trimmed = Ours { oldest_kept: Tid(81), ..never };
        assert_eq!(plan(&trimmed, &settled(5)), Plan::Compare(Cause::OtherCopy));
        let forgotten = Ours { standing: Standing::Forgotten, ..never };
        assert_eq!(plan(&forgotten, &settled(5)), Plan::Compare(Cause::OtherCopy));
        let fork = Plan::Refuse(Fork::Elsewhere);
        assert_eq!(plan(&Ours { standing: Standing::Elsewhere, ..never }, &settled(5)), fork);
    }

    #[test]
    fn a_former_source_goes_on_where_the_histories_part() {
        let back = HelloReply { state: ReplicaState::Rejoined, ..replica(80, 80) };
        let ours = Ours { said: None, mirrored: false, place: Tid(0), awaited: Some((Tid(80), Tid(0))), ..OURS };
        assert_eq!(plan(&ours, &back), Plan::Stream);
        let dropped = Ours { oldest_kept: Tid(95), awaited: Some((Tid(80), Tid(95))), ..ours };
        assert_eq!(plan(&dropped, &back), Plan::Jump { to: Tid(95) });
        let lost = Ours { awaited: None, ..dropped };
        assert_eq!(plan(&lost, &back), Plan::Compare(Cause::LostPlace));
        let other = Ours { standing: Standing::Elsewhere, ..ours };
        assert_eq!(plan(&other, &back), Plan::Refuse(Fork::Elsewhere));
    }

    #[test]
    fn a_target_that_was_put_back_is_compared() {
        let back = Plan::Compare(Cause::PutBack);
        assert_eq!(plan(&OURS, &replica(80, 59)), back);
        assert_eq!(plan(&OURS, &replica(69, 60)), back);
        let earlier = HelloReply { commit: Commit { number: 7, nonce: 80 }, ..replica(80, 60) };
        assert_eq!(plan(&OURS, &earlier), back);
        let another = HelloReply { commit: Commit { number: 8, nonce: 81 }, ..replica(80, 60) };
        assert_eq!(plan(&OURS, &another), back);
    }

    /// Its place was trimmed, so that no digest tells whose records it has.
    #[test]
    fn what_a_source_can_not_have_sent_is_another_history() {
        let ours = Ours { standing: Standing::Forgotten, covered: Tid(90), oldest_kept: Tid(90), ..OURS };
        assert_eq!(plan(&ours, &replica(81, 60)), Plan::Refuse(Fork::Ahead));
        let doubtful = HelloReply { state: ReplicaState::Doubtful, ..replica(81, 60) };
        assert_eq!(plan(&ours, &doubtful), Plan::Refuse(Fork::Ahead));
        let decided = Ours { forked: Forked::Keep, ..ours };
        assert_eq!(plan(&decided, &replica(81, 60)), Plan::Compare(Cause::Forked));
        let other = HelloReply { replica: VolumeUuid([2; 16]), ..replica(80, 60) };
        assert_eq!(plan(&ours, &other), Plan::Compare(Cause::Unproven));
        let never = Ours { sent: None, said: None, ..ours };
        assert_eq!(plan(&never, &replica(80, 60)), Plan::Compare(Cause::Unproven));
    }

    #[test]
    fn a_target_of_another_history_is_refused_until_the_operator_decides() {
        for (standing, fork) in [(Standing::Ahead, Fork::Ahead), (Standing::Elsewhere, Fork::Elsewhere)] {
            let ours = Ours { standing, ..OURS };
            assert_eq!(plan(&ours, &replica(80, 60)), Plan::Refuse(fork));
            let decided = Ours { forked: Forked::Compare, ..ours };
            assert_eq!(plan(&decided, &replica(80, 60)), Plan::Compare(Cause::Forked));
            let kept = Ours { forked: Forked::Keep, ..ours };
            assert_eq!(plan(&kept, &replica(80, 60)), Plan::Compare(Cause::Forked));
            let doubtful = HelloReply { state: ReplicaState::Doubtful, ..replica(80, 60) };
            assert_eq!(plan(&ours, &doubtful), Plan::Refuse(fork), "it may be the only copy all the same");
        }
    }
}
