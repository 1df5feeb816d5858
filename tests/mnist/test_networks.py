"""The networks that are compared."""

import pytest
import torch

from dcn_det.mnist.networks import METHODS, build, multiply_adds, resumed
from dcn_det.mnist.samples import SCALES, examples, samples_of
from tests.mnist.helpers import drawn

PLAIN_PARAMETERS = (
    sum(outputs * (9 * inputs + 3) for inputs, outputs in ((1, 32), (32, 64), (64, 128), (128, 128))) + 1290
)
"""Weights, biases and two numbers of batch norm of each convolution, and the linear layer."""


@pytest.mark.parametrize("method", METHODS)
def test_every_network_starts_as_the_plain_one(method: str) -> None:
    torch.manual_seed(0)
    plain, network = build("plain").eval(), build(method).eval()
    network.load_state_dict(plain.state_dict(), strict=False)
    images = torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(network(images), plain(images), atol=1e-4, rtol=1e-4)


def test_sizes() -> None:
    counts = {method: sum(each.numel() for each in build(method).parameters()) for method in METHODS}
    assert counts["plain"] == PLAIN_PARAMETERS
    assert counts["active"] == PLAIN_PARAMETERS + 3 * 18
    assert counts["deformable"] == PLAIN_PARAMETERS + sum(72 * (9 * inputs + 1) for inputs in (32, 64, 128))
    assert counts["modulated"] == PLAIN_PARAMETERS + sum(108 * (9 * inputs + 1) for inputs in (32, 64, 128))
    assert counts["ic_stn"] == counts["stn"]  # recurrent
    works = {method: multiply_adds(build(method)) for method in METHODS}
    plain = 9 * (784 * 32 + 196 * 32 * 64 + 196 * 64 * 128 + 49 * 128 * 128) + 1280
    assert works["plain"] == works["active"] == plain
    assert works["deformable"] == plain + 9 * 72 * (196 * 32 + 196 * 64 + 49 * 128)
    assert works["ic_stn"] - plain == 2 * (works["stn"] - plain) + 27  # one product of 3x3 matrices


def test_a_resumed_network_starts_where_the_plain_one_ended() -> None:
    torch.manual_seed(0)
    plain = build("plain")
    plain(torch.rand(8, 1, 28, 28))  # changes the statistics of batch norm
    network = resumed(plain, "deformable")
    images = torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(network.eval()(images), plain.eval()(images), atol=1e-4, rtol=1e-4)


def test_samples_of_a_plain_network_are_a_grid() -> None:
    digits = drawn(10)
    for method in ("plain", "active", "deformable"):
        samples = samples_of(build(method).eval(), digits)
        assert len(samples) == len(SCALES)
        # The center of the last map is cell 3: pixel 12. Three convolutions reach 2 + 2 + 1 pixels, in steps of 1.
        expected = sorted(
            {
                (12.0 + 2 * a + 2 * b + c, 12.0 + 2 * d + 2 * e + f)
                for a in (-1, 0, 1)
                for b in (-1, 0, 1)
                for c in (-1, 0, 1)
                for d in (-1, 0, 1)
                for e in (-1, 0, 1)
                for f in (-1, 0, 1)
            }
        )
        assert [tuple(point) for point in samples[0][0]] == expected


def test_samples_follow_hand_made_offsets() -> None:
    network = build("active").eval()
    with torch.no_grad():
        network.convolutions()[1].get_parameter("offset").copy_(torch.tensor([0.5, -0.25]).repeat(9))
    found, plain = samples_of(network, drawn(10))[0][0], samples_of(build("plain").eval(), drawn(10))[0][0]
    assert found == [[y + 0.5, x - 0.2] for y, x in plain]  # rounded to tenths


def test_samples_of_a_transformer_are_the_warped_square() -> None:
    network = build("ic_stn").eval()
    corners = [[-0.5, -0.5], [-0.5, 27.5], [27.5, 27.5], [27.5, -0.5]]
    assert samples_of(network, drawn(10)) == [[corners, corners]] * len(SCALES)
    assert network.transformer is not None
    with torch.no_grad():
        network.transformer.predict.bias.copy_(torch.tensor([-0.5, 0, 0, 0, -0.5, 0.25]))
    first, second = samples_of(network, drawn(10))[0]
    assert first[0] == [10.0, 6.5] and first[2][0] - first[0][0] == pytest.approx(14)  # half of 28 pixels
    assert second[2][0] - second[0][0] == pytest.approx(7)


def test_examples_are_centered() -> None:
    digits = drawn(10)
    images = examples(digits)
    assert images.shape == (3, 1, 28, 28)
    torch.testing.assert_close(images[0, 0], digits.images[3, 0] / 255)
    assert images[0].sum() > 2 * images[1].sum() > 2 * images[2].sum()
