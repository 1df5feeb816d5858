"""Converts weights of other frameworks to checkpoints of a model, or of a backbone to train from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from dcn_det.config import RunConfig, to_plain
from dcn_det.config.data import LoadingConfig
from dcn_det.config.layouts import TORCHVISION, of_backbone
from dcn_det.config.model import ResNetConfig
from dcn_det.config.segmentation_data import MaskDataConfig
from dcn_det.data.masks import mask_categories
from dcn_det.errors import UserError
from dcn_det.models.backbones.resnet import DEPTHS
from dcn_det.models.build import build_backbone, build_model
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
    """Result of :func:`convert`.

    Attributes:
        title: description of the file's content.
        state: content for :func:`dcn_det.weights.checkpoint.save`.
        changed: settings that belong to the weights and differ from the config, as (config's value, theirs).
        dropped: parameters that are not part of the model, such as a classifier's.
    """

    title: str
    state: dict[str, Any]
    changed: dict[str, tuple[Any, Any]]
    dropped: list[str]


def convert(source: Path, config: RunConfig, kind: Format | None = None) -> Converted:
    """Reads weights of another framework and checks every name and shape.

    Args:
        source: an MXNet ``.params`` file, a PyTorch file, ``.safetensors``, or a pickle of arrays.
        config: describes the model. Settings that belong to the weights (layout, preprocessing, border rule, ...)
            are replaced by those of the weights.
        kind: format of the file; None detects it.

    Raises:
        UserError: the file cannot be read, contains another network than the config describes, or its format cannot be
            detected.
    """
    kind = kind or detect(source)
    try:
        return _from_mxnet(source, config) if kind == "mxnet" else _from_torch(source, config, kind)
    except UserError as error:
        if str(source) in str(error):
            raise
        raise UserError(f"'{source}': {error}") from None


def detect(source: Path) -> Format:
    """Detects the format of a file from its first bytes and the names in it.

    Raises:
        UserError: the format is unknown or ambiguous.
    """
    if source.is_file() and mxnet.is_params(source):
        return "mxnet"
    names = caffe.read_weights(source)
    if "conv1.weight" in names and any(name.startswith("layer1.0.") for name in names):
        raise UserError(
            f"'{source}' has torchvision's names, which conversions of the Caffe release have as well, but the two "
            "require different preprocessing; give --format torchvision or --format caffe"
        )
    if any(name.startswith(("res2_0_branch", "res2a_branch")) for name in names):
        return "caffe"
    some = ", ".join(list(names)[:3]) or "no tensors"
    raise UserError(f"'{source}' is in no known format ({', '.join(FORMATS)}): it contains {some}")


def _from_torch(source: Path, config: RunConfig, kind: Format) -> Converted:
    backbone = config.model.backbone.kind
    if backbone not in DEPTHS:
        raise UserError(f"weights of this format are for a ResNet, the config has {backbone}")
    tensors = caffe.read_weights(source)
    if kind == "torchvision":
        return _backbone(f"{backbone} of torchvision", tensors, config, of_backbone(TORCHVISION))
    tensors = caffe.to_our_names(tensors, backbone, released.BACKBONE_SETTINGS["model.backbone.norm_eps"])
    title = f"{backbone} of the original Caffe release"
    return _backbone(title, caffe.bgr_to_rgb(tensors), config, released.BACKBONE_SETTINGS)


def _from_mxnet(source: Path, config: RunConfig) -> Converted:
    arrays = mxnet.read_params(source)
    network = released.recognise(arrays)
    backbone = config.model.backbone.kind
    if backbone != released.BACKBONE_KIND:
        raise UserError(f"its backbone is {released.BACKBONE_KIND}, the config has {backbone}")
    if network is None:
        theirs = renamed(arrays, lambda name: released.our_name(name, None))
        tensors = _tensors(arrays, theirs)
        return _backbone(f"{backbone} of the authors", tensors, config, released.BACKBONE_SETTINGS)

    plain = to_plain(config)
    needed = released.architecture_of(network, arrays)
    wrong = {key: value for key, value in needed.items() if _unordered(get(plain, key)) != _unordered(value)}
    if wrong:
        raise UserError(f"it contains the authors' {network.title}: the config needs {as_overrides(wrong)}")
    kept = released.without_upsampling(arrays, network)
    dropped = sorted(arrays.keys() - kept.keys())
    if network.deltas:
        kept = released.settle_test_copies(kept, network, network.settings["model.head.box_stds"])
    arrays = kept
    theirs = renamed(arrays, lambda name: released.our_name(name, network))
    tensors = _tensors(arrays, theirs)
    belonging = released.settings_of(network, tensors)
    changed = differences(config, belonging)
    config = laid_over(config, belonging, "settings of the weights")
    categories = _categories(config.data)
    with torch.device("meta"):
        model = build_model(config, len(categories))
    content = {
        "config": to_plain(config),
        "categories": checkpoint.categories_to_plain(categories),
        "model": _fitting(model, tensors, theirs),
    }
    return Converted(f"{network.title} of the authors", content, changed, dropped)


def _unordered(value: Any) -> Any:
    """Normalizes a value for comparison: the order of names does not matter, and a missing switch is off."""
    return sorted(value) if isinstance(value, list | tuple) else value or False


def _tensors(arrays: Mapping[str, mxnet.Array], theirs: Mapping[str, str]) -> dict[str, Tensor]:
    """Returns float32 tensors by our names, from arrays by the file's names."""
    for name, value in arrays.items():
        if value.dtype.kind != "f":
            raise UserError(f"{name} is {value.dtype.name}; weights are floating-point numbers")
    with np.errstate(over="ignore"):  # what becomes infinite is refused by name
        return {ours: torch.from_numpy(arrays[name].astype(np.float32)) for ours, name in theirs.items()}


def _backbone(title: str, tensors: Mapping[str, Tensor], config: RunConfig, belonging: Mapping[str, Any]) -> Converted:
    dropped = [name for name in tensors if name.startswith("fc.")]
    changed = differences(config, belonging)
    config = laid_over(config, belonging, "settings of the weights")
    # Offsets are learned in detection training; weights of a backbone do not contain them.
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
    """Returns the tensors in the model's order.

    Args:
        model: the network that they are for.
        tensors: tensors by the model's names.
        theirs: names in the file by the model's names, for messages.

    Raises:
        UserError: lists tensors that are missing, surplus, of another shape or type, or not finite.
    """
    expected = model.state_dict()
    differences = differences_of(expected, tensors, names=theirs)
    differences += [
        f"{name} ({theirs[name]}) contains non-finite numbers"
        if name in theirs
        else f"{name} contains non-finite numbers"
        for name, value in tensors.items()
        if name in expected and value.shape == expected[name].shape and not value.isfinite().all()
    ]
    refuse(differences, "weights", _LISTED)
    return {
        name: torch.zeros((), dtype=torch.long) if name.endswith(COUNTER) else tensors[name].float()
        for name in expected
    }


def _categories(data: LoadingConfig) -> tuple[Category, ...]:
    """Returns the classes in the order of the weights: COCO's, those of masks, or those in the settings."""
    if isinstance(data, MaskDataConfig):
        return mask_categories(data)
    names = getattr(data, "classes", None)
    if names is None:
        if data.kind != "coco":
            raise UserError("data.classes: list the classes of the weights in their order")
        return COCO_CATEGORIES
    if names == tuple(category.name for category in COCO_CATEGORIES):
        return COCO_CATEGORIES
    return tuple(Category(index + 1, name) for index, name in enumerate(names))
