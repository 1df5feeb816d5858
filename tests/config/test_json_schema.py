"""The JSON schema for editors accepts every config of the project, and what its keys refuse, it refuses."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dcn_det.config import Config, json_schema
from dcn_det.config.shipped import MODELINE
from dcn_det.config.source import parse
from dcn_det.config.tasks import SCHEMAS
from tests.config.json_schemas import fits

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
SCHEMA = json.loads((CONFIGS / "schema.json").read_text())


def accepted(text: str) -> bool:
    return fits(parse(text, "x").plain(), SCHEMA, SCHEMA)


def test_the_committed_schema_is_fresh() -> None:
    assert json_schema() == SCHEMA, "run dcn-det config schema --write"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_a_config_fits_the_schema_and_names_it(path: Path) -> None:
    text = path.read_text()
    assert accepted(text)
    first, second = text.splitlines()[:2]
    assert first == f"{MODELINE}{os.path.relpath(CONFIGS / 'schema.json', path.parent)}"
    assert second.startswith("# ")


def test_it_knows_every_key_of_every_task_and_what_it_means() -> None:
    keys = {key for schema in SCHEMAS for key in schema.model_fields}
    assert set(SCHEMA["properties"]) == {*keys, "base"} and keys > set(Config.model_fields) - {"evaluation"}
    assert SCHEMA["additionalProperties"] is False
    momentum = SCHEMA["$defs"]["SGDConfig"]["properties"]["momentum"]
    assert (momentum["minimum"], momentum["exclusiveMaximum"], momentum["default"]) == (0, 1, 0.9)
    assert "pixels" in SCHEMA["$defs"]["ResizeConfig"]["properties"]["short_side"]["description"]
    kinds = {kind for each in SCHEMA["properties"]["model"]["anyOf"] for kind in constants(each)}
    assert {"faster_rcnn", "deeplab", "classifier"} <= kinds


def constants(form: dict[str, Any]) -> Iterator[str]:
    kind = SCHEMA["$defs"][form["$ref"].rpartition("/")[2]]["properties"]["kind"]
    yield from kind.get("enum", [kind.get("const")])


@pytest.mark.parametrize(
    "text",
    [
        "base: a.yaml\ntrain: {optimizer: {lr: 0.1}}",
        "model: {head: {pooling: deformable}}",
        "data: {test: {part: [0, 0.5]}}",
        "model: {kind: deeplab}\ndata: {kind: cityscapes, crop: [5, 5]}\nevaluation: {voc_ap: area}",
        "model: {kind: classifier, label_smoothing: 0}\ndata: {kind: folders, ratio: [1, 2]}\ntest: {batch_size: 4}",
        "device: cuda:1",
    ],
)
def test_parts_of_configs_are_accepted(text: str) -> None:
    assert accepted(text)


@pytest.mark.parametrize(
    "text",
    [
        "modell: {}",
        "seed: -1",
        "seed: '1'",
        "train: {epoch: 1}",
        "train: {optimizer: {kind: adam}}",
        "train: {optimizer: {kind: sgd, betas: [0.9, 0.9]}}",
        "model: {kind: deeplab, rpn: {channels: 1}}",
        "data: {kind: coco, corners: inclusive}",
        "data: {resize: {short_side: 0}}",
        "test: {nms: soft}",
        "model: {backbone: {res5_dilation: [1, 2]}}",
        "device: gpu",
    ],
)
def test_what_is_wrong_in_any_config_is_refused(text: str) -> None:
    assert not accepted(text)
