//! How a session begins: what the target answers, what is decided about it, and what is written down of that.

use std::time::{Duration, Instant};

use super::SessionError;
use super::mailbox::Event;
use super::mirror::{MirrorKind, note_begin};
use super::plan::{Cause, Forked, Ours, Plan, Standing, plan};
use super::session::Parts;
use super::standing::{position_at, standing};
use crate::base::{AtimeMode, History, Position, StoredTimes, Tid};
use crate::journal::{AWAITED, Level, NewWork, Own, Part, Replay, Said, Sent, Store, TargetRow, WorkReason};
use crate::wire::{HelloReply, Message, PROTOCOL_VERSION, ReplicaState};

/// How long a greeting may take. The target opens its state first, which may mean a recovery of its database.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(60);
/// How often it is looked whether the target still shows that it lives.
const TICK: Duration = Duration::from_secs(2);

/// Opening a large replica takes a while; the target shows that it lives.
pub(super) fn wait_for_reply(parts: &Parts<'_>) -> Result<HelloReply, SessionError> {
    let mailbox = parts.mailbox;
    while mailbox.silence() < HANDSHAKE {
        match mailbox.next(Instant::now() + TICK) {
            Some(Event::Heard(Message::HelloReply(reply))) if reply.version == PROTOCOL_VERSION => return Ok(reply),
            Some(Event::Heard(Message::Refuse { code, text })) => return Err(SessionError::Refused { code, text }),
            Some(Event::Heard(Message::Superseded(history))) => return Err(superseded(parts, &history)?),
            Some(Event::Heard(_)) => return Err(SessionError::Protocol("it did not say who it is")),
            Some(Event::Ended(error)) => return Err(error.into()),
            Some(Event::Stop) => return Err(SessionError::Protocol("stopped before it answered")),
            Some(Event::Durable | Event::Flush | Event::Work | Event::Mirror | Event::Orphans | Event::Retry)
            | None => {}
        }
    }
    Err(SessionError::Silent(HANDSHAKE.as_secs()))
}

/// The target is a master now. When its history left ours, this source has none any more.
fn superseded(parts: &Parts<'_>, history: &History) -> Result<SessionError, SessionError> {
    let (journal, ours) = (parts.journal, parts.journal.history()?);
    let fork = history.leaves(&ours.epochs).filter(|_| history.volume == ours.volume);
    let Some(fork) = fork else {
        return Ok(SessionError::Protocol("it is a master of another history than ours, or an older one"));
    };
    let known = journal.digest_at(fork.tid)?;
    if known.is_some_and(|digest| digest != fork.digest) {
        return Ok(SessionError::Protocol("it is a master, and left our history at a place where ours was another"));
    }
    journal.supersede(fork)?;
    Ok(SessionError::Superseded { fork, own: journal.last_tid() })
}

/// The first word of a session.
pub(super) struct Start {
    /// Behind which place its records go on.
    pub(super) after: Position,
    pub(super) what: Begin,
    /// Until it has taken that place, what it has does not come from here.
    pub(super) is_fork: bool,
}

/// How a target comes to the place where its records go on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Begin {
    /// It is there.
    Stream,
    /// It takes that for its position.
    Jump,
    /// As before, and keeps what it has.
    Keep,
}

/// Writes down how the session begins.
pub(super) fn begin(parts: &Parts<'_>, reply: &HelloReply) -> Result<Start, SessionError> {
    let (journal, target) = (parts.journal, parts.options.target);
    let store = journal.store();
    let row = find_target(parts)?;
    let decided = store.rejoin(target)?;
    let valid = decided.filter(|rejoin| rejoin.copy == reply.replica && rejoin.epoch == reply.received.epoch);
    let forked = match valid.map(|rejoin| rejoin.own) {
        Some(Own::Keep) => Forked::Keep,
        Some(Own::Discard) => Forked::Compare,
        // A target that was defined anew with the leave to take over what is there.
        None if !row.mirrored && journal.part() == Part::Origin => parts.options.forked,
        None => Forked::Refuse,
    };
    let awaited = store.targets()?.into_iter().find(|row| row.state == AWAITED);
    let ours = Ours {
        durable: journal.durable_tid(),
        oldest_kept: journal.oldest_kept(),
        place: row.received,
        covered: row.covered,
        mirrored: row.mirrored,
        said: row.said,
        sent: match journal.part() {
            Part::Origin => row.sent,
            // It has no history of its own to be put back in; whose the copy is, its origin judges.
            Part::Relay => Some(Sent { copy: reply.replica, upto: Tid(u64::MAX) }),
        },
        standing: standing(journal.as_ref(), &reply.received)?,
        forked,
        mark: journal.mark()?,
        awaited: awaited.as_ref().map(|row| (row.received, row.covered)),
    };
    if journal.part() == Part::Relay && ours.standing == Standing::Ahead {
        return Err(SessionError::Ahead { received: reply.received.tid, here: ours.durable });
    }
    let plan = plan(&ours, reply);
    let is_fork = matches!(plan, Plan::Refuse(_) | Plan::Compare(Cause::Forked | Cause::Unproven));
    let keeps = match plan {
        Plan::Compare(Cause::Forked) => forked == Forked::Keep,
        // Unless an operator has said that it is to be taken over as it is.
        Plan::Compare(Cause::Unproven) => forked != Forked::Compare,
        _ => false,
    };
    if decided.is_some() && !is_fork {
        store.rejoin_set(target, None)?;
    }
    let said =
        Said { copy: reply.replica, received: reply.received.tid, applied: reply.applied.tid, commit: reply.commit };
    let (reason, text) = match plan {
        Plan::Stream => {
            take_back(store, (&row, awaited), reply)?;
            store.session_begins(target, &said)?;
            return Ok(Start { after: reply.received, what: Begin::Stream, is_fork });
        }
        Plan::Resume => {
            store.reset_target(target, reply.applied.tid, &[])?;
            store.session_begins(target, &said)?;
            let at = reply.received.tid;
            let text = format!("another source brought it to {at}, and nothing is in doubt: it goes on behind that");
            store.event(Level::Info, Some(target), &text)?;
            return Ok(Start { after: reply.received, what: Begin::Stream, is_fork });
        }
        Plan::Jump { to } => {
            take_back(store, (&row, awaited), reply)?;
            store.session_begins(target, &said)?;
            return Ok(Start { after: position_at(journal.as_ref(), to)?, what: Begin::Jump, is_fork });
        }
        Plan::Refuse(fork) => {
            let (copy, durable) = (reply.replica, ours.durable);
            return Err(SessionError::Fork { copy, received: reply.received, durable, fork });
        }
        Plan::Mirror => (WorkReason::Mirror, "the whole tree is sent".to_owned()),
        Plan::Compare(cause) => (WorkReason::Verify, format!("the whole tree is compared: {cause}")),
    };
    if is_fork {
        leave_what_is_lost(journal.as_ref(), &reply.received)?;
    }
    let base = journal.durable_tid();
    store.reset_target(target, base, &[NewWork::whole_tree(reason, Tid::ZERO)])?;
    note_begin(store, target, MirrorKind::of(reason))?;
    // After the work is queued: a copy that is known has had its beginning.
    match is_fork {
        true => store.target_said(target, Some(&said))?,
        false => store.session_begins(target, &said)?,
    }
    let level = if reason == WorkReason::Mirror { Level::Info } else { Level::Warning };
    let after = position_at(journal.as_ref(), base)?;
    let what = if keeps { Begin::Keep } else { Begin::Jump };
    let kept = match what {
        Begin::Keep => format!("; what it has and this source has not is kept there in .dtfs/fork-{}", after.epoch),
        _ => String::new(),
    };
    store.event(level, Some(target), &format!("{text}; it goes on behind {base}{kept}"))?;
    Ok(Start { after, what, is_fork })
}

/// The target has followed a history further than it goes here. From now on no TID means one thing there and another here,
/// and no place behind the parting is taken for one of ours.
fn leave_what_is_lost(journal: &dyn Replay, theirs: &Position) -> Result<(), SessionError> {
    if theirs.epoch == journal.identity().epoch || theirs.tid >= journal.last_tid() {
        let why = "a target holds changes that this volume may have lost";
        journal.begin_epoch(theirs.tid, why)?;
    }
    Ok(())
}

/// A former source gets the place that was kept for it.
fn take_back(
    store: &Store,
    (row, awaited): (&TargetRow, Option<TargetRow>),
    reply: &HelloReply,
) -> Result<(), SessionError> {
    if reply.state != ReplicaState::Rejoined {
        return Ok(());
    }
    match awaited {
        Some(awaited) => store.take_awaited(row.id, awaited.id, reply.received.tid)?,
        None => store.reset_target(row.id, reply.received.tid, &[])?,
    }
    let text = format!(
        "it was a source of this volume: it goes on behind {} and asks for what it changed",
        reply.received.tid
    );
    Ok(store.event(Level::Info, Some(row.id), &text)?)
}

/// The target's row, as it is now.
pub(super) fn find_target(parts: &Parts<'_>) -> Result<TargetRow, SessionError> {
    let row = parts.journal.store().target_by_id(parts.options.target)?;
    row.ok_or(SessionError::Protocol("the target was forgotten"))
}

/// What the target does otherwise with access times, if it does; an event when that is news.
pub(super) fn note_times(parts: &Parts<'_>, reply: &HelloReply) -> Result<Option<String>, SessionError> {
    let text = match (reply.stored_times, parts.options.access_times) {
        (StoredTimes::Coarse, _) => "times are stored coarser than here: its filesystem keeps fewer digits",
        (StoredTimes::Moving, AtimeMode::EachRead) => {
            "access times differ once its tree is read: it is mounted without noatime"
        }
        (StoredTimes::Moving, AtimeMode::AtClose) | (StoredTimes::Exact, _) => "",
    };
    let (store, target) = (parts.journal.store(), parts.options.target);
    let key = format!("times.{}", target.0);
    let said = store.meta_get(&key)?.unwrap_or_default();
    if said != text.as_bytes() {
        store.meta_set(&key, text.as_bytes())?;
        let event = if text.is_empty() { "times are stored as here" } else { text };
        store.event(Level::Warning, Some(target), event)?;
    }
    Ok((!text.is_empty()).then(|| text.to_owned()))
}
