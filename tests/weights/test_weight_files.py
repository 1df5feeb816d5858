from pathlib import Path

import pytest
import torch
from torch import nn

from dcn_det.weights.files import load_into, read_state_dict
from tests.messages import refused, says

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)}


def network() -> nn.Module:
    return nn.ModuleDict({"a": nn.Linear(3, 2)})


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3},
        {"model": STATE},
        {"module." + name: value for name, value in STATE.items()},
        {"state_dict": {"module." + name: value for name, value in STATE.items()}},
    ],
)
def test_reads_what_people_save(tmp_path: Path, content: dict[str, object]) -> None:
    torch.save(content, tmp_path / "w.pth")
    state = read_state_dict(tmp_path / "w.pth")
    assert state.keys() == STATE.keys()
    assert all(torch.equal(state[name], STATE[name]) for name in STATE)


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "resnet50.pth").touch()
    with refused("resnet5O.pth", "resnet50.pth"):
        read_state_dict(tmp_path / "resnet5O.pth")


@pytest.mark.parametrize("keep", [0, 1, 10, 300, 0.5, 0.99])
def test_truncated_file(tmp_path: Path, keep: float) -> None:
    torch.save({name: torch.randn(100, 100) for name in "abc"}, tmp_path / "w.pth")
    data = (tmp_path / "w.pth").read_bytes()
    (tmp_path / "w.pth").write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with refused("w.pth") as caught:
        read_state_dict(tmp_path / "w.pth")
    assert caught.value.__cause__ is not None, "reading it failed"
    assert "\n" not in str(caught.value)


class Trap:
    def __reduce__(self) -> tuple[object, ...]:
        return eval, ("1/0",)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    torch.save({"a": Trap()}, tmp_path / "w.pth")
    with refused("w.pth") as caught:
        read_state_dict(tmp_path / "w.pth")
    assert caught.value.__cause__ is not None, "reading it failed"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content, named", [([1, 2], ["list"]), ({"epoch": 3}, ["epoch", "int"]), ({}, ["dict"])])
def test_not_tensors_by_name(tmp_path: Path, content: object, named: list[str]) -> None:
    torch.save(content, tmp_path / "w.pth")
    with refused("w.pth", *named):
        read_state_dict(tmp_path / "w.pth")


def test_loads_by_name() -> None:
    module = network()
    load_into(module, STATE | {"fc.weight": torch.zeros(1)}, source="x", ignored=("fc.",))
    assert all(torch.equal(value, STATE[name]) for name, value in module.state_dict().items())


def test_optional_names_keep_their_values() -> None:
    module = network()
    bias = module.get_parameter("a.bias").detach().clone()
    load_into(module, {"a.weight": STATE["a.weight"]}, source="x", optional=(".bias",))
    assert torch.equal(module.get_parameter("a.bias"), bias)


def test_every_misfit_is_listed_at_once_and_nothing_is_loaded() -> None:
    module = network()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = {"a.weight": torch.zeros(2, 4), **{f"b{i}": torch.zeros(1) for i in range(7)}}
    with refused("w.pth", 9) as caught:
        load_into(module, state, source="w.pth")
    _, *lines = str(caught.value).splitlines()
    assert len(lines) == 6 and says(lines[0], "a.bias", 2) and says(lines[1], "b0", 1) and says(lines[5], 4)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
