//! A session with rules: which records and readings its target gets, and what has to be compared because the rules, or what
//! is known of the tree, are new.

use std::sync::Arc;

use super::SessionError;
use super::greeting::Begin;
use super::scope::{Scope, Use};
use super::session::Parts;
use crate::base::{Oid, Rules, Tid};
use crate::journal::{JournalError, Level, NewWork, Store, TargetId, WorkKind, WorkReason};
use crate::wire::Message;

/// A session begins behind `after`. `mirrored` says whether the target had a place before.
pub(super) fn begin(parts: &Parts<'_>, after: Tid, how: Begin, mirrored: bool) -> Result<(), SessionError> {
    if parts.options.rules.is_empty() {
        return Ok(());
    }
    // What became work while the target was away was judged by nobody: a move may have brought much inside.
    if mirrored && how != Begin::Stream {
        compare_all(parts)?;
    }
    let mut scope = parts.scope.borrow_mut();
    if !scope.as_mut().is_some_and(|scope| scope.go_on(after)) {
        *scope = Some(read_tree(parts, after)?);
    }
    let settled = scope.as_ref().map_or(after, Scope::settled);
    let store = parts.journal.store();
    if settled > after && store.tree_work(parts.options.target)?.is_none() {
        // It is read behind that place, so it stands against every TID until the stream has passed it.
        store.work_renew(parts.options.target, &[root_attributes()])?;
    }
    Ok(())
}

/// Records up to `after` were passed over: rows of work cover what they changed, and not what they moved over an edge.
pub(super) fn pass_over(parts: &Parts<'_>, after: Tid) -> Result<(), SessionError> {
    let mut scope = parts.scope.borrow_mut();
    if scope.is_some() {
        compare_all(parts)?;
        *scope = Some(read_tree(parts, after)?);
    }
    Ok(())
}

/// Leaves out of the message what the target does not get. The rows that stand for it are in the store by then; returns
/// whether there are any.
pub(super) fn filter(parts: &Parts<'_>, message: &mut Message) -> Result<bool, SessionError> {
    let mut scope = parts.scope.borrow_mut();
    let Some(scope) = scope.as_mut() else { return Ok(false) };
    let (body, (filtered, rows)) = match message {
        Message::Records { body, .. } => {
            let filtered = scope.filter_records(parts.view, std::mem::take(body))?;
            (body, filtered)
        }
        Message::State { body, .. } => {
            let filtered = scope.filter_state(body, Use::Apply)?;
            (body, filtered)
        }
        Message::Check { body, .. } => {
            let filtered = scope.filter_state(body, Use::Check)?;
            (body, filtered)
        }
        Message::Start { after, .. } => {
            scope.skip(after.tid);
            return Ok(false);
        }
        _ => return Ok(false),
    };
    *body = filtered;
    if !rows.is_empty() {
        parts.journal.store().work_renew(parts.options.target, &rows)?;
    }
    Ok(!rows.is_empty())
}

/// A sender begins: by rules that the target was not sent by, all of it is compared. Done before anybody can ask how the
/// target stands by the new ones.
pub(super) fn note_rules(store: &Store, target: TargetId, rules: &Rules) -> Result<(), JournalError> {
    let (key, text) = (format!("rules.{}", target.0), rules.to_text());
    let mirrored = store.target_by_id(target)?.is_some_and(|row| row.mirrored);
    if store.meta_get(&key)?.unwrap_or_default() == text.as_bytes() {
        return Ok(());
    }
    if mirrored {
        store.work_renew(target, &[NewWork::whole_tree(WorkReason::Verify, Tid::ZERO)])?;
        store.event(Level::Info, Some(target), "the rules have changed: the whole tree is compared by the new ones")?;
    }
    // Last: until it is written down the next sender does all of this again.
    store.meta_set(&key, text.as_bytes())
}

fn compare_all(parts: &Parts<'_>) -> Result<(), SessionError> {
    let row = NewWork::whole_tree(WorkReason::Verify, Tid::ZERO);
    Ok(parts.journal.store().work_renew(parts.options.target, &[row])?)
}

fn read_tree(parts: &Parts<'_>, after: Tid) -> Result<Scope, SessionError> {
    let rules = Arc::clone(&parts.options.rules);
    Scope::of(parts.view, rules, after).map_err(|errno| SessionError::Tree { oid: Oid::ROOT, errno })
}

fn root_attributes() -> NewWork {
    let (kind, reason) = (WorkKind::Range, WorkReason::Verify);
    NewWork { oid: Oid::ROOT, kind, reason, offset: 0, len: 0, created_tid: Tid::ZERO }
}
