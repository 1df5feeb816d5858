#!/usr/bin/env bash
# Runs all checks that need a GPU: builds the CUDA kernels, then runs the tests marked cuda (parity with the reference,
# gradcheck, determinism, streams), a subset of them under compute-sanitizer if it is installed, the operator benchmark,
# and short trainings in every precision. A failing step does not stop the others; the summary at the end lists the
# result of each step, and the exit code is 1 if any failed. Uses python3 on PATH (or $PYTHON) and installs nothing.
#
#   bash scripts/check_gpu.sh                    on the embedded data set only
#   COCO=/data/coco bash scripts/check_gpu.sh    also a few iterations of the COCO configs at full size
#   STEPS="build tests" bash scripts/check_gpu.sh
#
# OUT names the folder of the report (default runs/gpu-<time>), RUNS that of the checkpoints (default temporary).
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python3}
out=${OUT:-runs/gpu-$(date +%Y%m%d-%H%M%S)}
runs=${RUNS:-$(mktemp -d)}
steps=" ${STEPS:-build environment tests memcheck racecheck benchmark train coco} "
mkdir -p "$out" "$runs"
exec > >(tee "$out/report.txt") 2>&1
export CUBLAS_WORKSPACE_CONFIG=:4096:8 # required by torch.use_deterministic_algorithms
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

summary=()
failed=0

# step NAME COMMAND...: runs a command if STEPS includes it, and records the result.
step() {
  local name=$1 start=$SECONDS
  shift
  [[ $steps == *" ${name%%:*} "* ]] || return 0
  printf '\n== %s\n' "$name"
  if "$@"; then
    summary+=("ok      $name ($((SECONDS - start)) s)")
  else
    summary+=("FAILED  $name ($((SECONDS - start)) s)")
    failed=1
  fi
}

# Without torch's caching allocator, so that accesses beyond an allocation are detected. Only small cases: this is slow.
sanitize() {
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" --error-exitcode 1 --print-limit 20 \
    "$python" -m pytest -q -x -m cuda -p no:cacheprovider \
    tests/ops/test_cuda.py tests/ops/test_deform_conv.py tests/ops/test_deform_psroi_pool.py \
    -k "test_equals_the_reference or golden or released or deterministic_algorithms or suppression"
}

train() {
  "$python" tools/train.py "configs/sample/$1.yaml" device=cuda "train.precision=$2" train.iterations=300 \
    --output "$runs/$1-$2"
}

coco() {
  # COCO_OVERRIDES is a space-separated list of key=value.
  # shellcheck disable=SC2086
  "$python" tools/train.py "configs/coco/$1.yaml" "data.root=$COCO" device=cuda train.precision=bfloat16 \
    model.backbone.weights=none model.backbone.norm=gn model.backbone.frozen_stages=0 \
    train.epochs=null train.iterations=20 train.log_every=5 ${COCO_OVERRIDES:-} --output "$runs/coco-$1"
}

nvidia-smi || true
step build env DCN_DET_CUDA=1 "$python" setup.py -q build_ext --inplace
step environment "$python" -m dcn_det env
step tests "$python" -m pytest -q -m cuda -p no:cacheprovider
for tool in memcheck racecheck; do
  if command -v compute-sanitizer > /dev/null; then
    step "$tool" sanitize "$tool"
  elif [[ $steps == *" $tool "* ]]; then
    summary+=("skipped $tool: compute-sanitizer is not installed")
  fi
done
step benchmark "$python" tools/benchmark.py ops --save "$out/ops.json"
for config in faster_rcnn faster_rcnn_dcn; do
  for precision in float32 bfloat16 float16; do
    step "train: $config $precision" train "$config" "$precision"
  done
done
if [ -n "${COCO:-}" ]; then
  for config in faster_rcnn_r101 faster_rcnn_r101_dcn; do
    step "coco: $config" coco "$config"
  done
fi

printf '\n== summary\n'
printf '%s\n' "${summary[@]}"
echo "report: $out/report.txt"
exit $failed
