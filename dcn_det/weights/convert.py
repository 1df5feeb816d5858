"""Weights from elsewhere in our checkpoints: a whole detector, or a backbone to train from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from dcn_det.config import Config, to_plain
from dcn_det.config.layouts import TORCHVISION, of_backbone
from dcn_det.config.model import ResNetConfig
from dcn_det.errors import UserError
from dcn_det.models.backbones.resnet import DEPTHS
from dcn_det.models.build import build_backbone, build_detector
from dcn_det.structures import Category
from dcn_det.weights import caffe, checkpoint, mxnet, released
from dcn_det.weights.coco_classes import COCO_CATEGORIES
from dcn_det.weights.files import COUNTER, differences_of, refuse
from dcn_det.weights.resnet_names import renamed
from dcn_det.weights.settings import as_overrides, differences, get, laid_over

Format = Literal["mxnet", "caffe", "torchvision"]
FORMATS: tuple[Format, ...] = get_args(Format)
_LISTED = 20


@dataclass(frozen=True)
class Converted:
    """What :func:`convert` made of a file.

    Attributes:
        title: what the file held.
        state: what :func:`dcn_det.weights.checkpoint.save` writes.
        changed: settings that the weights brought and the config had otherwise, as (config's, theirs).
        dropped: parameters with no place in a detector, such as a classifier's.
    """

    title: str
    state: dict[str, Any]
    changed: dict[str, tuple[Any, Any]]
    dropped: list[str]


def convert(source: Path, config: Config, kind: Format | None = None) -> Converted:
    """Reads a file of foreign weights and checks them name by name and shape by shape.

    Args:
        source: an MXNet ``.params`` file, a PyTorch file, ``.safetensors``, or a pickle of arrays.
        config: describes the detector they are for. Settings that belong to the weights (layout, preprocessing,
            border rule, ...) are replaced by those they were made with.
        kind: what wrote the file; ``None`` finds out.

    Raises:
        UserError: the file cannot be read, holds another network than the config describes, or, where the names are
            torchvision's and ``kind`` is ``None``, could be either of two.
    """
    kind = kind or detect(source)
    try:
        return _from_mxnet(source, config) if kind == "mxnet" else _from_torch(source, config, kind)
    except UserError as error:
        if str(source) in str(error):
            raise
        raise UserError(f"'{source}': {error}") from None


def detect(source: Path) -> Format:
    """What wrote a file, from its first bytes and the names in it.

    Raises:
        UserError: it cannot be told.
    """
    if source.is_file() and mxnet.is_params(source):
        return "mxnet"
    names = caffe.read_weights(source)
    if "conv1.weight" in names and any(name.startswith("layer1.0.") for name in names):
        raise UserError(
            f"'{source}' has torchvision's names, which conversions of the Caffe release have as well, and the two "
            "need different images; give --format torchvision or --format caffe"
        )
    if any(name.startswith(("res2_0_branch", "res2a_branch")) for name in names):
        return "caffe"
    some = ", ".join(list(names)[:3]) or "no tensors"
    raise UserError(f"'{source}' is in no known format ({', '.join(FORMATS)}): it has {some}")


def _from_torch(source: Path, config: Config, kind: Format) -> Converted:
    backbone = config.model.backbone.kind
    if backbone not in DEPTHS:
        raise UserError(f"weights of this format are for a ResNet, the config has {backbone}")
    tensors = caffe.read_weights(source)
    if kind == "torchvision":
        return _backbone(f"{backbone} of torchvision", tensors, config, of_backbone(TORCHVISION))
    tensors = caffe.to_our_names(tensors, backbone, released.BACKBONE_SETTINGS["model.backbone.norm_eps"])
    title = f"{backbone} of the original Caffe release"
    return _backbone(title, caffe.bgr_to_rgb(tensors), config, released.BACKBONE_SETTINGS)


def _from_mxnet(source: Path, config: Config) -> Converted:
    arrays = mxnet.read_params(source)
    network = released.recognise(arrays)
    backbone = config.model.backbone.kind
    if backbone != released.BACKBONE_KIND:
        raise UserError(f"it has {released.BACKBONE_KIND} as its backbone, the config {backbone}")
    if network is None:
        theirs = renamed(arrays, lambda name: released.our_name(name, None))
        tensors = _tensors(arrays, theirs)
        return _backbone(f"{backbone} of the authors", tensors, config, released.BACKBONE_SETTINGS)

    plain = to_plain(config)
    needed = released.architecture_of(network, arrays)
    wrong = {key: value for key, value in needed.items() if _unordered(get(plain, key)) != _unordered(value)}
    if wrong:
        raise UserError(f"it holds the authors' {network.title}: the config needs {as_overrides(wrong)}")
    arrays = released.settle_test_copies(arrays, network, network.settings["model.head.box_stds"])
    theirs = renamed(arrays, lambda name: released.our_name(name, network))
    tensors = _tensors(arrays, theirs)
    belonging = released.settings_of(network, tensors)
    changed = differences(config, belonging)
    config = laid_over(config, belonging, "settings of the weights")
    categories = _categories(config)
    with torch.device("meta"):
        model = build_detector(config, len(categories))
    content = {
        "config": to_plain(config),
        "categories": checkpoint.categories_to_plain(categories),
        "model": _fitting(model, tensors, theirs),
    }
    return Converted(f"{network.title} of the authors", content, changed, [])


def _unordered(value: Any) -> Any:
    """For comparing: the order of names says nothing, and a switch that a config lacks is off."""
    return sorted(value) if isinstance(value, list | tuple) else value or False


def _tensors(arrays: Mapping[str, mxnet.Array], theirs: Mapping[str, str]) -> dict[str, Tensor]:
    """Float32 tensors by our names, from arrays by theirs."""
    for name, value in arrays.items():
        if value.dtype.kind != "f":
            raise UserError(f"{name} is {value.dtype.name}; weights are floating-point numbers")
    with np.errstate(over="ignore"):  # what becomes infinite is refused by name
        return {ours: torch.from_numpy(arrays[name].astype(np.float32)) for ours, name in theirs.items()}


def _backbone(title: str, tensors: Mapping[str, Tensor], config: Config, belonging: Mapping[str, Any]) -> Converted:
    dropped = [name for name in tensors if name.startswith("fc.")]
    changed = differences(config, belonging)
    config = laid_over(config, belonging, "settings of the weights")
    # Offsets are learned in detection; no weights of a backbone have them.
    settings = config.model.backbone
    assert isinstance(settings, ResNetConfig)
    plain = settings.model_copy(update={"deform": settings.deform.model_copy(update={"blocks": ()})})
    with torch.device("meta"):
        model = build_backbone(plain)
    assert isinstance(model, nn.Module)
    given = {name: value for name, value in tensors.items() if name not in dropped}
    recorded = {key: get(to_plain(config), key) for key in belonging}
    content = {"part": checkpoint.BACKBONE, "settings": recorded, "model": _fitting(model, given, {})}
    return Converted(title, content, changed, dropped)


def _fitting(model: nn.Module, tensors: Mapping[str, Tensor], theirs: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors in the model's order, if they are exactly those that it needs.

    Args:
        theirs: what the file calls our parameters, for messages.

    Raises:
        UserError: listing tensors that are missing, left over, of another shape or not finite.
    """
    expected = model.state_dict()
    differences = differences_of(expected, tensors, names=theirs)
    differences += [
        f"{name} ({theirs[name]}) holds numbers that are not finite" if name in theirs else f"{name} is not finite"
        for name, value in tensors.items()
        if name in expected and value.shape == expected[name].shape and not value.isfinite().all()
    ]
    refuse(differences, "weights", _LISTED)
    return {
        name: torch.zeros((), dtype=torch.long) if name.endswith(COUNTER) else tensors[name].float()
        for name in expected
    }


def _categories(config: Config) -> tuple[Category, ...]:
    """Classes in the order of the weights: COCO's, or those that the config names, with ids from 1."""
    names = config.data.classes
    if names is None:
        if config.data.kind != "coco":
            raise UserError("data.classes: name the classes of the weights in their order")
        return COCO_CATEGORIES
    if names == tuple(category.name for category in COCO_CATEGORIES):
        return COCO_CATEGORIES
    return tuple(Category(index + 1, name) for index, name in enumerate(names))
