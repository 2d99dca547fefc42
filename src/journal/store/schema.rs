//! The tables of `state.db`, version 1. SCHEMA.md explains every column.

use rusqlite::Connection;

use crate::journal::error::{JournalError, sql};

/// Version of the schema, kept in `PRAGMA user_version`.
pub(super) const VERSION: i64 = 1;

const TABLES: &str = "
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE segment (
    no        INTEGER PRIMARY KEY,
    file      TEXT    NOT NULL,
    epoch     BLOB    NOT NULL,
    first_tid INTEGER NOT NULL,
    digest    BLOB    NOT NULL,
    last_tid  INTEGER NOT NULL,
    bytes     INTEGER NOT NULL,
    state     TEXT    NOT NULL CHECK (state IN ('open', 'sealed', 'free'))
);
CREATE TABLE epoch (
    number     INTEGER PRIMARY KEY,
    id         BLOB    NOT NULL UNIQUE,
    parent     BLOB,
    fork_tid   INTEGER NOT NULL,
    fork_digest BLOB   NOT NULL,
    created_ns INTEGER NOT NULL
);
CREATE TABLE target (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    name        TEXT    NOT NULL UNIQUE,
    url         TEXT    NOT NULL,
    state       TEXT    NOT NULL DEFAULT 'active',
    received    INTEGER NOT NULL DEFAULT 0,
    applied     INTEGER NOT NULL DEFAULT 0,
    covered     INTEGER NOT NULL DEFAULT 0,
    mirrored    INTEGER NOT NULL DEFAULT 0,
    last_error  TEXT,
    last_ack_ns INTEGER,
    said_copy     BLOB,
    said_received INTEGER,
    said_applied  INTEGER,
    said_commit   BLOB,
    sent_copy     BLOB,
    sent_upto     INTEGER,
    downstream    INTEGER NOT NULL DEFAULT 9223372036854775807
);
CREATE TABLE work (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    target      INTEGER NOT NULL,
    oid         BLOB    NOT NULL CHECK (length(oid) = 16),
    kind        INTEGER NOT NULL,
    reason      INTEGER NOT NULL,
    \"offset\"    INTEGER NOT NULL,
    len         INTEGER NOT NULL,
    created_tid INTEGER NOT NULL,
    crc         INTEGER NOT NULL,
    UNIQUE (target, oid, kind, \"offset\")
);
CREATE INDEX work_by_target ON work (target, seq);
CREATE TABLE event (
    id     INTEGER PRIMARY KEY AUTOINCREMENT,
    ts     INTEGER NOT NULL,
    level  TEXT    NOT NULL,
    target INTEGER,
    text   TEXT    NOT NULL
);
";

/// Creates the tables in an empty database; does nothing to one of this version.
pub(super) fn prepare(connection: &mut Connection) -> Result<(), JournalError> {
    let version: i64 =
        connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(sql("schema version"))?;
    match version {
        VERSION => Ok(()),
        0 => create(connection).map_err(sql("create tables")),
        other => Err(JournalError::Format {
            path: connection.path().unwrap_or_default().into(),
            found: other as u64,
            known: VERSION as u64,
        }),
    }
}

fn create(connection: &mut Connection) -> Result<(), rusqlite::Error> {
    let tx = connection.transaction()?;
    tx.execute_batch(TABLES)?;
    tx.pragma_update(None, "user_version", VERSION)?;
    tx.commit()
}
