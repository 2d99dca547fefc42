#!/usr/bin/env bash
# Installs what building and testing dtfs needs and this machine does not have: Debian packages, by name, and nothing
# else. Run it, or source it and call `need_packages`.

# command, or file, that shows that it is there : package that brings it
DTFS_LIBS="/usr/lib/$(uname -m)-linux-gnu"
DTFS_NEEDS_BUILD=(cc:gcc strip:binutils)
DTFS_NEEDS_FUZZ=(g++:g++ chattr:e2fsprogs)
DTFS_NEEDS_TEST=(
  setfattr:attr setfacl:acl mkfs.ext4:e2fsprogs mkfs.xfs:xfsprogs mkfs.btrfs:btrfs-progs losetup:mount
  rsync:rsync python3:python3 git:git setpriv:util-linux ip:iproute2
  smbd:samba smbclient:smbclient smbtorture:samba-testsuite "$DTFS_LIBS/samba/vfs/acl_xattr.so:samba-vfs-modules"
  ganesha.nfsd:nfs-ganesha "$DTFS_LIBS/ganesha/libfsalvfs.so:nfs-ganesha-vfs" rpcbind:rpcbind nfs-ls:libnfs-utils
  pg_createcluster:postgresql sshd:openssh-server ssh:openssh-client nft:nftables openssl:openssl
  groff:groff-base man:man-db systemd-analyze:systemd unshare:util-linux script:bsdutils
)
# What these packages would run from now on, also after the next start of the system. The tests start servers of their own.
DTFS_SERVICES=(smbd nmbd winbind samba-ad-dc nfs-ganesha nfs-ganesha-lock rpcbind.socket rpcbind postgresql ssh.socket ssh nftables)

# need_packages COMMAND:PACKAGE...  installs the packages whose command or file is missing.
need_packages() {
  local pair missing=()
  for pair in "$@"; do
    PATH="$PATH:/usr/sbin:/sbin" command -v "${pair%%:*}" >/dev/null 2>&1 || [ -e "${pair%%:*}" ] || missing+=("${pair##*:}")
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
  apt-get update -qq && without_services apt-get install -y -qq --no-install-recommends "${missing[@]}"
}

# without_services COMMAND...  runs it so that no package starts a service now (Debian's policy-rc.d) or at the next boot.
# A service that is there already stays as it is.
without_services() {
  local policy=/usr/sbin/policy-rc.d service fresh=() status=0
  for service in "${DTFS_SERVICES[@]}"; do
    systemctl cat "$service" >/dev/null 2>&1 || fresh+=("$service")
  done
  if [ -e "$policy" ]; then policy=; else printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy"; fi
  DEBIAN_FRONTEND=noninteractive "$@" || status=$?
  [ -z "$policy" ] || rm -f "$policy"
  for service in "${fresh[@]}"; do
    systemctl disable --quiet "$service" >/dev/null 2>&1 || true
  done
  return "$status"
}

# need_rust  checks for cargo; the toolchain is the user's choice, so it is only named here.
need_rust() {
  [ -d "$HOME/.cargo/bin" ] && PATH="$HOME/.cargo/bin:$PATH"
  command -v cargo >/dev/null 2>&1 && return 0
  echo "setup: cargo is missing; https://rustup.rs installs it (Rust 1.95 or newer)" >&2
  return 1
}

# need_cargo_deb  installs what builds the Debian package, which the tests install.
need_cargo_deb() {
  command -v cargo-deb >/dev/null 2>&1 || cargo install --quiet --locked cargo-deb
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  set -euo pipefail
  need_rust
  need_packages "${DTFS_NEEDS_BUILD[@]}" "${DTFS_NEEDS_TEST[@]}"
  need_cargo_deb
  echo "setup: everything is there"
fi
