#!/usr/bin/env bash
# fuzz.sh SECONDS [TARGET...]  runs the fuzz targets, two at a time, so long each. Without names all of them.
#
# libFuzzer with the stable toolchain: the passes that it needs are flags of any rustc. Inputs begin with what the golden
# files hold. An input that makes a target fail is kept, and the last line says how to run it again. DTFS_SEED repeats a run.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh

usage() {
  echo "usage: scripts/fuzz.sh SECONDS [TARGET...]" >&2
  echo "targets: $(ls fuzz/fuzz_targets | sed 's/\.rs$//' | tr '\n' ' ')" >&2
  exit 2
}

[[ "${1:-}" =~ ^[0-9]+$ ]] || usage
seconds=$1
shift
targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(ls fuzz/fuzz_targets | sed 's/\.rs$//')
for target in "${targets[@]}"; do
  [ -f "fuzz/fuzz_targets/$target.rs" ] || usage
done

[ "$(id -u)" -eq 0 ] || { echo "fuzz: root is needed: two targets work on real trees" >&2; exit 1; }
need_rust
need_packages "${DTFS_NEEDS_BUILD[@]}" "${DTFS_NEEDS_FUZZ[@]}"

# rustc_codegen_llvm's own coverage for sanitizers: what cargo-fuzz asks for, but for the address sanitizer, which is for
# unsafe code and wants a nightly toolchain.
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module \
 -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
 -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares"
build=target/fuzz
triple=$(rustc -vV | sed -n 's/^host: //p')
# With a triple the flags do not reach build scripts, which could not be linked with them.
cargo build --quiet --release --locked --manifest-path fuzz/Cargo.toml --target "$triple" --target-dir "$build"
programs=$build/$triple/release
work=$(mktemp -d --suffix .fuzz)
DTFS_FUZZ_SEEDS=$work/seeds "$programs/seeds" -runs=1 2>/dev/null

# run TARGET  with a corpus of its own, which grows and is thrown away.
run() {
  local target=$1
  mkdir -p "$work/$target" "$work/seeds/$target"
  "$programs/$target" -max_total_time="$seconds" -seed="$seed" -rss_limit_mb=512 -malloc_limit_mb=256 -timeout=20 \
    -max_len=8192 -print_final_stats=1 -artifact_prefix="$work/$target-" "$work/$target" "$work/seeds/$target" \
    >"$work/$target.log" 2>&1
}

seed=${DTFS_SEED:-$((RANDOM * 32768 + RANDOM + 1))}
echo "fuzz: $seconds s for each of ${#targets[@]} targets, seed $seed"
failed=0
report() {
  local target=$1 status=$2
  if [ "$status" -eq 0 ]; then
    printf 'fuzz: %-15s ok  %s\n' "$target" \
      "$(awk '/^stat::number_of_executed_units/ { runs = $2 } /^stat::peak_rss_mb/ { mib = $2 } / cov: / { cov = $4 }
              END { printf "%d inputs, %d places reached, at most %d MiB", runs, cov, mib }' "$work/$target.log")"
  else
    tail -n 40 "$work/$target.log"
    echo "fuzz: FAILED: $target, seed $seed; again: $programs/$target $(ls "$work/$target"-* 2>/dev/null | head -n 1)"
    failed=1
  fi
}
for ((at = 0; at < ${#targets[@]}; at += 2)); do
  pids=()
  for target in "${targets[@]:at:2}"; do
    run "$target" &
    pids+=("$!:$target")
  done
  for pair in "${pids[@]}"; do
    status=0
    wait "${pair%%:*}" || status=$?
    report "${pair##*:}" "$status"
  done
done
[ "$failed" -eq 0 ] && rm -rf "$work"
exit "$failed"
