#!/usr/bin/env bash
# Runs bench/hosts/run.py with the project's Python; the options are its own:
#   bench/hosts/run.sh --help
set -euo pipefail
cd "$(dirname "$0")/../.."

scripts/setup.sh
exec .venv/bin/python bench/hosts/run.py "$@"
