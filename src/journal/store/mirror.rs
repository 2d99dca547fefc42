//! Mirrors that an operator asks for.

use rusqlite::OptionalExtension;

use super::events::{Level, put_event};
use super::work::{NewWork, WorkReason, put_work, reason_from, renew_work};
use super::{Store, TargetId};
use crate::base::Tid;
use crate::journal::error::JournalError;

impl Store {
    /// Queues the whole tree for the target anew, with an event that says `why`, in one transaction. What is left of a mirror
    /// before goes, as far as this one does as much; what the target asked for stays. The target is not consistent at any
    /// TID until it is done.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn work_mirror(&self, target: TargetId, reason: WorkReason, why: &str) -> Result<(), JournalError> {
        let row = NewWork::whole_tree(reason, Tid::ZERO);
        self.write("mirror", |tx| {
            match reason {
                // It believes what other rows do not.
                WorkReason::Difference => {
                    tx.execute("DELETE FROM work WHERE target = ?1 AND reason = 4", [target.0])?;
                    put_work(tx, target, &[row])?;
                }
                _ => {
                    tx.execute("DELETE FROM work WHERE target = ?1 AND reason <> 3", [target.0])?;
                    renew_work(tx, target, &row)?;
                }
            }
            put_event(tx, Level::Info, Some(target), why)
        })
    }

    /// Whether rows are left that belong to a mirror of the target: the whole tree, or what is left of it.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn mirror_is_left(&self, target: TargetId) -> Result<bool, JournalError> {
        let query = "SELECT EXISTS (SELECT 1 FROM work WHERE target = ?1 AND reason IN (1, 4)
             UNION ALL SELECT 1 FROM work WHERE target = ?1 AND kind = 1)";
        self.read("look for a mirror", |connection| {
            connection.prepare_cached(query)?.query_row([target.0], |row| row.get(0))
        })
    }
}

impl Store {
    /// Why the target's tree is being read, if a row for a directory and what is in it is left.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn tree_work(&self, target: TargetId) -> Result<Option<WorkReason>, JournalError> {
        self.read("look for a tree", |connection| {
            let mut rows =
                connection.prepare_cached("SELECT reason FROM work WHERE target = ?1 AND kind = 1 LIMIT 1")?;
            let reason: Option<i64> = rows.query_row([target.0], |row| row.get(0)).optional()?;
            reason.map(reason_from).transpose()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Oid;
    use crate::journal::WorkKind;

    #[test]
    fn a_mirror_takes_the_place_of_a_weaker_one_only() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("state.db")).unwrap();
        let target = store.target_add_at("a", "local:/a", Tid(3), &[]).unwrap();
        let asked = NewWork {
            oid: Oid { ino: 7, ..Oid::ROOT },
            kind: WorkKind::Object,
            reason: WorkReason::Need,
            offset: 0,
            len: 0,
            created_tid: Tid::ZERO,
        };
        store
            .work_insert(
                target,
                &[asked, NewWork { reason: WorkReason::Verify, oid: Oid { ino: 8, ..Oid::ROOT }, ..asked }],
            )
            .unwrap();
        let reasons = || {
            let rows = store.work_next(target, 0, 10).unwrap();
            rows.iter().map(|row| (row.kind, row.reason)).collect::<Vec<_>>()
        };
        assert!(!store.mirror_is_left(target).unwrap());
        store.work_mirror(target, WorkReason::Difference, "asked").unwrap();
        let before = [(WorkKind::Object, WorkReason::Need), (WorkKind::Object, WorkReason::Verify)];
        assert_eq!(reasons()[..2], before, "what is in doubt is not believed");
        assert_eq!(reasons()[2..], [(WorkKind::Tree, WorkReason::Difference)]);
        assert!(store.mirror_is_left(target).unwrap());
        store.work_mirror(target, WorkReason::Verify, "asked").unwrap();
        store.work_mirror(target, WorkReason::Difference, "asked").unwrap();
        assert_eq!(reasons(), [before[0], (WorkKind::Tree, WorkReason::Verify)]);
        store.work_mirror(target, WorkReason::Mirror, "asked").unwrap();
        assert_eq!(reasons(), [before[0], (WorkKind::Tree, WorkReason::Mirror)]);
    }
}
