import json
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dcn_det.engine.trainer import Interrupted, TrainingDiverged
from dcn_det.structures import Batch
from dcn_det.weights import checkpoint
from tests.engine.helpers import batches, level, trainer
from tests.messages import refused


def test_it_learns_and_leaves_readable_logs(tmp_path: Path) -> None:
    run = trainer(tmp_path, length=40)
    run.run()
    assert level(run).item() == pytest.approx(0.5, abs=0.05)
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert "iter 40/40" in lines[-1]
    assert "square" in lines[-1]
    assert "eta 0:00:00" in lines[-1]
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["iteration"] for record in records] == [1, *range(5, 41, 5)]
    assert all(math.isfinite(record["gradient_norm"]) for record in records)
    assert list((tmp_path / "tensorboard").iterdir())


def test_resuming_gives_the_same_weights_to_the_bit(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    whole = trainer(tmp_path / "a", length=10)
    whole.run()
    trainer(tmp_path / "b", length=5).run()
    second = trainer(tmp_path / "b", length=10)
    found = second.store.latest()
    assert found is not None
    second.load_state(found[1], found[0])
    assert second.iteration == 5
    second.run()
    assert torch.equal(level(whole), level(second))
    assert torch.equal(
        whole.optimizer.state_dict()["state"][0]["momentum_buffer"],
        second.optimizer.state_dict()["state"][0]["momentum_buffer"],
    )


def test_the_learning_rate_of_the_present_settings_wins_on_resume(tmp_path: Path) -> None:
    trainer(tmp_path, length=5).run()
    second = trainer(tmp_path, length=6, lr=0.01)
    found = second.store.latest()
    assert found is not None
    second.load_state(found[1], found[0])
    second.run()
    assert second.optimizer.param_groups[0]["lr"] == 0.01


def test_the_schedule_sets_the_rate_of_every_iteration(tmp_path: Path) -> None:
    run = trainer(tmp_path, length=3, factor=lambda iteration: [1.0, 0.5, 0.25][iteration], log_every=1)
    run.run()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["lr"] for record in records] == pytest.approx([0.1, 0.05, 0.025])


def test_a_loss_that_is_not_finite_stops_with_everything_needed(tmp_path: Path) -> None:
    run = trainer(tmp_path)

    def forward(batch: Batch) -> dict[str, Tensor]:
        bad = math.nan if batch.infos[0].image_id == 30 else 1.0
        return {"fine": level(run).sum(), "broken": level(run).sum() * bad}

    run.model.forward = forward
    with refused(4, "fine", "broken", "nan", "30, 31", "diverged_00000003.pth", error=TrainingDiverged) as caught:
        run.run()
    assert "\n" not in str(caught.value)
    evidence = checkpoint.load(tmp_path / "diverged_00000003.pth")
    assert torch.equal(evidence["batches"][0]["images"], next(batches(3)).images)
    assert evidence["batches"][0]["infos"][0]["image_id"] == 30
    assert torch.isfinite(evidence["model"]["level"]).all(), "weights are those before the bad step"


def test_clipping_bounds_the_step(tmp_path: Path) -> None:
    run = trainer(tmp_path, length=1, clip_norm=0.01)
    run.run()
    assert abs(level(run).item()) == pytest.approx(0.1 * 0.01, rel=1e-3)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_finishes_the_step_and_saves(tmp_path: Path, signum: signal.Signals) -> None:
    run = trainer(tmp_path, length=1000)

    def signalling(first: int, size: int, passes: int) -> Iterator[Batch]:
        for number, batch in enumerate(batches(first)):
            if number == 6:
                os.kill(os.getpid(), signum)
            yield batch

    run.batches = signalling
    before = signal.getsignal(signum)
    with pytest.raises(Interrupted) as caught:
        run.run()
    assert caught.value.signum == signum
    assert checkpoint.load(tmp_path / "iteration_00000007.pth")["iteration"] == 7
    assert signal.getsignal(signum) is before


def test_the_best_by_the_metric_is_kept(tmp_path: Path) -> None:
    scores = {2: 0.1, 4: 0.3, 6: 0.2, 8: 0.25, 10: 0.3}

    def evaluate(model: nn.Module, iteration: int) -> dict[str, float]:
        model.eval()
        return {"AP": scores[iteration], "AP50": 0.5}

    run = trainer(tmp_path, length=10, eval_every=2, evaluate=evaluate)
    assert run.run() == {"AP": 0.3, "AP50": 0.5}
    assert run.model.training
    best = checkpoint.load(run.store.best_path)
    assert (best["iteration"], best["best"]) == (4, 0.3)
    tests = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines() if '"test"' in line]
    assert [record["AP"] for record in tests] == list(scores.values())


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_mixed_precision_trains(tmp_path: Path, precision: torch.dtype) -> None:
    run = trainer(tmp_path, length=40, precision=precision)
    run.run()
    assert level(run).item() == pytest.approx(0.5, abs=0.05)
    assert run.state()["scaler"] or precision == torch.bfloat16
