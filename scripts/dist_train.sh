#!/usr/bin/env bash
# Trains on all GPUs of one or several machines with torchrun. If a worker dies, all workers restart from the newest
# checkpoint.
#
#   bash scripts/dist_train.sh configs/coco/faster_rcnn_r101_dcn.yaml data.root=/data/coco --output runs/dcn
#   PROCESSES=4 bash scripts/dist_train.sh CONFIG ...                 four GPUs (default: all)
#   NODES=2 ADDRESS=10.0.0.1:29500 bash scripts/dist_train.sh CONFIG ...   on both machines; ADDRESS is one of them
#
# TOOL names another of tools/, such as test. RESTARTS limits the restarts (default 3). PYTHON names the interpreter
# (default .venv/bin/python, else python3).
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || command -v python3)}
[ $# -gt 0 ] || { sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2; }

processes=${PROCESSES:-$("$python" -c 'import torch; print(max(torch.cuda.device_count(), 1))')}
# One thread per process by default: processes that each use all cores slow each other down.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$python" -m torch.distributed.run \
  --nnodes="${NODES:-1}" --nproc-per-node="$processes" --max-restarts="${RESTARTS:-3}" \
  --rdzv-backend=c10d --rdzv-endpoint="${ADDRESS:-localhost:0}" --rdzv-id="${RUN_ID:-dcn_det}" \
  "tools/${TOOL:-train}.py" "$@"
