#!/usr/bin/env bash
# Installs dtfs: the program, its manual, completions, the service, and empty configuration files where there are none.
# DESTDIR=/stage installs below another root, for packages. BINARY=... takes a program that is built already.
# A daemon that runs is left alone; its mounts are live. Nothing below etc/dtfs that is there already is touched.
set -euo pipefail
cd "$(dirname "$0")/.."
DESTDIR=${DESTDIR:-}
BINARY=${BINARY:-}

fail() {
  echo "install: $*" >&2
  exit 1
}

if [ -z "$BINARY" ]; then
  . scripts/setup.sh
  need_rust
  need_packages "${DTFS_NEEDS_BUILD[@]}"
  cargo build --release --locked
  BINARY=target/release/dtfs
fi
[ -x "$BINARY" ] || fail "$BINARY is not a program; build it with: cargo build --release"
[ -n "$DESTDIR" ] || [ "$(id -u)" -eq 0 ] || fail "root is needed (sudo scripts/install.sh)"

pages=$(mktemp -d)
trap 'rm -rf "$pages"' EXIT
"$BINARY" pages "$pages"

while read -r source to mode; do
  case "$source" in '' | '#'*) continue ;; esac
  source=${source/#@bin/$BINARY}
  source=${source/#@pages/$pages}
  to=$DESTDIR/$to
  mkdir -p "$(dirname "$to")"
  case "$to" in
    "$DESTDIR"/etc/dtfs/*) [ ! -e "$to" ] || continue ;;
  esac
  if [ "$mode" = link ]; then
    ln -sfn "$source" "$to"
  else
    # A new file beside the old one: a daemon that runs keeps its own.
    install -m "$mode" "$source" "$to.new"
    mv -f "$to.new" "$to"
  fi
done <packaging/layout
mkdir -p "$DESTDIR/etc/dtfs/mounts.d"
chmod 700 "$DESTDIR/etc/dtfs" "$DESTDIR/etc/dtfs/mounts.d"

if [ -z "$DESTDIR" ] && [ -d /run/systemd/system ]; then
  systemctl daemon-reload
  if systemctl --quiet is-active dtfs.service; then
    echo "install: the daemon goes on with the version before; when its mounts may pause: systemctl restart dtfs"
  else
    echo "install: done; start it with: systemctl enable --now dtfs"
  fi
fi
