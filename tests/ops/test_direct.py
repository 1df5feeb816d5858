"""The short way from a public function to its kernel gives the results of PyTorch's dispatcher, and is taken."""

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from dcn_det.ops import direct
from tests.ops.cuda_cases import OPERATORS, results

RECORDED = [name for name in OPERATORS if "," not in name]
"""One case of each operator."""


def small_case(name: str) -> dict[str, torch.Tensor]:
    return OPERATORS[name][2]()


def graph_of(output: torch.Tensor) -> list[str]:
    """Returns the names of the nodes that computed a tensor, last first."""
    nodes, found = [output.grad_fn], []
    while nodes:
        node = nodes.pop(0)
        if node is not None:
            found.append(type(node).__name__)
            nodes += [each for each, _ in node.next_functions]
    return found


def by_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "is_eager", lambda: False)


@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
@pytest.mark.parametrize("name", OPERATORS)
def test_equals_the_dispatcher(name, autocast, monkeypatch):
    run = OPERATORS[name][0]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = results(run, small_case(name), "cpu")
        by_dispatcher(monkeypatch)
        expected = results(run, small_case(name), "cpu")
    assert found["output"].dtype == (torch.bfloat16 if autocast else torch.float32)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype and torch.equal(found[key], value), key


@pytest.mark.parametrize("name", RECORDED)
def test_is_taken_in_eager_mode_only(name, monkeypatch):
    run, tensors = OPERATORS[name][0], small_case(name)
    tensors["input"].requires_grad_()
    short = name.title().replace("_", "") + "Backward"
    assert short in graph_of(run(**tensors))
    by_dispatcher(monkeypatch)
    nodes = graph_of(run(**tensors))
    assert short not in nodes and any(name in node for node in nodes)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", RECORDED)
def test_records_nothing_without_gradients(name, context):
    run, tensors = OPERATORS[name][0], small_case(name)
    expected = run(**tensors)
    tensors["input"].requires_grad_()
    with context():
        found = run(**tensors)
    assert found.grad_fn is None and torch.equal(found, expected)


class Names(TorchDispatchMode):
    """Records the names of operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.__name__)
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("name", RECORDED)
def test_dispatch_modes_see_forward_and_backward(name):
    run, tensors = OPERATORS[name][0], small_case(name)
    tensors["input"].requires_grad_()
    with Names() as mode:
        run(**tensors).sum().backward()
    assert f"{name}.default" in mode.names and f"{name}_backward.default" in mode.names
    output = run(**tensors)  # the mode starts between forward and backward
    with Names() as mode:
        output.sum().backward()
    assert f"{name}_backward.default" in mode.names


def test_function_modes_see_the_operator():
    class Functions(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **kwargs or {})

    seen: list[str] = []
    run, tensors = OPERATORS["roi_align"][0], small_case("roi_align")
    with Functions():
        run(**tensors)
    assert any("roi_align" in name for name in seen)


def test_subclasses_take_the_dispatcher():
    calls: list[str] = []

    class Seen(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            calls.append(str(func))
            return super().__torch_function__(func, types, args, kwargs or {})

    run, tensors = OPERATORS["roi_align"][0], small_case("roi_align")
    expected = run(**tensors)
    found = run(tensors["input"].as_subclass(Seen), tensors["rois"])
    assert type(found) is Seen and torch.equal(found.as_subclass(torch.Tensor), expected)
    assert any("roi_align" in name for name in calls)


def test_checkpointing_and_saved_tensor_hooks():
    run, tensors = OPERATORS["deform_psroi_pool"][0], small_case("deform_psroi_pool")
    names = ("input", "offset")
    expected = results(run, tensors, "cpu")
    packed: list[torch.Size] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        packed.append(tensor.shape)
        return tensor

    leaves = [tensors[name].requires_grad_() for name in names]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run(**tensors)
    assert [tensor.shape for tensor in tensors.values()] == packed
    again = torch.utils.checkpoint.checkpoint(
        lambda *args: run(*args), *(tensors[name] for name in ("input", "rois", "offset")), use_reentrant=False
    )
    grad = torch.ones_like(output)
    for first, second in zip(torch.autograd.grad(output, leaves, grad), torch.autograd.grad(again, leaves, grad)):
        assert torch.equal(first, second)
    assert torch.equal(again, expected["output"])
