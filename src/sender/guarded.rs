//! What a target says of who else can change its tree, and the verification that follows a time in which somebody could.

use super::SessionError;
use super::session::Parts;
use super::verify_desk::VerifyRequest;
use crate::base::{Guarded, Tid};
use crate::journal::{JournalError, Level, NewWork, Part, Store, TargetId, WorkReason};
use crate::wire::HelloReply;

/// Writes down what is news, before the target forgets it. A verification that is due begins when no work is left.
pub(super) fn note_guarded(parts: &Parts<'_>, reply: &HelloReply) -> Result<(), SessionError> {
    let (store, target) = (parts.journal.store(), parts.options.target);
    let was_open = reply.guarded == Guarded::Restored;
    if was_open && parts.journal.part() == Part::Relay {
        // A verification would read the tree of a copy while it changes; a comparison takes turns.
        store.work_insert(target, &[NewWork::whole_tree(WorkReason::Verify, Tid::ZERO)])?;
        store.event(
            Level::Warning,
            Some(target),
            "others could change its tree for a time: its whole tree is compared",
        )?;
    } else if was_open {
        store.meta_set(&due_key(target), b"due")?;
        let text = "others could change its tree for a time: a verification is due";
        store.event(Level::Warning, Some(target), text)?;
    }
    let standing = match reply.guarded {
        Guarded::Kept | Guarded::Restored => "",
        Guarded::Off => "others can change its tree: its host has guard = \"off\"",
        Guarded::Refused => "others can change its tree: its host lets nothing be mounted over it",
    };
    let key = format!("guard.{}", target.0);
    if store.meta_get(&key)?.unwrap_or_default() != standing.as_bytes() {
        store.meta_set(&key, standing.as_bytes())?;
        let (level, event) = match standing {
            "" => (Level::Info, "nobody else can change its tree any more"),
            text => (Level::Warning, text),
        };
        store.event(level, Some(target), event)?;
    }
    if is_due(store, target)? {
        parts.verifier.borrow().ask(VerifyRequest::default());
    }
    Ok(())
}

/// Whether a verification is due because others could change the tree.
fn is_due(store: &Store, target: TargetId) -> Result<bool, JournalError> {
    Ok(store.meta_get(&due_key(target))?.is_some_and(|value| !value.is_empty()))
}

/// A verification has ended.
pub(super) fn settle(store: &Store, target: TargetId) -> Result<(), JournalError> {
    if is_due(store, target)? { store.meta_set(&due_key(target), b"") } else { Ok(()) }
}

/// Key in the journal's `meta`: not empty while a verification is due.
fn due_key(target: TargetId) -> String {
    format!("verify-due.{}", target.0)
}
