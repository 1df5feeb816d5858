"""Training, testing, and results that an interrupted comparison continues from."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dcn_det.errors import UserError
from dcn_det.mnist import runs
from dcn_det.mnist.networks import METHODS, build, resumed
from dcn_det.mnist.report import picture, table
from dcn_det.mnist.runs import FAIR, SOURCES, Results, load, run_all, settings
from dcn_det.mnist.training import Schedule, measure, train
from tests.mnist.helpers import SCHEDULES_OF_TWO_STEPS, drawn

EVERY_RUN = [(SOURCES, "plain"), (SOURCES, "deformable"), *((FAIR, method) for method in METHODS)]


def ignore(*args: object) -> None:
    """Hears no progress."""


def results_of(path: Path | None, seeds: int = 1, workers: int = 1) -> Results:
    training, testing = drawn(40), drawn(20, seed=1)
    results = Results(path, settings(training, testing, SCHEDULES_OF_TWO_STEPS), "cpu", 1)
    run_all(results, training, testing, range(seeds), SCHEDULES_OF_TWO_STEPS, ignore, workers)
    return results


def without_durations(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in each.items() if key not in ("seconds", "cpu_seconds")} for each in runs]


def test_training_learns() -> None:
    torch.manual_seed(0)
    network = build("plain")
    train(network, drawn(100), Schedule(images=800, scaled=False, batch_size=8, lr=1e-2, branch_lr=1.0), 0, ignore)
    found = measure(network, drawn(50, seed=1))
    assert found.regular > 0.8  # chance is 0.1
    counted = [each for each in found.by_scale if each is not None]
    assert len(found.by_scale) == 6 and min(counted) <= found.scaled <= max(counted)


@pytest.mark.parametrize("constant", [True, False])
def test_statistics_of_batch_norm_may_stay_constant(constant: bool) -> None:
    torch.manual_seed(0)
    network = resumed(build("plain"), "deformable")
    before = {name: each.clone() for name, each in network.state_dict().items()}
    train(network, drawn(40), replace(SCHEDULES_OF_TWO_STEPS[FAIR], constant_statistics=constant), 0, ignore)
    same = {name for name, each in network.state_dict().items() if torch.equal(each, before[name])}
    statistics = {name for name in before if name.rpartition(".")[2] in ("running_mean", "running_var")}
    assert same & statistics == (statistics if constant else set())
    assert not any(name.endswith("weight") for name in same)  # all weights and offsets are trained


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    network = build("plain")
    torch.nn.init.constant_(network.classify.bias, float("nan"))
    with pytest.raises(UserError, match="finite"):
        train(network, drawn(20), SCHEDULES_OF_TWO_STEPS["fair"], 0, ignore)


def test_every_run_is_saved_and_shown(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    results = results_of(path, seeds=2)
    record = load(path)
    assert record == json.loads(json.dumps(results.record))
    assert [(run["protocol"], run["method"], run["seed"]) for run in record["runs"]] == [
        (*each, seed) for seed in (0, 1) for each in EVERY_RUN
    ]
    lines = table(record).splitlines()
    assert len(lines) == 2 + 2 + len(EVERY_RUN) and "2 seeds" in lines[0]
    plain = [run for run in record["runs"] if (run["protocol"], run["method"]) == (SOURCES, "plain")]
    mean = 50 * (plain[0]["regular"] + plain[1]["regular"])
    assert lines[4].startswith(f"| sources | plain | {mean:.2f} ± ") and "98.74 / 57.01" in lines[4]
    pytest.importorskip("matplotlib")
    assert picture(record, drawn(20, seed=1)).startswith(b"\x89PNG")


def test_an_interrupted_comparison_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.json"
    complete = results_of(None).runs
    trained: list[str] = []
    run = runs._run

    def interrupted(protocol: str, method: str, *rest) -> dict:
        if (protocol, method) == (FAIR, "ic_stn") and "ic_stn" not in trained:
            trained.append(method)
            raise KeyboardInterrupt
        trained.append(method)
        return run(protocol, method, *rest)

    monkeypatch.setattr(runs, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        results_of(path)
    assert [each["method"] for each in load(path)["runs"]] == ["plain", "deformable", "plain", "stn"]
    trained[:] = ["ic_stn"]
    continued = results_of(path).runs
    assert trained[1:] == ["ic_stn", "active", "deformable", "modulated"]
    assert without_durations(continued) == without_durations(complete)


def test_networks_trained_at_the_same_time_are_those_trained_in_turn(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected = results_of(None).runs
    finally:
        torch.set_num_threads(threads)
    path = tmp_path / "results.json"
    found = results_of(path, workers=2)
    assert without_durations(found.runs) == without_durations(expected)
    assert load(path)["runs"] == json.loads(json.dumps(found.runs))


def test_runs_with_other_settings_are_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    common = settings(drawn(40), drawn(20), SCHEDULES_OF_TWO_STEPS)
    Results(path, common, "cpu", 1).add([])
    assert Results(path, common, "cpu", 1).runs == []
    with pytest.raises(UserError, match="other settings"):
        Results(path, settings(drawn(30), drawn(20), SCHEDULES_OF_TWO_STEPS), "cpu", 1)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"runs": [{}]}', '{"runs": 1}'])
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"other\.json"):
        load(path)
