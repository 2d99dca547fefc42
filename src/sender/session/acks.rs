//! What a session does with an acknowledgement: it is checked, what is durable at the target ends its rows of work, and what
//! the target lacks becomes new ones.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Done, Session};
use crate::base::Tid;
use crate::journal::{Level, NewWork, Part, Replay, Said, TargetId, WorkKind, WorkReason};
use crate::sender::SessionError;
use crate::sender::status::SharedStatus;
use crate::sys::Errno;
use crate::wire::{Ack, Convergence, Need, Stall};

/// Most rows of work that a target may have asked for, and after how many more that is looked at. A row takes some 100 bytes.
const MOST_NEEDS: u64 = 1 << 18;
const LOOK_AT_NEEDS: usize = 1 << 14;
/// Journal segments are freed at most this often.
const TRIM_EVERY: Duration = Duration::from_secs(1);

impl Session<'_> {
    pub(super) fn on_ack(&mut self, ack: Ack) -> Result<(), SessionError> {
        self.check(&ack)?;
        self.window.taken(ack.batch_taken, Instant::now());
        let advanced = ack.applied > self.last_ack.applied || ack.batch_durable > self.last_ack.batch_durable;
        if ack.downstream != self.last_ack.downstream {
            self.parts.journal.store().target_downstream(self.target, ack.downstream)?;
        }
        if advanced || !ack.needs.is_empty() {
            self.advance(&ack)?;
        }
        self.tell_changes(&ack)?;
        self.parts.status.update(|status| {
            status.acks_durable += u64::from(advanced);
            status.received = ack.received;
            status.applied = ack.applied;
            status.unsettled = ack.convergence == Convergence::Converging;
            status.blocked = ack.blocked;
            status.blocked_errno = ack.blocked_errno;
            status.left_out = Some(ack.left_out);
        });
        self.last_ack = Ack { needs: Vec::new(), ..ack };
        Ok(())
    }

    /// What an operator is to know of: objects that cannot be what they should. A disk without room is told by [`Ears`].
    fn tell_changes(&mut self, ack: &Ack) -> Result<(), SessionError> {
        let store = self.parts.journal.store();
        if ack.blocked > self.last_ack.blocked {
            let errno = Errno::from_raw(ack.blocked_errno);
            let (count, oid) = (ack.blocked, ack.blocked_oid);
            let text = format!("{count} objects cannot be brought to their state there, among them {oid}: {errno}");
            store.event(Level::Warning, Some(self.target), &text)?;
        }
        self.tell_left_out(ack.left_out)
    }

    /// Once a session, when there are more of them than were told of last; the status has the number at any time.
    fn tell_left_out(&mut self, left_out: u32) -> Result<(), SessionError> {
        if left_out <= self.last_ack.left_out || std::mem::replace(&mut self.told_left_out, true) {
            return Ok(());
        }
        let (store, key) = (self.parts.journal.store(), format!("left-out.{}", self.target.0));
        let told = store.meta_get(&key)?.and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes);
        if left_out > told {
            store.meta_set(&key, &left_out.to_le_bytes())?;
            let text = format!(
                "it is restricted there, and so far lacks something of {left_out} objects: device nodes, set-user-ID and \
                 set-group-ID bits, xattrs of trusted.* and security.*; the log there names them"
            );
            store.event(Level::Warning, Some(self.target), &text)?;
        }
        Ok(())
    }

    /// A target can only acknowledge what it was sent, and never takes anything back.
    fn check(&self, ack: &Ack) -> Result<(), SessionError> {
        let last = &self.last_ack;
        let possible = ack.batch_taken <= self.batch
            && ack.batch_durable <= ack.batch_taken
            && ack.received <= self.stream.sent()
            && ack.applied <= ack.received.max(last.received);
        let forward = ack.batch_taken >= last.batch_taken
            && ack.batch_durable >= last.batch_durable
            && ack.applied >= last.applied;
        match (possible, forward) {
            (true, true) => Ok(()),
            (false, _) => Err(SessionError::Protocol("it acknowledged what it was not sent")),
            (_, false) => Err(SessionError::Protocol("it took an acknowledgement back")),
        }
    }

    /// Cursor, finished work and new work, in one transaction.
    pub(super) fn advance(&mut self, ack: &Ack) -> Result<(), SessionError> {
        let (mut finished, mut progress) = (Vec::new(), BTreeMap::new());
        while self.unfinished.front().is_some_and(|(batch, _)| *batch <= ack.batch_durable) {
            for done in self.unfinished.pop_front().map(|(_, done)| done).unwrap_or_default() {
                match done {
                    Done::Nothing => {}
                    Done::Row(id) => finished.push(id),
                    Done::Upto(id, offset) => {
                        progress.insert(id, offset);
                    }
                    Done::Check(_) => {}
                }
            }
        }
        let needs: Vec<NewWork> = ack.needs.iter().map(new_work).collect();
        self.walk.ended(&finished);
        progress.retain(|id, _| !finished.contains(id));
        let progress: Vec<_> = progress.into_iter().collect();
        let store = self.parts.journal.store();
        let first = ack.batch_taken == 0;
        if first {
            // Nothing of this session was taken in: the target repeats what earlier sessions knew, and rows that are
            // under way keep their place.
            store.work_insert_absent(self.target, &needs)?;
        }
        let needs = if first { &[][..] } else { &needs };
        let said = Said { copy: self.copy, received: ack.received, applied: ack.applied, commit: ack.commit };
        let is_trimmed = self.trimmed.elapsed() >= TRIM_EVERY;
        // Of a copy the inbox is trimmed by another process, which goes by what is read of the row.
        let may_wait = needs.is_empty() && !is_trimmed && self.parts.journal.part() != Part::Relay;
        match may_wait {
            true => store.ack_soon(self.target, &said, &finished, &progress)?,
            false => store.ack(self.target, &said, &finished, &progress, needs)?,
        }
        if self.joins_at.is_some_and(|place| ack.received >= place) {
            store.session_begins(self.target, &said)?;
            self.joins_at = None;
        }
        self.bound_needs(ack.needs.len())?;
        if !finished.is_empty() {
            let is_left = store.mirror_is_left(self.target)?;
            self.meter.save(store, is_left)?;
            if !is_left {
                self.limit.end(store)?;
            }
        }
        self.walk.look_again();
        if self.told == Some(Convergence::Converging) || !ack.needs.is_empty() {
            self.tell_convergence()?;
        }
        if is_trimmed {
            self.trimmed = Instant::now();
            self.parts.journal.trim()?;
        }
        Ok(())
    }

    /// Most of what a target asks for it lacks by its source's own doing; one that asks for ever gets no more than a comparison.
    fn bound_needs(&mut self, asked: usize) -> Result<(), SessionError> {
        self.asked += asked;
        if self.asked >= LOOK_AT_NEEDS {
            self.asked = 0;
            self.parts.journal.store().work_bound_needs(self.target, MOST_NEEDS)?;
        }
        Ok(())
    }
}

/// Work that a target asked for stands against every TID.
fn new_work(need: &Need) -> NewWork {
    let kind = match need {
        need if need.is_listing() => WorkKind::Dir,
        Need { len: 0, .. } => WorkKind::Object,
        _ => WorkKind::Range,
    };
    NewWork {
        oid: need.oid,
        kind,
        reason: WorkReason::Need,
        offset: if need.is_listing() { 0 } else { need.offset },
        len: need.len,
        created_tid: Tid::ZERO,
    }
}

/// Hears that a target waits for room. It reads nothing meanwhile, so the session may be in the middle of a write to it.
pub(in crate::sender) struct Ears {
    pub(in crate::sender) journal: Arc<dyn Replay>,
    pub(in crate::sender) target: TargetId,
    pub(in crate::sender) status: Arc<SharedStatus>,
    pub(in crate::sender) stalled_at: Stall,
}

impl Ears {
    pub(super) fn hear(&mut self, ack: &Ack) {
        if ack.stalled_at == self.stalled_at {
            return;
        }
        self.stalled_at = ack.stalled_at;
        let stalled = stalled(ack);
        let store = self.journal.store();
        let told = match &stalled {
            Some(text) => store.event(Level::Warning, Some(self.target), text),
            None => store.event(Level::Info, Some(self.target), "there is room again: it goes on"),
        };
        if let Err(error) = told {
            tracing::warn!(%error, "an event is lost");
        }
        self.status.update(|status| status.stalled = stalled);
    }
}

/// What keeps the target from going on, in words.
fn stalled(ack: &Ack) -> Option<String> {
    let place = match ack.stalled_at {
        Stall::No => return None,
        Stall::Inbox if ack.stalled_errno == Errno::ENOBUFS as i32 => {
            return Some(
                "the target takes nothing until its tree has caught up: its inbox is as large as it may be".to_owned(),
            );
        }
        Stall::Inbox => "the disk of its inbox",
        Stall::Tree => "the disk of its tree",
    };
    Some(format!("the target waits for room on {place}: {}", Errno::from_raw(ack.stalled_errno)))
}
