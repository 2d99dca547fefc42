//! What a session sends next: records first, then state that was read for rows of work, then what a verification compares.

use std::time::Instant;

use super::{Reading, Session};
use crate::base::{Tid, faults};
use crate::journal::{JournalError, NewWork};
use crate::sender::greeting::find_target;
use crate::sender::moved::moved_by;
use crate::sender::stream::Batch;
use crate::sender::turn::Turn;
use crate::sender::{SessionError, edge, guarded, verify_desk};
use crate::sys::{self, Share};
use crate::wire::{Ack, Convergence, Message};

impl<'a> Session<'a> {
    /// Sends a bounded piece of what there is: records first, then state. False when there is nothing to send now.
    pub(super) fn send_some(&mut self) -> Result<bool, SessionError> {
        if self.window.is_full() {
            return Ok(false);
        }
        if !self.parts.journal.is_settled() {
            self.tell(Convergence::Converging)?;
        }
        let wants_state = self.stream.wants_state();
        let holds_state = wants_state && self.window.is_full_for_state();
        if wants_state
            && !holds_state
            && let Some(turn) = self.take_turn()
        {
            self.read_state(turn)?;
        }
        // State that was read is never held up: it is what somebody waits for, or the target lacks.
        if self.stream.wants_state() && self.rests_until.is_some_and(|until| Instant::now() < until) {
            return if holds_state { Ok(false) } else { self.rest() };
        }
        let next = match self.stream.next(self.parts.journal.durable_tid(), self.batch + 1) {
            Err(SessionError::Journal(JournalError::Trimmed { oldest })) => Some(self.pass_over(oldest)?),
            next => next?,
        };
        let Some(mut next) = next else {
            if holds_state {
                return Ok(false);
            }
            self.rests_until = self.parts.options.period.map(|period| Instant::now() + period);
            return self.rest();
        };
        if edge::filter(&self.parts, &mut next.message)? {
            self.walk.look_again();
            self.tell(Convergence::Converging)?;
        }
        self.note_moves(&next.message)?;
        let began = Instant::now();
        let bytes = match matches!(next.message, Message::Records { .. }) && faults::skipped("sender.batch") {
            true => 0,
            false => self.writer.send(&next.message)?,
        };
        if next.message.is_batch() {
            self.batch += 1;
            self.window.sent(self.batch, bytes, began);
        }
        if matches!(next.message, Message::Check { .. }) {
            self.parts.verifier.borrow_mut().sent(self.batch, next.done);
        } else if !next.done.is_empty() {
            self.unfinished.push_back((self.batch, next.done));
            if faults::skipped("sender.acked") {
                self.advance(&Ack { batch_durable: self.batch, ..self.last_ack.clone() })?;
            }
        }
        self.count_bytes(next.read);
        Ok(true)
    }

    /// Reads state that can be sent next.
    fn read_state(&mut self, turn: Turn<'_>) -> Result<(), SessionError> {
        let may_read = self.limit.due_in().is_none();
        let mut readings = if may_read { self.walk.read_some()? } else { Vec::new() };
        self.limit.spend(&readings);
        if self.walk.begins_tree() {
            self.parts.counter.begin();
        }
        if !readings.is_empty() {
            self.tell(Convergence::Converging)?;
        }
        if readings.is_empty() && self.unfinished.is_empty() && may_read && !self.walk.is_held() {
            readings = self.verify_some(&turn)?;
        }
        self.take_share(if readings.is_empty() && self.unfinished.is_empty() { Share::Behind } else { Share::Beside });
        drop(turn);
        let stamp = self.stream.queue(readings);
        if let Some(stamp) = stamp.filter(|_| !faults::skipped("journal.durable_only")) {
            // State may not overtake the records it includes, and those are sent only once they are durable.
            self.parts.journal.commit(stamp)?;
        }
        Ok(())
    }

    /// The tree to read from, if it can be read now. A reading must not be older than what was sent.
    fn take_turn(&mut self) -> Option<Turn<'a>> {
        let may_read = self.walk.may_read() || self.parts.verifier.borrow().may_read();
        let turn = Turn::take(self.parts.view, may_read).filter(|turn| !may_read || turn.is_at(self.stream.sent()));
        self.waits_for_turn = turn.is_none();
        turn
    }

    /// A target on this host follows the changes of programs at a small share of the processor; whoever waits for a mirror or
    /// a repair is not to wait ten times as long for it.
    fn take_share(&mut self, share: Share) {
        if std::mem::replace(&mut self.share, share) != share
            && let Some(pid) = self.follower
            && let Err(errno) = sys::set_share(pid, share)
        {
            tracing::debug!(%errno, "the target's process keeps its priority");
        }
    }

    /// What moves while a tree is read for this target gets a row of its own where it may be missed, before the target hears of
    /// the move: if this session ends there, the next one sends the record again.
    fn note_moves(&mut self, message: &Message) -> Result<(), SessionError> {
        let Message::Records { body, .. } = message else { return Ok(()) };
        let verifies = self.parts.verifier.borrow().is_reading();
        if self.walk.tree().is_none() && !verifies || faults::skipped("sender.moved") {
            return Ok(());
        }
        let moved = moved_by(body);
        let rows = self.walk.missed(&moved);
        if !rows.is_empty() {
            self.parts.journal.store().work_insert(self.target, &rows)?;
            self.walk.look_again();
        }
        if verifies {
            self.parts.verifier.borrow_mut().moved(self.parts.view, &moved);
        }
        Ok(())
    }

    /// Nothing can be sent now. A target that is sent state waits for more of it before it makes it durable: when there is
    /// no more it is told. Always false.
    fn rest(&mut self) -> Result<bool, SessionError> {
        let last = self.unfinished.back().map_or(0, |(batch, _)| *batch);
        if last > self.flushed && self.stream.wants_state() {
            self.flushed = last;
            self.send(&Message::Flush)?;
        }
        if self.unfinished.is_empty()
            && self.stream.wants_state()
            && self.limit.due_in().is_none()
            && let Some(order) = self.parts.options.orphans.as_ref().and_then(|policy| self.parts.orphans.due(policy))
        {
            self.send(&Message::Orphans(order))?;
        }
        Ok(false)
    }

    /// The records that come next were dropped while they waited: rows of work cover them, and the stream goes on behind.
    fn pass_over(&mut self, oldest: Tid) -> Result<Batch, SessionError> {
        let row = find_target(&self.parts)?;
        if row.covered < oldest {
            return Err(JournalError::Trimmed { oldest }.into());
        }
        if let Some(reason) = self.walk.tree().filter(|_| !faults::skipped("sender.moved")) {
            // What moved by them is not told: the tree is read from its root once more.
            self.parts.journal.store().work_renew(self.target, &[NewWork::whole_tree(reason, Tid::ZERO)])?;
        }
        edge::pass_over(&self.parts, row.covered)?;
        self.walk.look_again();
        self.stream.jump(row.covered)
    }

    /// No work is left: a verification goes on, if there is one.
    fn verify_some(&mut self, turn: &Turn<'_>) -> Result<Vec<Reading>, SessionError> {
        let mut verifier = self.parts.verifier.borrow_mut();
        let (step, ended) = verifier.step(turn.view());
        if let Some(progress) = ended.clone().or_else(|| verifier.progress()) {
            self.parts.status.update(|status| status.verify = Some(progress));
        }
        drop(verifier);
        let store = self.parts.journal.store();
        if let Some(progress) = ended {
            verify_desk::remember(store, self.target, &progress)?;
            guarded::settle(store, self.target)?;
        }
        if !step.mend.is_empty() {
            store.work_renew(self.target, &step.mend)?;
            self.walk.look_again();
        }
        if step.flush {
            self.send(&Message::Flush)?;
        }
        Ok(step.readings)
    }
}
