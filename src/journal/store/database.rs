//! Opening a SQLite file so that a commit is on the disk when it returns.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;

use crate::journal::error::{JournalError, sql, std_io};

/// Opens (or creates, mode 0600) the database at `path`, sets what durability rests on and reads it back.
///
/// WAL with synchronous=NORMAL loses acknowledged commits at a power cut, and a rollback journal does too where the
/// directory entry's removal is not durable: so neither may come about by a default or a refused pragma.
///
/// # Errors
/// [`JournalError::Pragma`] when SQLite does not take a setting; `Io` or `Sqlite` when the file cannot be opened.
pub fn open_database(path: &Path) -> Result<Connection, JournalError> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(std_io("create", path))?;
    let connection = Connection::open(path).map_err(sql("open"))?;
    connection.busy_timeout(Duration::from_secs(10)).map_err(sql("busy timeout"))?;
    set_pragma(&connection, path, "page_size", "4096", "4096")?;
    set_pragma(&connection, path, "journal_mode", "WAL", "wal")?;
    set_pragma(&connection, path, "synchronous", "FULL", "2")?;
    Ok(connection)
}

fn set_pragma(
    connection: &Connection,
    path: &Path,
    pragma: &'static str,
    value: &str,
    wanted: &'static str,
) -> Result<(), JournalError> {
    connection
        .pragma_update_and_check(None, pragma, value, |_| Ok(()))
        .or_else(|cause| match cause {
            // Some pragmas answer with a row when set, others with none.
            rusqlite::Error::QueryReturnedNoRows => Ok(()),
            other => Err(other),
        })
        .map_err(sql("pragma"))?;
    let found = connection
        .pragma_query_value(None, pragma, |row| row.get::<_, rusqlite::types::Value>(0))
        .map_err(sql("pragma"))?;
    let found = match found {
        rusqlite::types::Value::Integer(number) => number.to_string(),
        rusqlite::types::Value::Text(text) => text,
        other => format!("{other:?}"),
    };
    if found == wanted {
        return Ok(());
    }
    Err(JournalError::Pragma { path: path.to_owned(), pragma, wanted, found })
}
