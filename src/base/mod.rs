//! Vocabulary of every room: identifiers, names, times, object locks and named fault points.
//!
//! Nothing here touches a file or a socket, and nothing here knows another room.

mod atime;
mod ballast;
pub mod clock;
mod database;
pub mod faults;
mod fingerprint;
mod guarded;
mod history;
mod ids;
mod locks;
mod name;
mod position;
mod printable;
mod rules;

pub use atime::{AtimeMode, StoredTimes};
pub use ballast::Ballast;
pub use clock::Timespec;
pub use database::{DatabaseError, open_database, set_pragma};
pub use fingerprint::{Fingerprint, FingerprintProblem};
pub use guarded::Guarded;
pub use history::{History, Spaces};
pub use ids::{EpochId, ObjectKey, Oid, Space, Tid, VolumeUuid, random_bytes};
pub use locks::{ObjectGuard, ObjectLocks};
pub use name::{Name, NameError};
pub use position::{ChainDigest, Commit, Position};
pub use printable::{is_unprintable, printable};
pub use rules::{RuleProblem, Rules};
