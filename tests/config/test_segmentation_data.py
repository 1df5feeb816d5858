"""Settings of images with masks."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from dcn_det.config.registry import MASKS, resolve
from dcn_det.config.segmentation_data import (
    MASK_METRICS,
    CityscapesDataConfig,
    MaskFilesConfig,
    SampleMasksConfig,
    VocMasksConfig,
)


def test_defaults_are_those_of_the_paper() -> None:
    voc, city = VocMasksConfig(), CityscapesDataConfig()
    assert (voc.resize.short_side, voc.resize.max_side, voc.crop, voc.compare_at) == (360, 600, None, "input")
    assert (city.resize.short_side, city.resize.max_side, city.crop) == (1024, 2048, (768, 1024))
    assert city.compare_at == "image" and voc.flip == city.flip == "double"
    assert (voc.class_count, city.class_count, len(city.colors)) == (21, 19, 19)


@pytest.mark.parametrize(
    "keys",
    [
        {"classes": ["a", "a"]},
        {"classes": []},
        {"classes": ["a", "b"], "ignored": [1]},
        {"classes": ["a"], "ignored": [256]},
        {"classes": [f"c{i}" for i in range(256)]},
        {"classes": ["a"], "crop": [0, 5]},
        {"classes": ["a"], "crop": [5]},
        {"classes": ["a"], "compare_at": "both"},
        {"classes": ["a"], "train": {"images": "x"}},
        {},
    ],
)
def test_wrong_values_are_refused(keys: dict[str, Any]) -> None:
    assert MaskFilesConfig.model_validate({"root": "r", "classes": ["a", "b"]}).ignored == (255,)
    with pytest.raises(ValidationError):
        MaskFilesConfig.model_validate({"root": "r", **keys})


def test_test_splits_have_titles() -> None:
    assert VocMasksConfig().test_title == "VOC2012 val"
    assert CityscapesDataConfig().test_title == "Cityscapes val"
    assert SampleMasksConfig().test_title == "sample masks val"
    test = CityscapesDataConfig.model_validate({"test": {"sets": ["val", "test"]}}).test
    assert test is not None and test.paths == ("leftImg8bit/val", "leftImg8bit/test", "gtFine/val")
    part = VocMasksConfig.model_validate({"fraction": 0.5})
    assert part.test_title == "VOC2012 val fraction 0.5"


def test_every_kind_names_code_that_exists() -> None:
    for name, section in MASKS.sections.items():
        assert section.metrics == MASK_METRICS
        assert section.check is not None and resolve(section.check)
        assert callable(MASKS.builder(name))
        assert section.submission is None or callable(resolve(section.submission))
