"""The configs of DeepLab: published numbers, variants, data and schedules."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dcn_det.config import load_any
from dcn_det.config.segmentation import SegmentationConfig
from dcn_det.config.segmentation_data import CityscapesDataConfig, VocMasksConfig
from dcn_det.models.build import build_model
from dcn_det.ops import DeformConv2d

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    f"{path.parent.name}/{path.stem}": path
    for folder in ("voc", "cityscapes")
    for path in sorted((ROOT / "configs" / folder).glob("deeplab*"))
}
TABLE_1 = {"dconv1": (73.9, 73.5), "dconv2": (74.8, 74.4), "dconv3": (75.2, 75.2), "dconv6": (74.8, 75.1)}
TABLE_3 = {
    "atrous2": (69.7, 70.4),
    "atrous4": (73.1, 71.9),
    "atrous6": (73.6, 72.7),
    "atrous8": (73.2, 72.4),
    "dconv": (75.3, 75.2),
}
"""mIoU on Pascal VOC 2012 val and Cityscapes val."""
README = {"atrous2": (70.7, 70.3), "dconv": (75.9, 75.2)}
RES5 = ("res5a", "res5b", "res5c")
BLOCKS = {
    "dconv1": ("res5c",), "dconv2": ("res5b", "res5c"), "dconv3": RES5, "dconv": RES5,
    "dconv6": ("res4b20", "res4b21", "res4b22", *RES5),
}  # fmt: skip


def config_of(name: str, *overrides: str) -> SegmentationConfig:
    config = load_any(FILES[name], *overrides)
    assert isinstance(config, SegmentationConfig)
    return config


def test_every_published_number_has_its_config() -> None:
    expected = {}
    for table, rows in (("paper, Table 1", TABLE_1), ("paper, Table 3", TABLE_3)):
        for variant, values in rows.items():
            for folder, value in zip(("voc", "cityscapes"), values):
                expected[f"{folder}/deeplab_r101_{variant}"] = {table: value}
    for variant, values in README.items():
        for folder, value in zip(("voc", "cityscapes"), values):
            expected[f"{folder}/deeplab_r101_{variant}"]["the authors' released code, README"] = value
    found = {
        name: {item.source: round(100 * item.value, 4) for item in config_of(name).expected if item.metric == "mIoU"}
        for name in FILES
    }
    assert found == expected
    for name in FILES:
        config = config_of(name)
        assert {item.split for item in config.expected} == {config.data.test_title}


@pytest.mark.parametrize("name", FILES)
def test_a_config_holds_only_its_differences(name: str) -> None:
    lines = [line for line in FILES[name].read_text().splitlines() if line and not line.startswith("#")]
    assert len(lines) <= 15 and lines[0].startswith("base:") and FILES[name].read_text().startswith("# ")


@pytest.mark.parametrize("name", FILES)
def test_variants_differ_in_what_their_names_say(name: str) -> None:
    config: Any = config_of(name)
    variant = name.rpartition("_")[2]
    assert config.model.backbone.deform.blocks == BLOCKS.get(variant, ())
    assert config.model.backbone.res5_dilation == (int(variant[-1]) if variant.startswith("atrous") else 2)
    with torch.device("meta"):
        model = build_model(config, config.data.num_classes)
    layers = [layer for layer in model.modules() if isinstance(layer, DeformConv2d)]
    assert len(layers) == len(BLOCKS.get(variant, ())) and all(layer.offset_groups == 1 for layer in layers)
    assert (model.head.reduce.out_channels, model.stride) == (1024, 16)


def test_data_and_schedules() -> None:
    voc, city = config_of("voc/deeplab_r101_dconv"), config_of("cityscapes/deeplab_r101_dconv")
    assert isinstance(voc.data, VocMasksConfig) and isinstance(city.data, CityscapesDataConfig)
    assert (voc.data.input_size, voc.data.crop, voc.data.compare_at) == ((360, 600), None, "input")
    assert (city.data.input_size, city.data.crop, city.data.compare_at) == ((1024, 2048), (768, 1024), "image")
    assert voc.data.flip == city.data.flip == "double"
    for config, epochs, drop, warmup in ((voc, 12, 8, "none"), (city, 53, 40.336, "constant")):
        train: Any = config.train
        assert (train.epochs, train.schedule.drops, train.schedule.unit) == (epochs, (drop,), "epochs")
        assert train.warmup.kind == warmup and train.optimizer.lr / train.reference_batch == 5e-4
        assert train.optimizer.weight_decay * train.reference_batch == 5e-4 and not train.optimizer.decay_bias
    folder = ROOT / "configs" / "base"
    for name, kind, iterations in (("voc", "voc_masks", 30000), ("cityscapes", "cityscapes", 45000)):
        train = config_of(f"{name}/deeplab_r101_dconv", f"overlay={folder / f'schedule_paper_{kind}.yaml'}").train
        assert (train.iterations, train.epochs, train.optimizer.lr / train.reference_batch) == (iterations, None, 1e-3)


def test_modulated_convolutions_are_one_key() -> None:
    config: Any = config_of("voc/deeplab_r101_dconv", "model.backbone.deform.kind=v2")
    with torch.device("meta"):
        model = build_model(config, 21)
    assert all(layer.modulated for layer in model.modules() if isinstance(layer, DeformConv2d))
