#!/usr/bin/env bash
# Conformance at full length: pjdfstest and fsx on the mount of a replicated volume and on the bare directory, for ext4,
# xfs and btrfs; a directory of a million entries that is listed while half of it goes; then source and target are
# compared. Differences that are known stand in src/stack/SEMANTICS.md.
# DTFS_SEEDS and DTFS_OPS ask for other numbers than 5 and 200,000. `scripts/posix.sh tools` only installs the suites,
# below target/tools.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh

# suite version
POSIX_TOOLS=("pjdfstest 0.2.2" "fsx 0.3.2")

# Built once; `cargo install` by itself would ask the registry each time.
install_tools() {
  local tool name version
  for tool in "${POSIX_TOOLS[@]}"; do
    read -r name version <<<"$tool"
    [ -x "target/tools/bin/$name" ] && grep -q "^\"$name $version " target/tools/.crates.toml && continue
    echo "posix: building $name $version"
    cargo install --quiet --locked --root target/tools --target-dir target/tools-build "$name@$version"
  done
}

export PATH="$PATH:/usr/sbin:/sbin"
need_rust
need_packages "${DTFS_NEEDS_BUILD[@]}" "${DTFS_NEEDS_TEST[@]}"
install_tools
[ "${1:-}" = tools ] && exit 0
[ "$(id -u)" -eq 0 ] || { echo "posix: root is needed: the tests mount filesystems" >&2; exit 1; }
exec cargo test --locked --test posix --test large_directory -- --include-ignored --nocapture --test-threads=1 "$@"
