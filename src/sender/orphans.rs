//! Orders about a target's orphans: asked for by an operator, or by what the volume's file says.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::record::{OrphanAction, OrphanList, OrphanOrder};

/// What becomes of orphans by itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OrphanPolicy {
    /// What.
    pub action: OrphanAction,
    /// Only of those that have been set aside for at least so many seconds.
    pub older_than_sec: u64,
}

/// How often the policy is done.
const EVERY: Duration = Duration::from_secs(3600);

/// Where orders are left, and their answers.
#[derive(Default)]
pub(super) struct OrphanDesk {
    /// Protects both. Rank: a leaf; held for assignments only.
    state: Mutex<DeskState>,
}

#[derive(Default)]
struct DeskState {
    last_number: u64,
    wanted: Option<OrphanOrder>,
    done: Option<OrphanList>,
    policy_at: Option<Instant>,
}

impl OrphanDesk {
    /// Leaves an order of an operator, in the place of one that was not taken; returns its number.
    pub(super) fn ask(&self, action: OrphanAction, older_than_sec: u64) -> u64 {
        let mut state = self.state.lock();
        state.last_number += 1;
        let number = state.last_number;
        state.wanted = Some(OrphanOrder { number, action, older_than_sec });
        number
    }

    /// The order that is to be sent now.
    pub(super) fn take(&self) -> Option<OrphanOrder> {
        self.state.lock().wanted.take()
    }

    /// The order that follows from `policy`, when it is due.
    pub(super) fn due(&self, policy: &OrphanPolicy) -> Option<OrphanOrder> {
        let mut state = self.state.lock();
        if state.policy_at.is_some_and(|at| at.elapsed() < EVERY) {
            return None;
        }
        state.policy_at = Some(Instant::now());
        state.last_number += 1;
        let OrphanPolicy { action, older_than_sec } = policy.clone();
        Some(OrphanOrder { number: state.last_number, action, older_than_sec })
    }

    /// The tree was compared: there may be new ones.
    pub(super) fn policy_is_due(&self) {
        self.state.lock().policy_at = None;
    }

    pub(super) fn done(&self, list: OrphanList) {
        self.state.lock().done = Some(list);
    }

    /// The answer to order `number`, when it is there.
    pub(super) fn answer(&self, number: u64) -> Option<OrphanList> {
        self.state.lock().done.clone().filter(|list| list.number == number)
    }
}
