//! What an operator can do, for the command line and the menu alike.
//!
//! Definitions are edited in the files, and the daemon is told when one runs. Forgetting goes the other way round: the
//! daemon lets go first, because it may refuse, and the files are edited afterwards.

mod ask;
mod check;
mod doctor;
mod entries;
mod peers;
mod roles;
mod targets;
mod volumes;
mod which;

use super::{Failure, Reply, Request, try_connect};
use crate::config::{Edits, Paths};

pub use ask::{
    EventRange, LogRange, VerifyWhat, WaitFor, events, log, mirror, orphans, pfs_status, reload, set_mirror, status,
    sync_tid, verify, wait,
};
pub use check::{check, check_files};
pub use doctor::{Finding, Severity, doctor};
pub use entries::{Detach, MountHow, Rehearsal, add_entry, list_entries, mount, remove_entry, unmount};
pub use peers::{add_peer, copy_in, define_source, forget_peer, forget_source, list_peers, promote_copy};
pub use roles::demote;
pub use targets::{NewTarget, OnlyThere, covered, define_target, forget_target, rejoin, set_activity};
pub use volumes::{define_master, define_volume, forget_volume};
pub use which::{Which, find_entry, resolve_volume};

/// Whether a daemon heard of a change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Told {
    /// It did, and has this to say.
    Daemon(Vec<String>),
    /// None runs; the files count when one starts.
    NoDaemon,
}

impl Told {
    /// Sentences for people.
    pub fn notes(&self) -> Vec<String> {
        match self {
            Told::Daemon(notes) => notes.clone(),
            Told::NoDaemon => vec!["no daemon runs: this counts when one is started (dtfs daemon)".to_owned()],
        }
    }
}

/// Tells the daemon, when one runs, of a change that is in the files already.
fn tell(paths: &Paths, request: &Request) -> Result<Told, Failure> {
    if paths.edits() == Edits::Rehearsed {
        // What the daemon would make of it depends on an edit that is not there.
        return Ok(Told::Daemon(Vec::new()));
    }
    let Some(mut client) = try_connect(paths)? else { return Ok(Told::NoDaemon) };
    match client.call(request) {
        Ok(Reply::Notes(notes)) => Ok(Told::Daemon(notes)),
        Ok(_) => Ok(Told::Daemon(Vec::new())),
        Err(failure) => Err(Failure {
            message: format!("it is written to the files, but the daemon could not follow: {}", failure.message),
            ..failure
        }),
    }
}

/// An answer of a kind that does not belong to the question.
fn unexpected(reply: &Reply) -> Failure {
    let kind = serde_json::to_value(reply).ok().and_then(|v| Some(v.get("kind")?.to_string())).unwrap_or_default();
    Failure::new(super::ExitCode::Failed, format!("the daemon gave an answer of another kind: {kind}"))
        .with_remedy("daemon and command may be of different versions: restart the daemon")
}

#[cfg(test)]
mod tests;
