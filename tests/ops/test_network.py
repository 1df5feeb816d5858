"""A network that uses every operator, captured by torch.compile and torch.export."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.export import Dim

from dcn_det.ops.flops import FORMULAS, flop_counter
from dcn_det.ops.schemas import SCHEMAS
from tests.ops import small_network
from tests.ops.small_network import make_inputs, make_network


def outputs_and_gradients(network, inputs) -> list[torch.Tensor]:
    scores, regions, kept = network(*inputs)
    return [scores, regions, kept, *torch.autograd.grad(scores.square().sum(), list(network.parameters()))]


def assert_equal(found, expected) -> None:
    assert len(found) == len(expected)
    for value, other in zip(found, expected):
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_compiled_network_equals_eager():
    """One graph, compiled once, serves any number of proposals."""
    network = make_network()
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True)
    for count in (20, 31):
        inputs = make_inputs(2, count)
        expected = outputs_and_gradients(network, inputs)
        assert 0 < len(expected[2]) < len(expected[1]) < count
        assert_equal(outputs_and_gradients(compiled, inputs), expected)
    torch._dynamo.reset()


@pytest.mark.parametrize("strict", [False, True])
def test_exported_network_equals_eager_in_a_fresh_process(tmp_path, strict):
    network = make_network().eval()
    batch, count = Dim("batch", min=1), Dim("proposals", min=1)
    shapes = ({0: batch}, {0: count}, {0: count})
    program = torch.export.export(network, make_inputs(2, 20), dynamic_shapes=shapes, strict=strict)
    torch.export.save(program, tmp_path / "network.pt2")
    targets = {str(node.target) for node in program.graph.nodes}
    operators = ["deform_conv2d", "deform_psroi_pool", "psroi_pool", "roi_pool", "nms"]
    assert {f"dcn_det.{name}.default" for name in operators} <= targets
    folder = Path(small_network.__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder.parents[1]), str(folder)])}
    command = [
        sys.executable,
        str(folder / "small_network.py"),
        str(tmp_path / "network.pt2"),
        str(tmp_path / "out.pt"),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        for found, (images, proposals) in zip(torch.load(tmp_path / "out.pt"), ((2, 20), (2, 31), (3, 9))):
            assert_equal(found, network(*make_inputs(images, proposals)))


def test_every_operator_has_a_flop_formula():
    assert {packet._qualified_op_name for packet in FORMULAS} == {f"dcn_det::{name}" for name in SCHEMAS}
    network, inputs = make_network(), make_inputs(2, 20)
    with flop_counter() as counter:
        scores, *_ = network(*inputs)
        scores.sum().backward()
    counted = {str(operator) for operator in counter.get_flop_counts()["Global"]}
    used = {f"dcn_det.{name}" for name in SCHEMAS if not name.endswith("_deterministic")}
    assert used <= counted
