"""Nothing in the schema converts silently, and its vocabulary is that of the parts it configures."""

from typing import Any, get_args

import pytest
from pydantic import ValidationError

from dcn_det.categories import Category
from dcn_det.config import Config, from_plain, to_plain
from dcn_det.config.data import CocoDataConfig, VocDataConfig
from dcn_det.config.load import leaves
from dcn_det.config.model import AlignedInceptionResNetConfig, ResNetConfig, RFCNHeadConfig
from dcn_det.config.section import Section
from dcn_det.config.testing import ExpectedConfig
from dcn_det.config.train import TrainConfig
from dcn_det.errors import UserError
from dcn_det.evaluation.coco import evaluate
from dcn_det.evaluation.ground_truth import GroundTruth
from dcn_det.evaluation.voc import evaluate_voc

EXPECTED = (ExpectedConfig(metric="AP", value=0.3, source="here"),)
LEAVES = list(leaves(to_plain(Config(name="x", expected=EXPECTED))))


def replaced(path: tuple[str | int, ...], value: object) -> object:
    plain = to_plain(Config(name="x", expected=EXPECTED))
    block: Any = plain
    for part in path[:-1]:
        block = block[part]
    block[path[-1]] = value
    return plain


@pytest.mark.parametrize(("path", "value"), [leaf for leaf in LEAVES if isinstance(leaf[1], int | float)])
def test_numbers_and_switches_in_quotes_are_refused(path, value):
    key = ".".join(map(str, path))
    with pytest.raises(UserError, match=f"^settings: {key}: "):
        from_plain(replaced(path, str(value)))


@pytest.mark.parametrize(("path", "value"), [leaf for leaf in LEAVES if isinstance(leaf[1], str)])
def test_numbers_are_no_strings(path, value):
    key = ".".join(map(str, path))
    with pytest.raises(UserError, match=f"^settings: {key}: "):
        from_plain(replaced(path, 0))


@pytest.mark.parametrize(("path", "value"), [leaf for leaf in LEAVES if isinstance(leaf[1], list)])
def test_a_list_is_no_single_value(path, value):
    with pytest.raises(UserError, match=f"^settings: {'.'.join(map(str, path))}: .*a .*list of"):
        from_plain(replaced(path, "x"))


def sections(section: type[Section] = Config) -> set[type[Section]]:
    found = {section}
    for key, field in section.model_fields.items():
        for inner in (field.annotation, *get_args(field.annotation), *section.variants(key).values()):
            if isinstance(inner, type) and issubclass(inner, Section):
                found |= sections(inner)
    return found


def test_every_block_is_frozen_closed_and_strict():
    assert {VocDataConfig, ResNetConfig, AlignedInceptionResNetConfig, RFCNHeadConfig} < sections()
    for section in sections():
        rules = section.model_config
        assert rules["frozen"] and rules["strict"] and rules["extra"] == "forbid"
    with pytest.raises(ValidationError):
        Config().seed = 3  # type: ignore[misc]


def test_metrics_are_those_that_the_evaluation_gives():
    thing = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "area": 25, "iscrowd": 0}
    truth = GroundTruth("one object", {1: (9, 9)}, (Category(1, "cat"),), (thing,))
    assert CocoDataConfig.metrics == tuple(evaluate(truth, []).values)
    assert VocDataConfig.metrics == tuple(evaluate_voc(truth, []).values)


def test_blocks_with_variants_know_their_kinds():
    assert set(TrainConfig.variants("optimizer")) == {"sgd", "adamw"}
    assert TrainConfig.default_kind("optimizer") == "sgd"
    assert TrainConfig.variants("warmup") == {}
    assert TrainConfig.variants("nonsense") == {}


def test_compilation_and_recomputation_exclude_each_other() -> None:
    with pytest.raises(UserError, match=r"^settings: train: .*compile.*recompute_stages"):
        from_plain({"train": {"compile": True, "recompute_stages": ["res4"]}})
    assert from_plain({"train": {"compile": True, "recompute_stages": []}}).train.compile
