#!/usr/bin/env bash
# Builds the unit tests with a sanitizer and runs them.
#   scripts/sanitize.sh asan|tsan JOBS [ctest arguments]
#
# torch itself is not instrumented. Suppressions (scripts/sanitizers/) name
# only frames of torch, gloo and OpenMP.
set -euo pipefail
cd "$(dirname "$0")/.."
preset=$1
jobs=$2
shift 2
supp=$PWD/scripts/sanitizers
build=build/$preset

[ -f "$build/build.ninja" ] || cmake --preset "$preset"
cmake --build "$build" -j "$jobs"

export ASAN_OPTIONS="suppressions=$supp/asan.supp:detect_leaks=1"
ASAN_OPTIONS+=":detect_stack_use_after_return=1:strict_init_order=1"
export LSAN_OPTIONS="suppressions=$supp/lsan.supp:print_suppressions=0"
export UBSAN_OPTIONS="suppressions=$supp/ubsan.supp:print_stacktrace=1"
UBSAN_OPTIONS+=":halt_on_error=1"
export TSAN_OPTIONS="suppressions=$supp/tsan.supp:second_deadlock_stack=1"
TSAN_OPTIONS+=":ignore_noninstrumented_modules=1:halt_on_error=0"

# The thread sanitizer maps fixed addresses. On kernels with more random bits
# than it expects it stops with "unexpected memory mapping", so it runs
# without address randomisation, where the system allows that.
run=()
if [ "$preset" = tsan ] && setarch "$(uname -m)" -R true 2> /dev/null; then
  run=(setarch "$(uname -m)" -R)
fi
"${run[@]}" ctest --test-dir "$build" -j "$jobs" --output-on-failure \
  -LE no_sanitizer "$@"
