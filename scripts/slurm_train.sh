#!/usr/bin/env bash
# Trains on the nodes of a SLURM job, one task per GPU. Two minutes before the time limit, or when the job is preempted,
# the run saves a checkpoint and the job is requeued; it resumes from that checkpoint.
#
#   sbatch --nodes=2 --time=8:00:00 scripts/slurm_train.sh configs/coco/faster_rcnn_r101_dcn.yaml --output runs/dcn
#
# Submit it from the root of the project, or set PROJECT to that folder. PYTHON names the interpreter.
# TOOL=train_classifier trains a classifier.
#SBATCH --job-name=dcn_det
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=6
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail
cd "${PROJECT:-${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}}" || exit 2
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || command -v python3)}
export PYTHON_TO_USE=$python

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR
export MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# SLURM signals the tasks, not this script; all tasks stop after the same step.
srun --kill-on-bad-exit=1 bash -c \
  'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS exec "$PYTHON_TO_USE" "tools/${TOOL:-train}.py" "$@" --auto-resume' \
  train "$@"
code=$?
case $code in
  138 | 143) # SIGUSR1 or SIGTERM: a checkpoint was saved, see tools/train.py --help
    echo "stopped with exit code $code; requeuing the job"
    scontrol requeue "$SLURM_JOB_ID"
    ;;
esac
exit "$code"
