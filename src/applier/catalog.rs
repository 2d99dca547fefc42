//! `catalog.db`: which objects the tree has, under which local inode, and how much of their state is known.
//!
//! Tables (schema version 4, in `PRAGMA user_version`):
//!
//! | table | columns |
//! |---|---|
//! | cursor | one row: spaces BLOB (4 bytes each: of the source's objects), position BLOB(32) (epoch, TID, digest: durable in the tree), commit_no BLOB(16) (the state that the tree and this database were in), next_nonce BLOB(8) (of the commit after it), jump BLOB(32) or NULL (the position that the inbox is being begun anew at) |
//! | obj | oid BLOB(16) PRIMARY KEY, ino, generation (the local inode), kind (S_IFMT bits), state (0 placeholder, 1 partial, 2 complete, 3 found), crc (crc32c of the five before it, as little-endian bytes of 16, 8, 4, 4 and 1) |
//! | blocked | oid PRIMARY KEY, errno |
//!
//! SQLite has no checksums of its own, and a flipped bit in a row of `obj` would make a record change another object: so
//! each row has one.
//!
//! One transaction is open all the time; it is committed together with the cursor, after the tree was synced. Rows reach
//! it only then: an object whose state arrives changes its row three times within a commit, and each statement costs as
//! much as a system call. While the tree is being synced in the background the transaction is *set apart*: it holds what that
//! sync makes durable, and nothing reaches it.

mod look;
mod schema;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, params};

pub(super) use look::Look;
use schema::{
    check, crc_of, create, damaged_row, read_blocked, read_cursor, read_object, read_oids, read_row, read_spaces,
};

use crate::base::{Commit, DatabaseError, ObjectKey, Oid, Position, Spaces, faults, open_database, random_bytes};
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
    /// Its pages contradict each other.
    #[error("catalog {path}: {what}")]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What SQLite says of it.
        what: String,
    },
    /// It was written by a newer dtfs.
    #[error("catalog {path}: schema {found} is newer than this program knows")]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its schema version.
        found: i64,
    },
}

impl CatalogError {
    /// Whether the file itself is no use any more: it must be made anew from the tree.
    pub(super) fn is_damage(&self) -> bool {
        let cause = match self {
            CatalogError::Sql { cause, .. } | CatalogError::Open(DatabaseError::Sql { cause, .. }) => cause,
            CatalogError::Damaged { .. } => return true,
            _ => return false,
        };
        matches!(
            cause.sqlite_error_code(),
            Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase)
        ) || matches!(cause, rusqlite::Error::QueryReturnedNoRows | rusqlite::Error::InvalidColumnType(..))
    }

    /// Whether its disk has no room.
    pub fn is_full(&self) -> bool {
        let code = match self {
            CatalogError::Sql { cause, .. } | CatalogError::Open(DatabaseError::Sql { cause, .. }) => {
                cause.sqlite_error_code()
            }
            _ => None,
        };
        code == Some(rusqlite::ErrorCode::DiskFull)
    }
}

/// How much of an object is known here.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Known {
    /// It was in the tree when the catalog was made anew. The comparison of the whole tree that follows says what it is.
    Found,
    /// Only that it exists: it holds a place.
    Placeholder,
    /// Its attributes; data is on its way. Changes are applied.
    Partial,
    /// All. For a directory: its entries.
    Complete,
}

impl Known {
    fn code(self) -> u8 {
        match self {
            Known::Placeholder => 0,
            Known::Partial => 1,
            Known::Complete => 2,
            Known::Found => 3,
        }
    }

    fn of(code: u8) -> Known {
        match code {
            0 => Known::Placeholder,
            1 => Known::Partial,
            2 => Known::Complete,
            _ => Known::Found,
        }
    }
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
    /// With how many rows the cache is looked through for some that can go.
    cache_max: usize,
    /// The transaction holds what its commit is to hold.
    set_apart: bool,
    /// The database had no row when it was opened, and none has left the cache: what the cache lacks is not there.
    cache_is_all: bool,
    /// The rows of `blocked`; usually none.
    blocked: BTreeMap<Oid, i32>,
    /// Those of them that the database does not have as they are here.
    unwritten_blocked: HashSet<Oid>,
    cursor: Cursor,
    /// Whose objects it knows.
    spaces: Spaces,
}

/// What is durable together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Cursor {
    /// Everything up to here is durable in the tree.
    pub(super) applied: Position,
    pub(super) commit: Commit,
    /// What the tree bears when it was made durable after `commit` and this catalog was not yet.
    pub(super) next: Commit,
    /// The inbox is being begun anew here.
    pub(super) jump: Option<Position>,
}

const CACHE_MAX: usize = 65_536;

impl Catalog {
    /// Opens the catalog at `path`.
    pub(super) fn open(path: &Path) -> Result<Catalog, CatalogError> {
        let connection = open_database(path)?;
        check(&connection, path)?;
        Catalog::begin(path, connection)
    }

    /// Makes a new one at `path`, where there is none, for the objects of `spaces`.
    pub(super) fn create(path: &Path, spaces: &Spaces) -> Result<Catalog, CatalogError> {
        let mut connection = open_database(path)?;
        create(&mut connection, spaces).map_err(|cause| CatalogError::Sql {
            path: path.to_owned(),
            what: "create tables",
            cause,
        })?;
        Catalog::begin(path, connection)
    }

    /// What was last durable in the tree, for somebody who only looks: another process may have the catalog open.
    pub(super) fn look_at(path: &Path) -> Result<Position, CatalogError> {
        let connection = open_database(path)?;
        let cursor = read_cursor(&connection).map_err(|cause| CatalogError::Sql {
            path: path.to_owned(),
            what: "read cursor",
            cause,
        })?;
        Ok(cursor.applied)
    }

    /// As [`Catalog::look_at`]: whose objects it knows.
    pub(super) fn look_at_spaces(path: &Path) -> Result<Spaces, CatalogError> {
        let connection = open_database(path)?;
        read_spaces(&connection).map_err(|cause| CatalogError::Sql {
            path: path.to_owned(),
            what: "read spaces",
            cause,
        })
    }

    fn begin(path: &Path, connection: Connection) -> Result<Catalog, CatalogError> {
        let fail = |what| move |cause| CatalogError::Sql { path: path.to_owned(), what, cause };
        let cursor = read_cursor(&connection).map_err(fail("read cursor"))?;
        let spaces = read_spaces(&connection).map_err(fail("read spaces"))?;
        connection.execute_batch("BEGIN IMMEDIATE").map_err(fail("begin"))?;
        let none = "SELECT NOT EXISTS (SELECT 1 FROM obj)";
        let cache_is_all = connection.query_row(none, [], |row| row.get(0)).map_err(fail("read objects"))?;
        let blocked = read_blocked(&connection).map_err(fail("read blocked objects"))?;
        Ok(Catalog {
            path: path.to_owned(),
            connection,
            cache: HashMap::new(),
            unwritten: HashSet::new(),
            cache_max: CACHE_MAX,
            set_apart: false,
            cache_is_all,
            blocked,
            unwritten_blocked: HashSet::new(),
            cursor,
            spaces,
        })
    }

    /// The database.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What is durable.
    pub(super) fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Whose objects it knows.
    pub(super) fn spaces(&self) -> &Spaces {
        &self.spaces
    }

    /// From the next commit on it knows the objects of `spaces`.
    pub(super) fn set_spaces(&mut self, spaces: &Spaces) -> Result<(), CatalogError> {
        self.connection
            .execute("UPDATE cursor SET spaces = ?1", [spaces.to_bytes()])
            .map_err(|cause| self.sql("set spaces", cause))?;
        self.spaces = spaces.clone();
        Ok(())
    }

    /// Every object, in the order of the table.
    pub(super) fn objects(&mut self) -> Result<Vec<(Oid, ObjectKey)>, CatalogError> {
        self.write_rows()?;
        let read = || -> rusqlite::Result<Option<Vec<(Oid, ObjectKey)>>> {
            let mut statement = self.connection.prepare("SELECT oid, ino, generation, kind, state, crc FROM obj")?;
            let rows = statement.query_map([], |columns| {
                let oid: [u8; Oid::LEN] = columns.get(0)?;
                Ok(read_row(columns)?.map(|row| (Oid::from_bytes(oid), row.key)))
            })?;
            rows.collect()
        };
        let objects = read().map_err(|cause| self.sql("read objects", cause))?;
        objects.ok_or_else(|| damaged_row(&self.path))
    }

    pub(super) fn get(&mut self, oid: Oid) -> Result<Option<Row>, CatalogError> {
        if let Some(row) = self.cache.get(&oid) {
            return Ok(*row);
        }
        if self.cache_is_all {
            return Ok(None);
        }
        let found = read_object(&self.connection, oid).map_err(|cause| self.sql("read object", cause))?;
        let row = found.map(|found| found.ok_or_else(|| damaged_row(&self.path))).transpose()?;
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
        self.unblock(oid);
        Ok(())
    }

    /// Whether all of every object is known.
    pub(super) fn is_complete(&mut self) -> Result<bool, CatalogError> {
        self.write_rows()?;
        let none = format!("SELECT NOT EXISTS (SELECT 1 FROM obj WHERE state <> {})", Known::Complete.code());
        self.connection
            .query_row(&none, [], |row| row.get(0))
            .map_err(|cause| self.sql("read incomplete objects", cause))
    }

    /// Objects whose state is not all here.
    pub(super) fn incomplete(&mut self) -> Result<Vec<Oid>, CatalogError> {
        self.write_rows()?;
        let query = "SELECT oid FROM obj WHERE state < 2 UNION SELECT oid FROM blocked";
        read_oids(&self.connection, query).map_err(|cause| self.sql("read incomplete objects", cause))
    }

    /// As [`Catalog::incomplete`], without those that are blocked. Not while something is set apart.
    pub(super) fn lacking(&mut self) -> Result<Vec<Oid>, CatalogError> {
        self.write_rows()?;
        let lacking = read_oids(&self.connection, "SELECT oid FROM obj WHERE state < 2");
        let mut lacking = lacking.map_err(|cause| self.sql("read incomplete objects", cause))?;
        lacking.retain(|oid| !self.blocked.contains_key(oid));
        Ok(lacking)
    }

    pub(super) fn block(&mut self, oid: Oid, errno: Errno) {
        self.blocked.insert(oid, errno as i32);
        self.unwritten_blocked.insert(oid);
    }

    /// The object's state arrived whole: whatever stood against it is tried again with it.
    pub(super) fn unblock(&mut self, oid: Oid) {
        if self.blocked.remove(&oid).is_some() {
            self.unwritten_blocked.insert(oid);
        }
    }

    pub(super) fn blocked(&self) -> super::Blocked {
        let first = self.blocked.first_key_value().map(|(oid, errno)| (*oid, *errno));
        super::Blocked { count: self.blocked.len() as u32, first }
    }

    pub(super) fn is_blocked(&self, oid: Oid) -> bool {
        self.blocked.contains_key(&oid)
    }

    pub(super) fn blocked_oids(&self) -> Vec<Oid> {
        self.blocked.keys().copied().collect()
    }

    /// What is there now is what the next commit holds; what comes until then is for the commit after it.
    pub(super) fn set_apart(&mut self) -> Result<(), CatalogError> {
        self.write_rows()?;
        self.set_apart = true;
        Ok(())
    }

    /// Commits everything since the last commit together with the cursor. The tree bears `cursor().next` already.
    pub(super) fn commit(&mut self, applied: Position, jump: Option<Position>) -> Result<(), CatalogError> {
        faults::point("applier.catalog").map_err(|errno| self.sql("commit", io_error(errno)))?;
        if !std::mem::take(&mut self.set_apart) {
            self.write_rows()?;
        }
        let commit = self.cursor.next;
        let next = after(commit);
        let row = (applied.to_bytes(), commit.to_bytes(), next.nonce.to_le_bytes(), jump.map(Position::to_bytes));
        self.connection
            .execute("UPDATE cursor SET position = ?1, commit_no = ?2, next_nonce = ?3, jump = ?4", row)
            .and_then(|_| self.connection.execute_batch("COMMIT; BEGIN IMMEDIATE"))
            .map_err(|cause| self.sql("commit", cause))?;
        self.cursor = Cursor { applied, commit, next, jump };
        Ok(())
    }

    fn remember(&mut self, oid: Oid, row: Option<Row>) -> Result<(), CatalogError> {
        if self.cache.len() >= self.cache_max {
            if !self.set_apart {
                self.write_rows()?;
            }
            self.cache.retain(|oid, _| self.unwritten.contains(oid));
            self.cache_max = CACHE_MAX.max(2 * self.cache.len());
            self.cache_is_all = false;
        }
        self.cache.insert(oid, row);
        Ok(())
    }

    /// Brings the database up to the cache, in the order of the table.
    fn write_rows(&mut self) -> Result<(), CatalogError> {
        debug_assert!(!self.set_apart, "rows would be committed before the tree is synced");
        let mut oids: Vec<[u8; Oid::LEN]> = self.unwritten.drain().map(Oid::to_bytes).collect();
        oids.sort_unstable();
        let write = || {
            let mut put =
                self.connection.prepare_cached("INSERT OR REPLACE INTO obj VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?;
            let mut remove = self.connection.prepare_cached("DELETE FROM obj WHERE oid = ?1")?;
            for oid in &oids {
                match self.cache.get(&Oid::from_bytes(*oid)) {
                    Some(Some(row)) => {
                        let (ino, known) = (row.key.ino as i64, row.known.code());
                        let crc = crc_of(oid, row);
                        put.execute(params![&oid[..], ino, row.key.generation, row.kind, known, crc])?
                    }
                    _ => remove.execute([&oid[..]])?,
                };
            }
            Ok(())
        };
        write().map_err(|cause| self.sql("write objects", cause))?;
        self.write_blocked().map_err(|cause| self.sql("write blocked objects", cause))?;
        self.unwritten_blocked.clear();
        Ok(())
    }

    fn write_blocked(&self) -> rusqlite::Result<()> {
        for oid in &self.unwritten_blocked {
            let bytes = oid.to_bytes();
            match self.blocked.get(oid) {
                Some(errno) => {
                    let row = params![&bytes[..], errno];
                    self.connection.execute("INSERT OR REPLACE INTO blocked VALUES (?1, ?2)", row)?
                }
                None => self.connection.execute("DELETE FROM blocked WHERE oid = ?1", [&bytes[..]])?,
            };
        }
        Ok(())
    }

    fn sql(&self, what: &'static str, cause: rusqlite::Error) -> CatalogError {
        CatalogError::Sql { path: self.path.clone(), what, cause }
    }
}

fn after(commit: Commit) -> Commit {
    Commit { number: commit.number + 1, nonce: random() }
}

fn random() -> u64 {
    u64::from_le_bytes(random_bytes())
}

/// The failure of a fault point, as SQLite would report it.
fn io_error(errno: Errno) -> rusqlite::Error {
    let code = match errno {
        Errno::ENOSPC | Errno::EDQUOT => rusqlite::ffi::SQLITE_FULL,
        _ => rusqlite::ffi::SQLITE_IOERR,
    };
    rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), Some(errno.to_string()))
}
