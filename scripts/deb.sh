#!/usr/bin/env bash
# Builds the Debian package, below target/debian/ or at the path given. Installs cargo-deb when it is missing.
# BINARY=... takes a program that is built already.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh
need_rust
need_packages "${DTFS_NEEDS_BUILD[@]}"
need_cargo_deb

rm -rf target/package
DESTDIR=target/package BINARY=${BINARY:-} scripts/install.sh
strip --strip-debug target/package/usr/bin/dtfs
cargo deb --no-build --locked ${1:+--output "$1"}
