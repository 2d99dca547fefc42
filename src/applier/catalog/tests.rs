//! What a commit holds and what it does not.

use super::*;
use crate::base::{Space, Tid};

const FILE: Row = Row { key: ObjectKey { ino: 9, generation: 2 }, kind: libc::S_IFREG, known: Known::Placeholder };

fn oid(ino: u64) -> Oid {
    Oid { space: Space(3), generation: 1, ino }
}

/// A new catalog that knows one file.
fn with_a_file(path: &Path) -> Catalog {
    let mut catalog = Catalog::create(path, &Space(3).into()).unwrap();
    catalog.put(oid(1), FILE).unwrap();
    catalog
}

#[test]
fn what_was_not_committed_with_a_cursor_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("catalog.db");
    let mut catalog = with_a_file(&path);
    let five = Position { tid: Tid(5), ..Position::START };
    catalog.commit(five, None).unwrap();
    let cursor = catalog.cursor();
    catalog.put(oid(2), FILE).unwrap();
    catalog.set_known(oid(1), Known::Complete).unwrap();
    drop(catalog);
    let mut catalog = Catalog::open(&path).unwrap();
    assert_eq!(catalog.cursor(), cursor);
    assert_eq!(cursor.applied, five);
    assert_eq!(catalog.get(oid(1)).unwrap(), Some(FILE));
    assert_eq!(catalog.get(oid(2)).unwrap(), None);
    assert_eq!(catalog.incomplete().unwrap(), vec![oid(1)]);
}

/// What comes while a commit is set apart is for the next one, however much it is.
#[test]
fn a_commit_that_is_set_apart_holds_nothing_of_what_comes_later() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("catalog.db");
    let mut catalog = with_a_file(&path);
    catalog.block(oid(1), Errno::EFBIG);
    catalog.set_apart().unwrap();
    let many = 2 + 3 * CACHE_MAX as u64;
    for ino in 2..many {
        catalog.put(oid(ino), FILE).unwrap();
    }
    catalog.set_known(oid(1), Known::Complete).unwrap();
    catalog.unblock(oid(1));
    catalog.commit(Position::START, None).unwrap();
    assert_eq!(catalog.get(oid(many - 1)).unwrap(), Some(FILE), "it is there for the next commit");
    drop(catalog);
    let mut catalog = Catalog::open(&path).unwrap();
    assert_eq!((catalog.get(oid(1)).unwrap(), catalog.is_blocked(oid(1))), (Some(FILE), true));
    assert_eq!(catalog.objects().unwrap().len(), 1);
}
