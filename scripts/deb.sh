#!/usr/bin/env bash
# Builds the Debian package, below target/debian/ or at the path given; needs cargo-deb (cargo install cargo-deb).
# BINARY=... takes a program that is built already.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh
need_rust
command -v cargo-deb >/dev/null || { echo "deb: cargo-deb is missing: cargo install cargo-deb" >&2; exit 1; }

rm -rf target/package
DESTDIR=target/package BINARY=${BINARY:-} scripts/install.sh
strip --strip-debug target/package/usr/bin/dtfs
cargo deb --no-build --locked ${1:+--output "$1"}
