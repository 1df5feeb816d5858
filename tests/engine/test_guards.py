"""Failures in long runs and how they are handled; options of training."""

import json
import math
import os
import re
import signal
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dcn_det.cli import train
from dcn_det.data.loader import WorkerDied
from dcn_det.engine import guards, prepare
from dcn_det.engine.ema import WeightAverage
from dcn_det.engine.logging import RunLog
from dcn_det.engine.trainer import TrainingDiverged
from dcn_det.errors import UserError
from dcn_det.models.backbones.resnet import ResNet
from dcn_det.structures import Batch
from dcn_det.weights import checkpoint
from tests.engine.helpers import Mean, batches, level, trainer


def spoil(run, images: set[int]) -> None:
    """Makes the loss NaN for batches whose first image has one of these ids."""

    def forward(batch: Batch) -> dict[str, Tensor]:
        losses = Mean.forward(run.model, batch)
        return {name: loss * math.nan if batch.infos[0].image_id in images else loss for name, loss in losses.items()}

    run.model.forward = forward


def test_steps_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    run = trainer(tmp_path, length=10, nonfinite_skips=2, log_every=1)
    spoil(run, {30, 40, 60})
    run.run()
    log = (tmp_path / "log.txt").read_text()
    assert log.count("step skipped (1 of 2 in a row)") == 2 and log.count("step skipped (2 of 2 in a row)") == 1
    assert "image ids 30, 31" in log
    assert torch.isfinite(level(run)).all() and run.iteration == 10
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["iteration"] for r in records if "loss" not in r] == [4, 5, 7], "skipped steps do not count in the means"


def test_steps_are_left_out_under_a_loss_scaler(tmp_path: Path) -> None:
    run = trainer(tmp_path, length=8, nonfinite_skips=2, log_every=1, precision=torch.float16)
    assert run.step.scaler.is_enabled()
    before = run.step.scaler.get_scale()
    spoil(run, {30, 40, 60})
    run.run()
    assert (tmp_path / "log.txt").read_text().count("step skipped") == 3
    assert run.iteration == 8 and torch.isfinite(level(run)).all()
    assert run.step.scaler.get_scale() == before / 8


def test_too_many_in_a_row_end_the_run(tmp_path: Path) -> None:
    run = trainer(tmp_path, length=10, nonfinite_skips=2)
    spoil(run, {30, 40, 50})
    with pytest.raises(TrainingDiverged, match=r"iteration 6: .*image ids 50, 51; .*'.*diverged_0+5"):
        run.run()
    evidence = checkpoint.load(tmp_path / "diverged_00000005.pth")
    assert torch.equal(evidence["batches"][0]["images"], next(batches(5)).images)


def test_statistics_that_met_a_nan_end_the_run_at_once(tmp_path: Path) -> None:
    run = trainer(tmp_path, length=10, nonfinite_skips=5)
    run.model.register_buffer("running_mean", torch.tensor([math.nan]))
    spoil(run, {20})
    with pytest.raises(TrainingDiverged, match="buffer running_mean"):
        run.run()


def greedy(run, limit: int) -> None:
    """Makes passes of more than ``limit`` images run out of memory."""

    def forward(batch: Batch) -> dict[str, Tensor]:
        if len(batch) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore lines")
        return Mean.forward(run.model, batch)

    run.model.forward = forward


def test_out_of_memory_says_what_helps(tmp_path: Path) -> None:
    run = trainer(tmp_path, length=3)
    greedy(run, 1)
    with pytest.raises(guards.OutOfMemory) as caught:
        run.run()
    message = str(caught.value)
    for part in ("2 images of up to 8x8", "train.batch_size=1", "train.recompute_stages", "Tried to allocate 2.00 GiB"):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("error", "failures", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), 0, True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB (originally from a compiled operator)"), 0, True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 0, True),
        (RuntimeError('torch_call_dispatcher("aten::new_empty") API call failed at ops.h, line 961'), 1, True),
        (RuntimeError('torch_call_dispatcher("aten::mm") API call failed at ops.h, line 961'), 0, False),
        (RuntimeError("deform_conv2d: channels of input and offset do not match"), 1, False),
    ],
)
def test_failed_allocations_are_told_from_other_errors(
    error: RuntimeError, failures: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In PyTorch 2.11, compiled operators lose an error's type and message; the allocator has counted it."""
    counts = iter([3, 3 + failures])
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: {"num_ooms": next(counts)})
    assert guards.FailedAllocations(torch.device("cuda")).caused(error) is expected


def test_out_of_memory_can_halve_the_batch_and_go_on(tmp_path: Path) -> None:
    def divided(first: int, size: int, passes: int) -> Iterator[Batch]:
        for batch in batches(first):
            for start in range(0, 2, size):
                part = slice(start, start + size)
                yield Batch(batch.images[part], batch.infos[part], batch.targets[part])

    whole = trainer(tmp_path, length=6)
    whole.run()
    (tmp_path / "small").mkdir()
    run = trainer(tmp_path / "small", length=6, oom_retry=True)
    run.batches = divided
    greedy(run, 1)
    run.run()
    assert (run.batch_size, run.accumulate) == (1, 2)
    assert re.search(r"warning: .*train\.precision", (tmp_path / "small" / "log.txt").read_text())
    assert run.iteration == 6 and math.isfinite(level(run).item())
    assert run.state()["images_per_step"] == 2


def test_a_dead_worker_is_replaced_and_nothing_else_changes(tiny: Path, tmp_path: Path) -> None:
    """A loader process is killed in the middle of the run; the weights equal those of an undisturbed run."""
    common = [str(tiny), "train.iterations=12", "data.workers=1"]
    assert train.main([*common, "--output", str(tmp_path / "whole")]) == 0
    out = tmp_path / "run"
    others = set(children())  # loaders of other tests, not yet garbage-collected
    say = RunLog.say

    def killing(self: RunLog, text: str) -> None:
        say(self, text)
        if "iter 5/" in text:
            for pid in set(children()) - others:
                os.kill(pid, signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "say", killing)
        assert train.main([*common, "--output", str(out)]) == 0
    assert re.search(r"warning: .*worker", (out / "log.txt").read_text())
    one, other = (checkpoint.load(tmp_path / name / "last.pth")["model"] for name in ("whole", "run"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def children() -> list[int]:
    """Child processes that run the same program: loader workers, which are forks."""
    found = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    own = Path("/proc/self/cmdline").read_bytes()
    return [int(pid) for pid in found if Path(f"/proc/{pid}/cmdline").read_bytes() == own]


def test_workers_that_keep_dying_end_the_run(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    asked = []

    def dying(first: int, size: int, passes: int) -> Iterator[Batch]:
        asked.append(first)
        raise WorkerDied("DataLoader worker (pid 7) exited unexpectedly; fewer data.workers help")
        yield

    run.batches = dying
    with pytest.raises(WorkerDied, match=r"fewer data\.workers"):
        run.run()
    assert asked == [0] * 4


def test_the_average_follows_the_weights() -> None:
    linear = nn.Linear(2, 1)
    model = nn.Sequential(linear, nn.BatchNorm1d(1))
    average = WeightAverage(model, 0.5)
    first = linear.weight.detach().clone()
    with torch.no_grad():
        linear.weight.add_(1)
        model.get_buffer("1.running_mean").add_(3)
    average.update(model, step=1)  # the decay is min(0.5, 2/11)
    torch.testing.assert_close(average.model.get_parameter("0.weight"), first + 9 / 11)
    assert torch.equal(average.model.get_buffer("1.running_mean"), model.get_buffer("1.running_mean")), (
        "buffers are copied"
    )
    average.update(model, step=1000)
    torch.testing.assert_close(average.model.get_parameter("0.weight"), first + 1 - 0.5 * 2 / 11)
    assert not average.model.get_parameter("0.weight").requires_grad


def gradients(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    network.zero_grad()
    sum(feature.square().mean() for feature in network(x).values()).backward()
    return {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}


def small(norm: str = "bn") -> nn.Module:
    torch.manual_seed(0)
    return ResNet("resnet18", width=8, stem_width=8, norm=norm, frozen_stages=0).train()


def test_recomputed_stages_give_the_same_gradients_and_statistics() -> None:
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    plain, thrifty = small(), small()
    prepare.recompute_stages(nn.ModuleDict({"backbone": thrifty}), ["res3", "res5"])
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    expected, found = gradients(plain, x), {}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        found = gradients(thrifty, x)
    less = sum(kept)
    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        gradients(plain, x)
    assert less < 0.9 * sum(kept), "fewer activations are kept"
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    again = gradients(small(), x)
    assert all(torch.equal(expected[name], again[name]) for name in expected)
    fresh = small()
    gradients(fresh, x)
    assert all(torch.equal(a, b) for a, b in zip(fresh.buffers(), thrifty.buffers())), "each batch counts once"
    with pytest.raises(UserError, match=r"train\.recompute_stages"):
        prepare.recompute_stages(nn.Linear(1, 1), ["res5"])


def test_deterministic_mode_refuses_what_cannot_be_repeated() -> None:
    try:
        prepare.be_deterministic()
        assert (
            torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
        )
        with pytest.raises(RuntimeError, match="deterministic"):
            torch.zeros(4).put_(torch.tensor([0]), torch.ones(1), accumulate=False)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    "settings",
    [
        ["train.precision=bfloat16", "train.recompute_stages=[res4, res5]", "train.ema_decay=0.9"],
        [
            "train.precision=float16",
            "train.accumulate=2",
            "train.reference_batch=4",
            "train.clip_norm=1",
            "train.channels_last=false",
        ],
        ["train.schedule={kind: step, drops: [2], unit: iterations}", "data.short_sides=[64, 96]", "data.cache=ram"],
    ],
)
def test_options_train_together(tiny: Path, tmp_path: Path, settings: list[str]) -> None:
    assert train.main([str(tiny), *settings, "train.iterations=4", "--output", str(tmp_path / "run")]) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if record["kind"] == "train"]
    assert all(math.isfinite(record["loss"]) for record in records)
    if "iterations}" in settings[0]:
        assert records[2]["lr"] == pytest.approx(0.1 * 0.005)
    last = checkpoint.load(tmp_path / "run" / "last.pth")["model"]
    state = checkpoint.load(tmp_path / "run" / "latest.pth")
    exported = state["average"] if "train.ema_decay=0.9" in settings else state["model"]
    assert all(torch.equal(last[name], exported[name]) for name in last)


def test_a_deterministic_run_trains(tiny: Path, tmp_path: Path) -> None:
    try:
        assert train.main([str(tiny), "train.deterministic=true", "--output", str(tmp_path / "run")]) == 0
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.slow
def test_backbone_and_heads_compile_without_graph_breaks(tiny: Path, tmp_path: Path) -> None:
    """Regions are compiled as full graphs, so a break is an error. Losses equal those of the plain run."""
    torch._dynamo.reset()
    common = [str(tiny), "train.iterations=3"]
    assert train.main([*common, "train.compile=true", "--output", str(tmp_path / "compiled")]) == 0
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] >= 4 and not counters["graph_break"]
    assert train.main([*common, "--output", str(tmp_path / "plain")]) == 0
    losses = [
        [
            r["loss"]
            for r in map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
            if "loss" in r
        ]
        for name in ("compiled", "plain")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert "compiled  backbone, rpn, head, head.prepare" in (tmp_path / "compiled" / "log.txt").read_text()


def test_numbers_and_pictures_go_to_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    calls: list[tuple] = []
    run = types.SimpleNamespace(
        log=lambda values, step: calls.append((values, step)), finish=lambda: calls.append(("end",))
    )

    def init(**settings: Any) -> types.SimpleNamespace:
        calls.append(("init", settings))
        return run

    fake = types.ModuleType("wandb")
    fake.init = init  # type: ignore[attr-defined]
    fake.Image = lambda image: ("image", image.shape)  # type: ignore[attr-defined]
    fake.Histogram = lambda values: ("histogram", len(values))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    log = RunLog(tmp_path, quiet=True, wandb="digits", config={"a": 1})
    log.scalars(3, {"loss": 1.5, "bad": math.nan}, "train")
    log.image(3, "pictures/x", np.zeros((2, 4, 3), np.uint8))
    log.histogram(3, "offsets/x", np.ones(5))
    log.close()
    assert calls[0][1]["project"] == "digits" and calls[0][1]["resume"] == "allow" and calls[0][1]["config"] == {"a": 1}
    picture, histogram = {"pictures/x": ("image", (2, 4, 3))}, {"offsets/x": ("histogram", 5)}
    assert calls[1:] == [({"train/loss": 1.5}, 3), (picture, 3), (histogram, 3), ("end",)]
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"train\.wandb.*pip install"):
        RunLog(tmp_path, quiet=True, wandb="digits")


def test_the_surroundings_of_a_run_are_kept(tiny: Path, tmp_path: Path) -> None:
    assert train.main([str(tiny), "train.iterations=1", "--output", str(tmp_path / "run")]) == 0
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"config.yaml", "environment.txt", "latest.pth"} <= names
    assert "torch" in (tmp_path / "run" / "environment.txt").read_text()
