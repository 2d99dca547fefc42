#!/usr/bin/env bash
# soak.sh MINUTES [RIG...]  runs the rigs at long lengths, each time with another seed, until the time is up.
#
# A rig is a line of RIGS below: its name and the command that runs one turn. Without names all take turns. The first
# failure ends it: the log is kept, and the last line says how to repeat that turn. DTFS_SEED sets the first seed.
# The two models live through 20,000 and 15,000 histories in a turn: `soak.sh 1000 crash replay` is more than a million.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh

# name | variables | test program | test | seeds that one turn takes, when more than one
RIGS=(
  "crash|DTFS_HISTORIES=20000|crash_model|no_crash|20000"
  "replay|DTFS_RUNS=5000|replay_model|converge|5000"
  "kill|DTFS_KILLS=100|killed|both_trees"
  "source-ext4|DTFS_CUTS=20|power|a_source_loses_power_on_ext4"
  "source-xfs|DTFS_CUTS=20|power|a_source_loses_power_on_xfs"
  "source-btrfs|DTFS_CUTS=20|power|a_source_loses_power_on_btrfs"
  "target-ext4|DTFS_CUTS=20|power|a_target_loses_power_on_ext4"
  "target-xfs|DTFS_CUTS=20|power|a_target_loses_power_on_xfs"
  "target-btrfs|DTFS_CUTS=20|power|a_target_loses_power_on_btrfs"
  "two-disks|DTFS_CUTS=10|power|two_disks"
  "flips|DTFS_STRIDE=1|flips|"
  "flips-state|DTFS_FLIPS=400|flips_state|"
  "overflow||overflow|"
  "races|DTFS_ATTEMPTS=1000000|races|"
  "fuzz||fuzz.sh|60"
  "verify|DTFS_VERIFY_SECONDS=600|verify|a_storm_looks_like_no_difference_on_ext4"
  "controls-kill||killed|control"
  "controls-power||power|control --include-ignored"
  "controls-models||crash_model|targets_differ"
  "controls-replay||replay_model|without"
)

usage() {
  echo "usage: scripts/soak.sh MINUTES [RIG...]" >&2
  printf 'rigs:' >&2
  printf ' %s' "${RIGS[@]%%|*}" >&2
  echo >&2
  exit 2
}

[[ "${1:-}" =~ ^[0-9]+$ ]] || usage
minutes=$1
shift
wanted=("$@")
for name in "${wanted[@]}"; do
  [[ " ${RIGS[*]%%|*} " == *" $name "* ]] || usage
done

is_wanted() {
  [ ${#wanted[@]} -eq 0 ] || [[ " ${wanted[*]} " == *" $1 "* ]]
}

[ "$(id -u)" -eq 0 ] || { echo "soak: root is needed: the rigs mount filesystems" >&2; exit 1; }
export PATH="$PATH:/usr/sbin:/sbin"
need_rust
need_packages "${DTFS_NEEDS_BUILD[@]}" "${DTFS_NEEDS_TEST[@]}"

# Copies, so that a build beside the soak does not take the programs away below it.
programs=$(mktemp -d)
log=$(mktemp --suffix .soak.log)
trap 'rm -rf "$programs"' EXIT
for program in crash_model replay_model killed power flips flips_state overflow races verify; do
  binary=$(cargo test --locked --test "$program" --no-run --message-format json 2>/dev/null |
    python3 -c 'import json, sys
found = [json.loads(line).get("executable") for line in sys.stdin if line.startswith("{")]
print([path for path in found if path and "/deps/" in path][-1])')
  cp "$binary" "$programs/$program"
done

# run NAME VARIABLES PROGRAM TEST SEED
run() {
  local began=$SECONDS
  if [ "$3" = fuzz.sh ]; then
    DTFS_SEED="$5" scripts/fuzz.sh "$4"
    return
  fi
  if ! env ${2:+$2} DTFS_SEED="$5" "$programs/$3" --nocapture --test-threads=1 $4 >"$log" 2>&1; then
    cat "$log"
    echo "soak: FAILED: $1, seed $5; log in $log; again: env $2 DTFS_SEED=$5 cargo test --test $3 -- --nocapture $4"
    exit 1
  fi
  printf '%s  %-14s seed %-6s %4s s  %s\n' "$(date -u +%H:%M:%S)" "$1" "$5" "$((SECONDS - began))" \
    "$(grep -aE ' kills, |promises,|found after|were sent|lives were|differs$|runs from|^\{' "$log" | tail -n 1)"
}

seed=${DTFS_SEED:-$((RANDOM * 32768 + RANDOM))}
end=$((SECONDS + minutes * 60))
rounds=0
echo "soak: $minutes minutes from seed $seed"
while :; do
  for rig in "${RIGS[@]}"; do
    IFS='|' read -r name variables program test stride <<<"$rig"
    is_wanted "$name" || continue
    if [ "$SECONDS" -ge "$end" ]; then
      echo "soak: ok: $rounds histories"
      rm -f "$log"
      exit 0
    fi
    run "$name" "$variables" "$program" "$test" "$((seed * ${stride:-1}))"
    rounds=$((rounds + 1))
  done
  seed=$((seed + 1))
done
