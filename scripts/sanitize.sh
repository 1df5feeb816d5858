#!/usr/bin/env bash
# Runs the operator tests on CPU kernels built with AddressSanitizer and UndefinedBehaviorSanitizer, which end the run
# at the first out-of-bounds access, overflow or invalid conversion. Builds in a temporary folder; the installed library
# is not changed. Requires GCC and Python with the package's dependencies: that of $VENV (default .venv) or $PYTHON.
#
#   bash scripts/sanitize.sh                     all operator tests that need no compiler
#   bash scripts/sanitize.sh tests/ops -k nms    a subset: arguments are passed to pytest
set -euo pipefail
cd "$(dirname "$0")/.."
python=${VENV:-.venv}/bin/python
[ -x "$python" ] || python=$(command -v "${PYTHON:-python3}")
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")
compiler=${CXX:-c++}
asan=$("$compiler" -print-file-name=libasan.so)
if [[ $asan != /* ]]; then
  echo "error: $compiler has no libasan.so; install GCC's sanitizer libraries or set CXX=g++" >&2
  exit 2
fi

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cp -r dcn_det tests setup.py pyproject.toml README.md LICENSE "$folder"
rm -f "$folder"/dcn_det/ops/_C*.so
cd "$folder"

# A compiler wrapper appends the flags, so that they take precedence. -O1 shortens the build. vptr is excluded because
# it needs type information that libtorch does not export.
cat > sanitizing-c++ <<END
#!/usr/bin/env bash
exec "$compiler" "\$@" -O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=all
END
chmod +x sanitizing-c++
start=$SECONDS
DCN_DET_CUDA=0 CXX="$folder/sanitizing-c++" "$python" setup.py -q build_ext --inplace > build.log 2>&1 ||
  { tail -n 40 build.log >&2; exit 1; }
echo "sanitize: built in $((SECONDS - start)) s"

# Tests that start compilers or other processes add no coverage here.
if [ $# -eq 0 ]; then
  set -- tests/ops -m "not slow and not cuda" -k "not compile and not export and not host" \
    --ignore tests/ops/test_library.py --ignore tests/ops/test_network.py
fi
# Reports go to files because pytest loses the captured output of a test that ends the process.
# libstdc++ is preloaded so that exceptions thrown by libtorch are intercepted. Leaks are ignored: Python leaks at exit.
start=$SECONDS
env LD_PRELOAD="$asan $("$compiler" -print-file-name=libstdc++.so)" \
  ASAN_OPTIONS="detect_leaks=0:detect_stack_use_after_return=1:log_path=$folder/report" \
  UBSAN_OPTIONS="print_stacktrace=1:log_path=$folder/report" \
  PYTHONPATH="$folder" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" DCN_DET_TIER= \
  "$python" -c '
import sys
import pytest
from dcn_det.ops import library
state = library.status()["cpu"]
if not state.loaded:
    sys.exit(f"error: the sanitized library is not loaded: {state.reason}")
sys.exit(pytest.main(["-p", "no:cacheprovider", *sys.argv[1:]]))
' -n "${TEST_PROCESSES:-2}" "$@" || {
  cat report.* >&2 2>/dev/null || true
  echo "sanitize: FAILED" >&2
  exit 1
}
echo "sanitize: passed with AddressSanitizer and UBSan in $((SECONDS - start)) s"
