#!/usr/bin/env bash
# What every change must pass, cheapest first: format, lints, documentation, tests.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh
need_rust

cargo fmt --check
cargo clippy --locked --all-targets -- -D warnings
RUSTDOCFLAGS=-Dwarnings cargo doc --locked --no-deps --quiet
exec scripts/test.sh
