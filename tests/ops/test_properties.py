"""Every tier against the reference in float64, and gradients against finite differences, for random calls."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dcn_det.ops
from dcn_det.ops import batched_nms, nms
from dcn_det.ops.reference import nms as nms_reference
from tests.ops.pooling_tiers import RULES_MODULES, TIERS, module_of, random, use_tier
from tests.ops.property_cases import CALLS, TOLERANCES, Call, repeatable, suppressions

OPERATORS = sorted(CALLS)


@pytest.fixture(params=TIERS)
def tier(request) -> str:
    return request.param


def forward_and_backward(function, leaves: dict, grad: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
    output = function(**leaves)
    grad = random(*output.shape, seed=99) if grad is None else grad
    found = torch.autograd.grad(output, list(leaves.values()), grad.to(output))
    return {"output": output.detach().cpu()} | {name: value.cpu() for name, value in zip(leaves, found)}


def in_float64(name: str, call: Call, monkeypatch: pytest.MonkeyPatch, grad: torch.Tensor) -> dict[str, torch.Tensor]:
    """Returns the reference and its gradients by autograd, for the same values."""
    module, fixed = module_of(name), {key: value.double() for key, value in call.fixed.items()}
    reference = getattr(module_of(name, RULES_MODULES).reference, name)
    with monkeypatch.context() as patch:
        patch.setattr(module, "OPERATOR", reference)
        function = getattr(dcn_det.ops, name)
        leaves = {key: value.double() for key, value in call.leaves.items()}
        return forward_and_backward(lambda **leaves: function(**leaves, **fixed, **call.options), leaves, grad)


def run(name: str, call: Call, device: torch.device) -> dict[str, torch.Tensor]:
    function, fixed = getattr(dcn_det.ops, name), {key: value.to(device) for key, value in call.fixed.items()}
    leaves = {key: leaf.to(device) for key, leaf in call.laid_out().items()}
    return forward_and_backward(lambda **leaves: function(**leaves, **fixed, **call.options), leaves)


@pytest.mark.parametrize("name", OPERATORS)
def test_equals_the_reference_in_float64(name, tier, monkeypatch):
    device = use_tier(name, tier, monkeypatch)

    @repeatable(250)
    @given(call=CALLS[name]())
    def check(call: Call) -> None:
        found = run(name, call, device)
        dtype = call.leaves["input"].dtype
        grad = random(*found["output"].shape, seed=99).to(dtype).double()
        expected = in_float64(name, call, monkeypatch, grad)
        assert found["output"].dtype == dtype
        for key, value in expected.items():
            if key != "output":
                assert found[key].dtype == call.leaves[key].dtype
            assert found[key].shape == value.shape
            error = (found[key].double() - value).abs().max() / value.abs().max().clamp(min=1)
            assert error <= TOLERANCES[dtype], f"{key}: {error:.2e} of the largest value"

    check()


@pytest.mark.parametrize("name", OPERATORS)
def test_gradients_are_finite_differences(name, tier, monkeypatch):
    device = use_tier(name, tier, monkeypatch)
    step = 2.0**-20

    @repeatable(100)
    @given(call=CALLS[name](dtypes=(torch.float64,)), seed=st.integers(0, 2**31))
    def check(call: Call, seed: int) -> None:
        found = run(name, call, device)
        grad = random(*found["output"].shape, seed=99)

        def loss(**changed: torch.Tensor) -> torch.Tensor:
            moved = {**call.leaves, **changed, **call.fixed}
            output = getattr(dcn_det.ops, name)(**{k: v.to(device) for k, v in moved.items()}, **call.options)
            return (output.cpu() * grad).sum()

        for key, leaf in call.leaves.items():
            direction = random(*leaf.shape, seed=seed)
            difference = loss(**{key: leaf + step * direction}) - loss(**{key: leaf - step * direction})
            parts = found[key] * direction
            error = (parts.sum() - difference / (2 * step)).abs() / parts.abs().sum().clamp(min=1)
            assert error <= 1e-6, f"{key}: {error:.2e} of the sum"

    check()


def test_suppression_equals_the_reference_in_float64(tier, monkeypatch):
    device = use_tier("nms", tier, monkeypatch)

    @repeatable(400)
    @given(arguments=suppressions())
    def check(arguments: dict) -> None:
        boxes, scores, labels, *options = arguments.values()
        expected = nms_reference.nms(boxes.double(), scores.double(), labels, *options)
        tensors = [value.to(device) for value in (boxes, scores, labels) if value is not None]
        found = (nms if labels is None else batched_nms)(*tensors, *options).cpu()
        assert found.tolist() == expected.tolist()

    check()
