//! How long tests with applications run: short with every change, long (`DTFS_LONG=1`, scripts/apps.sh) before a release.

use super::scratch::FileSystem;

pub(crate) fn long() -> bool {
    std::env::var_os("DTFS_LONG").is_some_and(|value| value != "0" && !value.is_empty())
}

/// `short` or `long`, whichever was asked for.
pub(crate) fn either<T>(for_short: T, for_long: T) -> T {
    if long() { for_long } else { for_short }
}

/// The filesystems to run on: `one`, or all of them in the long form.
pub(crate) fn filesystems(one: FileSystem) -> Vec<FileSystem> {
    either(vec![one], vec![FileSystem::Ext4, FileSystem::Xfs, FileSystem::Btrfs])
}
