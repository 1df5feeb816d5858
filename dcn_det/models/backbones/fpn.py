"""Feature pyramid network (Lin et al., CVPR 2017), with the settings of the authors' Deformable FPN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from dcn_det.models import initialize

STAGES = ("res2", "res3", "res4", "res5")
LEVELS = ("p2", "p3", "p4", "p5", "p6")


class FeaturePyramid(nn.Module):
    """Computes levels with equal channels at strides 4, 8, 16, 32 and 64 from the four stages of a backbone.

    Lateral 1x1 convolutions, nearest-neighbor upsampling and 3x3 convolutions are torchvision's. The last level,
    used only for proposals, is a 3x3 convolution with stride 2 on res5, as in the authors' released code.

    Args:
        bottom_up: the backbone; its res5 has stride 32.
        channels: of each level.
        hidden_init: initialization: ``normal``, N(0, 0.01) as in the authors' code, or ``he``, for narrow networks
            trained from scratch.

    Attributes:
        channels: of each level, by name.
        strides: of each level, in input pixels, by name.
        size_multiple: images are padded to multiples of this, in pixels, so that the border has complete cells on all
            levels up to stride 32, as in the authors' released code.
    """

    bottom_up: Any

    def __init__(self, bottom_up: Any, channels: int = 256, *, hidden_init: Literal["normal", "he"] = "normal") -> None:
        super().__init__()
        strides = tuple(bottom_up.strides[stage] for stage in STAGES)
        if strides != (4, 8, 16, 32):
            raise ValueError(f"a feature pyramid needs stages at strides 4, 8, 16 and 32, got {strides}")
        self.bottom_up = bottom_up
        self.fpn = FeaturePyramidNetwork([bottom_up.channels[stage] for stage in STAGES], channels)
        self.p6 = nn.Conv2d(bottom_up.channels["res5"], channels, 3, stride=2, padding=1)
        initialize.START[hidden_init](
            *(module for module in self.modules_of_pyramid() if isinstance(module, nn.Conv2d))
        )
        self.channels = dict.fromkeys(LEVELS, channels)
        self.strides = dict(zip(LEVELS, (*strides, 64)))
        self.size_multiple = strides[-1]

    def modules_of_pyramid(self) -> list[nn.Module]:
        """Returns the modules that the pyramid adds to the backbone."""
        return [*self.fpn.modules(), self.p6]

    def lr_multipliers(self) -> dict[str, float]:
        """Returns learning-rate multipliers other than 1, by parameter name."""
        multipliers: Mapping[str, float] = self.bottom_up.lr_multipliers()
        return {f"bottom_up.{name}": value for name, value in multipliers.items()}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Maps normalized images (B, 3, H, W) to ``p2`` ... ``p6``, each (B, channels, h, w)."""
        features = self.bottom_up(x)
        levels = self.fpn({stage: features[stage] for stage in STAGES})
        return {**dict(zip(LEVELS, levels.values())), "p6": self.p6(features["res5"])}
