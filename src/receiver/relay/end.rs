//! The end in `dtfs serve`: what it does for the copy's own targets. Nothing, where there are none.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::DIR;
use super::board::{Board, Said};
use super::turns::TurnFiles;
use crate::base::{Oid, Position, Tid, faults};
use crate::journal::{
    JournalError, NewWork, SegmentLog, Store, WorkKind, WorkReason, become_work, downstream, keeps_from, make_room,
};

/// How often it is looked whether the copy was given targets.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Objects whose state came, up to which each gets a row; of more the whole tree is compared.
const MOST_ROWS: usize = 65_536;

pub(in crate::receiver) struct RelayEnd {
    dir: PathBuf,
    looked: Option<Instant>,
    open: Option<Open>,
}

struct Open {
    board: Board,
    turns: TurnFiles,
    store: Store,
    /// Whose state came since rows were last written.
    touched: BTreeSet<Oid>,
    said: Option<Said>,
    has_turn: bool,
    /// How far the targets were, and when that was looked at.
    downstream: (Option<Tid>, Option<Instant>),
}

impl RelayEnd {
    /// For the copy whose state lies in `state`.
    pub(in crate::receiver) fn new(state: &Path) -> RelayEnd {
        RelayEnd { dir: state.join(DIR), looked: None, open: None }
    }

    /// Begins, once there is somebody to do it for.
    fn look(&mut self) -> Result<(), JournalError> {
        if self.open.is_some() || self.looked.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
            return Ok(());
        }
        self.looked = Some(Instant::now());
        if self.dir.join("state.db").exists() {
            let (board, turns) = (Board::open(&self.dir)?, TurnFiles::open(&self.dir)?);
            let store = Store::open(&self.dir.join("state.db"))?;
            self.open = Some(Open {
                board,
                turns,
                store,
                touched: BTreeSet::new(),
                said: None,
                has_turn: false,
                downstream: (None, None),
            });
        }
        Ok(())
    }

    /// A session begins: returns how far the targets are.
    pub(in crate::receiver) fn begin(&mut self) -> Result<Tid, JournalError> {
        self.look()?;
        Ok(self.news_of_downstream()?.unwrap_or(Tid(u64::MAX)))
    }

    /// From now on the tree may be changed.
    pub(in crate::receiver) fn take_turn(&mut self) -> Result<(), JournalError> {
        self.look()?;
        if let Some(open) = self.open.as_mut().filter(|open| !open.has_turn) {
            open.turns.wait().map_err(|errno| failed("lock", &self.dir, errno))?;
            open.has_turn = true;
        }
        Ok(())
    }

    /// Tree, catalog and cursor agree, and nothing is done now: others may read.
    pub(in crate::receiver) fn end_turn(&mut self) -> Result<(), JournalError> {
        if let Some(open) = self.open.as_mut().filter(|open| open.has_turn) {
            open.turns.end().map_err(|errno| failed("unlock", &self.dir, errno))?;
            open.has_turn = false;
        }
        Ok(())
    }

    /// Whether somebody waits to read.
    pub(in crate::receiver) fn is_wanted(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.has_turn && open.turns.is_wanted())
    }

    /// Before the tree is changed: until it is durable again it is nothing to read from, also when this process dies.
    pub(in crate::receiver) fn before_change(&mut self, at: Position) -> Result<(), JournalError> {
        let said = self.open.as_ref().and_then(|open| open.said);
        self.say(Said { is_unsure: true, ..said.unwrap_or(Said { at, is_settled: false, is_unsure: true }) })
    }

    /// Where the tree is.
    pub(in crate::receiver) fn tell(
        &mut self,
        at: Position,
        is_settled: bool,
        is_unsure: bool,
    ) -> Result<(), JournalError> {
        self.say(Said { at, is_settled, is_unsure })
    }

    fn say(&mut self, said: Said) -> Result<(), JournalError> {
        let Some(open) = self.open.as_mut().filter(|open| open.said != Some(said)) else { return Ok(()) };
        open.board.write(said).map_err(|error| super::io("write", &self.dir.join("board"), &error))?;
        open.said = Some(said);
        Ok(())
    }

    /// The state of `oid` came.
    pub(in crate::receiver) fn touched(&mut self, oid: Oid) {
        if let Some(open) = self.open.as_mut().filter(|_| !faults::skipped("relay.rows")) {
            open.touched.insert(oid);
        }
    }

    /// Every object whose state came is work for every target, durably.
    pub(in crate::receiver) fn write_rows(&mut self) -> Result<(), JournalError> {
        let Some(open) = self.open.as_mut().filter(|open| !open.touched.is_empty()) else { return Ok(()) };
        let rows: Vec<NewWork> = match open.touched.len() {
            many if many > MOST_ROWS => vec![NewWork::whole_tree(WorkReason::Verify, Tid::ZERO)],
            _ => open.touched.iter().map(|oid| row(*oid)).collect(),
        };
        for target in open.store.targets()?.into_iter().filter(|target| target.mirrored) {
            open.store.work_renew(target.id, &rows)?;
        }
        open.touched.clear();
        Ok(())
    }

    /// How far the targets are, when that is not what was told last.
    pub(in crate::receiver) fn news_of_downstream(&mut self) -> Result<Option<Tid>, JournalError> {
        let Some(open) = &mut self.open else { return Ok(None) };
        let (told, looked) = open.downstream;
        if looked.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
            return Ok(None);
        }
        let now = downstream(&open.store)?.unwrap_or(Tid(u64::MAX));
        open.downstream = (Some(now), Some(Instant::now()));
        Ok((told != Some(now)).then_some(now))
    }

    /// How soon there is something to look at, when nothing comes.
    pub(in crate::receiver) fn patience(&self) -> Option<Duration> {
        self.open.as_ref().map(|_| LOOK_EVERY)
    }

    /// The inbox goes up to here for the tree's sake, or less far for the targets'.
    pub(in crate::receiver) fn trim_upto(&self, at: Tid) -> Result<Tid, JournalError> {
        let kept = self.open.as_ref().map(|open| keeps_from(&open.store)).transpose()?.flatten();
        Ok(kept.map_or(at, |kept| kept.min(at)))
    }

    /// The inbox is begun anew at `to`, and held records up to `end`.
    pub(in crate::receiver) fn before_jump(&self, inbox: &SegmentLog, end: Tid, to: Tid) -> Result<(), JournalError> {
        self.open.as_ref().map_or(Ok(()), |open| become_work(&open.store, inbox, end, to))
    }

    /// The inbox is full: half of it goes, whatever targets have not received.
    pub(in crate::receiver) fn make_room(&self, inbox: &SegmentLog, at: Tid) -> Result<(), JournalError> {
        let most_bytes = inbox.bytes_used() / 2;
        self.open.as_ref().map_or(Ok(()), |open| make_room(&open.store, inbox, at, most_bytes))
    }
}

/// It may be a directory: then its entries are compared.
fn row(oid: Oid) -> NewWork {
    NewWork { oid, kind: WorkKind::Object, reason: WorkReason::Verify, offset: 0, len: 0, created_tid: Tid::ZERO }
}

fn failed(what: &'static str, dir: &Path, errno: crate::sys::Errno) -> JournalError {
    JournalError::Io { what, path: dir.to_owned(), errno }
}
