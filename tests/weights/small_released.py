"""The authors' networks at a fraction of their width: all names of a real file, few numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dcn_det.config import Config, load_config
from dcn_det.models.build import build_detector
from dcn_det.weights import released

ROOT = Path(__file__).resolve().parents[2]
ARRAYS = Path(__file__).parent / "released"
CLASSES = ("cat", "dog", "emu")
CONFIGS = {
    "rcnn": "faster_rcnn_r101",
    "rcnn_dcn": "faster_rcnn_r101_dcn",
    "rfcn": "rfcn_r101",
    "rfcn_dcn": "rfcn_r101_dcn",
}


def path_of(config: str) -> Path:
    return ROOT / "configs/coco" / f"{config}.yaml"


def present(config: str, *values: object) -> object:
    """A case of a parametrised test, skipped where the config it needs is not there."""
    reason = f"needs configs/coco/{config}.yaml"
    return pytest.param(*values, marks=pytest.mark.skipif(not path_of(config).is_file(), reason=reason))


NETWORKS = [present(config, network) for network, config in CONFIGS.items()]
NARROW = (
    "model.backbone.width=8",
    "model.backbone.stem_width=8",
    "model.rpn.channels=8",
    "model.head.channels=8",
    f"data.classes=[{','.join(CLASSES)}]",
)
HIDDEN = ("model.head.hidden=8",)


def pyramid_shapes(deformable: bool) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays of the authors' feature pyramid networks, from the symbols in their released code."""
    heads = ("rpn_", "conv_new", "fc_new", "cls_score", "bbox_pred", "offset")
    shapes = {
        name: shape
        for name, shape in shapes_of("rcnn").items()
        if not name.startswith(tuple("arg:" + h for h in heads))
    }
    layers: dict[str, tuple[int, ...]] = {
        **{f"fpn_p{level}_1x1": (256, 128 * 2 ** (level - 1), 1, 1) for level in (2, 3, 4, 5)},
        **{f"fpn_p{level}": (256, 256, 3, 3) for level in (2, 3, 4, 5)},
        "fpn_p6": (256, 2048, 3, 3),
        "rpn_conv": (512, 256, 3, 3),
        "rpn_cls_score": (6, 512, 1, 1),
        "rpn_bbox_pred": (12, 512, 1, 1),
        "fc_new_1": (1024, 12544),
        "fc_new_2": (1024, 1024),
        "cls_score": (81, 1024),
        "bbox_pred": (324, 1024),
    }
    if deformable:
        blocks = {"res3b3": 128, "res4b22": 256, "res5a": 512, "res5b": 512, "res5c": 512}
        layers |= {f"{block}_branch2b_offset": (72, channels, 3, 3) for block, channels in blocks.items()}
        layers |= {f"offset_p{level}": (98, 12544) for level in (2, 3, 4, 5)}
    for name, shape in layers.items():
        shapes |= {f"arg:{name}_weight": shape, f"arg:{name}_bias": shape[:1]}
    return shapes


def names_of(network: str) -> list[str]:
    """Names of the arrays in the authors' file."""
    content = json.loads((ARRAYS / f"{network}.json").read_text())
    return [f"{group[:3]}:{name}" for group in ("args", "aux") for name in content[group]]


def shapes_of(network: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays in the authors' file."""
    content = json.loads((ARRAYS / f"{network}.json").read_text())
    return {f"{group[:3]}:{name}": tuple(shape) for group in ("args", "aux") for name, shape in content[group].items()}


def overrides_of(network: str) -> list[str]:
    return [*NARROW, *(HIDDEN if network.startswith("rcnn") else ())]


def config_of(network: str) -> Config:
    return load_config(path_of(CONFIGS[network]), *overrides_of(network))


def arrays_of(network: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights of a narrow network under the authors' names."""
    config, generator = config_of(network), np.random.default_rng(seed)
    with torch.device("meta"):
        shapes = build_detector(config, len(CLASSES)).state_dict()
    kind = released.recognise(names_of(network))
    arrays = {}
    for name in names_of(network):
        shape = tuple(shapes[str(released.our_name(name, kind))].shape)
        value = generator.uniform(0.5, 1.5, shape) if "var" in name else generator.normal(0, 0.1, shape)
        arrays[name] = value.astype(np.float32)
    return arrays
