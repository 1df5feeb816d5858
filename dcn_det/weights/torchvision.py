"""torchvision's ImageNet weights."""

from __future__ import annotations

import re
from pathlib import Path

import torch
import torchvision
from torch import Tensor

from dcn_det.download.catalog import Collection, Part
from dcn_det.download.fetch import fetch, reachable, verify
from dcn_det.errors import UserError
from dcn_det.models.backbones.resnet import DEPTHS
from dcn_det.weights.files import read_state_dict


def collection() -> Collection:
    """Returns the ``IMAGENET1K_V1`` weights of all ResNets, for the folder in which ``torch.hub`` keeps downloads.

    V1 is the plain training recipe; weights published later require another fine-tuning recipe.
    """
    weights = {kind: torchvision.models.get_model_weights(kind)["IMAGENET1K_V1"] for kind in DEPTHS}
    parts = {}
    for kind, each in weights.items():
        name = each.url.rpartition("/")[2]
        published = re.search(r"-([0-9a-f]{8,})\.", name)
        assert published is not None
        parts[kind] = Part(name, round(each.meta["_file_size"] * 2**20), f"sha256:{published[1]}")
    base = weights["resnet101"].url.rpartition("/")[0]
    return Collection(base, parts, ("resnet101",), Path(torch.hub.get_dir(), "checkpoints"))


def imagenet_weights(kind: str) -> dict[str, Tensor]:
    """Reads the ImageNet weights of a network, see :func:`collection`; downloads them if they are absent.

    Args:
        kind: torchvision's name, such as ``resnet101``.

    Raises:
        UserError: the weights cannot be downloaded, or the file is not the one that torchvision published.
    """
    known = collection()
    part, path = known.parts[kind], known.folder / known.parts[kind].name
    try:
        if path.is_file():
            verify(path, part.digest)
        else:
            url = torchvision.models.get_model_weights(kind)["IMAGENET1K_V1"].url
            fetch(url, path, part.digest)
    except (OSError, UserError) as error:
        raise UserError(
            f"torchvision's weights for {kind}: {error}; put {part.name} into {known.folder}, or give its path as "
            "model.backbone.weights"
        ) from error
    return read_state_dict(path)


def available(kind: str) -> str | None:
    """Returns how :func:`imagenet_weights` can get the weights of a network, without getting them; None if it cannot.

    Args:
        kind: torchvision's name, such as ``resnet101``.
    """
    known = collection()
    if (known.folder / known.parts[kind].name).is_file():
        return "in torch's cache"
    return (
        "downloaded by training" if reachable(torchvision.models.get_model_weights(kind)["IMAGENET1K_V1"].url) else None
    )
