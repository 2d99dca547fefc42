#!/usr/bin/env bash
# soak.sh MINUTES [RIG...]  runs the rigs at long lengths, each time with another seed, until the time is up.
#
# A rig is a line of RIGS below: its name and the command that runs one turn. Without names all take turns. The first
# failure ends it: the log is kept, and the last line says how to repeat that turn. DTFS_SEED sets the first seed; the last
# line says how to go on from where it ended. A turn takes a few minutes, those of the network and of verify ten; the last one
# ends when it ends.
#
# A million histories: soak.sh 2000 crash replay. A thousand kills: soak.sh 240 kill. Two hundred cuts: soak.sh 120 source-ext4
# source-xfs source-btrfs target-ext4 target-xfs target-btrfs two-disks.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh

# name | variables | test program | test | seeds that one turn takes, when more than one | what a turn counts for
RIGS=(
  "crash|DTFS_HISTORIES=2000|crash_model|no_crash|2000|2000 histories"
  "replay|DTFS_RUNS=1000|replay_model|converge|1000|3000 histories"
  "kill|DTFS_KILLS=20|killed|both_trees||20 kills"
  "source-ext4|DTFS_CUTS=10|power|a_source_loses_power_on_ext4||10 cuts"
  "source-xfs|DTFS_CUTS=10|power|a_source_loses_power_on_xfs||10 cuts"
  "source-btrfs|DTFS_CUTS=10|power|a_source_loses_power_on_btrfs||10 cuts"
  "target-ext4|DTFS_CUTS=10|power|a_target_loses_power_on_ext4||10 cuts"
  "target-xfs|DTFS_CUTS=10|power|a_target_loses_power_on_xfs||10 cuts"
  "target-btrfs|DTFS_CUTS=10|power|a_target_loses_power_on_btrfs||10 cuts"
  "two-disks|DTFS_CUTS=4|power|two_disks||12 cuts"
  "network-ssh|DTFS_CUTS=20 DTFS_LONGEST_MS=60000|network_faults|faults_of_all_kinds_under_load --exact||20 faults"
  "network-tls|DTFS_CUTS=20 DTFS_LONGEST_MS=60000|network_faults|faults_of_all_kinds_under_load_over_tls||20 faults"
  "put-back||source_rollback|an_image_put_back||10 images"
  "flips|DTFS_STRIDE=1|flips|||1 journals"
  "flips-state|DTFS_FLIPS=400|flips_state|||400 flips"
  "overflow||overflow|||1 overflows"
  "races|DTFS_ATTEMPTS=1000000|races|||1000000 attempts"
  "fuzz||fuzz.sh|60||1 rounds"
  "verify|DTFS_VERIFY_SECONDS=600|verify|a_storm_looks_like_no_difference_on_ext4||600 seconds"
  "controls-kill||killed|control||1 controls"
  "controls-power||power|control --include-ignored||6 controls"
  "controls-models||crash_model|targets_differ||5 controls"
  "controls-replay||replay_model|without||5 controls"
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

# The test programs of the rigs that are wanted, each once.
programs_wanted() {
  local rig name program
  for rig in "${RIGS[@]}"; do
    IFS='|' read -r name _ program _ <<<"$rig"
    if is_wanted "$name" && [ "$program" != fuzz.sh ]; then echo "$program"; fi
  done | sort -u
}

[ "$(id -u)" -eq 0 ] || { echo "soak: root is needed: the rigs mount filesystems" >&2; exit 1; }
export PATH="$PATH:/usr/sbin:/sbin"
need_rust
need_packages "${DTFS_NEEDS_BUILD[@]}" "${DTFS_NEEDS_TEST[@]}"

# Copies, so that a build beside the soak does not take the programs away below it.
programs=$(mktemp -d)
log=$(mktemp --suffix .soak.log)
trap 'rm -rf "$programs"' EXIT
for program in $(programs_wanted); do
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
    "$(grep -aE ' kills, |promises,|found after|were sent|KiB at most|lives were|differs$|runs from|^\{' "$log" | tail -n 1)"
}

# What was lived through so far, by what it counts.
declare -A lived=()
tell_counts() {
  local rig
  for rig in "${!lived[@]}"; do
    printf 'soak: %-14s %s\n' "$rig" "${lived[$rig]}"
  done | sort
}

seed=${DTFS_SEED:-$((RANDOM * 32768 + RANDOM))}
end=$((SECONDS + minutes * 60))
turns=0
echo "soak: $minutes minutes from seed $seed"
while :; do
  for rig in "${RIGS[@]}"; do
    IFS='|' read -r name variables program test stride counts <<<"$rig"
    is_wanted "$name" || continue
    if [ "$SECONDS" -ge "$end" ]; then
      tell_counts
      echo "soak: ok: $turns turns; go on with: DTFS_SEED=$((seed + 1)) scripts/soak.sh $minutes ${wanted[*]}"
      rm -f "$log"
      exit 0
    fi
    run "$name" "$variables" "$program" "$test" "$((seed * ${stride:-1}))"
    turns=$((turns + 1))
    before=${lived[$name]:-0}
    lived[$name]="$((${before%% *} + ${counts%% *})) ${counts#* }"
  done
  seed=$((seed + 1))
done
