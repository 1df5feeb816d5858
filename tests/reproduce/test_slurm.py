"""Jobs of SLURM, with commands of that name that run them at once or keep them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dcn_det.reproduce.slurm import submit
from dcn_det.reproduce.state import State
from tests.messages import refused, says
from tests.reproduce.helpers import step

SBATCH = """#!/usr/bin/env bash
echo "$@" >> {folder}/submitted
number=$(wc -l < {folder}/submitted)
cp "${{@: -1}}" {folder}/job$number
echo "$number;cluster"
"""
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NTASKS=8 exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
[ "$1" = show ] && echo node1 || echo "$@" >> {folder}/requeued
"""
SQUEUE = "#!/usr/bin/env bash\ncat {folder}/queue\n"
PYTHON = """#!/usr/bin/env bash
# Stands for the commands: makes the file of its last argument, or exits with the code given there.
echo "rank $RANK of $WORLD_SIZE at $MASTER_ADDR"
case "${{@: -1}}" in

  [0-9]*) exit "${{@: -1}}" ;;
  *) mkdir -p "$(dirname "${{@: -1}}")" && touch "${{@: -1}}" ;;
esac
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of the fake cluster, whose commands come first on the path."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    commands = {"sbatch": SBATCH, "srun": SRUN, "scontrol": SCONTROL, "squeue": SQUEUE, "python": PYTHON}
    for name, text in commands.items():
        (folder / name).write_text(text.format(folder=folder))
        (folder / name).chmod(0o755)
    (folder / "queue").write_text("a job\n")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    return folder


def execute(cluster: Path, number: int) -> int:
    """Runs a submitted job as SLURM would."""
    settings = {"SLURM_JOB_ID": str(number), "SLURM_JOB_NODELIST": "node[1-2]"}
    return subprocess.run(["bash", str(cluster / f"job{number}")], env=os.environ | settings, timeout=60).returncode


def test_jobs_wait_for_each_other_and_record_their_end(tmp_path: Path, cluster: Path) -> None:
    output = tmp_path / "out 'put"
    train = step(output, "train/a", parallel=True)
    tested = step(output, "test/a", after=("train/a",), parallel=True)
    missing = step(output, "test/b", inputs={tmp_path / "data": "dcn-det download coco"})
    steps = {each.name: each for each in (train, tested, missing)}
    state = State(output)
    said: list[str] = []
    assert not submit(state, steps, list(steps.values()), said.append)
    assert says("\n".join(said), "test/b", "dcn-det download coco")
    first, second = (cluster / "submitted").read_text().splitlines()
    assert "--dependency" not in first and "--dependency=afterok:1" in second.split()
    assert [state.condition(each, steps) for each in (train, tested)] == [
        ("submitted", "job 1"),
        ("submitted", "job 2"),
    ]
    assert "#SBATCH --gpus-per-node=8" in (cluster / "job1").read_text().splitlines()

    submit(state, steps, [train, tested], said.append)
    assert len((cluster / "submitted").read_text().splitlines()) == 2, "jobs in the queue are not submitted again"
    assert execute(cluster, 1) == execute(cluster, 2) == 0
    assert state.condition(train, steps)[0] == state.condition(tested, steps)[0] == "done"
    record = state.read(train)
    assert record is not None and record.job == "1" and record.hash == "hash of key" and record.began > 1e9
    assert submit(state, steps, [train, tested], said.append)


@pytest.mark.parametrize(("code", "condition"), [(2, "failed"), (138, "stopped")])
def test_failed_jobs_are_submitted_again_and_stopped_ones_requeued(
    tmp_path: Path, cluster: Path, code: int, condition: str
) -> None:
    one = step(tmp_path, "train/a", "train", str(code), parallel=True)
    state, steps = State(tmp_path), {"train/a": one}
    assert submit(state, steps, [one], print)
    assert execute(cluster, 1) == code
    assert state.condition(one, steps)[0] == condition
    assert (cluster / "requeued").exists() == (condition == "stopped")
    submit(state, steps, [one], print)
    again = len((cluster / "submitted").read_text().splitlines())
    assert again == (1 if condition == "stopped" else 2)
    (cluster / "queue").write_text("")  # the queue has lost it
    submit(state, steps, [one], print)
    assert len((cluster / "submitted").read_text().splitlines()) == again + 1


def test_a_refused_job_and_a_machine_without_slurm(
    tmp_path: Path, cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = step(tmp_path, "train/a")
    (cluster / "sbatch").write_text("#!/usr/bin/env bash\necho 'no such partition' >&2\nexit 1\n")
    with refused("sbatch", "no such partition"):
        submit(State(tmp_path), {"train/a": one}, [one], print)
    monkeypatch.setenv("PATH", str(tmp_path))
    with refused("--slurm", "sbatch"):
        submit(State(tmp_path), {"train/a": one}, [one], print)
