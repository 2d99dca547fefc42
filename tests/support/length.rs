//! How long tests run. Those with applications: short with every change, long (`DTFS_LONG=1`, scripts/apps.sh) before a release.
//! Others take a number from the environment, as `scripts/soak.sh` sets it.

use super::scratch::FileSystem;

pub(crate) fn long() -> bool {
    std::env::var_os("DTFS_LONG").is_some_and(|value| value != "0" && !value.is_empty())
}

/// The number in a variable of the environment.
pub(crate) fn asked_for(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// As [`asked_for`], and `otherwise` where nothing is.
pub(crate) fn number(name: &str, otherwise: u64) -> u64 {
    asked_for(name).unwrap_or(otherwise)
}

/// `short` or `long`, whichever was asked for.
pub(crate) fn either<T>(for_short: T, for_long: T) -> T {
    if long() { for_long } else { for_short }
}

/// The filesystems to run on: `one`, or all of them in the long form.
pub(crate) fn filesystems(one: FileSystem) -> Vec<FileSystem> {
    either(vec![one], vec![FileSystem::Ext4, FileSystem::Xfs, FileSystem::Btrfs])
}
