"""torchvision's ImageNet weights."""

from __future__ import annotations

import hashlib
import http.client
import re
from pathlib import Path

import torch
import torchvision
from torch import Tensor

from dcn_det.errors import UserError
from dcn_det.weights.files import read_state_dict

_CHUNK = 2**20


def imagenet_weights(kind: str) -> dict[str, Tensor]:
    """Reads the ``IMAGENET1K_V1`` weights of a network, downloaded once into the folder of ``torch.hub``.

    V1 is the plain training recipe; weights published later require another fine-tuning recipe.

    Args:
        kind: torchvision's name, such as ``resnet101``.

    Raises:
        UserError: the weights cannot be downloaded, or the file is not the one that torchvision published.
    """
    url = torchvision.models.get_model_weights(kind)["IMAGENET1K_V1"].url
    path = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    published = re.search(r"-([0-9a-f]{8,})\.", path.name)
    assert published is not None
    advice = f"fetch {url} elsewhere and put it into {path.parent}, or give its path as model.backbone.weights"
    try:
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), published[1], progress=False)
        if not _digest(path).startswith(published[1]):
            raise RuntimeError(f"the hash of the file is not {published[1]}")
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"cannot download torchvision's weights for {kind} ({error}); {advice}") from error
    except RuntimeError as error:
        raise UserError(f"torchvision's weights for {kind} are damaged ({error}); {advice}") from error
    return read_state_dict(path)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
