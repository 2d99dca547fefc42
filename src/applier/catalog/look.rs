//! The catalog of a copy, for somebody who only looks.

use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::CatalogError;
use super::schema::{damaged_row, read_object, read_spaces};
use crate::base::{ObjectKey, Oid, Spaces, open_database};

/// The catalog of a copy, for somebody who only looks: another process may have it open, and only what that one has made
/// durable is seen.
pub(in crate::applier) struct Look {
    path: PathBuf,
    connection: Connection,
}

impl Look {
    pub(in crate::applier) fn open(path: &Path) -> Result<Look, CatalogError> {
        Ok(Look { path: path.to_owned(), connection: open_database(path)? })
    }

    pub(in crate::applier) fn key_of(&self, oid: Oid) -> Result<Option<ObjectKey>, CatalogError> {
        let found = read_object(&self.connection, oid).map_err(|cause| self.sql("read object", cause))?;
        found.map(|row| row.map(|row| row.key).ok_or_else(|| damaged_row(&self.path))).transpose()
    }

    /// Whether all of every object is known, and none is blocked.
    pub(in crate::applier) fn is_whole(&self) -> Result<bool, CatalogError> {
        let none = "SELECT NOT EXISTS (SELECT 1 FROM obj WHERE state < 2) AND NOT EXISTS (SELECT 1 FROM blocked)";
        let answer = self.connection.prepare_cached(none).and_then(|mut query| query.query_row([], |row| row.get(0)));
        answer.map_err(|cause| self.sql("read incomplete objects", cause))
    }

    pub(in crate::applier) fn spaces(&self) -> Result<Spaces, CatalogError> {
        read_spaces(&self.connection).map_err(|cause| self.sql("read spaces", cause))
    }

    fn sql(&self, what: &'static str, cause: rusqlite::Error) -> CatalogError {
        CatalogError::Sql { path: self.path.clone(), what, cause }
    }
}
