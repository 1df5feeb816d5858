#!/usr/bin/env bash
# Sets up the environment, checks style and types, and runs the tests. Arguments are passed to pytest.
#
#   bash scripts/test.sh                    all tests
#   bash scripts/test.sh tests/ops -k nms   a subset
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
export VENV=${VENV:-.venv}
bin=$(cd "$VENV/bin" && pwd)

"$bin/ruff" check .
"$bin/ruff" format --check --quiet .
find dcn_det tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs "$bin/clang-format" --dry-run --Werror
"$bin/mypy"
# One thread per process by default, so that the processes do not compete for the cores.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
"$bin/python" -m pytest -n "${TEST_PROCESSES:-2}" "$@"
