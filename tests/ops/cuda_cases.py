"""Calls of every operator for the tests on a CUDA device, with their references."""

from collections.abc import Callable
from functools import partial

import torch

from dcn_det.ops import deform_conv2d, deform_psroi_pool, psroi_pool, roi_align, roi_pool
from dcn_det.ops.reference import deform_conv as conv_reference
from dcn_det.ops.reference import deform_psroi_pool as deform_reference
from dcn_det.ops.reference import roi_align as align_reference
from dcn_det.ops.reference import roi_pooling as reference
from tests.ops.pooling_tiers import random, random_rois

DEVICE = "cuda"
POOLING = {"spatial_scale": 1 / 16, "output_dim": 6, "group_size": 3, "pooled_size": 3}
PARTS = {"part_size": 3, "samples_per_bin": 4, "offset_std": 0.1}
UNGROUPED = POOLING | {"output_dim": 64, "group_size": 1}  # every bin pools all channels


def conv_case(dtype=torch.float32, batch=2, channels=64, size=(19, 23), masked=True) -> dict:
    """Returns a convolution with two groups and four offset groups."""
    tensors = {
        "input": random(batch, channels, *size),
        "offset": random(batch, 8 * 9, *size, seed=1) * 2,
        "weight": random(48, channels // 2, 3, 3, seed=2) / 10,
        "bias": random(48, seed=3),
    }
    if masked:
        tensors["mask"] = random(batch, 4 * 9, *size, seed=4).sigmoid()
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def wide_case(dtype=torch.float32, batch=2, size=(9, 11)) -> dict:
    """Returns a convolution as in the last stage of a ResNet: lanes of a warp share the 128 channels of a group."""
    tensors = {
        "input": random(batch, 512, *size),
        "offset": random(batch, 8 * 9, *size, seed=1) * 2,
        "weight": random(64, 512, 3, 3, seed=2) / 10,
    }
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def roi_case(dtype=torch.float32, rois=40, batch=2, size=(20, 24), channels=54) -> dict:
    return {
        "input": random(batch, channels, *size, dtype=dtype),
        "rois": random_rois(rois, batch, size[0] * 16, size[1] * 16).float(),
    }


def offset_case(dtype=torch.float32, rois=40, **more) -> dict:
    # For this seed float32 and float64 sample the same cells in every dtype.
    return roi_case(dtype, rois, **more) | {"offset": random(rois, 4, 3, 3, seed=3, dtype=dtype)}


def run_conv(input, offset, weight, bias=None, mask=None, padding=1, **more):
    return deform_conv2d(input, offset, weight, bias, padding=padding, mask=mask, **more)


def plain_conv(input, offset, weight, bias=None, mask=None, padding=1, dilation=1, border="zeros"):
    steps = ([1, 1], [padding] * 2, [dilation] * 2)
    return conv_reference.deform_conv2d(input, offset, weight, bias, mask, *steps, border)


def run_deform(input, rois, offset, **more):
    return deform_psroi_pool(input, rois, offset, **POOLING | PARTS | more)


def plain_deform(input, rois, offset, **more):
    return deform_reference.deform_psroi_pool(input, rois, offset, *(POOLING | PARTS | more).values())


def run_psroi(input, rois, **more):
    return psroi_pool(input, rois, **POOLING | more)


def plain_psroi(input, rois, **more):
    return reference.psroi_pool(input, rois, *(POOLING | more).values())


def run_align(input, rois):
    return roi_align(input, rois, spatial_scale=1 / 16, pooled_size=3)


def plain_align(input, rois):
    return align_reference.roi_align(input, rois, 1 / 16, 3, 0, True)


def run_roi(input, rois):
    return roi_pool(input, rois, spatial_scale=1 / 16, pooled_size=3)


def plain_roi(input, rois):
    return reference.roi_pool(input, rois, 1 / 16, 3)[0]


# The operator, its reference, and tensors for both.
OPERATORS: dict[str, tuple[Callable, Callable, Callable]] = {
    "deform_conv2d": (run_conv, plain_conv, conv_case),
    "deform_psroi_pool": (run_deform, plain_deform, offset_case),
    "deform_psroi_pool, ungrouped": (
        partial(run_deform, **UNGROUPED),
        partial(plain_deform, **UNGROUPED),
        partial(offset_case, channels=64),
    ),
    "psroi_pool": (run_psroi, plain_psroi, roi_case),
    "psroi_pool, ungrouped": (
        partial(run_psroi, **UNGROUPED),
        partial(plain_psroi, **UNGROUPED),
        partial(roi_case, channels=64),
    ),
    "roi_align": (run_align, plain_align, roi_case),
    "roi_pool": (run_roi, plain_roi, roi_case),
}


def results(run: Callable, tensors: dict, device=DEVICE) -> dict:
    """Returns the output and all gradients except that of the regions, on the CPU."""
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items() if name != "rois"}
    output = run(**tensors)
    grad = random(*output.shape, seed=9).to(output)
    grads = torch.autograd.grad(output, list(leaves.values()), grad)
    return {"output": output.detach().cpu()} | {name: g.cpu() for name, g in zip(leaves, grads)}


def in_float64(plain: Callable, tensors: dict) -> dict:
    """Returns the results of the reference in float64 for the same values."""
    wide = {name: tensor.detach().double() for name, tensor in tensors.items()}
    leaves = {name: tensor.requires_grad_() for name, tensor in wide.items() if name != "rois"}
    output = plain(**wide)
    grad = random(*output.shape, seed=9).to(tensors["input"].dtype).double()
    grads = torch.autograd.grad(output, list(leaves.values()), grad)
    return {"output": output.detach()} | dict(zip(leaves, grads))
