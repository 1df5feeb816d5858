"""The backward operator chosen for CUDA tensors, tested without a GPU on fake tensors."""

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from dcn_det.ops.schemas import SCHEMAS, WITH_DETERMINISTIC_TWIN


class Calls(TorchDispatchMode):
    """Records calls of this package's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "dcn_det":
            self.names.append(function.__name__.split(".")[0])
        return function(*args, **(kwargs or {}))


class Context:
    """Stands in for autograd's context, because autograd's engine needs a device."""

    def __init__(self, needs_input_grad: list[bool]) -> None:
        self.needs_input_grad = needs_input_grad

    def save_for_backward(self, *tensors: Any) -> None:
        self.saved_tensors = tensors

    def mark_non_differentiable(self, *tensors: Any) -> None:
        pass

    def set_materialize_grads(self, value: bool) -> None:
        pass


@pytest.fixture(params=[False, True], ids=["usual", "strict"])
def strict(request) -> Iterator[bool]:
    torch.use_deterministic_algorithms(request.param)
    yield request.param
    torch.use_deterministic_algorithms(False)


# Module and arguments of each operator; tuples stand for tensors of that shape.
OPERATORS: dict[str, tuple[str, list[Any]]] = {
    "deform_conv2d": (
        "deform_conv_rules",
        [(1, 4, 5, 6), (1, 18, 3, 4), (8, 4, 3, 3), None, None, [1, 1], [0, 0], [1, 1], "zeros"],
    ),
    "deform_psroi_pool": ("deform_psroi_pool", [(1, 8, 9, 9), (3, 5), (3, 2, 4, 4), 1 / 16, 2, 2, 4, 4, 2, 0.1]),
    "psroi_pool": ("psroi_pool", [(1, 8, 9, 9), (3, 5), 1 / 16, 2, 2, 4]),
    "roi_align": ("roi_align", [(1, 8, 9, 9), (3, 5), 1 / 16, 4, 2, True]),
    "roi_pool": ("roi_pool", [(1, 8, 9, 9), (3, 5), 1 / 16, 4]),
}


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("name", OPERATORS)
def test_cuda_gets_the_deterministic_twin_when_asked_to(name, device, strict):
    module_name, sizes = OPERATORS[name]
    module = importlib.import_module(f"dcn_det.ops.{module_name}")
    context = Context(needs_input_grad=[True, *[False] * (len(sizes) - 1)])
    with FakeTensorMode(), Calls() as calls:
        arguments = [torch.empty(size, device=device) if isinstance(size, tuple) else size for size in sizes]
        output = module.OPERATOR(*arguments)
        module._setup_context(context, arguments, output)
        outputs = output if isinstance(output, tuple) else (output,)
        grad_input, *_ = module._backward(context, *map(torch.zeros_like, outputs))
    assert grad_input.shape == sizes[0]
    twin = strict and device == "cuda"  # CPU kernels are always deterministic
    assert calls.names == [name, f"{name}_backward_deterministic" if twin else f"{name}_backward"]


def test_every_twin_has_the_schema_of_its_operator():
    assert {f"{name}_backward" for name in OPERATORS} == set(WITH_DETERMINISTIC_TWIN)
    for name in WITH_DETERMINISTIC_TWIN:
        assert SCHEMAS[f"{name}_deterministic"] == SCHEMAS[name]
