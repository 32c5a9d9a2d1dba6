#!/usr/bin/env bash
# Runs bench/peers/run.py with the peers installed; the options are its own:
#   bench/peers/run.sh --help
#
# The peers live in .venv-bench, which sees the torch of .venv: what DeepSpeed
# pulls in stays out of the environment that the tests use. DeepSpeed's
# operators are compiled here once, so that no run compiles any.
set -euo pipefail
cd "$(dirname "$0")/../.."

scripts/setup.sh
venv=.venv-bench
stamp=$venv/.nfold-setup

compile_operators() {
  DS_ACCELERATOR=cpu TORCH_EXTENSIONS_DIR=$PWD/$venv/torch_extensions \
    PATH=$PWD/$venv/bin:$PATH "$venv/bin/python" - << 'PYTHON'
from deepspeed.accelerator import get_accelerator
for name in ("ShareMemCommBuilder", "FusedAdamBuilder", "CPUAdamBuilder"):
    get_accelerator().create_op_builder(name).load()
PYTHON
}

key=$({ .venv/bin/python -VV; .venv/bin/pip freeze
        cat bench/peers/run.sh requirements-bench.txt; } |
      sha256sum | cut -d' ' -f1)
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$key" ]; then
  echo "bench: installing the peers into $venv" >&2
  .venv/bin/python -m venv --clear "$venv"
  site=$("$venv/bin/python" -c \
    'import sysconfig; print(sysconfig.get_path("purelib"))')
  .venv/bin/python -c \
    'import sysconfig; print(sysconfig.get_path("purelib"))' \
    > "$site/nfold-torch.pth"
  DS_ACCELERATOR=cpu DS_BUILD_OPS=0 "$venv/bin/pip" install -q \
    -c <(.venv/bin/pip freeze) -r requirements-bench.txt
  echo "bench: compiling DeepSpeed's operators" >&2
  compile_operators > "$venv/operators.log" 2>&1 ||
    echo "bench: that failed, see $venv/operators.log" >&2
  echo "$key" > "$stamp"
fi
exec "$venv/bin/python" bench/peers/run.py "$@"
