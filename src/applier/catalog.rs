//! `catalog.db`: which objects the tree has, under which local inode, and how much of their state is known.
//!
//! Tables (schema version 1):
//!
//! | table | columns |
//! |---|---|
//! | meta | key PRIMARY KEY, value: `schema`, `applied` (TID of the cursor) |
//! | obj | oid BLOB(16) PRIMARY KEY, ino, generation (the local inode), kind (S_IFMT bits), state (0 placeholder, 1 partial, 2 complete) |
//! | blocked | oid PRIMARY KEY, errno |
//!
//! One transaction is open all the time; it is committed together with the cursor, after the tree was synced. Rows reach
//! it only then: an object whose state arrives changes its row three times within a commit, and each statement costs as
//! much as a system call.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension, params};

use crate::base::{DatabaseError, ObjectKey, Oid, Tid, open_database};
use crate::sys::Errno;

/// The catalog could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// SQLite refused.
    #[error("catalog {path}: {what}: {cause}")]
    Sql {
        /// The database.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Its answer.
        cause: rusqlite::Error,
    },
    /// It could not be opened as a dtfs database.
    #[error(transparent)]
    Open(#[from] DatabaseError),
    /// It was written by a newer dtfs.
    #[error("catalog {path}: schema {found} is newer than this program knows")]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its schema version.
        found: u64,
    },
}

/// How much of an object is known here.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Known {
    /// Only that it exists: it holds a place.
    Placeholder = 0,
    /// Its attributes; data is on its way. Changes are applied.
    Partial = 1,
    /// All. For a directory: its entries.
    Complete = 2,
}

/// One object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Row {
    pub(super) key: ObjectKey,
    pub(super) kind: u32,
    pub(super) known: Known,
}

pub(super) struct Catalog {
    path: PathBuf,
    connection: Connection,
    /// Rows read or written lately; where the database says otherwise, the row is in `unwritten`.
    cache: HashMap<Oid, Option<Row>>,
    /// Rows of the cache that the database does not have yet.
    unwritten: HashSet<Oid>,
    /// The database had no row when it was opened, and none has left the cache: what the cache lacks is not there.
    cache_is_all: bool,
    /// The objects in `blocked`; usually none.
    blocked: HashSet<Oid>,
    applied: Tid,
}

const CACHE_MAX: usize = 65_536;
const SCHEMA: u64 = 1;

impl Catalog {
    /// Opens or creates the catalog at `path`.
    pub(super) fn open(path: &Path) -> Result<Catalog, CatalogError> {
        let connection = open_database(path)?;
        let fail = |what| move |cause| CatalogError::Sql { path: path.to_owned(), what, cause };
        let schema = "CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
             CREATE TABLE IF NOT EXISTS obj (oid BLOB PRIMARY KEY, ino INTEGER NOT NULL, generation INTEGER NOT NULL,
                 kind INTEGER NOT NULL, state INTEGER NOT NULL) WITHOUT ROWID;
             CREATE TABLE IF NOT EXISTS blocked (oid BLOB PRIMARY KEY, errno INTEGER NOT NULL) WITHOUT ROWID;
             CREATE INDEX IF NOT EXISTS obj_incomplete ON obj (oid) WHERE state < 2;
             INSERT OR IGNORE INTO meta VALUES ('schema', 1), ('applied', 0);";
        connection.execute_batch(schema).map_err(fail("create tables"))?;
        let meta = |key: &str| {
            connection
                .query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get::<_, i64>(0))
                .map(|value| value as u64)
                .map_err(fail("read meta"))
        };
        let (found, applied) = (meta("schema")?, Tid(meta("applied")?));
        if found > SCHEMA {
            return Err(CatalogError::Newer { path: path.to_owned(), found });
        }
        connection.execute_batch("BEGIN IMMEDIATE").map_err(fail("begin"))?;
        let none = "SELECT NOT EXISTS (SELECT 1 FROM obj)";
        let cache_is_all = connection.query_row(none, [], |row| row.get(0)).map_err(fail("read objects"))?;
        let blocked = read_oids(&connection, "SELECT oid FROM blocked").map_err(fail("read blocked objects"))?;
        Ok(Catalog {
            path: path.to_owned(),
            connection,
            cache: HashMap::new(),
            unwritten: HashSet::new(),
            cache_is_all,
            blocked: blocked.into_iter().collect(),
            applied,
        })
    }

    /// TID of the cursor: everything up to here is durable in the tree.
    pub(super) fn applied(&self) -> Tid {
        self.applied
    }

    pub(super) fn get(&mut self, oid: Oid) -> Result<Option<Row>, CatalogError> {
        if let Some(row) = self.cache.get(&oid) {
            return Ok(*row);
        }
        if self.cache_is_all {
            return Ok(None);
        }
        let query = "SELECT ino, generation, kind, state FROM obj WHERE oid = ?1";
        let row = self
            .connection
            .prepare_cached(query)
            .and_then(|mut statement| statement.query_row([&oid.to_bytes()[..]], read_row).optional())
            .map_err(|cause| self.sql("read object", cause))?;
        self.remember(oid, row)?;
        Ok(row)
    }

    pub(super) fn put(&mut self, oid: Oid, row: Row) -> Result<(), CatalogError> {
        self.remember(oid, Some(row))?;
        self.unwritten.insert(oid);
        Ok(())
    }

    /// Raises or lowers how much is known of an object that is there.
    pub(super) fn set_known(&mut self, oid: Oid, known: Known) -> Result<(), CatalogError> {
        match self.get(oid)? {
            Some(row) if row.known != known => self.put(oid, Row { known, ..row }),
            _ => Ok(()),
        }
    }

    pub(super) fn remove(&mut self, oid: Oid) -> Result<(), CatalogError> {
        self.remember(oid, None)?;
        self.unwritten.insert(oid);
        self.unblock(oid)
    }

    /// Objects whose state is not all here.
    pub(super) fn incomplete(&mut self) -> Result<Vec<Oid>, CatalogError> {
        self.write_rows()?;
        let query = "SELECT oid FROM obj WHERE state < 2 UNION SELECT oid FROM blocked";
        read_oids(&self.connection, query).map_err(|cause| self.sql("read incomplete objects", cause))
    }

    pub(super) fn block(&mut self, oid: Oid, errno: Errno) -> Result<(), CatalogError> {
        self.blocked.insert(oid);
        self.connection
            .execute("INSERT OR REPLACE INTO blocked VALUES (?1, ?2)", params![&oid.to_bytes()[..], errno as i32])
            .map(drop)
            .map_err(|cause| self.sql("block object", cause))
    }

    /// The object's state arrived whole: whatever stood against it is tried again with it.
    pub(super) fn unblock(&mut self, oid: Oid) -> Result<(), CatalogError> {
        if !self.blocked.remove(&oid) {
            return Ok(());
        }
        self.connection
            .execute("DELETE FROM blocked WHERE oid = ?1", [&oid.to_bytes()[..]])
            .map(drop)
            .map_err(|cause| self.sql("unblock object", cause))
    }

    pub(super) fn blocked(&self) -> Result<super::Blocked, CatalogError> {
        self.connection
            .query_row("SELECT count(*), coalesce(min(errno), 0) FROM blocked", [], |row| {
                Ok(super::Blocked { count: row.get(0)?, errno: row.get(1)? })
            })
            .map_err(|cause| self.sql("count blocked objects", cause))
    }

    /// Commits everything since the last commit together with the cursor.
    pub(super) fn commit(&mut self, applied: Tid) -> Result<(), CatalogError> {
        crate::base::faults::point("applier.catalog").map_err(|errno| self.sql("commit", io_error(errno)))?;
        self.write_rows()?;
        self.connection
            .execute("UPDATE meta SET value = ?1 WHERE key = 'applied'", [applied.0 as i64])
            .and_then(|_| self.connection.execute_batch("COMMIT; BEGIN IMMEDIATE"))
            .map_err(|cause| self.sql("commit", cause))?;
        self.applied = applied;
        Ok(())
    }

    fn remember(&mut self, oid: Oid, row: Option<Row>) -> Result<(), CatalogError> {
        if self.cache.len() >= CACHE_MAX {
            self.write_rows()?;
            self.cache.clear();
            self.cache_is_all = false;
        }
        self.cache.insert(oid, row);
        Ok(())
    }

    /// Brings the database up to the cache, in the order of the table.
    fn write_rows(&mut self) -> Result<(), CatalogError> {
        let mut oids: Vec<[u8; Oid::LEN]> = self.unwritten.drain().map(Oid::to_bytes).collect();
        oids.sort_unstable();
        let write = || {
            let mut put = self.connection.prepare_cached("INSERT OR REPLACE INTO obj VALUES (?1, ?2, ?3, ?4, ?5)")?;
            let mut remove = self.connection.prepare_cached("DELETE FROM obj WHERE oid = ?1")?;
            for oid in &oids {
                match self.cache.get(&Oid::from_bytes(*oid)) {
                    Some(Some(row)) => {
                        let (ino, known) = (row.key.ino as i64, row.known as u8);
                        put.execute(params![&oid[..], ino, row.key.generation, row.kind, known])?
                    }
                    _ => remove.execute([&oid[..]])?,
                };
            }
            Ok(())
        };
        write().map_err(|cause| self.sql("write objects", cause))
    }

    fn sql(&self, what: &'static str, cause: rusqlite::Error) -> CatalogError {
        CatalogError::Sql { path: self.path.clone(), what, cause }
    }
}

fn io_error(errno: Errno) -> rusqlite::Error {
    rusqlite::Error::ToSqlConversionFailure(Box::new(std::io::Error::from(errno)))
}

fn read_oids(connection: &Connection, query: &str) -> rusqlite::Result<Vec<Oid>> {
    let mut statement = connection.prepare_cached(query)?;
    let rows = statement.query_map([], |row| row.get::<_, [u8; Oid::LEN]>(0))?;
    rows.map(|bytes| bytes.map(Oid::from_bytes)).collect()
}

fn read_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    let ino: i64 = row.get(0)?;
    let known = match row.get::<_, u8>(3)? {
        0 => Known::Placeholder,
        1 => Known::Partial,
        _ => Known::Complete,
    };
    Ok(Row { key: ObjectKey { ino: ino as u64, generation: row.get(1)? }, kind: row.get(2)?, known })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Space;

    #[test]
    fn what_was_not_committed_with_a_cursor_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalog.db");
        let oid = |ino| Oid { space: Space(3), generation: 1, ino };
        let row = Row { key: ObjectKey { ino: 9, generation: 2 }, kind: libc::S_IFREG, known: Known::Placeholder };
        let mut catalog = Catalog::open(&path).unwrap();
        catalog.put(oid(1), row).unwrap();
        catalog.commit(Tid(5)).unwrap();
        catalog.put(oid(2), row).unwrap();
        catalog.set_known(oid(1), Known::Complete).unwrap();
        drop(catalog);
        let mut catalog = Catalog::open(&path).unwrap();
        assert_eq!(catalog.applied(), Tid(5));
        assert_eq!(catalog.get(oid(1)).unwrap(), Some(row));
        assert_eq!(catalog.get(oid(2)).unwrap(), None);
        assert_eq!(catalog.incomplete().unwrap(), vec![oid(1)]);
    }
}
