"""Whole files of weights with wrong content: a correct result, or one line of error."""

import json
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from dcn_det.config import load_config
from dcn_det.engine.testing import load
from dcn_det.weights import checkpoint
from dcn_det.weights.convert import convert
from dcn_det.weights.files import read_backbone, read_state_dict
from tests.engine.helpers import trainer
from tests.messages import refused
from tests.weights.hostile import (
    TAME,
    TENSORS,
    VALUES,
    attempt,
    equal,
    mutate,
    write_if_possible,
)
from tests.weights.mxnet_writer import CODES, write_params
from tests.weights.small_released import arrays_of, config_of
from tests.weights.test_convert_backbones import CONFIG, NARROW, caffe_layers, original


def test_wrong_fields_of_a_checkpoint(state: dict[str, Any], tmp_path: Path) -> None:
    draw, refusals = random.Random(1), 0
    for _ in range(80):
        path = tmp_path / f"w{draw.choice(['.pth', '.pth', '.safetensors'])}"
        part = draw.choice(["config", "categories", "model", None])
        values = VALUES if part in ("categories", "model") else TAME
        content = {**state, part: mutate(state[part], draw, values)} if part else mutate(state, draw, values)
        if not write_if_possible(path, content):
            continue
        refusals += attempt(lambda: load(path, device="cpu")) is None  # noqa: B023
    assert refusals > 45


def test_wrong_fields_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    first = trainer(tmp_path / "run", length=2)
    first.run()
    state, draw, refusals = first.state(), random.Random(2), 0
    for _ in range(60):
        part = draw.choice([key for key in checkpoint.RESUMING if key in state])
        checkpoint.save(tmp_path / "w.pth", {**state, part: mutate(state[part], draw, VALUES)})
        second = trainer(tmp_path / "run", length=2)
        refusals += attempt(lambda: resume(second, tmp_path / "w.pth")) is None  # noqa: B023
    assert refusals > 20


def resume(second: Any, path: Path) -> bool:
    state = checkpoint.load(path)
    checkpoint.require(state, path, set(checkpoint.RESUMING) - {"categories"})
    second.load_state(state, path)
    return True


@pytest.mark.parametrize("missing", checkpoint.TESTING)
def test_a_missing_field_is_named(state: dict[str, Any], missing: str, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "w.pth", {key: value for key, value in state.items() if key != missing})
    with refused("w.pth", missing):
        load(tmp_path / "w.pth", device="cpu")


HEADERS = ["", "no json", "[1]", "null", "3", '"x"', "{", "1" * 5000, "[" * 100_000, '{"format": "dcn_det"}']


@pytest.mark.parametrize("text", HEADERS, ids=range(len(HEADERS)))
def test_foreign_headers_of_safetensors(text: str, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(TENSORS, path, {"dcn_det": text})
    assert attempt(lambda: load(path, device="cpu")) is None
    found = attempt(lambda: read_backbone(path))
    assert found is None or equal(found[0])


def test_a_header_without_checksum_is_read(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(TENSORS, path, {"dcn_det": json.dumps({"settings": {"a": 1}})})
    assert equal(read_state_dict(path))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_are_refused_by_name(state: dict[str, Any], value: float, tmp_path: Path) -> None:
    names = [name for name in state["model"] if name.endswith("weight")]
    bad = {name: tensor.clone() for name, tensor in state["model"].items()}
    bad[names[3]].flatten()[-1] = value
    bad[names[5]].fill_(value)
    checkpoint.save(tmp_path / "w.pth", {**state, "model": bad})
    with refused("w.pth", names[3]):
        load(tmp_path / "w.pth", device="cpu")


def test_integers_are_not_taken_for_weights(state: dict[str, Any], tmp_path: Path) -> None:
    model = {name: tensor.to(torch.int8) for name, tensor in state["model"].items()}
    checkpoint.save(tmp_path / "w.pth", {**state, "model": model})
    with refused("int8", "float32"):
        load(tmp_path / "w.pth", device="cpu")


def test_wrong_arrays_of_a_released_network(tmp_path: Path) -> None:
    config, arrays, draw, refusals = config_of("rcnn_dcn"), arrays_of("rcnn_dcn"), random.Random(3), 0
    strange = (np.zeros(0, np.float32), np.full((2, 3), np.nan, np.float32), np.float64(1e300).reshape(()))
    for _ in range(8):
        name, other = draw.choice(list(arrays)), draw.choice(list(arrays))
        changed = {key: value for key, value in arrays.items() if key != name}
        kind = draw.randrange(6)
        if kind == 1:
            changed |= {name: arrays[other], other: arrays[name]}
        elif kind == 2:
            changed[draw.choice(["", "x", "arg:a\n_weight", f"{name}_test", f"arg:{other}"])] = arrays[name]
        elif kind == 3:
            changed[name] = arrays[name].astype(draw.choice(list(CODES)))
        elif kind == 4:
            changed[name] = draw.choice(strange)
        elif kind == 5:
            changed[name] = np.full(arrays[name].shape, draw.choice([np.nan, 1e300]))
        write_params(tmp_path / "w.params", changed, draw.choice(["v1", "v3"]))
        refusals += attempt(lambda: convert(tmp_path / "w.params", config)) is None
    assert refusals > 4


def test_wrong_tensors_of_a_backbone(tmp_path: Path) -> None:
    draw, refusals = random.Random(4), 0
    config = load_config(CONFIG, *NARROW)
    whole = caffe_layers(original().state_dict(), separate=True)
    for case in range(12):
        tensors: dict[str, Any] = whole
        path = tmp_path / ("w.pkl" if case % 2 else "w.pth")
        if path.suffix == ".pkl":
            tensors = {name: value.numpy() for name, value in tensors.items()}
            path.write_bytes(pickle.dumps(mutate(tensors, draw, TAME), 2))
        else:
            write_if_possible(path, mutate(tensors, draw, VALUES))
        refusals += attempt(lambda: convert(path, config, "caffe")) is None  # noqa: B023
    assert refusals > 4
