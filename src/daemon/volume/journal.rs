//! Where the journal of a volume lies, and how large it may grow.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::VolumeError;
use crate::config::{JournalFull, MountEntry, Paths, VolumeFile};
use crate::daemon::memory::memory_file;
use crate::journal::{Journal, JournalOptions, LastStop, WhenFull};
use crate::record::MAX_RECORD_BYTES;

/// Where the journal of `entry` lies.
pub(super) fn store_of(paths: &Paths, entry: &MountEntry) -> PathBuf {
    entry.options.store.clone().unwrap_or_else(|| paths.volume_state(&entry.volume))
}

/// The journal of `entry`, made when there is none.
pub(in crate::daemon) fn open_journal(
    paths: &Paths,
    entry: &MountEntry,
    file: &VolumeFile,
) -> Result<(Arc<Journal>, LastStop), VolumeError> {
    let store = &store_of(paths, entry);
    let memory = memory_file(paths, &entry.volume);
    let memory = &memory.map_err(|cause| VolumeError::Io { path: entry.path.clone(), cause })?;
    let options = journal_options(store, file)?;
    Ok(Journal::open_with(store, memory, options)?)
}

/// The sizes of a volume's journal that lies, or will lie, in `store`.
pub(in crate::daemon) fn journal_options(store: &Path, file: &VolumeFile) -> Result<JournalOptions, VolumeError> {
    // It holds copies of private and deleted data.
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(store)
        .map_err(|cause| VolumeError::Io { path: store.to_owned(), cause })?;
    let cap_bytes = match file.journal_cap {
        Some(size) => size.0,
        None => default_cap(store)?,
    };
    // A handful of segments below the cap, each large enough for any record.
    let most = JournalOptions::default().segment_bytes;
    let segment_bytes = (cap_bytes / 8).clamp(4 * MAX_RECORD_BYTES as u64, most) / 4096 * 4096;
    let when_full = match file.journal_full {
        JournalFull::Degrade => WhenFull::Degrade,
        JournalFull::Block => WhenFull::Block,
    };
    Ok(JournalOptions { cap_bytes, when_full, segment_bytes, ..JournalOptions::default() })
}

/// The smaller of 8 GiB and a tenth of the filesystem that holds the journal.
fn default_cap(store: &Path) -> Result<u64, VolumeError> {
    let io = |cause| VolumeError::Io { path: store.to_owned(), cause };
    let dir = std::fs::File::open(store).map_err(io)?;
    let stat = crate::sys::fstatfs(std::os::fd::AsFd::as_fd(&dir)).map_err(|errno| io(errno.into()))?;
    Ok((stat.blocks * u64::from(stat.fragment_size) / 10).min(8 << 30))
}
