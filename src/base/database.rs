//! Opening a SQLite file so that a commit is on the disk when it returns.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;

/// Why a database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// The file cannot be created or opened.
    #[error("{}: {cause}", path.display())]
    Io {
        /// The database.
        path: PathBuf,
        /// The kernel's answer.
        cause: std::io::Error,
    },
    /// SQLite refused.
    #[error("{}: {what}: {cause}", path.display())]
    Sql {
        /// The database.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// SQLite's reason.
        cause: rusqlite::Error,
    },
    /// SQLite did not take a setting that durability rests on.
    #[error("{}: {pragma} is {found}, not {wanted}", path.display())]
    Pragma {
        /// The database.
        path: PathBuf,
        /// The setting.
        pragma: &'static str,
        /// What was asked for.
        wanted: &'static str,
        /// What it is.
        found: String,
    },
}

/// Opens (or creates, mode 0600) the database at `path`, sets what durability rests on and reads it back.
///
/// WAL with synchronous=NORMAL loses acknowledged commits at a power cut, and a rollback journal does too where the
/// directory entry's removal is not durable: so neither may come about by a default or a refused pragma.
///
/// # Errors
/// [`DatabaseError`] says which step failed.
pub fn open_database(path: &Path) -> Result<Connection, DatabaseError> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(|cause| DatabaseError::Io { path: path.to_owned(), cause })?;
    let sql = |what| move |cause| DatabaseError::Sql { path: path.to_owned(), what, cause };
    let connection = Connection::open(path).map_err(sql("open"))?;
    connection.busy_timeout(Duration::from_secs(10)).map_err(sql("busy timeout"))?;
    set_pragma(&connection, path, "page_size", "4096", "4096")?;
    set_pragma(&connection, path, "journal_mode", "WAL", "wal")?;
    set_pragma(&connection, path, "synchronous", "FULL", "2")?;
    Ok(connection)
}

/// Sets a pragma of the database at `path`, and reads back that it is `wanted`.
///
/// # Errors
/// [`DatabaseError`] when SQLite refuses, or does not take it.
pub fn set_pragma(
    connection: &Connection,
    path: &Path,
    pragma: &'static str,
    value: &str,
    wanted: &'static str,
) -> Result<(), DatabaseError> {
    use rusqlite::types::Value;
    let sql = |cause| DatabaseError::Sql { path: path.to_owned(), what: "pragma", cause };
    match connection.pragma_update_and_check(None, pragma, value, |_| Ok(())) {
        // Some pragmas answer with a row when set, others with none.
        Ok(()) | Err(rusqlite::Error::QueryReturnedNoRows) => {}
        Err(cause) => return Err(sql(cause)),
    }
    let found = match connection.pragma_query_value(None, pragma, |row| row.get::<_, Value>(0)).map_err(sql)? {
        Value::Integer(number) => number.to_string(),
        Value::Text(text) => text,
        other => format!("{other:?}"),
    };
    match found == wanted {
        true => Ok(()),
        false => Err(DatabaseError::Pragma { path: path.to_owned(), pragma, wanted, found }),
    }
}
