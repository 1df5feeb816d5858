"""What surrounds deformable position-sensitive RoI pooling: errors, dispatch rules, the module."""

import pytest
import torch
from pooling_tiers import assert_near, gradients, use_tier
from test_deform_psroi_pool import make_case, options

from dcn_det.ops import DeformPSRoIPool, deform_psroi_pool

ERRORS = {
    "sizes": ({"pooled_size": 0}, {}, "pooled_size is 0; expected an int from 1"),
    "negative": ({"sample_per_part": -2}, {}, "sample_per_part is -2; expected an int from 1"),
    "not whole": ({"group_size": 2.0}, {}, "group_size is 2.0; expected an int"),
    "scale": ({"spatial_scale": 0.0}, {}, "spatial_scale is 0.0; expected a positive number"),
    "std": ({"trans_std": float("nan")}, {}, "trans_std is nan; expected a finite"),
    "channels": ({"output_dim": 5}, {}, r"input is of 16 channels; expected 20, output_dim \* group_size"),
    "input": ({}, {"input": torch.zeros(16, 5, 5)}, r"input is of shape \(16, 5, 5\); expected 4 dimensions"),
    "input dtype": ({}, {"input": torch.zeros(2, 16, 5, 5).int()}, "input is torch.int32; expected float32"),
    "rois": ({}, {"rois": torch.zeros(3, 4)}, r"rois is of shape \(3, 4\); expected \(R, 5\)"),
    "rois dtype": ({}, {"rois": torch.zeros(3, 5).long()}, "rois is torch.int64; expected float32"),
    "rois device": ({}, {"rois": torch.zeros(3, 5, device="meta")}, "rois is on meta; expected cpu"),
    "trans": (
        {},
        {"trans": torch.zeros(3, 4, 4, 5)},
        r"trans is of shape \(3, 4, 4, 5\); expected \(3, 2 \* K",
    ),
    "trans rows": (
        {},
        {"trans": torch.zeros(2, 4, 4, 4)},
        r"trans is of shape \(2, 4, 4, 4\); expected \(3, ",
    ),
    "trans odd": (
        {},
        {"trans": torch.zeros(3, 3, 4, 4)},
        r"trans is of 3 channels; expected 2 \* K, K a div",
    ),
    "trans classes": ({}, {"trans": torch.zeros(3, 6, 4, 4)}, r"trans is of 6 channels; expected 2 \* K"),
    "trans none": ({}, {"trans": torch.zeros(3, 0, 4, 4)}, "trans is of 0 channels"),
    "trans dtype": ({}, {"trans": torch.zeros(3, 4, 4, 4).int()}, "trans is torch.int32; expected float32"),
}
UNREADABLE = {
    "channels": {"input": torch.zeros(2, 15, 5, 5)},
    "rois": {"rois": torch.zeros(3, 4)},
    "rois dtype": {"rois": torch.zeros(3, 5).double()},
    "trans": {"trans": torch.zeros(2, 4, 4, 4)},
    "trans dtype": {"trans": torch.zeros(3, 4, 4, 4).double()},
}


def zeros() -> dict:
    return {"input": torch.zeros(2, 16, 5, 5), "rois": torch.zeros(3, 5), "trans": torch.zeros(3, 4, 4, 4)}


@pytest.mark.parametrize(("settings", "tensors", "message"), ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("tier", ["cpu", "plain"])
def test_errors_tell_argument_and_expectation(settings, tensors, message, tier, monkeypatch):
    use_tier("deform_psroi_pool", tier, monkeypatch)
    with pytest.raises(ValueError, match=rf"^deform_psroi_pool: {message}"):
        deform_psroi_pool(**(zeros() | tensors), **options(**settings))


@pytest.mark.parametrize("changes", UNREADABLE.values(), ids=UNREADABLE)
def test_compiled_kernel_refuses_what_it_could_not_read(changes, monkeypatch):
    use_tier("deform_psroi_pool", "cpu", monkeypatch)
    with pytest.raises(RuntimeError, match=r"must (have|be)"):
        torch.ops.dcn_det.deform_psroi_pool(*(zeros() | changes).values(), *options().values())


@pytest.mark.parametrize("classes", [0, 2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_opcheck(classes, layout):
    tensors, settings = make_case(classes=classes, rois=3, size=(6, 5))
    tensors["input"] = tensors["input"].contiguous(memory_format=layout)
    for name in ("input", "trans"):
        if tensors[name] is not None:
            tensors[name].requires_grad_()
    torch.library.opcheck(torch.ops.dcn_det.deform_psroi_pool, (*tensors.values(), *settings.values()))


@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
def test_opcheck_backward(needs):
    tensors, settings = make_case(rois=3, size=(6, 5))
    grad = torch.ones(3, 4, 4, 4, dtype=torch.float64)
    arguments = (grad, *tensors.values(), *settings.values(), *needs)
    torch.library.opcheck(torch.ops.dcn_det.deform_psroi_pool_backward, arguments)


def test_compiles_without_a_graph_break():
    tensors, settings = make_case(classes=2, dtype=torch.float32)
    compiled = torch.compile(deform_psroi_pool, fullgraph=True, backend="aot_eager", dynamic=True)

    def call(function, tensors):
        leaves = {k: tensors[k] for k in ("input", "trans")}
        return gradients(lambda **leaves: function(rois=tensors["rois"], **leaves, **settings), leaves)

    for rois in (7, 5):
        some = tensors | {k: tensors[k][:rois] for k in ("rois", "trans")}
        assert_near(call(compiled, some), call(deform_psroi_pool, some), 1e-6)


def test_autocast_casts_features_and_leaves_coordinates():
    tensors, settings = make_case(classes=2, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = deform_psroi_pool(**tensors, **settings)
    expected = deform_psroi_pool(**(tensors | {"input": tensors["input"].bfloat16()}), **settings)
    assert found.dtype == torch.bfloat16 and torch.equal(found, expected)


def test_double_backward_says_that_there_is_none():
    tensors, settings = make_case()
    leaf = tensors["input"].requires_grad_()
    output = deform_psroi_pool(**tensors, **settings).square().sum()
    (grad,) = torch.autograd.grad(output, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="deform_psroi_pool: double backward"):
        grad.sum().backward()


def test_module_is_the_function():
    tensors, settings = make_case()
    module = DeformPSRoIPool(**settings)
    assert torch.equal(module(**tensors), deform_psroi_pool(**tensors, **settings))
    del tensors["trans"]
    assert torch.equal(module(**tensors), deform_psroi_pool(**tensors, **settings))
    assert "trans_std=0.1" in repr(module) and not list(module.parameters())
