#!/usr/bin/env bash
# Installs what building and testing dtfs needs and this machine does not have: Debian packages, by name, and nothing
# else. Run it, or source it and call `need_packages`.

# command that shows that it is there : package that brings it
DTFS_NEEDS_BUILD=(cc:gcc)
DTFS_NEEDS_TEST=(
  setfattr:attr setfacl:acl mkfs.ext4:e2fsprogs mkfs.xfs:xfsprogs mkfs.btrfs:btrfs-progs losetup:mount
  rsync:rsync python3:python3
)

# need_packages COMMAND:PACKAGE...  installs the packages whose command is missing.
need_packages() {
  local pair missing=()
  for pair in "$@"; do
    PATH="$PATH:/usr/sbin:/sbin" command -v "${pair%%:*}" >/dev/null 2>&1 || missing+=("${pair##*:}")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  if ! command -v apt-get >/dev/null 2>&1; then
    echo "setup: please install: ${missing[*]} (this script only knows apt-get)" >&2
    return 1
  fi
  if [ "$(id -u)" -ne 0 ]; then
    echo "setup: root is needed to install: ${missing[*]} (sudo scripts/setup.sh)" >&2
    return 1
  fi
  echo "setup: installing ${missing[*]}"
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
}

# need_rust  checks for cargo; the toolchain is the user's choice, so it is only named here.
need_rust() {
  [ -d "$HOME/.cargo/bin" ] && PATH="$HOME/.cargo/bin:$PATH"
  command -v cargo >/dev/null 2>&1 && return 0
  echo "setup: cargo is missing; https://rustup.rs installs it (Rust 1.95 or newer)" >&2
  return 1
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  set -euo pipefail
  need_rust
  need_packages "${DTFS_NEEDS_BUILD[@]}" "${DTFS_NEEDS_TEST[@]}"
  echo "setup: everything is there"
fi
