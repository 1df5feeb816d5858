import math

import pytest
import torch

from dcn_det.models.losses import cross_entropy_mean, smooth_l1


@pytest.mark.parametrize(
    "sigma, distance, expected",
    [(1, 0.5, 0.125), (1, 1.0, 0.5), (1, -3.0, 2.5), (3, 0.1, 0.045), (3, -0.1, 0.045), (3, 2.0, 2 - 1 / 18)],
)
def test_smooth_l1_by_hand(sigma: float, distance: float, expected: float) -> None:
    loss = smooth_l1(torch.tensor([5.0 + distance]), torch.tensor([5.0]), sigma)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_smooth_l1_gradient_is_bounded() -> None:
    prediction = torch.linspace(-2, 2, 41, requires_grad=True)
    smooth_l1(prediction, torch.zeros(41), 3).sum().backward()
    expected = (9 * prediction.detach()).clamp(-1, 1)
    torch.testing.assert_close(prediction.grad, expected)


def test_cross_entropy_mean_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]])
    loss = cross_entropy_mean(logits, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)


def test_nothing_costs_nothing_and_keeps_the_graph() -> None:
    logits = torch.zeros(3, 2, requires_grad=True)
    (
        cross_entropy_mean(logits[:0], torch.zeros(0, dtype=torch.int64)) + smooth_l1(logits[:0], logits[:0], 1).sum()
    ).backward()
    assert logits.grad is not None and torch.equal(logits.grad, torch.zeros(3, 2))


def test_losses_are_float32() -> None:
    low = torch.ones(2, 2, dtype=torch.bfloat16)
    assert smooth_l1(low, low, 1).dtype == torch.float32
    assert cross_entropy_mean(low, torch.tensor([0, 1])).dtype == torch.float32
