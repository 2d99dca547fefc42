//! The tables of `catalog.db`: made, checked, and read row by row.

use std::collections::BTreeMap;
use std::path::Path;

use rusqlite::{Connection, OptionalExtension};

use super::{CatalogError, Cursor, Known, Row, random};
use crate::base::{Commit, ObjectKey, Oid, Position, Spaces};

const SCHEMA: i64 = 4;
/// A catalog up to this size is checked whole when it is opened; checking a larger one would keep the source waiting.
const CHECKED_BYTES: u64 = 64 << 20;

const TABLES: &str = "
    CREATE TABLE cursor (one INTEGER PRIMARY KEY CHECK (one = 1), spaces BLOB NOT NULL, position BLOB NOT NULL,
        commit_no BLOB NOT NULL, next_nonce BLOB NOT NULL, jump BLOB);
    CREATE TABLE obj (oid BLOB PRIMARY KEY, ino INTEGER NOT NULL, generation INTEGER NOT NULL,
        kind INTEGER NOT NULL, state INTEGER NOT NULL, crc INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE blocked (oid BLOB PRIMARY KEY, errno INTEGER NOT NULL) WITHOUT ROWID;
    CREATE INDEX obj_incomplete ON obj (oid) WHERE state < 2;";

pub(super) fn create(connection: &mut Connection, spaces: &Spaces) -> rusqlite::Result<()> {
    let tx = connection.transaction()?;
    tx.execute_batch(TABLES)?;
    let first = Commit { number: 1, nonce: random() };
    let row = (spaces.to_bytes(), Position::START.to_bytes(), first.to_bytes(), random().to_le_bytes());
    tx.execute("INSERT INTO cursor VALUES (1, ?1, ?2, ?3, ?4, NULL)", row)?;
    tx.pragma_update(None, "user_version", SCHEMA)?;
    tx.commit()
}

/// A database of another version, or one whose pages contradict each other, is not used.
pub(super) fn check(connection: &Connection, path: &Path) -> Result<(), CatalogError> {
    let fail = |cause| CatalogError::Sql { path: path.to_owned(), what: "version", cause };
    match connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(fail)? {
        SCHEMA => {}
        0 => return Err(CatalogError::Damaged { path: path.to_owned(), what: "it has no tables".to_owned() }),
        found => return Err(CatalogError::Newer { path: path.to_owned(), found }),
    }
    if std::fs::metadata(path).is_ok_and(|meta| meta.len() > CHECKED_BYTES) {
        return Ok(());
    }
    let fail = |cause| CatalogError::Sql { path: path.to_owned(), what: "check", cause };
    let what: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(fail)?;
    match what == "ok" {
        true => check_rows(connection, path),
        false => Err(CatalogError::Damaged { path: path.to_owned(), what }),
    }
}

fn check_rows(connection: &Connection, path: &Path) -> Result<(), CatalogError> {
    let all_whole = || -> rusqlite::Result<bool> {
        let mut statement = connection.prepare("SELECT oid, ino, generation, kind, state, crc FROM obj")?;
        let mut rows = statement.query_map([], read_row)?;
        rows.try_fold(true, |whole, row| Ok(whole && row?.is_some()))
    };
    match all_whole() {
        Ok(true) => Ok(()),
        Ok(false) => Err(damaged_row(path)),
        Err(cause) => Err(CatalogError::Sql { path: path.to_owned(), what: "check objects", cause }),
    }
}

pub(super) fn damaged_row(path: &Path) -> CatalogError {
    CatalogError::Damaged { path: path.to_owned(), what: "a row of obj is not what was written".to_owned() }
}

pub(super) fn crc_of(oid: &[u8; Oid::LEN], row: &Row) -> u32 {
    let crc = crc32c::crc32c(oid);
    let crc = crc32c::crc32c_append(crc, &row.key.ino.to_le_bytes());
    let crc = crc32c::crc32c_append(crc, &row.key.generation.to_le_bytes());
    let crc = crc32c::crc32c_append(crc, &row.kind.to_le_bytes());
    crc32c::crc32c_append(crc, &[row.known.code()])
}

pub(super) fn read_cursor(connection: &Connection) -> rusqlite::Result<Cursor> {
    connection.query_row("SELECT position, commit_no, next_nonce, jump FROM cursor", [], |row| {
        let commit = Commit::from_bytes(row.get(1)?);
        Ok(Cursor {
            applied: Position::from_bytes(row.get(0)?),
            commit,
            next: Commit { number: commit.number + 1, nonce: u64::from_le_bytes(row.get(2)?) },
            jump: row.get::<_, Option<[u8; Position::LEN]>>(3)?.map(Position::from_bytes),
        })
    })
}

pub(super) fn read_spaces(connection: &Connection) -> rusqlite::Result<Spaces> {
    connection.query_row("SELECT spaces FROM cursor", [], |row| {
        let bytes: Vec<u8> = row.get(0)?;
        // Damage is found like any other: of spaces that are not known nothing counts.
        Ok(Spaces::from_bytes(&bytes).unwrap_or_default())
    })
}

pub(super) fn read_oids(connection: &Connection, query: &str) -> rusqlite::Result<Vec<Oid>> {
    let mut statement = connection.prepare_cached(query)?;
    let rows = statement.query_map([], |row| row.get::<_, [u8; Oid::LEN]>(0))?;
    rows.map(|bytes| bytes.map(Oid::from_bytes)).collect()
}

pub(super) fn read_blocked(connection: &Connection) -> rusqlite::Result<BTreeMap<Oid, i32>> {
    let mut statement = connection.prepare("SELECT oid, errno FROM blocked")?;
    let rows = statement.query_map([], |row| Ok((Oid::from_bytes(row.get(0)?), row.get(1)?)))?;
    rows.collect()
}

/// `None` when the row's checksum is not its own.
pub(super) fn read_row(columns: &rusqlite::Row<'_>) -> rusqlite::Result<Option<Row>> {
    let oid = columns.get(0)?;
    let ino: i64 = columns.get(1)?;
    let known = Known::of(columns.get(4)?);
    let key = ObjectKey { ino: ino as u64, generation: columns.get(2)? };
    let row = Row { key, kind: columns.get(3)?, known };
    Ok((crc_of(&oid, &row) == columns.get::<_, u32>(5)?).then_some(row))
}

/// The row of one object; the inner result as [`read_row`].
pub(super) fn read_object(connection: &Connection, oid: Oid) -> rusqlite::Result<Option<Option<Row>>> {
    let mut query =
        connection.prepare_cached("SELECT oid, ino, generation, kind, state, crc FROM obj WHERE oid = ?1")?;
    query.query_row([&oid.to_bytes()[..]], read_row).optional()
}
