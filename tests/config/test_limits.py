"""Settings and files of absurd sizes are refused in one line, or bounded."""

import time
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from dcn_det.config import load_config
from dcn_det.config.load import DEEPEST, LARGEST
from dcn_det.config.section import NonNegative, NonNegativeFloat, Positive, PositiveFloat
from dcn_det.config.train import TrainConfig
from dcn_det.distributed import resolve_device
from dcn_det.engine.build import run_length
from tests.conftest import ROOT
from tests.messages import refused

HUGE = "1" + "0" * 21


@pytest.mark.parametrize(
    "setting",
    [
        "train.epochs=1e308",
        f"train.iterations={HUGE}",
        "train.batch_size=1000000000",
        "test.batch_size=1000000000",
        "train.accumulate=1000000000",
        "data.resize.short_side=1000000000",
        "data.short_sides=[100000]",
        "data.workers=100000",
        f"model.rpn.channels={HUGE}",
        f"model.backbone.width=1{'0' * 400}",
        "train.optimizer.lr=1e300",
        "model.rpn.anchors.scales=[1e300]",
    ],
)
def test_absurd_numbers_are_refused_with_the_limit(setting: str) -> None:
    key = setting.partition("=")[0]
    with refused("too large", "at most") as error:
        load_config(ROOT / "configs" / "sample" / "faster_rcnn.yaml", setting)
    text = str(error.value)
    assert text.startswith(f"override: {key}") and "\n" not in text and len(text) < 200


@pytest.mark.parametrize("kind", [Positive, NonNegative, PositiveFloat, NonNegativeFloat])
def test_every_number_has_a_limit(kind: Any) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(kind).validate_python(10**31)


def test_the_length_in_iterations_has_a_limit() -> None:
    train = TrainConfig(epochs=1e6)
    assert run_length(train, 1000, 8).run == 10**9
    with refused("train.epochs", 10**9):
        run_length(train, 1001, 8)
    with refused("train.iterations", 10**9):
        run_length(TrainConfig(iterations=10**9), 1, 7)


@pytest.mark.parametrize("name", ["../../evil", "/evil", "a/../../evil", ".", ".."])
def test_a_name_stays_below_the_folder_of_runs(write, name: str) -> None:
    with refused("name", f"'{name}'"):
        load_config(write(f"name: {name}\n"))
    assert load_config(write("name: a/b..c\n")).name == "a/b..c"


@pytest.mark.parametrize(
    "text",
    [
        r"data: {root: 'a'}",
        r'data: {root: "a\0b"}',
        r'data: {classes: [a, "\ud800"]}',
        r'base: "\0"',
        r'base: ["\ud800"]',
    ],
)
def test_characters_that_no_file_can_have_are_refused(write, text: str) -> None:
    if "\\" not in text:
        assert load_config(write(text + "\n")).data.root == "a"
        return
    with refused("a.yaml:1", text.partition(":")[0]):
        load_config(write(text + "\n"))


def test_bases_that_fan_out_are_read_once(write) -> None:
    """2^40 paths lead to the last file."""
    write("train: {iterations: 7}\n", "40.yaml")
    for level in range(40):
        write(f"base: [{level + 1}.yaml, ./{level + 1}.yaml]\n", f"{level}.yaml")
    started = time.monotonic()
    assert load_config(write("base: 0.yaml\n")).train.iterations == 7
    assert time.monotonic() - started < 10


def test_a_long_chain_and_a_large_file_are_refused(write, tmp_path) -> None:
    write("{}\n", f"{2 * DEEPEST}.yaml")
    for level in range(2 * DEEPEST):
        write(f"base: {level + 1}.yaml\n", f"{level}.yaml")
    with refused(DEEPEST, "files"):
        load_config(tmp_path / "0.yaml")
    with refused("b.yaml", "larger", LARGEST >> 20):
        load_config(write("#" * (LARGEST + 1), "b.yaml"))


@pytest.mark.parametrize("name", ["mps", "xpu", "meta", "cuda:x", "cuda:-1", "cpu:", "", "vulkan", "a\0b"])
def test_other_devices_are_refused(name: str) -> None:
    with refused("device", "allowed"):
        resolve_device(name)
