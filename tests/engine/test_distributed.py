"""Several processes give the same results as one, without deadlocks. Gloo on the CPU, tiny networks."""

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dcn_det import distributed
from dcn_det.cli import train
from dcn_det.config import load_config
from dcn_det.config.train import TrainConfig
from dcn_det.engine.build import Division, divide
from dcn_det.engine.step import Step
from dcn_det.engine.training import describe
from dcn_det.errors import UserError
from dcn_det.structures import Batch, ImageInfo, Target
from dcn_det.weights import checkpoint
from tests.engine.launching import children, finish, popen, run_command, together, until
from tests.messages import says


def records(folder: Path, kind: str = "train") -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def losses(folder: Path) -> dict[int, float]:
    return {record["iteration"]: record["loss"] for record in records(folder) if "loss" in record}


def run(arguments: list[str]) -> int:
    return train.main(arguments)


def assert_same_run(a: Path, b: Path, tolerance: float = 1e-5) -> None:
    first, second = losses(a), losses(b)
    assert first.keys() == second.keys() and len(first) >= 4
    for iteration in first:
        assert first[iteration] == pytest.approx(second[iteration], abs=tolerance, rel=tolerance), iteration
    one, other = (checkpoint.load(folder / "last.pth")["model"] for folder in (a, b))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize(("count", "batch_size", "accumulate"), [(4, 1, 1), (2, 2, 1), (2, 1, 2), (1, 1, 4)], ids=str)
def test_how_a_step_is_divided_changes_nothing(
    tiny: Path, tmp_path: Path, count: int, batch_size: int, accumulate: int
) -> None:
    """Four images on one process, one image on each of four, and divisions in between give the same update."""
    length = [
        "train.iterations=20" if count == 2 and accumulate == 1 else "train.iterations=5",
        "train.checkpoint_every=100",
        "train.reference_batch=4",
    ]
    assert run([str(tiny), *length, "train.batch_size=4", "--output", str(tmp_path / "one")]) == 0
    division = [f"train.batch_size={batch_size}", f"train.accumulate={accumulate}"]
    arguments = [str(tiny), *length, *division, "--output", str(tmp_path / "many")]
    assert together(count, run, arguments) == [0] * count
    assert_same_run(tmp_path / "one", tmp_path / "many")
    one, many = (records(tmp_path / name, "test")[-1] for name in ("one", "many"))
    assert one["AP50"] == pytest.approx(many["AP50"], abs=1e-6), "no image is counted twice"
    assert one["AR100"] == pytest.approx(many["AR100"], abs=1e-6)


class Branches(nn.Module):
    """One parameter for images with objects and one for images without; a process may leave either unused."""

    def __init__(self) -> None:
        super().__init__()
        self.full = nn.Parameter(torch.ones(3))
        self.empty = nn.Parameter(torch.ones(3))
        self.never = nn.Parameter(torch.ones(3))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        values = batch.images.float().mean(dim=(2, 3)) / 255
        parts = [
            (value * (self.full if len(target.boxes) else self.empty)).sum()
            for value, target in zip(values, batch.targets)
        ]
        return {"loss": torch.stack(parts).mean()}


def image(number: int, objects: int) -> Batch:
    pixels = torch.full((1, 3, 4, 4), 10 * number, dtype=torch.uint8)
    target = Target(torch.zeros(objects, 4), torch.zeros(objects, dtype=torch.int64))
    return Batch(pixels, [ImageInfo(number, "", 4, 4, 4, 4)], [target])


def branch_gradients(passes: list[list[Batch]]) -> dict[str, list[float] | None]:
    """Returns gradients as lists, since tensors in a queue need the process that put them there to be alive."""
    processes, device = distributed.start(torch.device("cpu"), "cpu")
    model = Branches()
    step = Step(model, torch.optim.SGD(model.parameters(), lr=0.1), device, processes=processes)
    for _ in range(3):
        outcome = step.gradients(passes[processes.rank])
        assert outcome.finite
    distributed.stop()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: None if grad is None else grad.tolist() for name, grad in grads.items()}


def test_parameters_one_process_does_not_use_neither_hang_nor_skew() -> None:
    """Process 0 has only images with objects, process 1 only empty ones, in two passes each."""
    passes = [[image(1, 2), image(2, 1)], [image(3, 0), image(4, 0)]]
    first, second = together(2, branch_gradients, passes, seconds=60)
    assert first["full"] == pytest.approx([(10 + 20) / 255 / 4] * 3)
    assert first["empty"] == pytest.approx([(30 + 40) / 255 / 4] * 3)
    assert first["never"] in (None, [0.0] * 3)
    assert first == second


def test_iterations_are_scaled_with_the_number_of_processes(tiny: Path) -> None:
    settings: dict = {
        "train.batch_size": 1,
        "train.reference_batch": 8,
        "train.iterations": 100,
        "train.warmup.iterations": 5,
    }
    told = partial(describe, load_config(tiny, settings))
    one, two = told(), together(2, told)[0]
    assert says(one, "800 images", "40 iterations", "5.00%") and says(two, "800 images", "20 iterations", "5.00%")


def test_a_process_with_only_empty_images_trains_along(tiny: Path, tmp_path: Path, sample_root: Path) -> None:
    """Half of the images have no boxes; with two images per step, one process often has only background."""
    document = json.loads((sample_root / "annotations" / "train.json").read_text())
    document["annotations"] = [row for row in document["annotations"] if row["image_id"] % 2]
    (tmp_path / "half.json").write_text(json.dumps(document))
    common = [
        str(tiny),
        "train.iterations=6",
        "data.kind=coco",
        "data.empty_images=keep",
        f"data.train.annotations={tmp_path / 'half.json'}",
    ]
    assert run([*common, "train.batch_size=2", "--output", str(tmp_path / "one")]) == 0
    many = [*common, "train.batch_size=1", "--output", str(tmp_path / "many")]
    assert together(2, run, many) == [0, 0]
    assert_same_run(tmp_path / "one", tmp_path / "many")


def test_another_number_of_processes_keeps_the_order_of_images(tiny: Path, tmp_path: Path) -> None:
    common = [str(tiny), "train.iterations=8", "train.batch_size=2", "train.accumulate=2", "train.reference_batch=4"]
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert run([*common, "--output", str(whole)]) == 0
    assert run([*common, "--output", str(part), "--stop-at", "4"]) == 0
    # The settings alone would now make steps of eight images.
    assert together(2, run, [*common, "--output", str(part), "--resume"]) == [0, 0]
    assert "4 images (2 processes x 2)" in (part / "log.txt").read_text()
    assert_same_run(whole, part)


def test_a_step_is_divided_or_refused() -> None:
    settings = TrainConfig(iterations=1, batch_size=4, accumulate=1)
    assert divide(settings, 2) == Division(2, 4, 1)
    assert divide(settings, 1, global_batch=8) == Division(1, 4, 2)
    assert divide(settings, 4, global_batch=8) == Division(4, 2, 1)
    assert divide(settings, 1, global_batch=6) == Division(1, 3, 2)
    with pytest.raises(UserError, match=r"\b8 images\b.*\b3 processes\b"):
        divide(settings, 3, global_batch=8)


def test_an_environment_without_an_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"RANK, MASTER_ADDR, MASTER_PORT.*torchrun"):
        distributed.start(torch.device("cpu"), "cpu")
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(UserError, match=r"RANK is 2, expected 0 to 1 \(WORLD_SIZE - 1\)"):
        distributed.start(torch.device("cpu"), "cpu")
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UserError, match="WORLD_SIZE is 'two'"):
        distributed.start(torch.device("cpu"), "cpu")


@pytest.mark.slow
def test_torchrun_restarts_a_killed_worker_and_finishes(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process, output = popen(
        [
            "-m",
            "torch.distributed.run",
            "--nproc-per-node=2",
            "--max-restarts=2",
            "--rdzv-backend=c10d",
            "--rdzv-endpoint=localhost:0",
            "tools/train.py",
            str(tiny),
            "train.iterations=60",
            "train.batch_size=1",
            "train.checkpoint_every=5",
            "--output",
            str(out),
        ]
    )
    assert until(lambda: len(list(out.glob("iteration_*.pth"))) >= 2 or process.poll() is not None)
    trainers = children(process.pid)
    assert len(trainers) == 2
    os.kill(trainers[1], signal.SIGKILL)
    code, text = finish(process, output, 120)
    assert code == 0, text
    log = (out / "log.txt").read_text()
    assert log.count("resumed from") == 1, text
    assert checkpoint.load(out / "last.pth")["iteration"] == 60
    assert sorted(losses(out)) == list(range(1, 61)), "every iteration once"


@pytest.mark.slow
@pytest.mark.parametrize("script", ["dist_train.sh", "slurm_train.sh"])
def test_the_launch_scripts_train_on_two_processes(tiny: Path, tmp_path: Path, script: str) -> None:
    out = tmp_path / "run"
    arguments = [str(tiny), "train.iterations=4", "train.batch_size=1", "--output", str(out)]
    tools = tmp_path / "bin"
    tools.mkdir()
    # Imitates SLURM's srun as far as the script needs it: runs the tasks in parallel, each with its numbers.
    (tools / "srun").write_text(
        '#!/usr/bin/env bash\nshift\nfor task in 0 1; do SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NTASKS=2 "$@" & '
        "pids+=($!); done\ncode=0; for pid in ${pids[@]}; do wait $pid || code=$?; done; exit $code\n"
    )
    (tools / "scontrol").write_text('#!/usr/bin/env bash\n[ "$1" = show ] && echo 127.0.0.1 || echo "$@"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", "PROCESSES": "2", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}
    environment |= {"SLURM_JOB_NODELIST": "here", "SLURM_SUBMIT_DIR": str(Path.cwd()), "PYTHON": sys.executable}
    code, text = run_command(
        [
            "-c",
            "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1:]).returncode)",
            "bash",
            f"scripts/{script}",
            *arguments,
        ],
        180,
        **environment,
    )
    assert code == 0, text
    assert "2 images (2 processes x 1)" in (out / "log.txt").read_text(), text
