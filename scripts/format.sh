#!/usr/bin/env bash
# Formats every C++ file. With --check, changes nothing and fails if it would.
set -euo pipefail
cd "$(dirname "$0")/.."
mode=(-i)
[ "${1:-}" != --check ] || mode=(--dry-run --Werror)
git ls-files -z --cached --others --exclude-standard '*.h' '*.cc' |
  xargs -0 -r .venv/bin/clang-format "${mode[@]}"
