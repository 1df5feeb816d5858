#!/usr/bin/env bash
# Makes a virtual environment, installs the project with its tools and builds the operators.
#
#   bash scripts/setup.sh              into .venv
#   VENV=/path bash scripts/setup.sh   into (or using) another environment
#
# Run again, it does nothing unless the build's inputs changed. PYTHON names the interpreter (default python3).
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${VENV:-.venv}
python=${PYTHON:-python3}
stamp="$venv/.dcn_det-setup"
inputs=$(
  {
    pwd
    cat pyproject.toml setup.py
    find dcn_det/ops/csrc -type f | LC_ALL=C sort | xargs cat
    echo "${DCN_DET_CUDA:-} ${TORCH_CUDA_ARCH_LIST:-}"
  } | sha256sum | cut -d' ' -f1
)
built() { compgen -G "dcn_det/ops/_C.*so" >/dev/null; }
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$inputs" ] && built; then
  exit 0
fi

if [ ! -x "$venv/bin/python" ]; then
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "error: $python is older than Python 3.10; set PYTHON to a newer one" >&2
    exit 2
  }
  echo "setup: making a virtual environment in $venv"
  "$python" -m venv "$venv"
fi
command -v "${CXX:-g++}" >/dev/null || {
  echo "error: no C++ compiler found (${CXX:-g++}); install one, such as Debian's package g++, or set CXX" >&2
  exit 2
}

log=$(mktemp)
trap 'rm -f "$log"' EXIT
step() {
  echo "setup: $1"
  shift
  "$@" >"$log" 2>&1 || {
    cat "$log" >&2
    echo "error: the step above failed; its output is printed before this line" >&2
    exit 1
  }
}
# torch first: building against the one that will run avoids a second download in an isolated build.
step "installing torch and the build tools (minutes when they have to be downloaded)" \
  "$venv/bin/python" -m pip install --disable-pip-version-check "torch>=2.11" "torchvision>=0.26" "setuptools>=77" wheel ninja
step "building the operators, installing the project" \
  "$venv/bin/python" -m pip install --disable-pip-version-check --no-build-isolation -v -e ".[dev,sample]"
grep -o "dcn_det: building for .*" "$log" | sort -u | sed 's/^/setup: /' || true
echo "$inputs" >"$stamp"
echo "setup: done"
