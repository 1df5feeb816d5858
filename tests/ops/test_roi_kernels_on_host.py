"""The arithmetic of RoI pooling's CUDA kernels, compiled for the host: what can be tested of them without a GPU."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from pooling_tiers import BAD_ROIS, assert_near
from test_deform_psroi_pool import CASES, make_case
from torch import Tensor

from dcn_det.ops.reference import deform_psroi_pool, roi_pooling

CSRC = Path(__file__).parents[2] / "dcn_det" / "ops" / "csrc"


@pytest.fixture(scope="module")
def kernels(tmp_path_factory) -> ctypes.CDLL:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    if not CSRC.is_dir():
        pytest.skip(f"the sources are not at {CSRC}")
    library = tmp_path_factory.mktemp("kernels") / "kernels.so"
    source = Path(__file__).with_name("roi_kernels_on_host.cpp")
    flags = ["-std=c++20", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-fsanitize=undefined"]
    flags.append("-fno-sanitize-recover=undefined")
    subprocess.run([compiler, *flags, f"-I{CSRC}", str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def call(function, *arguments: Tensor | float | int | None) -> None:
    """Passes floats as double, ints as int64 and tensors by address."""

    def convert(argument):
        if isinstance(argument, Tensor):
            assert argument.is_contiguous()
            return ctypes.c_void_p(argument.data_ptr())
        if isinstance(argument, float):
            return ctypes.c_double(argument)
        return None if argument is None else ctypes.c_int64(argument)

    function.restype = None
    function(*map(convert, arguments))


def sizes_of(input: Tensor, rois: Tensor, classes=1, **settings) -> Tensor:
    names = ("group_size", "pooled_size")
    group, pooled = (settings.get(name, 1) for name in names)
    output_dim = settings.get("output_dim", input.shape[1])
    rest = [settings.get(name, 1) for name in ("part_size", "sample_per_part")]
    batch, _, height, width = input.shape
    return torch.tensor([batch, len(rois), output_dim, height, width, group, pooled, classes, *rest])


def with_bad_rois(rois: Tensor) -> Tensor:
    """Puts regions that pool to zero among others, and images that do not exist."""
    rois = torch.cat([rois, BAD_ROIS.double(), rois[:3]])
    rois[-3:, 0] = torch.tensor([-1.0, 1e30, float("nan")]).double()
    return rois


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_deform_psroi_pool(changes, kernels):
    tensors, settings = make_case(**changes)
    input, rois = tensors["input"], with_bad_rois(tensors["rois"])
    trans = tensors["trans"]
    if trans is not None:
        trans = trans.repeat(3, 1, 1, 1)[: len(rois)]
    classes = 1 if trans is None else trans.shape[1] // 2
    options = tuple(settings.values())
    output = deform_psroi_pool.deform_psroi_pool(input, rois, trans, *options)
    grad = torch.linspace(-1, 1, output.numel()).double().reshape(output.shape)
    needs = (True, trans is not None)
    grads = deform_psroi_pool.deform_psroi_pool_backward(grad, input, rois, trans, *options, *needs)
    expected = {"output": output, "input": grads[0], "trans": grads[1]}
    found = {name: torch.zeros_like(value) for name, value in expected.items()}
    head = (sizes_of(input, rois, classes, **settings), settings["spatial_scale"], settings["trans_std"])
    call(kernels.deform_psroi_pool, *head, input, rois, trans, found["output"])
    results = (found["input"], found["trans"])
    call(kernels.deform_psroi_pool_backward, *head, grad, input, rois, trans, *results)
    assert_near(found, expected, 1e-11)


@pytest.mark.parametrize("changes", [{}, {"group_size": 1}, {"size": (1, 1)}, {"pooled_size": 7}])
def test_psroi_pool(changes, kernels):
    tensors, settings = make_case(classes=0, **changes)
    input, rois, scale = tensors["input"], with_bad_rois(tensors["rois"]), settings["spatial_scale"]
    group, pooled = settings["group_size"], settings["pooled_size"]
    output = roi_pooling.psroi_pool(input, rois, scale, settings["output_dim"], group, pooled)
    grad = torch.linspace(-1, 1, output.numel()).double().reshape(output.shape)
    expected = {
        "output": output,
        "input": roi_pooling.psroi_pool_backward(grad, rois, len(input), *input.shape[2:], scale, group),
    }
    found = {name: torch.zeros_like(value) for name, value in expected.items()}
    call(kernels.psroi_pool, sizes_of(input, rois, **settings), scale, input, rois, grad, *found.values())
    assert_near(found, expected, 1e-12)


@pytest.mark.parametrize("pooled_size", [1, 3, 7])
def test_roi_pool(pooled_size, kernels):
    tensors, _ = make_case(classes=0, rois=20)
    input, rois = tensors["input"].relu(), with_bad_rois(tensors["rois"])
    input[0, 0, 3:6, 4] = float("nan")
    output, argmax = roi_pooling.roi_pool(input, rois, 1 / 16, pooled_size)
    grad = torch.linspace(-1, 1, output.numel()).double().reshape(output.shape)
    grad_input = roi_pooling.roi_pool_backward(grad, rois, argmax, len(input), *input.shape[2:])
    found = [torch.zeros_like(value) for value in (output, argmax, grad_input)]
    call(kernels.roi_pool, sizes_of(input, rois, pooled_size=pooled_size), 1 / 16, input, rois, grad, *found)
    torch.testing.assert_close(found[0], output, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(found[1], argmax)
    assert_near({"input": found[2]}, {"input": grad_input}, 1e-12)
