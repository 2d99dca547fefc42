#!/usr/bin/env bash
# Applications at full length on the mount of a replicated volume, on ext4, xfs and btrfs: git, cargo, rsync, PostgreSQL
# under pgbench and SQLite, both killed in the middle, NFS and SMB servers with their clients; then source and target are
# compared. Arguments go to the tests: `scripts/apps.sh postgresql` runs those with this word in their name.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh

export PATH="$PATH:/usr/sbin:/sbin" DTFS_LONG=1
need_rust
need_packages "${DTFS_NEEDS_BUILD[@]}" "${DTFS_NEEDS_TEST[@]}"
[ "$(id -u)" -eq 0 ] || { echo "apps: root is needed: the tests mount filesystems" >&2; exit 1; }
exec cargo test --locked --test apps --test databases --test served -- --nocapture --test-threads=1 "$@"
