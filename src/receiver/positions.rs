//! How far this side is, and what it waits for; what acks are made of.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::outbox::Outbox;
use crate::base::{Commit, Position, Tid};
use crate::sys::Errno;
use crate::wire::{Ack, Convergence, Message, Need, Stall};

pub(super) struct Positions {
    /// Protects the positions and the order of acks. Rank: a leaf; held for a few assignments and one hand-over.
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    ack: Ack,
    /// What is durable in the inbox; the ack has its TID.
    received: Position,
    /// The applier has stopped: nobody will perform a jump or make room any more.
    stopped: bool,
    /// The source has gone: nobody waits for anything.
    over: bool,
}

/// How long to wait before a full disk is tried again.
const RETRY: Duration = Duration::from_millis(500);

impl Positions {
    pub(super) fn new(received: Position, applied: Tid, commit: Commit, convergence: Convergence) -> Positions {
        let ack = Ack { received: received.tid, applied, commit, convergence, ..Ack::default() };
        let state = State { ack, received, stopped: false, over: false };
        Positions { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// How far the targets of this copy are, for the acks to come.
    pub(super) fn set_downstream(&self, downstream: Tid) {
        self.state.lock().ack.downstream = downstream;
    }

    /// What is durable in the inbox.
    pub(super) fn received(&self) -> Position {
        self.state.lock().received
    }

    /// Changes the positions and says so. Two threads do: the lock is held until the ack is in the queue (which never
    /// blocks), so that no ack overtakes a later one and seems to take something back.
    pub(super) fn say(&self, out: &Outbox, needs: Vec<Need>, change: impl FnOnce(&mut Ack)) {
        let mut state = self.state.lock();
        change(&mut state.ack);
        out.send(Message::Ack(Ack { needs, ..state.ack.clone() }));
        drop(state);
        self.changed.notify_all();
    }

    /// As [`Positions::say`], for what the inbox has taken.
    pub(super) fn say_received(&self, out: &Outbox, received: Position) {
        self.state.lock().received = received;
        self.say(out, Vec::new(), |ack| ack.received = received.tid);
    }

    /// What is durable in the tree.
    pub(super) fn applied(&self) -> Tid {
        self.state.lock().ack.applied
    }

    /// Whether the tree has everything that the inbox has.
    pub(super) fn has_applied_all(&self) -> bool {
        let state = self.state.lock();
        state.ack.applied == state.received.tid
    }

    /// The position will be `after`: nothing beyond it is said any more.
    pub(super) fn expect_jump(&self, after: Position) {
        let ack = &mut self.state.lock().ack;
        ack.received = ack.received.min(after.tid);
        ack.applied = ack.applied.min(after.tid);
    }

    pub(super) fn jump(&self, after: Position) {
        let mut state = self.state.lock();
        state.received = after;
        state.ack.received = after.tid;
        drop(state);
        self.changed.notify_all();
    }

    /// Waits until the applier has performed a jump, or has stopped.
    pub(super) fn wait_jumped(&self, after: Position) {
        let mut state = self.state.lock();
        while state.received != after && !state.stopped {
            self.changed.wait(&mut state);
        }
    }

    /// A disk has no room: says so, and waits a moment. An inbox fills when the tree does not go on, so that its word does not
    /// hide the tree's. False when nobody is there any more to go on for.
    pub(super) fn wait_for_room(&self, out: &Outbox, stall: Stall, errno: Errno) -> bool {
        let known = self.state.lock().ack.stalled_at;
        if known == Stall::No || (known, stall) == (Stall::Inbox, Stall::Tree) {
            tracing::warn!(?stall, %errno, "a disk has no room: waiting");
            self.say(out, Vec::new(), |ack| (ack.stalled_at, ack.stalled_errno) = (stall, errno as i32));
        }
        self.pause()
    }

    /// Waits a moment, or until something changes. False when nobody is there any more to go on for.
    pub(super) fn pause(&self) -> bool {
        let mut state = self.state.lock();
        if !state.over && !state.stopped {
            self.changed.wait_for(&mut state, RETRY);
        }
        !state.over && !state.stopped
    }

    /// What `stall` was waited for can be done.
    pub(super) fn go_on(&self, out: &Outbox, stall: Stall) {
        if self.state.lock().ack.stalled_at == stall {
            self.say(out, Vec::new(), |ack| (ack.stalled_at, ack.stalled_errno) = (Stall::No, 0));
        }
    }

    /// The applier has stopped.
    pub(super) fn stop(&self) {
        self.state.lock().stopped = true;
        self.changed.notify_all();
    }

    /// The source has gone.
    pub(super) fn end(&self) {
        self.state.lock().over = true;
        self.changed.notify_all();
    }
}
