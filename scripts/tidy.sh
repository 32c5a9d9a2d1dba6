#!/usr/bin/env bash
# Runs clang-tidy over every source of src/, tests aside.
#   scripts/tidy.sh [PATTERN]     only files whose path holds PATTERN
set -euo pipefail
cd "$(dirname "$0")/.."
pattern=${1:-src/}
# Configured only: a database with every file by itself.
build=build/tidy
cmake --preset release -B "$build" -DNFOLD_UNITY=OFF > /dev/null
# clang cannot read the compiler's precompiled header and does not know all
# of its flags; the database below is without them.
database=$(mktemp -d)
trap 'rm -rf "$database"' EXIT
sed -E -e 's/-include [^ ]*cmake_pch\.hxx//g' -e 's/-Winvalid-pch//g' \
       -e 's/-fpch-preprocess//g' \
  "$build/compile_commands.json" \
  > "$database/compile_commands.json"
# The wheel of clang-tidy has no omp.h; the compiler's own serves.
gcc_headers=$(dirname "$(c++ -print-file-name=include/omp.h)")
git ls-files -z --cached --others --exclude-standard 'src/*.cc' |
  grep -z -- "$pattern" | grep -zv '_test\.cc$' |
  xargs -0 -r -n 1 -P "$(scripts/jobs.sh)" \
    .venv/bin/clang-tidy --quiet -p "$database" \
      --extra-arg="-idirafter$gcc_headers"
