"""The CUDA kernels of deformable convolution, compiled for the host and run one thread after the other.

This checks their arithmetic and indexing where there is no GPU, not what is particular to one: sums over the
lanes of a warp, atomic additions, launches.
"""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from dcn_det.ops.reference import deform_conv as reference

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "dcn_det" / "ops" / "csrc"
TILE = 10  # output positions: less than an image, and no divisor of one


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None or not SOURCES.is_dir():
        pytest.skip("needs a C++ compiler and the sources")
    library = tmp_path_factory.mktemp("build") / "kernels.so"
    source = HERE / "deform_conv_cuda_on_host.cpp"
    command = [
        compiler,
        "-std=c++20",
        "-O1",
        "-Wall",
        "-Werror",
        "-shared",
        "-fPIC",
        f"-I{SOURCES}",
        f"-I{HERE}",
    ]
    subprocess.run([*command, str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def pointer(tensor):
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


@pytest.mark.parametrize("border", ["zeros", "dcn_v1"])
@pytest.mark.parametrize(("groups", "offset_groups", "masked"), [(1, 1, False), (2, 3, True), (3, 2, True)])
def test_kernels(kernels, border, groups, offset_groups, masked):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    batch, channels, out_channels, kernel, size, out_size = 2, 12, 6, (3, 2), (7, 6), (4, 5)
    stride, padding, dilation = (2, 1), (1, 0), (1, 1)
    taps, cells, positions = 6, 20, 40
    input, weight = normal(batch, channels, *size), normal(out_channels, channels // groups, *kernel)
    offset = normal(batch, 2 * offset_groups * taps, *out_size) * 2
    mask = normal(batch, offset_groups * taps, *out_size) if masked else None
    grad = normal(batch, out_channels, *out_size)
    shape = (ctypes.c_int64 * 18)(
        *(batch, channels, *size, out_channels, *out_size, *kernel, *stride, *padding, *dilation),
        *(groups, offset_groups, int(border == "dcn_v1")),
    )

    features = input.permute(0, 2, 3, 1).contiguous()
    matrices = weight.permute(0, 2, 3, 1).reshape(groups, out_channels // groups, -1)
    rows = grad.permute(0, 2, 3, 1).reshape(positions, groups, -1).transpose(0, 1)
    output = torch.empty(groups, positions, out_channels // groups, dtype=torch.float64)
    grad_features, grad_matrices = torch.zeros_like(features), torch.zeros_like(matrices)
    grad_offset = torch.full_like(offset, torch.nan)
    grad_mask = torch.full_like(mask, torch.nan) if masked else None
    for first in range(0, positions, TILE):
        columns = torch.full((groups, TILE, matrices.shape[2]), torch.nan, dtype=torch.float64)
        tile = (ctypes.c_int64(first), ctypes.c_int64(TILE))
        reads = (shape, pointer(features), pointer(offset), pointer(mask))
        kernels.fill(*reads, pointer(columns), *tile)
        output[:, first : first + TILE] = columns @ matrices.transpose(1, 2)
        grad_columns = rows[:, first : first + TILE] @ matrices
        writes = (pointer(grad_columns), pointer(grad_features), pointer(grad_offset), pointer(grad_mask))
        kernels.sweep(*reads, *writes, ctypes.c_bool(True), *tile)
        assert torch.equal(grad_columns, columns)
        grad_matrices += rows[:, first : first + TILE].transpose(1, 2) @ columns

    options = (stride, padding, dilation, border)
    expected = reference.deform_conv2d(input, offset, weight, None, mask, *options)
    found = output.transpose(0, 1).reshape(batch, cells, out_channels).transpose(1, 2)
    torch.testing.assert_close(found.reshape(expected.shape), expected)
    needs = (True, True, True, masked)
    grads = reference.deform_conv2d_backward(grad, input, offset, weight, mask, *options, *needs)
    torch.testing.assert_close(grad_features.permute(0, 3, 1, 2), grads[0])
    torch.testing.assert_close(grad_offset, grads[1])
    torch.testing.assert_close(
        grad_matrices.reshape(out_channels, *kernel, channels // groups).permute(0, 3, 1, 2), grads[2]
    )
    if masked:
        torch.testing.assert_close(grad_mask, grads[3])
