"""Deformable position-sensitive RoI pooling: errors, dispatch rules and module."""

import pytest
import torch

from dcn_det.ops import DeformPSRoIPool, deform_psroi_pool
from tests.ops.pooling_tiers import assert_near, gradients, use_tier
from tests.ops.test_deform_psroi_pool import make_case, options

ERRORS = {
    "sizes": ({"pooled_size": 0}, {}, "pooled_size is 0; expected an int from 1"),
    "negative": ({"samples_per_bin": -2}, {}, "samples_per_bin is -2; expected an int from 1"),
    "not whole": ({"group_size": 2.0}, {}, "group_size is 2.0; expected an int"),
    "scale": ({"spatial_scale": 0.0}, {}, "spatial_scale is 0.0; expected a positive number"),
    "std": ({"offset_std": float("nan")}, {}, "offset_std is nan; expected a finite"),
    "channels": ({"output_dim": 5}, {}, r"input is of 16 channels; expected 20, output_dim \* group_size"),
    "input": ({}, {"input": torch.zeros(16, 5, 5)}, r"input is of shape \(16, 5, 5\); expected 4 dimensions"),
    "input dtype": ({}, {"input": torch.zeros(2, 16, 5, 5).int()}, "input is torch.int32; expected float32"),
    "rois": ({}, {"rois": torch.zeros(3, 4)}, r"rois is of shape \(3, 4\); expected \(R, 5\)"),
    "rois dtype": ({}, {"rois": torch.zeros(3, 5).long()}, "rois is torch.int64; expected float32"),
    "rois device": ({}, {"rois": torch.zeros(3, 5, device="meta")}, "rois is on meta; expected cpu"),
    "offset": (
        {},
        {"offset": torch.zeros(3, 4, 4, 5)},
        r"offset is of shape \(3, 4, 4, 5\); expected \(3, 2 \* K",
    ),
    "offset rows": (
        {},
        {"offset": torch.zeros(2, 4, 4, 4)},
        r"offset is of shape \(2, 4, 4, 4\); expected \(3, ",
    ),
    "offset odd": (
        {},
        {"offset": torch.zeros(3, 3, 4, 4)},
        r"offset is of 3 channels; expected 2 \* K, K a div",
    ),
    "offset classes": ({}, {"offset": torch.zeros(3, 6, 4, 4)}, r"offset is of 6 channels; expected 2 \* K"),
    "offset none": ({}, {"offset": torch.zeros(3, 0, 4, 4)}, "offset is of 0 channels"),
    "offset dtype": ({}, {"offset": torch.zeros(3, 4, 4, 4).int()}, "offset is torch.int32; expected float32"),
}
UNREADABLE = {
    "channels": {"input": torch.zeros(2, 15, 5, 5)},
    "rois": {"rois": torch.zeros(3, 4)},
    "rois dtype": {"rois": torch.zeros(3, 5).double()},
    "offset": {"offset": torch.zeros(2, 4, 4, 4)},
    "offset dtype": {"offset": torch.zeros(3, 4, 4, 4).double()},
}


def zeros() -> dict:
    return {"input": torch.zeros(2, 16, 5, 5), "rois": torch.zeros(3, 5), "offset": torch.zeros(3, 4, 4, 4)}


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
    for name in ("input", "offset"):
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
        leaves = {k: tensors[k] for k in ("input", "offset")}
        return gradients(lambda **leaves: function(rois=tensors["rois"], **leaves, **settings), leaves)

    for rois in (7, 5):
        some = tensors | {k: tensors[k][:rois] for k in ("rois", "offset")}
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
    del tensors["offset"]
    assert torch.equal(module(**tensors), deform_psroi_pool(**tensors, **settings))
    assert "offset_std=0.1" in repr(module) and not list(module.parameters())


def released(arguments: dict) -> dict:
    """Renames arguments as in the authors' code."""
    old = {"offset": "trans", "samples_per_bin": "sample_per_part", "offset_std": "trans_std"}
    return {old.get(name, name): value for name, value in arguments.items()}


def test_names_of_the_released_code_are_accepted():
    tensors, settings = make_case()
    expected = deform_psroi_pool(**tensors, **settings)
    assert released(tensors).keys() != tensors.keys() and released(settings).keys() != settings.keys()
    assert torch.equal(deform_psroi_pool(**released(tensors), **released(settings)), expected)
    assert torch.equal(DeformPSRoIPool(**released(settings))(**released(tensors)), expected)


@pytest.mark.parametrize("name", ["offset", "samples_per_bin", "offset_std"])
def test_two_names_of_one_argument_are_refused(name):
    tensors, settings = make_case()
    both = {**tensors, **settings} | released({name: {**tensors, **settings}[name]})
    with pytest.raises(TypeError, match=f"^deform_psroi_pool.*{name}"):
        deform_psroi_pool(**both)
    with pytest.raises(TypeError, match=f"DeformPSRoIPool.*{name}"):
        DeformPSRoIPool(**{k: v for k, v in both.items() if k not in tensors and k != "trans"})(
            **{k: v for k, v in both.items() if k in (*tensors, "trans")}
        )
    with pytest.raises(TypeError, match="'offset'"):
        deform_psroi_pool(*tensors.values(), trans=tensors["offset"], **settings)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", ["samples_per_bin", "offset_std"])
def test_missing_arguments_are_told_by_their_names(name):
    tensors, settings = make_case()
    del settings[name]
    for call in (lambda: deform_psroi_pool(**tensors, **settings), lambda: DeformPSRoIPool(**settings)):
        with pytest.raises(TypeError, match=f"missing 1 required keyword-only argument: '{name}'"):
            call()
