"""Spatial Transformers: warps predicted from the image."""

import pytest
import torch
from torch import nn

from dcn_det.models.transformers import SpatialTransformer, warp


class Brightness(nn.Module):
    """Predicts from the mean of the image, and counts its calls."""

    calls = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return images.mean((1, 2, 3))[:, None]


def shifting(pixels: float, warps: int, side: int = 16) -> SpatialTransformer:
    """Moves the image to the left by a number of pixels in every warp."""
    module = SpatialTransformer(Brightness(), 1, warps)
    with torch.no_grad():
        module.predict.bias[2] = 2 * pixels / side
    return module


def test_the_identity() -> None:
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(warp(images, torch.eye(3).expand(2, 3, 3)), images)
    torch.testing.assert_close(SpatialTransformer(Brightness(), 1, warps=2)(images), images)


def test_a_warp_reads_where_the_matrix_points() -> None:
    images = torch.rand(1, 1, 16, 16)
    moved = shifting(2, warps=1)(images)
    torch.testing.assert_close(moved[..., :-2], images[..., 2:])
    assert not moved[..., -2:].any()
    mirrored = warp(images, torch.tensor([[[-1.0, 0, 0], [0, 1, 0]]]))
    torch.testing.assert_close(mirrored, images.flip(3))


def test_warps_are_composed_and_sample_the_original() -> None:
    images = torch.rand(1, 1, 16, 16)
    module = shifting(2, warps=2)
    torch.testing.assert_close(module(images)[..., :-4], images[..., 4:])
    assert module.features.calls == 2
    # Halving twice: the second step acts in the coordinates of the warped image.
    with torch.no_grad():
        module.predict.bias.copy_(torch.tensor([-0.5, 0, 0.5, 0, 0, 0]))
    first, second = module.matrices(images)
    torch.testing.assert_close(first[0, 0], torch.tensor([0.5, 0, 0.5]))
    torch.testing.assert_close(second[0, 0], torch.tensor([0.25, 0, 0.75]))
    # Moving out and back again loses nothing.
    there_and_back = torch.tensor([[[1.0, 0, 1.5], [0, 1, 0], [0, 0, 1]]])
    torch.testing.assert_close(warp(images, there_and_back @ there_and_back.inverse()), images)


def test_the_second_prediction_sees_the_warped_image() -> None:
    module = shifting(8, warps=2)
    with torch.no_grad():
        module.predict.weight[2] = 1.0
    images = torch.ones(1, 1, 16, 16)  # brightness 1, and 0 after a shift by 8 + 8 pixels
    first, second = module.matrices(images)
    assert first[0, 0, 2] == 2 and second[0, 0, 2] == 3


@pytest.mark.parametrize("warps", [1, 2])
def test_gradients_by_finite_differences(warps: int) -> None:
    torch.manual_seed(0)
    module = SpatialTransformer(nn.Sequential(nn.Flatten(), nn.Linear(25, 4), nn.Tanh()), 4, warps).double()
    nn.init.normal_(module.predict.weight, std=0.1)
    images = torch.rand(2, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, (images,))
    module(images).square().sum().backward()
    assert all(each.grad is not None and each.grad.any() for each in module.parameters())
