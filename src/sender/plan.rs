//! How a session begins: a pure function of where both sides are.

use crate::base::Tid;
use crate::wire::ReplicaState;

/// What the source knows of itself and of the target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ours {
    /// Last durable TID.
    pub durable: Tid,
    /// The oldest place that can be streamed from.
    pub oldest_kept: Tid,
    /// What the target had received when the last ack came.
    pub received: Tid,
    /// What it had applied then.
    pub applied: Tid,
    /// Rows of work cover what it had not received up to here.
    pub covered: Tid,
    /// Whether its initial mirror was ever queued.
    pub mirrored: bool,
    /// Whether that was for the copy which answers now: a directory that was wiped gets a new id.
    pub same_copy: bool,
}

/// How a session begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plan {
    /// The records behind `after`; work that is queued goes on beside them.
    Stream {
        /// Where the target is, or up to where rows of work cover what it lacks.
        after: Tid,
    },
    /// The whole tree is sent, records from `base` on beside it.
    Mirror {
        /// The new place.
        base: Tid,
    },
    /// The whole tree is compared, records from `base` on beside it.
    Compare {
        /// The new place.
        base: Tid,
    },
    /// The target holds what this source does not know.
    Fork,
}

/// Decides how to begin with a target that is in `state`, with its inbox durable up to `received` and its tree up to
/// `applied`.
pub fn plan(ours: &Ours, state: ReplicaState, received: Tid, applied: Tid) -> Plan {
    match state {
        ReplicaState::Fresh => return Plan::Mirror { base: ours.durable },
        ReplicaState::Adopted => return Plan::Compare { base: ours.durable },
        ReplicaState::Replica => {}
    }
    if received > ours.durable {
        return Plan::Fork;
    }
    // A tree that is older than what it once acknowledged was put back: rows that were done then are not done now.
    let put_back = applied < ours.applied;
    if !ours.mirrored || !ours.same_copy || put_back {
        return Plan::Compare { base: ours.durable };
    }
    let covered = received >= ours.received && ours.covered >= ours.oldest_kept;
    match (received >= ours.oldest_kept, covered) {
        (true, _) => Plan::Stream { after: received },
        (false, true) => Plan::Stream { after: ours.covered },
        (false, false) => Plan::Compare { base: ours.durable },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Ours = Ours {
        durable: Tid(100),
        oldest_kept: Tid(50),
        received: Tid(60),
        applied: Tid(60),
        covered: Tid(0),
        mirrored: true,
        same_copy: true,
    };

    #[test]
    fn the_table_of_beginnings() {
        let replica = |received, applied| plan(&OURS, ReplicaState::Replica, Tid(received), Tid(applied));
        assert_eq!(replica(80, 60), Plan::Stream { after: Tid(80) });
        assert_eq!(replica(100, 100), Plan::Stream { after: Tid(100) });
        assert_eq!(replica(101, 90), Plan::Fork);
        assert_eq!(replica(80, 59), Plan::Compare { base: Tid(100) });
        assert_eq!(replica(40, 40), Plan::Compare { base: Tid(100) });
        let fresh = plan(&OURS, ReplicaState::Fresh, Tid(0), Tid(0));
        assert_eq!(fresh, Plan::Mirror { base: Tid(100) });
        let adopted = plan(&OURS, ReplicaState::Adopted, Tid(0), Tid(0));
        assert_eq!(adopted, Plan::Compare { base: Tid(100) });
        let other = Ours { same_copy: false, ..OURS };
        assert_eq!(plan(&other, ReplicaState::Replica, Tid(80), Tid(80)), Plan::Compare { base: Tid(100) });
        let unknown = Ours { mirrored: false, ..OURS };
        assert_eq!(plan(&unknown, ReplicaState::Replica, Tid(80), Tid(80)), Plan::Compare { base: Tid(100) });
    }

    #[test]
    fn a_target_whose_records_became_work_goes_on_behind_them() {
        let ours = Ours { received: Tid(40), applied: Tid(30), covered: Tid(70), oldest_kept: Tid(70), ..OURS };
        let replica = |received, applied| plan(&ours, ReplicaState::Replica, Tid(received), Tid(applied));
        assert_eq!(replica(40, 30), Plan::Stream { after: Tid(70) });
        assert_eq!(replica(45, 45), Plan::Stream { after: Tid(70) });
        assert_eq!(replica(80, 30), Plan::Stream { after: Tid(80) });
        assert_eq!(replica(39, 30), Plan::Compare { base: Tid(100) }, "it lost what it had acknowledged");
        let dropped = Ours { covered: Tid(69), ..ours };
        assert_eq!(plan(&dropped, ReplicaState::Replica, Tid(40), Tid(30)), Plan::Compare { base: Tid(100) });
    }
}
