"""Settings of earlier versions are read as what they meant."""

from typing import Any

import pytest

from dcn_det.config import Config, from_plain, load_config, to_plain, upgrade_plain
from dcn_det.config import upgrade as upgrading
from dcn_det.config.data import CocoSplitConfig
from dcn_det.config.model import ResNetConfig
from tests.config.helpers import error


def version_1(**data: object) -> dict:
    """What version 1 stored: the keys of all data formats, and no imports."""
    plain = to_plain(Config(name="x"))
    del plain["imports"]
    plain["version"] = 1
    plain["data"] |= data
    for split in ("train", "test"):
        if plain["data"][split] is not None:
            plain["data"][split] = {"images": None, "annotations": None, "sets": None} | plain["data"][split]
    return plain


def test_the_keys_of_other_data_formats_are_dropped():
    assert from_plain(version_1()) == Config(name="x")
    assert from_plain(version_1(test=None)).data.test is None
    plain = version_1(kind="voc", train={"sets": ["a"]}, test={"sets": ["b"]})
    plain["train"]["best_metric"] = "mAP50"
    data: Any = from_plain(plain).data
    assert (data.kind, data.train.sets, data.test.sets) == ("voc", ("a",), ("b",))


def test_a_file_of_version_1_is_upgraded_where_it_is_read(write):
    write("version: 1\ndata: {train: {images: a, annotations: b, sets: null}}\n", "b.yaml")
    config = load_config(write("base: b.yaml\n"))
    assert config.version == 2 and config.data.train == CocoSplitConfig(images="a", annotations="b")
    assert config.origins["version"] == "b.yaml:1"
    assert "a.yaml:1: data.train.sets: unknown key" in error(write("data: {train: {images: a, sets: null}}\n"))


def test_settings_stored_without_a_precision_of_testing_test_in_float32():
    for plain in (to_plain(Config.model_validate({"name": "x", "train": {"precision": "bfloat16"}})), version_1()):
        del plain["test"]["precision"]
        assert from_plain(plain).test.precision == "float32"


@pytest.mark.parametrize("version", ["3", "0", "'1'", "1.0x"])
def test_other_versions_are_refused(write, version):
    message = error(write(f"version: {version}\n"))
    assert message.startswith("a.yaml:1: version: ") and message.endswith("allowed: 2")


def test_settings_of_this_version_are_left_alone():
    plain = to_plain(Config(name="x"))
    assert upgrade_plain(plain) == plain
    del plain["imports"]
    assert upgrade_plain(version_1()) == plain


def test_a_layout_that_did_not_fit_torchvision_stays_and_the_claim_goes(write):
    plain = version_1()
    plain["model"]["backbone"] |= {"kind": "resnet50", "stride_on": "first_1x1"}
    backbone = from_plain(plain).model.backbone
    assert isinstance(backbone, ResNetConfig)
    assert (backbone.weights, backbone.stride_on, backbone.stem_pool) == ("none", "first_1x1", "pad")
    plain["model"]["backbone"]["kind"] = "resnet18"  # whose basic blocks have one place for the stride
    assert from_plain(plain).model.backbone.weights == "torchvision"
    plain["model"]["backbone"]["preprocess"]["std"] = [1.0, 1.0, 1.0]
    assert from_plain(plain).model.backbone.weights == "none"
    path = write("version: 1\nmodel: {backbone: {stride_on: first_1x1}}\n")
    assert error(path).startswith("a.yaml:2: model.backbone.stride_on: ")


def mask_scale(config: Config) -> float | None:
    assert isinstance(config.model.backbone, ResNetConfig)
    return config.model.backbone.deform.mask_scale


def test_stored_masks_without_a_factor_keep_the_one_they_had(write):
    plain = to_plain(load_config(write("model: {backbone: {deform: {blocks: [res5a], kind: v2}}}\n")))
    assert mask_scale(from_plain(plain)) == 2
    del plain["model"]["backbone"]["deform"]["mask_scale"]
    for version in (1, 2):
        plain["version"] = version
        assert upgrade_plain(plain)["model"]["backbone"]["deform"]["mask_scale"] == 1
        assert mask_scale(from_plain(plain)) == 1
    # Offsets alone have no factor, and settings that no network was made from get the present default.
    plain["model"]["backbone"]["deform"]["kind"] = "v1"
    assert "mask_scale" not in upgrade_plain(plain)["model"]["backbone"]["deform"]
    part = from_plain({"model": {"backbone": {"kind": "resnet50", "deform": {"kind": "v2"}}}})
    assert mask_scale(part) == 2


def test_renamed_keys_move_and_are_told(write, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(upgrading.RENAMED, "train.lr_base", "train.optimizer.lr")
    monkeypatch.setitem(upgrading.RENAMED, "limit", "test.max_detections")
    plain = version_1()
    plain["train"]["lr_base"] = 0.5
    del plain["train"]["optimizer"]
    plain["limit"] = 7
    config = from_plain(plain)
    assert (config.train.optimizer.lr, config.test.max_detections) == (0.5, 7)
    path = write("version: 1\ntrain:\n  lr_base: 0.25\n")
    config = load_config(path)
    assert config.train.optimizer.lr == 0.25 and config.origins["train.optimizer.lr"] == "a.yaml:3"
    message = error(write("train:\n  lr_base: 0.25\n"))
    assert message == "a.yaml:2: train.lr_base: was renamed to 'train.optimizer.lr'"
    assert error(write("seed: 1\n"), "limit=3").endswith("'test.max_detections'")
