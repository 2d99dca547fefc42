#!/usr/bin/env bash
# Measures the mount against the native directory, and our initial mirror against rsync, in paired runs on this machine.
# Options: see scripts/bench.py --help. `bench.sh apps` measures applications, `bench.sh mirror` the initial mirror alone,
# `bench.sh replication` what a target takes, `bench.sh recovery` a restart after kill -9.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh

[ "$(id -u)" -eq 0 ] || { echo "bench: root is needed: it mounts a filesystem" >&2; exit 1; }
need_rust
need_packages "${DTFS_NEEDS_BUILD[@]}" rsync:rsync python3:python3 mkfs.ext4:e2fsprogs losetup:mount
case " $* " in
*" mirror "* | *" replication "*) need_packages sshd:openssh-server ssh:openssh-client ;;
*" apps "*) need_packages git:git dbench:dbench bindfs:bindfs mergerfs:mergerfs ;;
esac
case " $* " in *" --profile"*) need_packages perf:linux-perf ;; esac
cargo build --release --locked --quiet
exec python3 scripts/bench.py "$@"
