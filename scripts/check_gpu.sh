#!/usr/bin/env bash
# Everything that needs a GPU, in one go: builds the CUDA kernels, runs the tests marked cuda, and trains and tests the
# detectors for a few iterations in every precision. Uses the python on PATH (or $PYTHON) and installs nothing.
#
#   bash scripts/check_gpu.sh                 the embedded data set only
#   COCO=/data/coco bash scripts/check_gpu.sh also a few iterations of the COCO configs at full size
#
# OUT names the folder of the report (default runs/gpu-<time>).
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${OUT:-runs/gpu-$(date +%Y%m%d-%H%M%S)}
mkdir -p "$out"
exec > >(tee "$out/report.txt") 2>&1

DCN_DET_CUDA=1 "$python" setup.py -q build_ext --inplace
"$python" -m dcn_det.env
"$python" -m pytest -m cuda -q

for config in faster_rcnn faster_rcnn_dcn; do
  for precision in float32 bfloat16 float16; do
    echo "== $config $precision"
    "$python" tools/train.py "configs/sample/$config.yaml" device=cuda "train.precision=$precision" \
      train.iterations=300 --output "$out/$config-$precision"
  done
done

if [ -n "${COCO:-}" ]; then
  for config in faster_rcnn_r101 faster_rcnn_r101_dcn; do
    echo "== coco $config"
    "$python" tools/train.py "configs/coco/$config.yaml" "data.root=$COCO" device=cuda train.precision=bfloat16 \
      model.backbone.weights=none model.backbone.norm=gn model.backbone.frozen_stages=0 \
      train.epochs=null train.iterations=20 train.log_every=5 ${COCO_OVERRIDES:-} --output "$out/coco-$config"
  done
fi
echo "report: $out/report.txt"
