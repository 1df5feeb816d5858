"""Settings that belong to weights: with others the same numbers make another network, and no shape tells.

They are saved with the weights and win over a config that says otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from dcn_det.config import Config, to_plain, with_values
from dcn_det.config.model import OFFSET_POOLING

OF_BACKBONE = (
    "model.backbone.stride_on",
    "model.backbone.stem_pool",
    "model.backbone.norm_eps",
    "model.backbone.preprocess.channel_order",
    "model.backbone.preprocess.mean",
    "model.backbone.preprocess.std",
)
"""What weights of a backbone before detection training depend on."""

_POOLING = "model.head.pooling"
OF_DETECTOR = (
    *OF_BACKBONE,
    "model.box_corners",
    "model.backbone.res5_stride",
    "model.backbone.res5_dilation",
    "model.backbone.deform.mask_scale",
    "model.backbone.deform.border",
    "model.backbone.deform.offset_groups",
    "model.backbone.deform.offset_dilation",
    "model.rpn.anchors.base_size",
    "model.rpn.anchors.scales",
    "model.rpn.anchors.ratios",
    _POOLING,
    "model.head.samples_per_bin",
    "model.head.offset_std",
    "model.head.box_stds",
)
"""What weights of a whole detector depend on, as far as its architecture has them."""


def get(plain: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key in plain settings; ``None`` where there is no such key."""
    value: Any = plain
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return list(value) if isinstance(value, tuple) else value


def differences(config: Config, belonging: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys of which a config has another value than ``belonging``, with the config's and the other.

    Keys that the config does not have, because its architecture has no use for them, do not differ. Nor does
    pooling with offsets from another: it has weights of its own, so the names of these tell.
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


def laid_over(config: Config, belonging: Mapping[str, Any], source: str) -> Config:
    """The config with these values for these dotted keys, where it has them.

    A layout that is not that of torchvision's weights takes the place of ``weights: torchvision``, too.

    Args:
        source: what messages call the origin of the values.

    Raises:
        UserError: the values do not fit the rest.
    """
    values = {key: value for key, (_, value) in differences(config, belonging).items()}
    if config.model.backbone.weights == "torchvision" and not values.keys().isdisjoint(OF_BACKBONE):
        values["model.backbone.weights"] = "none"
    return with_values(config, values, source)


def of_checkpoint(saved: Mapping[str, Any], keys: Iterable[str] = OF_DETECTOR) -> dict[str, Any]:
    """From the plain config in a checkpoint: the settings that belong to its weights."""
    return {key: get(saved, key) for key in keys if get(saved, key) is not None}


def as_overrides(values: Mapping[str, Any]) -> str:
    """``key=value ...`` as the commands take it."""
    return " ".join(f"{key}={_plain(value)}" for key, value in values.items())


def describe(differing: Mapping[str, tuple[Any, Any]]) -> str:
    """``key value (config: other), ...``, for messages."""
    return ", ".join(f"{key} {_plain(theirs)} (config: {_plain(ours)})" for key, (ours, theirs) in differing.items())


def _plain(value: Any) -> str:
    """A value as YAML without spaces."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_plain, value))}]"
    return value if isinstance(value, str) else json.dumps(value)
