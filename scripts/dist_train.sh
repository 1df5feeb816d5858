#!/usr/bin/env bash
# Trains on all GPUs of this machine, or on several machines, with torchrun. A worker that dies is started again with
# the others from the newest checkpoint.
#
#   bash scripts/dist_train.sh configs/coco/faster_rcnn_r101_dcn.yaml data.root=/data/coco --output runs/dcn
#   PROCESSES=4 bash scripts/dist_train.sh CONFIG ...                 four GPUs (default: all)
#   NODES=2 ADDRESS=10.0.0.1:29500 bash scripts/dist_train.sh CONFIG ...   on each of two machines; one is the address
#
# RESTARTS (default 3) is how often to start again. PYTHON names the interpreter (default: .venv's if there is one).
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || command -v python3)}
[ $# -gt 0 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }

processes=${PROCESSES:-$("$python" -c 'import torch; print(max(torch.cuda.device_count(), 1))')}
# One thread each, unless told otherwise: several processes that all use every core slow each other down.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$python" -m torch.distributed.run \
  --nnodes="${NODES:-1}" --nproc-per-node="$processes" --max-restarts="${RESTARTS:-3}" \
  --rdzv-backend=c10d --rdzv-endpoint="${ADDRESS:-localhost:0}" --rdzv-id="${RUN_ID:-dcn_det}" \
  tools/train.py "$@"
