"""torchvision's ImageNet weights."""

from __future__ import annotations

import http.client
import pickle

import torch
import torchvision
from torch import Tensor

from dcn_det.errors import UserError


def imagenet_weights(kind: str) -> dict[str, Tensor]:
    """Downloads the ``IMAGENET1K_V1`` weights of a network, once, into ``torch.hub``'s folder.

    V1 are the plainly trained weights; those published later need another fine-tuning recipe.

    Args:
        kind: torchvision's name, such as ``resnet101``.

    Raises:
        UserError: they could not be fetched, or what is there is not what torchvision published.
    """
    weights = torchvision.models.get_model_weights(kind)["IMAGENET1K_V1"]
    folder = f"{torch.hub.get_dir()}/checkpoints"
    advice = f"fetch {weights.url} elsewhere and put it into {folder}, or give its path as model.backbone.weights"
    try:
        return weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"cannot download torchvision's weights for {kind} ({error}); {advice}") from error
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"torchvision's weights for {kind} are damaged ({reason}); {advice}") from error
