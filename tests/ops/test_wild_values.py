"""Offsets, regions and boxes with extreme, infinite and undefined values, on every compiled tier."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dcn_det.ops
from dcn_det.ops import batched_nms, deform_conv2d, nms
from tests.ops.pooling_tiers import TIERS, use_tier
from tests.ops.property_cases import Random, gradients_of, repeatable, seeds
from tests.ops.test_safety import POOLS

LARGEST = torch.finfo(torch.float32).max
WILD = [float("nan"), float("inf"), float("-inf"), 1e30, -1e30, LARGEST, -LARGEST]
WILD += [2.0**31, -(2.0**31), 2.0**63, 1e9, -0.5, 0.5, 1e-40]


def wild(random: Random, tensor: torch.Tensor, part: float) -> torch.Tensor:
    """Returns the tensor with some values replaced."""
    values = torch.tensor(WILD, dtype=torch.float64)
    chosen = values[torch.randint(len(WILD), tensor.shape, generator=random.generator)]
    replaced = torch.rand(tensor.shape, generator=random.generator) < part
    return torch.where(replaced, chosen, tensor)


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for a, b in zip(found, expected):
        assert not b.isnan().any()
        torch.testing.assert_close(a.cpu(), b, rtol=1e-4, atol=1e-4)


def on_both(name: str, tier: str, monkeypatch: pytest.MonkeyPatch, function, leaves: list[torch.Tensor]) -> tuple:
    """Returns output and gradients on a tier and on the plain tier."""
    with monkeypatch.context() as patch:
        device = use_tier(name, tier, patch)
        found = gradients_of(lambda *leaves: function(device, *leaves), [leaf.to(device) for leaf in leaves])
    with monkeypatch.context() as patch:
        use_tier(name, "plain", patch)
        return found, gradients_of(lambda *leaves: function(torch.device("cpu"), *leaves), leaves)


COMPILED = [tier for tier in TIERS if tier != "plain"]


@pytest.mark.parametrize("tier", COMPILED)
def test_wild_offsets_of_a_convolution(tier, monkeypatch):
    use_tier("deform_conv2d", tier, monkeypatch)

    @repeatable(300)
    @given(seeds(), st.sampled_from(["zeros", "dcn_v1"]), st.sampled_from([0.05, 0.5, 1.0]))
    def check(random, border, part) -> None:
        input, weight = random.normal(2, 4, 6, 7).float(), random.normal(3, 4, 3, 3).float()
        offset = random.normal(2, 36, 4, 5).floor() + (2 * random.integers(0, 7, 2, 36, 4, 5) + 1) / 16
        offset = wild(random, offset, part).float()
        mask = random.normal(2, 18, 4, 5).float()
        found, expected = on_both(
            "deform_conv2d",
            tier,
            monkeypatch,
            lambda device, input, offset, weight, mask: deform_conv2d(input, offset, weight, mask=mask, border=border),
            [input, offset, weight, mask],
        )
        assert_same(found, expected)
        assert not found[2][~(offset.abs() < 1e9)].any()

    check()


@pytest.mark.parametrize("tier", COMPILED)
@pytest.mark.parametrize("name", POOLS)
def test_wild_regions(name, tier, monkeypatch):
    use_tier(name, tier, monkeypatch)
    _, options = POOLS[name]

    @repeatable(300)
    @given(seeds(), st.sampled_from([1.0, 1 / 16, 1e-30, 1e30]), st.sampled_from([0.1, 0.5, 1.0]))
    def check(random, scale, part) -> None:
        input = random.distinct(2, 8, 6, 7).float()
        start = random.integers(-20, 100, 5, 2)
        corners = wild(random, torch.cat([start, start + random.integers(0, 80, 5, 2)], 1), part)
        rois = torch.cat([random.integers(0, 1, 5, 1), corners], 1).float()
        leaves = [input]
        if name == "deform_psroi_pool":
            leaves.append(wild(random, random.normal(5, 4, 3, 3), part).float())
        settings = options | {"spatial_scale": scale}
        found, expected = on_both(
            name,
            tier,
            monkeypatch,
            lambda device, input, *offset: getattr(dcn_det.ops, name)(input, rois.to(device), *offset, **settings),
            leaves,
        )
        assert_same(found, expected)
        assert not found[0][~rois.isfinite().all(1).to(found[0].device)].any()

    check()


def test_wild_boxes(tier, monkeypatch):
    """Suppression is defined for extreme boxes as well: non-finite boxes overlap nothing."""
    device = use_tier("nms", tier, monkeypatch)

    @repeatable(300)
    @given(seeds(), st.sampled_from([0.1, 0.5, 1.0]), st.sampled_from([0.0, 0.5, 1.0]))
    def check(random, part, threshold) -> None:
        boxes = wild(random, random.integers(0, 30, 80, 4), part).float()
        scores = wild(random, random.normal(80), 0.2).float()
        labels = random.integers(0, 2, 80).long()
        kept = batched_nms(boxes.to(device), scores.to(device), labels.to(device), threshold).cpu()
        assert not scores[kept].isnan().any()
        assert torch.equal(scores[kept], scores[kept].sort(descending=True).values)
        assert len(set(kept.tolist())) == len(kept)
        alone = (~boxes.isfinite().all(1) & ~scores.isnan()).nonzero()[:, 0]
        assert set(alone.tolist()) <= set(kept.tolist())
        some = nms(boxes.to(device), scores.to(device), threshold, 3).cpu()
        assert len(some) == min(3, len(nms(boxes.to(device), scores.to(device), threshold)))

    check()
