"""1x1 convolutions in half precision, as matrix products."""

from __future__ import annotations

import torch
from torch import Tensor, nn

HALVES = (torch.bfloat16, torch.float16)


def pointwise(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Applies a 1x1 convolution with bias; in half precision as a matrix product with a contiguous result.

    cuDNN is slow on channels-last maps whose number of channels is not a multiple of 8, such as the 81 * 49 of R-FCN's
    scores, and what reads the result wants it contiguous anyway.

    Args:
        layer: a 1x1 convolution of stride 1.
        x: (B, in_channels, H, W).

    Returns:
        (B, out_channels, H, W).
    """
    if x.dtype not in HALVES or layer.bias is None:
        result: Tensor = layer(x)
        return result
    weight, bias = layer.weight.flatten(1).to(x.dtype), layer.bias.to(x.dtype)
    cells = x.flatten(2)  # a view of contiguous and of channels-last maps
    product = torch.baddbmm(bias[None, :, None], weight.expand(len(x), -1, -1), cells)
    return product.unflatten(2, x.shape[2:])
