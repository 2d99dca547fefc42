#!/usr/bin/env bash
# Runs all tests, with real mounts on real filesystems; installs what is missing first. Arguments go to `cargo test`.
# DTFS_SEEDS=20 runs more random workloads; DTFS_SEED=N repeats one.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh

fail() {
  echo "test: $*" >&2
  exit 1
}

# The tests mount, so a machine on which they cannot is a failure and not a pass.
check_machine() {
  [ "$(id -u)" -eq 0 ] || fail "root is needed: the tests mount filesystems (sudo scripts/test.sh)"
  modprobe -q fuse 2>/dev/null || true
  { : <>/dev/fuse; } 2>/dev/null || fail "/dev/fuse cannot be opened: in a container, pass it in with --device /dev/fuse --cap-add SYS_ADMIN"
  local image device
  image=$(mktemp)
  truncate -s 16M "$image"
  device=$(losetup --find --show "$image") || true
  rm -f "$image"
  [ -n "$device" ] || fail "no loop device: the scratch filesystems need /dev/loop-control"
  losetup --detach "$device"
}

# The fuzz targets must at least compile; running them needs cargo-fuzz and a nightly toolchain.
check_fuzz() {
  [ -f fuzz/Cargo.toml ] || return 0
  cargo check --quiet --manifest-path fuzz/Cargo.toml --no-default-features --target-dir target
}

export PATH="$PATH:/usr/sbin:/sbin"
need_rust
need_packages "${DTFS_NEEDS_BUILD[@]}" "${DTFS_NEEDS_TEST[@]}"
need_cargo_deb
check_machine
check_fuzz

# One summary line for all test binaries, as the last thing printed, whatever happened.
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
cargo test --locked --no-fail-fast "$@" 2>&1 | tee "$log" || status=$?
awk '/^test result:/ { passed += $4; failed += $6; ignored += $8; binaries++ }
     END { printf "test result: %s. %d passed; %d failed; %d ignored; in %d test binaries\n",
           (failed || !binaries || '"$status"') ? "FAILED" : "ok", passed, failed, ignored, binaries }' "$log"
exit "$status"
