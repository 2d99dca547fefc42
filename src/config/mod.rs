//! What the operator wrote down: where files are, what is mounted, and what is done with each volume.
//!
//! `dtfs_mounts` says what is mounted, `mounts.d/VOLUME.toml` says what is done with it. Invariants: a file is read and
//! written only when nobody but its owner can change it; an edit replaces the file in one step or not at all; lines
//! and comments that an edit does not concern keep every byte; a bad line is reported by number and does not stop the
//! others. The checks of volume and target directories live here, so that every door refuses the same things in the
//! same words. Nothing here mounts, sends or talks to the daemon.

mod atomic;
mod bandwidth;
mod check;
mod daemon_file;
mod error;
mod escape;
mod mount_options;
mod mounts_file;
mod names;
mod orphans;
mod paths;
mod peers;
mod refusal;
mod rules;
mod size;
mod suggest;
mod target_url;
mod time_span;
mod toml_text;
mod volume_edit;
mod volume_file;

pub use atomic::EditLock;
pub use bandwidth::{Bandwidth, BandwidthProblem};
pub use check::{
    check_entry, check_mounted_entry, check_source_entry, check_store_dir, check_target_dir, check_target_entry,
    check_volume_dir,
};
pub use daemon_file::{DaemonFile, LogFormat, LogLevel, Seconds, Switch};
pub use error::ConfigError;
pub use mount_options::{AccessTimes, MountOptions, OpenFiles, OptionProblem, Submounts, Writes};
pub use mounts_file::{MountEntry, MountsFile};
pub use names::{NameProblem, TargetName, VolumeName};
pub use orphans::Orphans;
pub use paths::{Edits, Paths};
pub use peers::{Peers, set_peer};
pub use refusal::{Refusal, RefusalKind, Relation};
pub use size::ByteSize;
pub use suggest::nearest;
pub use target_url::{DEFAULT_PORT, SshPlace, TargetUrl, TlsPlace};
pub use time_span::{Delay, TimeSpan};
pub use volume_edit::{
    add_target, create_volume_file, pause_target, remove_target, remove_volume_file, retire_source, set_source,
};
pub use volume_file::{Activity, Adoption, JournalFull, NamedVolumeFile, Role, SourceEntry, TargetEntry, VolumeFile};
