"""The authors' networks at a fraction of their width: all names of a real file, few numbers."""

import json
from pathlib import Path

import numpy as np
import torch

from dcn_det.config import Config, load_config
from dcn_det.models.build import build_detector
from dcn_det.weights import released

ROOT = Path(__file__).resolve().parent.parent.parent
CLASSES = ("cat", "dog", "emu")
CONFIGS = {"rcnn": "faster_rcnn_r101", "rcnn_dcn": "faster_rcnn_r101_dcn"}
NARROW = (
    "model.backbone.width=8",
    "model.backbone.stem_width=8",
    "model.rpn.channels=8",
    "model.head.channels=8",
    f"data.classes=[{','.join(CLASSES)}]",
)
HIDDEN = ("model.head.hidden=8",)


def names_of(network: str) -> list[str]:
    """Names of the arrays in the authors' file."""
    content = json.loads((ROOT / f"tests/data/released/{network}.json").read_text())
    return [f"{group[:3]}:{name}" for group in ("args", "aux") for name in content[group]]


def shapes_of(network: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays in the authors' file."""
    content = json.loads((ROOT / f"tests/data/released/{network}.json").read_text())
    return {f"{group[:3]}:{name}": tuple(shape) for group in ("args", "aux") for name, shape in content[group].items()}


def path_of(network: str) -> str:
    return str(ROOT / "configs/coco" / f"{CONFIGS[network]}.yaml")


def overrides_of(network: str) -> list[str]:
    return [*NARROW, *(HIDDEN if network.startswith("rcnn") else ())]


def config_of(network: str) -> Config:
    return load_config(path_of(network), overrides_of(network))


def arrays_of(network: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights of a narrow network under the authors' names."""
    config, generator = config_of(network), np.random.default_rng(seed)
    with torch.device("meta"):
        shapes = build_detector(config.model, len(CLASSES), config.test, load_backbone_weights=False).state_dict()
    kind = released.recognise(names_of(network))
    arrays = {}
    for name in names_of(network):
        shape = tuple(shapes[str(released.our_name(name, kind))].shape)
        value = generator.uniform(0.5, 1.5, shape) if "var" in name else generator.normal(0, 0.1, shape)
        arrays[name] = value.astype(np.float32)
    return arrays
