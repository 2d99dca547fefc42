//! Who has the tree: the process that performs records, or the one that reads for the next in the chain.
//!
//! Two files and flock(2), which a killed process gives back. Whoever has `turn` has the tree. `gate` is taken before and
//! given back once one has it, so that somebody who waits is seen, and comes next.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::journal::JournalError;
use crate::sys;

pub(super) struct TurnFiles {
    turn: File,
    gate: File,
}

/// How often somebody who waits for a while looks.
const LOOK_EVERY: Duration = Duration::from_millis(2);

impl TurnFiles {
    /// Those in `dir`, made when they are missing.
    pub(super) fn open(dir: &Path) -> Result<TurnFiles, JournalError> {
        let open = |name: &str| {
            let path = dir.join(name);
            let file = File::options().write(true).create(true).truncate(false).mode(0o600).open(&path);
            file.map_err(|error| super::io("open", &path, &error))
        };
        Ok(TurnFiles { turn: open("turn")?, gate: open("gate")? })
    }

    /// Waits for the tree.
    pub(super) fn wait(&self) -> sys::Result<()> {
        sys::flock_wait(self.gate.as_fd())?;
        let taken = sys::flock_wait(self.turn.as_fd());
        sys::flock_release(self.gate.as_fd())?;
        taken
    }

    /// As [`TurnFiles::wait`], no longer than `patience`. Whoever has it sees meanwhile that it is wanted.
    pub(super) fn wait_for(&self, patience: Duration) -> bool {
        if sys::flock_exclusive(self.gate.as_fd()).is_err() {
            return false;
        }
        let until = Instant::now() + patience;
        let taken = loop {
            match sys::flock_exclusive(self.turn.as_fd()) {
                Ok(()) => break true,
                Err(_) if Instant::now() < until => std::thread::sleep(LOOK_EVERY),
                Err(_) => break false,
            }
        };
        sys::flock_release(self.gate.as_fd()).is_ok() && taken
    }

    /// Whether somebody waits.
    pub(super) fn is_wanted(&self) -> bool {
        match sys::flock_exclusive(self.gate.as_fd()) {
            Ok(()) => sys::flock_release(self.gate.as_fd()).is_err(),
            Err(_) => true,
        }
    }

    /// Gives the tree back.
    pub(super) fn end(&self) -> sys::Result<()> {
        sys::flock_release(self.turn.as_fd())
    }
}
