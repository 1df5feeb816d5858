"""Settings that belong to weights: with other values, the same weights are another network, which no shape shows.

They are saved with the weights and take precedence over a config.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from dcn_det.config import RunConfig, to_plain, with_values
from dcn_det.config.model import OFFSET_POOLING

C = TypeVar("C", bound=RunConfig)

OF_BACKBONE = (
    "model.backbone.stride_on",
    "model.backbone.stem_pool",
    "model.backbone.norm_eps",
    "model.backbone.preprocess.channel_order",
    "model.backbone.preprocess.mean",
    "model.backbone.preprocess.std",
)
"""Settings that belong to weights of a backbone before detection training."""

OF_DEFORM = (
    "model.backbone.deform.mask_scale",
    "model.backbone.deform.border",
    "model.backbone.deform.offset_groups",
    "model.backbone.deform.offset_dilation",
)
"""Settings that belong to weights of deformable convolutions."""

OF_SHAPE = (
    "model.kind",
    "model.backbone.kind",
    "model.backbone.width",
    "model.backbone.stem_width",
    "model.backbone.norm",
    "model.backbone.deform.blocks",
    "model.backbone.deform.kind",
    "model.fpn",
    "model.channels",
    "model.rpn.channels",
    "model.rpn.conv_channels",
    "model.head.pooling",
    "model.head.channels",
    "model.head.pooled_size",
    "model.head.hidden",
    "model.head.class_agnostic",
)
"""Settings that determine names and shapes of weights."""

_POOLING = "model.head.pooling"
OF_DETECTOR = (
    *OF_BACKBONE,
    "model.box_corners",
    "model.backbone.res5_stride",
    "model.backbone.res5_dilation",
    *OF_DEFORM,
    "model.rpn.anchors.base_size",
    "model.rpn.anchors.scales",
    "model.rpn.anchors.ratios",
    _POOLING,
    "model.head.samples_per_bin",
    "model.head.offset_std",
    "model.head.box_stds",
)
"""Settings that belong to weights of a detector, as far as its architecture has them."""


def get(plain: Mapping[str, Any], key: str) -> Any:
    """Returns the value of a dotted key in plain settings, or None if there is no such key."""
    value: Any = plain
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return list(value) if isinstance(value, tuple) else value


def differences(config: RunConfig, belonging: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns the dotted keys whose values differ, with the config's value and that of ``belonging``.

    Keys that the architecture of the config does not have are left out. So is pooling with offsets compared with other
    pooling: it has weights of its own, so their names show the difference.
    """
    plain = to_plain(config)
    pairs = {
        key: (get(plain, key), list(value) if isinstance(value, tuple) else value) for key, value in belonging.items()
    }
    return {
        key: (ours, theirs)
        for key, (ours, theirs) in pairs.items()
        if ours is not None
        and ours != theirs
        and not (key == _POOLING and (ours in OFFSET_POOLING or theirs in OFFSET_POOLING))
    }


def laid_over(config: C, belonging: Mapping[str, Any], source: str) -> C:
    """Returns the config with other values for those of the dotted keys that it has.

    If the layout changes, ``weights: torchvision`` becomes ``none``.

    Args:
        config: the settings.
        belonging: values by dotted key.
        source: origin of the values, for messages.

    Raises:
        UserError: the values do not fit the rest.
    """
    values = {key: value for key, (_, value) in differences(config, belonging).items()}
    if config.model.backbone.weights == "torchvision" and not values.keys().isdisjoint(OF_BACKBONE):
        values["model.backbone.weights"] = "none"
    return with_values(config, values, source)


def of_checkpoint(saved: Mapping[str, Any], keys: Iterable[str] = OF_DETECTOR) -> dict[str, Any]:
    """Returns the settings that belong to the weights, from the plain config in a checkpoint.

    Those of deformable convolutions are left out if the network has none.
    """
    absent = () if get(saved, "model.backbone.deform.blocks") else OF_DEFORM
    return {key: get(saved, key) for key in keys if key not in absent and get(saved, key) is not None}


def of_backbone(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that belong to the weights of a backbone, from the plain config they were trained with."""
    return of_checkpoint(saved, (*OF_BACKBONE, *OF_DEFORM))


def shaping_differences(plain: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the plain config in a checkpoint has for the keys of :data:`OF_SHAPE` that differ from ``plain``."""
    pairs = {key: (get(plain, key), get(saved, key)) for key in OF_SHAPE}
    return {key: theirs for key, (ours, theirs) in pairs.items() if theirs is not None and ours != theirs}


def as_overrides(values: Mapping[str, Any]) -> str:
    """Formats values as command-line arguments, ``key=value ...``."""
    return " ".join(f"{key}={_plain(value)}" for key, value in values.items())


def describe(differing: Mapping[str, tuple[Any, Any]]) -> str:
    """Formats differences for messages, ``key value (config: other), ...``."""
    return ", ".join(f"{key} {_plain(theirs)} (config: {_plain(ours)})" for key, (ours, theirs) in differing.items())


def _plain(value: Any) -> str:
    """Formats a value as YAML without spaces."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_plain, value))}]"
    return value if isinstance(value, str) else json.dumps(value)
