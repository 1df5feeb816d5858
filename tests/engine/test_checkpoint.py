from pathlib import Path

import pytest
import torch
from torch import nn

from dcn_det.engine.store import CheckpointStore
from dcn_det.errors import UserError
from dcn_det.weights import checkpoint
from dcn_det.weights.files import load_into

STATE = {
    "config": {"a": [1, "b", None]},
    "categories": [{"id": 3, "name": "cat"}],
    "model": {"w": torch.arange(3.0)},
}


def test_a_saved_state_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    checkpoint.save(path, {**STATE, "iteration": 7})
    state = checkpoint.load(path)
    assert state["iteration"] == 7
    assert state["config"] == {"a": [1, "b", None]}
    assert torch.equal(state["model"]["w"], torch.arange(3.0))
    assert [item.name for item in tmp_path.iterdir()] == ["a.pth"], "no temporary file is left"


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    checkpoint.save(path, {**STATE, "iteration": 1})
    with pytest.raises(Exception, match=r"pickle|local"):
        checkpoint.save(path, {**STATE, "iteration": lambda: 0})
    assert checkpoint.load(path)["iteration"] == 1
    assert [item.name for item in tmp_path.iterdir()] == ["a.pth"]


@pytest.mark.parametrize("size", [0, 10, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path: Path, size: float) -> None:
    path = tmp_path / "a.pth"
    checkpoint.save(path, {"model": {"w": torch.randn(1000)}})
    data = path.read_bytes()
    path.write_bytes(data[: int(size * len(data)) if isinstance(size, float) else size])
    with pytest.raises(UserError, match=r"a\.pth'; it is truncated or damaged"):
        checkpoint.load(path)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"state_dict": {}}, path)
    with pytest.raises(UserError, match="not a dcn_det checkpoint"):
        checkpoint.load(path)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"format": "dcn_det", "format_version": checkpoint.VERSION + 1}, path)
    with pytest.raises(UserError, match="newer dcn_det"):
        checkpoint.load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such weights file: .*none\.pth"):
        checkpoint.load(tmp_path / "none.pth")


def test_weights_of_another_architecture_name_what_differs() -> None:
    model = nn.Linear(3, 2)
    state = {"weight": torch.zeros(2, 4), "extra": torch.zeros(1)}
    with pytest.raises(UserError) as caught:
        load_into(model, state, source="x.pth")
    message = str(caught.value)
    assert "x.pth" in message and "3 differences" in message
    for difference in ("bias 2", "extra 1", "weight is 2x4 instead of 2x3"):
        assert f"\n{difference}" in message


def test_the_store_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for iteration in (10, 20, 30):
        store.save(iteration, {**STATE, "iteration": iteration})
    store.save_best({**STATE, "iteration": 20})
    assert [path.name for path in store.saved()] == ["iteration_00000020.pth", "iteration_00000030.pth"]
    assert checkpoint.load(store.best_path)["iteration"] == 20


def test_latest_goes_back_past_a_damaged_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    assert store.latest() is None
    store.save(10, {**STATE, "iteration": 10})
    newest = store.save(20, {**STATE, "iteration": 20})
    newest.write_bytes(newest.read_bytes()[:100])
    with pytest.warns(UserWarning, match=r"iteration_00000020\.pth.*\.damaged"):
        found = store.latest()
    assert found is not None
    assert found[1]["iteration"] == 10
