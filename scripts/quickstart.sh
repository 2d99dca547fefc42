#!/usr/bin/env bash
# From a fresh clone to a tree that is replicated live: installs what is missing, builds, runs the demo.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh

need_rust
need_packages "${DTFS_NEEDS_BUILD[@]}"
cargo build --release --locked
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null 2>&1 || { echo "quickstart: the demo mounts a filesystem: run this as root" >&2; exit 1; }
  exec sudo target/release/dtfs demo
fi
exec target/release/dtfs demo
