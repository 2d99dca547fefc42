#!/usr/bin/env bash
# Measures the mount against the native directory, and our initial mirror against rsync, in paired runs on this machine.
# Options: see scripts/bench.py --help.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh

[ "$(id -u)" -eq 0 ] || { echo "bench: root is needed: it mounts a filesystem" >&2; exit 1; }
need_rust
need_packages "${DTFS_NEEDS_BUILD[@]}" rsync:rsync python3:python3
cargo build --release --locked --quiet
exec python3 scripts/bench.py "$@"
