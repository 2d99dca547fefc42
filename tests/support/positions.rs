//! How far a target is, from the files of both sides: what the source was told is durable, and what the target holds.

use std::fs;
use std::path::Path;

use dtfs::base::{EpochId, Position, Tid, VolumeUuid};
use dtfs::journal::{LogOptions, SegmentLog};
use rusqlite::Connection;

use super::process::tool;
use super::scratch::utf8;

/// A place as a target acknowledges it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) received: Tid,
    pub(crate) applied: Tid,
}

/// The place that the source in `state` has written down for its only target. The daemon stands still or is dead.
pub(crate) fn acknowledged(state: &Path) -> Place {
    let store = open_copy(state, "state.db");
    let place = store.query_row("SELECT received, applied FROM target", [], |row| {
        Ok(Place { received: Tid(row.get::<_, i64>(0)? as u64), applied: Tid(row.get::<_, i64>(1)? as u64) })
    });
    place.expect("one target")
}

/// The place that the only replica in `replicas` has on its disk, of the volume whose state lies in `state`.
pub(crate) fn held(state: &Path, replicas: &Path) -> Place {
    let replica = fs::read_dir(replicas).expect("the replicas").next().expect("a replica").expect("an entry").path();
    let applied = cursor(&open_copy(&replica, "catalog.db"));
    Place { received: inbox_end(state, &replica.join("inbox")).max(applied), applied }
}

fn cursor(catalog: &Connection) -> Tid {
    let applied = catalog.query_row("SELECT position FROM cursor", [], |row| row.get(0));
    Position::from_bytes(applied.expect("a cursor")).tid
}

fn inbox_end(state: &Path, inbox: &Path) -> Tid {
    let store = open_copy(state, "state.db");
    let volume = store.query_row("SELECT value FROM meta WHERE key = 'volume'", [], |row| row.get(0)).expect("an id");
    let copy = copy_of(inbox);
    // The epoch is only written into new segments.
    let log = SegmentLog::open(copy.path(), VolumeUuid(volume), EpochId([0; 16]), LogOptions::default());
    log.expect("a whole inbox").last_tid()
}

/// Opens a copy: a database that is opened after a crash is changed by that.
fn open_copy(dir: &Path, name: &str) -> Connection {
    let copy = tempfile::tempdir().expect("a temporary directory");
    for suffix in ["", "-wal"] {
        let file = format!("{name}{suffix}");
        if dir.join(&file).exists() {
            fs::copy(dir.join(&file), copy.path().join(&file)).expect("a copy");
        }
    }
    // The connection holds the files open; their names are not needed any more once it has read something.
    let connection = Connection::open(copy.path().join(name)).expect("a database");
    connection.query_row("SELECT count(*) FROM sqlite_master", [], |_| Ok(())).expect("a database");
    connection
}

fn copy_of(dir: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("a temporary directory");
    tool("cp", &["-a", "--sparse=always", utf8(&dir.join(".")), utf8(copy.path())]);
    copy
}
