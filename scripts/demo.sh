#!/usr/bin/env bash
# Sets up the environment, trains a small deformable Faster R-CNN on the embedded data set, tests it and draws its
# detections.
#
#   bash scripts/demo.sh                       about five minutes on two cores
#   bash scripts/demo.sh train.iterations=100  overrides a setting of the config
#
# OUTPUT names the folder of the run (default runs/demo-<time>), CONFIG the config (default
# configs/sample/faster_rcnn_dcn.yaml).
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
export VENV=${VENV:-.venv}
python="$VENV/bin/python"
config=${CONFIG:-configs/sample/faster_rcnn_dcn.yaml}
output=${OUTPUT:-runs/demo-$(date +%Y%m%d-%H%M%S)}

started=$(date +%s)
"$python" tools/train.py "$config" --output "$output" "$@"
"$python" tools/test.py "$config" --weights "$output/last.pth" --output "$output/test" "$@"
"$python" tools/infer.py --weights "$output/last.pth" --output "$output/pictures" --score 0.4 --sheet 12 datasets/sample/val
seconds=$(($(date +%s) - started))

echo
echo "run          $output  (log.txt, metrics.jsonl, config.yaml; tensorboard --logdir $output)"
echo "weights      $output/last.pth"
echo "detections   $output/test/detections.json"
echo "metrics      $output/test/metrics.json"
echo "pictures     $output/pictures  (sheet.jpg shows twelve of them)"
"$python" - "$output/test/metrics.json" "$seconds" <<'END'
import json
import sys

metrics = json.load(open(sys.argv[1]))['metrics']
print(f"sample AP50 {metrics['AP50']:.2f} in {int(sys.argv[2]) / 60:.1f} min")
END
