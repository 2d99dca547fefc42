//! Making durable what was performed: at once, or in the background while more is performed.
//!
//! Attributes are set first; then the tree bears the name of the state to come, is synced, and the catalog is committed with
//! the cursor. What is performed between the first step and the last belongs to the next state: the tree may hold some of
//! it, as after any crash, the catalog nothing.

use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded, never};

use super::{Applier, ApplyError};
use crate::backing::Syncer;
use crate::base::{Oid, Position, faults};
use crate::sys::{self, Errno};

/// A thread that syncs the tree when it is told to. Dropping it waits for the sync under way.
pub(super) struct Background {
    start: Option<Sender<()>>,
    outcomes: Receiver<sys::Result<()>>,
    handle: Option<JoinHandle<()>>,
}

impl Background {
    fn spawn(syncer: Syncer) -> std::io::Result<Background> {
        let (start, starts) = bounded::<()>(1);
        let (outcome, outcomes) = bounded(1);
        let sync = move || {
            for () in starts {
                if outcome.send(faults::step("applier.group_sync", || syncer.sync())).is_err() {
                    return;
                }
            }
        };
        let handle = std::thread::Builder::new().name("dtfs-sync".into()).spawn(sync)?;
        Ok(Background { start: Some(start), outcomes, handle: Some(handle) })
    }

    fn start(&self) -> sys::Result<()> {
        match self.start.as_ref().is_some_and(|start| start.send(()).is_ok()) {
            true => Ok(()),
            false => Err(Errno::EIO),
        }
    }

    fn outcome(&self) -> sys::Result<()> {
        self.outcomes.recv().unwrap_or(Err(Errno::EIO))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.start = None;
        if let Some(handle) = self.handle.take() {
            let _ = handle.join();
        }
    }
}

impl Applier {
    /// Makes everything done so far durable: the tree, then the catalog with the cursor.
    ///
    /// # Errors
    /// [`ApplyError::Sync`] means that data was lost; the caller must not try again but cast doubt on the replica and end.
    pub fn make_durable(&mut self, applied: Position) -> Result<(), ApplyError> {
        self.commit(applied, None)
    }

    /// As [`Applier::make_durable`]; from here until the next one the inbox is begun anew at `after`. The source has said
    /// what becomes of everything before, so whatever stood against the replica is settled.
    ///
    /// # Errors
    /// As [`Applier::make_durable`].
    pub fn begin_jump(&mut self, applied: Position, after: Position) -> Result<(), ApplyError> {
        self.commit(applied, Some(after))?;
        Ok(self.doubt.settle()?)
    }

    /// Begins to make durable what was done so far. Nothing of it is before [`Applier::end_durable`] has returned; what is
    /// performed from now on is not part of it.
    ///
    /// # Errors
    /// As [`Applier::make_durable`]; also of the one that was begun before, which ends first.
    pub fn begin_durable(&mut self, applied: Position) -> Result<(), ApplyError> {
        self.end_durable()?;
        if !self.has_background() {
            return self.commit(applied, None);
        }
        self.end_state(applied)?;
        self.catalog.set_apart()?;
        let started = self.background.as_ref().map_or(Err(Errno::EIO), Background::start);
        started.map_err(ApplyError::Sync)?;
        self.syncing = Some(applied);
        Ok(())
    }

    /// Whether there is a thread that syncs. A system that gives none costs time and nothing else: the tree is synced in
    /// between.
    fn has_background(&mut self) -> bool {
        if self.background.is_none() {
            let spawned = faults::point("applier.background").and_then(|()| self.tree.syncer());
            let spawned = spawned.map_err(std::io::Error::from).and_then(Background::spawn);
            self.background = spawned.inspect_err(|error| tracing::warn!(%error, "no thread for syncs")).ok();
        }
        self.background.is_some()
    }

    /// Has something to give when [`Applier::end_durable`] need not wait. Only to be watched.
    pub fn synced(&self) -> Receiver<sys::Result<()>> {
        match &self.background {
            Some(background) if self.syncing.is_some() => background.outcomes.clone(),
            _ => never(),
        }
    }

    /// Ends what [`Applier::begin_durable`] began, if anything: when it returns that is durable.
    ///
    /// # Errors
    /// As [`Applier::make_durable`].
    pub fn end_durable(&mut self) -> Result<(), ApplyError> {
        let Some(applied) = self.syncing.take() else { return Ok(()) };
        let outcome = self.background.as_ref().map_or(Err(Errno::EIO), Background::outcome);
        outcome.map_err(ApplyError::Sync)?;
        self.conclude(applied, None)
    }

    fn commit(&mut self, applied: Position, jump: Option<Position>) -> Result<(), ApplyError> {
        self.end_durable()?;
        self.end_state(applied)?;
        self.tree.sync().map_err(ApplyError::Sync)?;
        self.conclude(applied, jump)
    }

    /// What must be done before the tree is synced.
    fn end_state(&mut self, applied: Position) -> Result<(), ApplyError> {
        self.finish_group()?;
        self.ask_for_unlisted().map_err(|cause| self.explain("listing", Oid::ROOT, applied.tid, cause))?;
        self.open.clear();
        self.sieve.save();
        step("applier.before_mark")?;
        let next = self.catalog.cursor().next;
        let marked = self.park.set_commit(&self.tree.mutate(), next);
        marked.map_err(|errno| self.explain("mark", Oid::ROOT, applied.tid, errno.into()))?;
        step("applier.before_sync")
    }

    /// The tree was synced.
    fn conclude(&mut self, applied: Position, jump: Option<Position>) -> Result<(), ApplyError> {
        step("applier.after_sync")?;
        self.catalog.commit(applied, jump).inspect_err(|error| {
            // The transaction is gone with the error. The next session finds the room.
            if error.is_full() {
                self.ballast.release();
            }
        })?;
        step("applier.after_catalog")
    }
}

fn step(name: &str) -> Result<(), ApplyError> {
    faults::point(name).map_err(ApplyError::Sync)
}
