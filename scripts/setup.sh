#!/usr/bin/env bash
# Creates a virtual environment, installs the project with its development tools and builds the operators.
#
#   bash scripts/setup.sh              in .venv
#   VENV=/path bash scripts/setup.sh   in another environment, which is created if it does not exist
#
# Does nothing if the build inputs are unchanged since the last run. PYTHON names the interpreter (default python3).
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${VENV:-.venv}
python=${PYTHON:-python3}
stamp="$venv/.dcn_det-setup"
inputs=$(
  {
    pwd
    cat pyproject.toml setup.py
    find dcn_det/ops/csrc -type f ! -name '*.md' | LC_ALL=C sort | xargs cat
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
  echo "setup: creating a virtual environment in $venv"
  "$python" -m venv "$venv"
fi
command -v "${CXX:-g++}" >/dev/null || {
  echo "error: no C++ compiler found (${CXX:-g++}); install one (Debian: apt install g++) or set CXX" >&2
  exit 2
}

log=$(mktemp)
trap 'rm -f "$log"' EXIT
step() {
  echo "setup: $1"
  shift
  "$@" >"$log" 2>&1 || {
    cat "$log" >&2
    echo "error: this step failed; see its output above" >&2
    exit 1
  }
}
# torch first: the operators are built against the installed torch, without downloading it again for an isolated build.
step "installing torch and the build tools (downloading them takes minutes)" \
  "$venv/bin/python" -m pip install --disable-pip-version-check "torch>=2.11" "torchvision>=0.26" "setuptools>=77" wheel ninja
step "building the operators, installing the project" \
  "$venv/bin/python" -m pip install --disable-pip-version-check --no-build-isolation -v -e ".[dev,sample]"
grep -o "dcn_det: building for .*" "$log" | sort -u | sed 's/^/setup: /' || true
echo "$inputs" >"$stamp"
echo "setup: done"
