"""The shim that runs CUDA kernels without a GPU: computes as a GPU does, and reports mistakes."""

import pytest
import torch

from tests.ops.cuda_on_host import InOut, Out

MISUSE = {
    1: "a (race of a write and a read|race of a read and a write|read) of .*shared memory",
    2: "a (race of a write and a read|race of a read and a write|read) of .*shared memory",
    3: "a read of uninitialized shared memory",
    4: "a read out of bounds by thread 63",
    5: "a write out of bounds by thread 63",
    6: "a write to a read-only tensor",
    7: "a race of two writes to global memory",
    8: "a read of uninitialized global memory",
    9: "__syncthreads for some that have returned",
    10: "holds a lane that has returned",
    11: "a shuffle reads a lane that is not in its mask",
    12: "threads wait for each other",
    13: "undefined behavior at .*misuse.cpp",
    14: "undefined behavior at .*misuse.cpp",
    15: "a race of (two writes to|a read and a write of) global memory",
    16: "undefined behavior at .*misuse.cpp",
}


@pytest.mark.parametrize("seed", [0, 1])
def test_a_right_kernel(host, seed):
    numbers, found = torch.arange(64.0), torch.full((64,), torch.nan)
    host("misuse", 0, numbers, Out(found), seed=seed)
    assert torch.equal(found, numbers.flip(0))


@pytest.mark.parametrize("kind", MISUSE)
@pytest.mark.parametrize("seed", [0, 1])
def test_misuse_is_noticed(host, kind, seed):
    with pytest.raises(AssertionError, match=MISUSE[kind].replace("63", r"\d+" if seed else "63")):
        host("misuse", kind, torch.arange(64.0) + 1, (InOut if kind == 15 else Out)(torch.zeros(64)), seed=seed)
    test_a_right_kernel(host, 0)  # an error leaves nothing behind


def test_lanes_talk(host):
    numbers = torch.arange(64.0) - 40
    found = torch.empty(64)
    host("lanes", numbers, Out(found))
    halves = numbers.view(2, 32)
    expected = halves.sum(1) + (halves > 0).sum(1)
    assert torch.equal(found.view(2, 32), expected[:, None].expand(2, 32))
