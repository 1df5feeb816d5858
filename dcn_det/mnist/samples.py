"""What a network looks at: the sampling points of its convolutions, or the part of the image that it warps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dcn_det.mnist.data import LARGEST_SCALE, Digits, shrunk
from dcn_det.mnist.networks import SIZE, DigitNet
from dcn_det.ops import ActiveConv2d, DeformConv2d

SCALES = (1.0, (1 + LARGEST_SCALE) / 2, LARGEST_SCALE)
"""How many times smaller the example digit is, from left to right."""
TAPS = 9

Points = list[list[float]]


def examples(digits: Digits) -> Tensor:
    """Returns the first digit that is a three, else the first one, centered at each of :data:`SCALES`.

    Returns:
        float32 (3, 1, 28, 28), from 0 to 1.
    """
    threes = (digits.labels == 3).nonzero()
    digit = digits.images[int(threes[0]) if len(threes) else 0].float() / 255
    return shrunk(digit.expand(len(SCALES), -1, -1, -1), torch.tensor(SCALES), torch.zeros(len(SCALES), 2))


@torch.no_grad()
def samples_of(network: DigitNet, digits: Digits) -> list[list[Points]]:
    """Traces where a network samples the examples.

    Args:
        network: in evaluation mode.
        digits: see :func:`examples`.

    Returns:
        For each example, one list of (y, x) in pixels, integers at pixel centers: the points from which the unit
        at the center of the last map is computed by the last three convolutions, of the first offset group. For a
        Spatial Transformer, a list of the four corners of the warped square after each warp.
    """
    images = examples(digits)
    if network.transformer is not None:
        matrices = torch.stack(network.transformer.matrices(images), dim=1)
        corners = torch.tensor([[-1.0, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1]], device=images.device)
        found = (corners @ matrices[:, :, :2].mT).flip(-1)  # to (y, x)
        return _rounded(((found + 1) * SIZE - 1) / 2)
    inputs: dict[nn.Module, Tensor] = {}
    handles = [
        each.register_forward_hook(lambda module, arguments, output: inputs.update({module: arguments[0]}))
        for each in network.convolutions()
    ]
    network(images)
    for handle in handles:
        handle.remove()
    return [[_unique(_trace(network, inputs, index))] for index in range(len(images))]


def _trace(network: DigitNet, inputs: dict[nn.Module, Tensor], index: int) -> Tensor:
    """Returns the (y, x) of the samples of one image, (n, 2); a point between cells continues from the nearest one."""
    layers = network.convolutions()[1:]
    side = -(-inputs[layers[-1]].shape[2] // 2)
    points = torch.full((1, 2), float(side // 2), device=inputs[layers[-1]].device)
    taps = torch.cartesian_prod(torch.arange(-1.0, 2), torch.arange(-1.0, 2)).to(points)
    for layer in reversed(layers):
        stride = layer.stride[0] if isinstance(layer, nn.Conv2d | ActiveConv2d | DeformConv2d) else 1
        offset = _offset(layer, inputs[layer][index : index + 1])
        cells = points.round().long()
        cells = torch.stack([cells[:, axis].clamp(0, offset.shape[2 + axis] - 1) for axis in (0, 1)])
        points = (cells.T[:, None] * stride + taps + offset[:, :, cells[0], cells[1]].permute(2, 0, 1)).flatten(0, 1)
    return points


def _offset(layer: nn.Module, input: Tensor) -> Tensor:
    """Returns the offsets of the first group, (9, 2, H_out, W_out)."""
    if isinstance(layer, DeformConv2d):
        return layer.sampling(input)[0][0, : 2 * TAPS].unflatten(0, (TAPS, 2))
    assert isinstance(layer, nn.Conv2d | ActiveConv2d)
    size = [-(-side // stride) for side, stride in zip(input.shape[2:], layer.stride)]
    offset = layer.offset[: 2 * TAPS] if isinstance(layer, ActiveConv2d) else input.new_zeros(2 * TAPS)
    return offset.view(TAPS, 2, 1, 1).expand(-1, -1, *size)


def _unique(points: Tensor) -> Points:
    rounded: Points = _rounded(points)
    return [list(point) for point in sorted(set(map(tuple, rounded)))]


def _rounded(values: Tensor) -> list:
    return (values.double() * 10).round().div(10).tolist()
