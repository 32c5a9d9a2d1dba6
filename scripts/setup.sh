#!/usr/bin/env bash
# Installs what nfold needs: system packages (apt-get), and a virtual
# environment in .venv with torch and what the tests read files back with.
# Safe to run again: does nothing when nothing has changed.
#
#   scripts/setup.sh          what building, training and testing need
#   scripts/setup.sh lint     also the tools of `make format` and `make lint`
#
# NFOLD_PYTHON       the Python to make the environment with (3.10 or newer)
# NFOLD_TORCH        what to ask pip for, "torch==2.13.0" if unset; may hold
#                    pip options, such as an index of CPU-only wheels
set -euo pipefail
cd "$(dirname "$0")/.."

extra=${1:-}
requirements=(requirements.txt)
case $extra in
  "") ;;
  lint) requirements+=(requirements-lint.txt) ;;
  *)
    echo "setup: expected lint or nothing, found \"$extra\"" >&2
    exit 2
    ;;
esac

torch=${NFOLD_TORCH:-torch==2.13.0}
stamp=.venv/.nfold-setup${extra:+-$extra}
key=$( { echo "$torch"; cat scripts/setup.sh "${requirements[@]}"; } |
       sha256sum | cut -d' ' -f1)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$key" ] &&
   [ -x .venv/bin/python ]; then
  exit 0
fi

say() { echo "setup: $*" >&2; }
die() { say "$*"; exit 1; }

packages=(
  cmake ninja-build ccache pkg-config          # build
  nlohmann-json3-dev libcli11-dev libfmt-dev   # JSON, command line, text
  libpcre2-dev libxxhash-dev                   # tokenizer, hashes
  libgloo-dev                                  # headers of torch's gloo
  libgtest-dev libgmock-dev libbenchmark-dev   # tests, micro benchmarks
  openmpi-bin                                  # tests under mpirun
  iproute2 util-linux                          # test hosts (scripts/hosts.py)
  python3-venv                                 # .venv
)

install_packages() {
  local missing=() package state
  if ! command -v dpkg-query > /dev/null || ! command -v apt-get > /dev/null
  then
    say "this is not a Debian system (no apt-get). Install by hand what the"
    say "packages below hold; configuring checks for each:"
    say "  ${packages[*]}"
    return
  fi
  for package in "${packages[@]}"; do
    state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2> /dev/null ||
            true)
    [ "$state" = installed ] || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  local root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo > /dev/null || die \
      "packages are missing and there is no sudo. As root, run:
  apt-get install -y ${missing[*]}"
    root=(sudo)
  fi
  say "installing ${missing[*]}"
  "${root[@]}" apt-get update -qq
  "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null
}

is_usable_python() {
  "$1" -c 'import ensurepip, sys, venv; assert sys.version_info >= (3, 10)' \
    2> /dev/null
}

make_venv() {
  local python=""
  if ! is_usable_python .venv/bin/python; then
    for python in ${NFOLD_PYTHON:-python3.11 python3.12 python3.10 python3}; do
      is_usable_python "$python" && break
      python=""
    done
    [ -n "$python" ] || die "expected Python 3.10 or newer with venv, found
none. Install python3 and python3-venv, or set NFOLD_PYTHON."
    say "making .venv with $($python --version)"
    "$python" -m venv --clear .venv
  fi
  # torch goes first and alone: whatever came before it might choose another
  # build or version of it.
  # shellcheck disable=SC2086
  .venv/bin/pip install -q $torch
  local file
  for file in "${requirements[@]}"; do
    .venv/bin/pip install -q -c <(.venv/bin/pip freeze | grep '^torch==') \
      -r "$file"
  done
}

command -v c++ > /dev/null || [ -n "${CXX:-}" ] ||
  die "expected a C++ compiler (c++), found none: apt-get install g++"
install_packages
say "installing Python packages: $torch, ${requirements[*]}"
make_venv
echo "$key" > "$stamp"
say "done"
