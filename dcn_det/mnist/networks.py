"""The networks that are compared: one classifier of digits, with six ways to treat their size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dcn_det.models.transformers import SpatialTransformer
from dcn_det.ops import ActiveConv2d, DeformConv2d
from dcn_det.ops.flops import flop_counter

METHODS = {
    "plain": "plain",
    "stn": "Spatial Transformer",
    "ic_stn": "inverse compositional STN",
    "active": "Active Convolution",
    "deformable": "deformable",
    "modulated": "modulated deformable (DCNv2)",
}
"""Key and title of each method."""
SIZE = 28
"""Height and width of a digit, in pixels."""
LAYERS = ((32, 1), (64, 2), (128, 1), (128, 2))
"""Output channels and stride of the 3x3 convolutions."""
OFFSET_GROUPS = 4
LOCALIZED = 32
"""Outputs of the layers from which a Spatial Transformer predicts."""

_CONVOLUTIONS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "active": lambda inputs, outputs, stride: ActiveConv2d(inputs, outputs, 3, stride, 1),
    "deformable": lambda inputs, outputs, stride: DeformConv2d(
        inputs, outputs, 3, stride, 1, offset_groups=OFFSET_GROUPS
    ),
    "modulated": lambda inputs, outputs, stride: DeformConv2d(
        inputs, outputs, 3, stride, 1, offset_groups=OFFSET_GROUPS, modulated=True
    ),
}
_WARPS = {"stn": 1, "ic_stn": 2}


class DigitNet(nn.Module):
    """Classifier of 28x28 images in ten classes.

    Four 3x3 convolutions (:data:`LAYERS`), each with ReLU and then batch norm, global average pooling, and a linear
    layer. The method replaces all convolutions but the first by its own, or warps the image before. The shape is that
    of a widely copied Keras demonstration of deformable convolution on scaled MNIST.

    Args:
        method: one of :data:`METHODS`.
    """

    def __init__(self, method: str) -> None:
        super().__init__()
        assert method in METHODS
        self.transformer = None
        if method in _WARPS:
            self.transformer = SpatialTransformer(_localization(), LOCALIZED, _WARPS[method])
        convolution = _CONVOLUTIONS.get(method, _plain)
        layers: list[nn.Module] = []
        inputs = 1
        for outputs, stride in LAYERS:
            layers += [(convolution if layers else _plain)(inputs, outputs, stride), nn.ReLU(), nn.BatchNorm2d(outputs)]
            inputs = outputs
        self.layers = nn.Sequential(*layers)
        self.classify = nn.Linear(inputs, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images (N, 1, 28, 28), from 0 to 1, to class scores (N, 10)."""
        if self.transformer is not None:
            images = self.transformer(images)
        images = images.contiguous(memory_format=torch.channels_last)
        return self.classify(self.layers(images).mean((2, 3)))

    def convolutions(self) -> list[nn.Module]:
        """Returns the convolutions of :data:`LAYERS`."""
        return list(self.layers[::3])


def build(method: str) -> DigitNet:
    """Returns a network with random weights, in the memory format that is fastest on a CPU."""
    return DigitNet(method).to(memory_format=torch.channels_last)


def resumed(plain: DigitNet, method: str) -> DigitNet:
    """Returns a network that starts from the weights of a plain one, and from its function: offsets start from zero."""
    network = build(method)
    missing, unexpected = network.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all(".offset." in name for name in missing)
    return network


def multiply_adds(network: DigitNet) -> int:
    """Counts the multiply-adds of one image in convolutions and linear layers; sampling and warping do not count."""
    device = next(network.parameters()).device
    with torch.no_grad(), flop_counter() as counter:
        network(torch.zeros(1, 1, SIZE, SIZE, device=device))
    return int(counter.get_total_flops()) // 2


def _plain(inputs: int, outputs: int, stride: int) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 3, stride, 1)


def _localization() -> nn.Module:
    """Layers that see where the digit is and how large: they keep positions, unlike the classifier."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * (SIZE // 4) ** 2, LOCALIZED),
        nn.ReLU(),
    )
