"""Submits steps to SLURM, one job each, in the order of their inputs."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from dcn_det.engine.surroundings import commit
from dcn_det.errors import UserError
from dcn_det.files import write_text
from dcn_det.progress import Say
from dcn_det.reproduce.run import set_aside
from dcn_det.reproduce.state import Record, State
from dcn_det.reproduce.steps import Step

GPUS = 8
"""GPUs of a job that trains or tests, as in the paper."""

SCRIPT = """\
#!/usr/bin/env bash
#SBATCH --job-name={name}
#SBATCH --output={log}
#SBATCH --open-mode=append
{resources}
cd {folder} || exit 2
record() {{ # state, exit code: replaces the record of the step, whole or not at all
  printf {record} "$1" "$SLURM_JOB_ID" "$began" "$((spent + $(date +%s) - began))" "$2" > {path}.$SLURM_JOB_ID &&
    mv {path}.$SLURM_JOB_ID {path}
}}
began=$(date +%s)
spent={spent}
record running ''
{command}
code=$?
case $code in
  0) if [ -e {output} ]; then record done ''; else record failed 'the output was not written'; code=1; fi ;;
  138 | 143) # saved before the time limit or because of preemption
    record stopped ''
    scontrol requeue "$SLURM_JOB_ID" ;;
  *) record failed "exit code $code, see the log" ;;
esac
exit $code
"""
PARALLEL = f"""\
#SBATCH --ntasks-per-node={GPUS}
#SBATCH --gpus-per-node={GPUS}
#SBATCH --cpus-per-task=6
#SBATCH --signal=USR1@120
#SBATCH --requeue"""
SINGLE = "#SBATCH --ntasks=1"
START = """\
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT OMP_NUM_THREADS=${{OMP_NUM_THREADS:-1}}
srun --kill-on-bad-exit=1 bash -c \\
  'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS exec "$@"' step \\
  {command}"""


def submit(state: State, steps: Mapping[str, Step], chosen: Sequence[Step], say: Say) -> bool:
    """Submits the steps that are not done or in the queue.

    Args:
        state: records and logs.
        steps: all steps by name.
        chosen: the steps, in order.
        say: receives a line per step.

    Returns:
        Whether all steps are done or in the queue.

    Raises:
        UserError: there is no ``sbatch``, or it refuses a job.
    """
    if shutil.which("sbatch") is None:
        raise UserError(
            "--slurm: sbatch is not on the path; run this on a machine that submits to SLURM, or use --launch"
        )
    name, jobs, complete = commit(), {}, True
    for step in chosen:
        condition, _ = state.condition(step, steps)
        record = state.read(step)
        if condition == "done":
            continue
        waits = record is not None and record.state in ("submitted", "running", "stopped")
        if waits and record is not None and record.job and _queued(record.job):
            jobs[step.name] = record.job
            say(f"{step.name}: job {record.job} is {condition}")
            continue
        problems = [f"'{path}' is missing: {how}" for path, how in step.missing.items()]
        problems += [
            f"{before} is not done"
            for before in step.after
            if before not in jobs and state.condition(steps[before], steps)[0] != "done"
        ]
        if problems:
            complete = False
            say(f"{step.name}: not submitted: {'; '.join(problems)}")
            continue
        jobs[step.name] = _submit(state, step, name, [jobs[before] for before in step.after if before in jobs], say)
        say(f"{step.name}: job {jobs[step.name]}")
    return complete


def _submit(state: State, step: Step, name: str, after: Sequence[str], say: Say) -> str:
    before = set_aside(state, step, say)
    record = Record("submitted", step.key, step.hash, f"dcn-det {shlex.join(step.command)}", name)
    record = replace(record, seconds=before.seconds if before else 0.0)
    path = state.record_path(step).with_suffix(".sbatch")
    write_text(path, script(state, step, record))
    dependency = [f"--dependency=afterok:{':'.join(after)}", "--kill-on-invalid-dep=yes"] if after else []
    done = subprocess.run(["sbatch", "--parsable", *dependency, str(path)], capture_output=True, text=True)
    if done.returncode != 0:
        raise UserError(f"sbatch refused '{path}': {done.stderr.strip() or f'exit code {done.returncode}'}")
    job = done.stdout.strip().partition(";")[0]
    if state.read(step) in (None, before):  # the job may have begun
        state.write(step, replace(record, job=job))
    return job


def script(state: State, step: Step, record: Record) -> str:
    """Returns the batch script of a step, which keeps its record."""
    command = shlex.join([sys.executable, "-m", "dcn_det", *step.command])
    marked = asdict(record) | {key: f"@{key}@" for key in ("state", "job", "began", "seconds", "reason")}
    template = json.dumps(marked).replace("\\", "\\\\").replace("%", "%%")
    for key, conversion in (("state", '"%s"'), ("job", '"%s"'), ("began", "%s"), ("seconds", "%s"), ("reason", '"%s"')):
        template = template.replace(f'"@{key}@"', conversion)
    return SCRIPT.format(
        name=shlex.quote(step.name.replace("/", ".")),
        log=state.log(step).resolve(),
        folder=shlex.quote(str(Path.cwd())),
        resources=PARALLEL if step.parallel else SINGLE,
        record=shlex.quote(template),
        path=shlex.quote(str(state.record_path(step))),
        spent=round(record.seconds),
        output=shlex.quote(str(step.output)),
        command=START.format(command=command) if step.parallel else command,
    )


def _queued(job: str) -> bool:
    """Returns whether the queue knows a job; True if it cannot be asked."""
    try:
        done = subprocess.run(["squeue", "--noheader", "--job", job], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return True
    return done.returncode == 0 and bool(done.stdout.strip())
