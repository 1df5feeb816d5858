#!/usr/bin/env bash
# Checks on a machine with an NVIDIA GPU, in two parts of some minutes each:
#
#   bash scripts/check_gpu.sh a    tests marked cuda, benchmark of the operators
#   bash scripts/check_gpu.sh b    compute-sanitizer, short trainings, test at two scales, benchmark of whole detectors
#   bash scripts/check_gpu.sh      both
#
# Needs python3 (or $PYTHON) with the package's dependencies, pytest, scikit-learn and Pillow, and no network. Compiled
# operators are used if they load, else built for this GPU. Every step has a time limit and prints its result at once;
# a failing step does not stop the others, but without both compiled libraries nothing else runs. The exit code is 1 if
# a step failed. The folder $OUT (default runs/gpu-<time>) receives summary.txt, the numbers of the benchmarks as JSON,
# and logs.tar.gz with the output of every step.
# PATIENCE=2 doubles the time limits.
#
# To try the script itself without a GPU: DEVICE=cpu ITERATIONS=2 SIZE="64 96" PATIENCE=8 bash scripts/check_gpu.sh b
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
parts=${1:-ab}
case $parts in a | b | ab) ;; *) echo "usage: bash scripts/check_gpu.sh [a|b]" >&2 && exit 2 ;; esac
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
iterations=${ITERATIONS:-60}          # of each training
read -r short long <<< "${SIZE:-600 1000}" # of the images in the benchmark of detectors
out=${OUT:-runs/gpu-$(date +%Y%m%d-%H%M%S)}
mkdir -p "$out/logs" || exit 1
out=$(cd "$out" && pwd)
work=$(mktemp -d) # sample data set, checkpoints
export CUBLAS_WORKSPACE_CONFIG=:4096:8 # required by torch.use_deterministic_algorithms
export PATH="$PATH:/usr/local/cuda/bin" # compute-sanitizer
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
failed=0

finish() {
  tar -czf "$out/logs.tar.gz" -C "$out" logs && rm -rf "$out/logs"
  rm -rf "$work"
}
trap finish EXIT
# Commands run in the background and are waited for, so that a signal takes effect at once.
trap 'kill $(jobs -p) 2> /dev/null; exit 1' INT TERM

say() { echo "$*" | tee -a "$out/summary.txt"; }

# step SECONDS NAME COMMAND...: runs a command with a time limit and says how it ended; returns its exit code.
step() {
  local limit=$(($1 * ${PATIENCE:-1})) name=$2 start=$SECONDS code=0
  local log=$out/logs/$name.log
  shift 2
  timeout -k 5 "$limit" "$@" > "$log" 2>&1 < /dev/null &
  wait $! 2> /dev/null || code=$?
  if ((code == 0)); then
    say "ok      $name ($((SECONDS - start)) s): $(tail -n 1 "$log" | cut -c -150)"
    return
  fi
  failed=1
  case $code in
    124 | 137) say "FAILED  $name: stopped after $limit s" ;;
    *) say "FAILED  $name ($((SECONDS - start)) s): exit code $code" ;;
  esac
  echo "$(tail -n 25 "$log" | cut -c -200 | sed 's/^/    /')" # in one piece: steps may run side by side
  return "$code"
}

# together COMMAND...: runs functions without arguments side by side.
together() {
  local job jobs=()
  for job; do
    $job & # split into words
    jobs+=($!)
  done
  for job in "${jobs[@]}"; do wait "$job" || failed=1; done
}

tests() { # SECONDS NAME PROCESSES ARGUMENTS...
  local limit=$1 name=$2 processes=$3 workers=()
  shift 3
  "$python" -c "import xdist" 2> /dev/null && workers=(-n "$processes")
  # Exit code 5, no test selected, is a failure: the GPU would not have been tested.
  OMP_NUM_THREADS=2 step "$limit" "$name" "$python" -m pytest -m cuda --tb=short -p no:cacheprovider "${workers[@]}" "$@"
}

loads() {
  "$python" -c '
from dcn_det.ops import library
states = library.status().values()
raise SystemExit("; ".join(state.reason for state in states if not state.loaded) or 0)' > "$out/logs/loads.log" 2>&1
}

# Ensures that both libraries are compiled and load, and that there is a GPU to run them.
environment() {
  command -v nvidia-smi > /dev/null &&
    say "$(nvidia-smi --query-gpu=name,driver_version,memory.total,temperature.gpu --format=csv,noheader)"
  if ! loads; then
    say "        building the operators: $(tail -n 1 "$out/logs/loads.log" | cut -c -200)"
    step 150 build bash -c '
      TORCH_CUDA_ARCH_LIST=$("$0" -c "import torch; print(\"%d.%d\" % torch.cuda.get_device_capability())") || exit
      export TORCH_CUDA_ARCH_LIST DCN_DET_CUDA=1 DCN_DET_WERROR=0
      "$0" setup.py -q build_ext --inplace --force' "$python"
    loads
  fi && step 60 environment "$python" -c '
import sys, torch
from dcn_det.env import report
print(report())
torch.ones(1, device=sys.argv[1]).sum().item()
import torchvision.models.detection  # the first import on a machine is slow; steps that run side by side must not wait
print(f"torch {torch.__version__}", torch.cuda.get_device_name() if sys.argv[1] == "cuda" else "on a CPU", sep=", ")
' "$device"
}

# Checks our kernels only, and only on small cases: this is slow. Without torch's caching allocator, accesses beyond an
# allocation are detected.
sanitize() { # TOOL TESTS
  local tool=$1 selected=$2 options=(--tool "$1" --target-processes all --error-exitcode 1 --print-limit 20)
  options+=(--launch-timeout 120) # the first import of PyTorch on a machine is slow
  if ! command -v compute-sanitizer > /dev/null; then
    say "skipped $tool: compute-sanitizer is not installed"
    return
  fi
  # Torch probes the driver with calls that fail.
  [ "$tool" = memcheck ] && options+=(--report-api-errors no)
  if compute-sanitizer --help 2>&1 | grep -q -- --kernel-name; then
    options+=(--kernel-name kns=dcn_det) # kns: substring of the kernel's name
  else
    options+=(--kernel-regex kns=dcn_det) # the same, in older releases
  fi
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 step 150 "$tool" compute-sanitizer "${options[@]}" \
    "$python" -m pytest -x -m cuda --tb=short -p no:cacheprovider tests/ops/test_cuda.py -k "$selected"
}

memcheck() { sanitize memcheck "(equals_the_reference or deterministic_algorithms or suppression) and not 20000"; }
# The tool itself aborts in calls of the deformable convolution, which multiply matrices with cuBLAS.
racecheck() { sanitize racecheck "(equals_the_reference and float32 and not deform_conv2d) or (suppression and not 20000)"; }

train() { # CONFIG PRECISION
  OMP_NUM_THREADS=2 step 120 "train-$1-$2" "$python" tools/train.py "configs/sample/$1.yaml" \
    "data.root=$work/sample" "device=$device" "train.precision=$2" "train.iterations=$iterations" \
    train.warmup.iterations=10 --output "$work/$1-$2"
}

trainings() {
  local config precision commands=()
  for config in faster_rcnn_dcn rfcn_dcn class_aware_rpn_dcn; do
    for precision in float32 bfloat16; do commands+=("train $config $precision"); done
  done
  together "${commands[@]}"
  step 30 test_scales "$python" tools/test.py configs/sample/faster_rcnn_dcn_ms.yaml "data.root=$work/sample" \
    "device=$device" "test.scales=[{short_side: 256, max_side: 256}, {short_side: 384, max_side: 384}]" \
    --weights "$work/faster_rcnn_dcn-float32/last.pth" --output "$work/test"
  return $failed
}

benchmark_detectors() { # NAME ARGUMENTS...
  local name=$1
  shift
  step 60 "benchmark_$name" "$python" tools/benchmark.py detector "$@" --device "$device" --size "$short" "$long" \
    --rounds 5 --seconds 0.5 --save "$out/gpu_$name.json"
}

part_a() {
  tests 150 test_cuda 8 tests/ops/test_cuda.py
  tests 120 tests_more 8 tests/ops tests/models/test_folded.py --ignore tests/ops/test_cuda.py
  step 100 benchmark_ops "$python" tools/benchmark.py ops --device "$device" --rounds 5 --seconds 0.05 \
    --save "$out/gpu_ops.json"
}

part_b() {
  step 30 sample "$python" -m dcn_det.data.sample "$work/sample" --train-images 96 --val-images 16
  together trainings memcheck racecheck # a small load each; benchmarks need the GPU for themselves
  benchmark_detectors detectors configs/coco/rfcn_r101.yaml configs/coco/rfcn_r101_dcn.yaml \
    --precision bfloat16 --batch 2
  benchmark_detectors torchvision configs/coco/faster_rcnn_r101_dcn.yaml --torchvision --precision float32
}

if ! environment; then
  say "FAILED  the environment; nothing else was run"
  exit 1
fi
[[ $parts == *a* ]] && part_a
[[ $parts == *b* ]] && part_b
exit $failed
