"""``dcn-det benchmark``: measures the speed of one part of the project."""

from __future__ import annotations

import argparse
import importlib
import sys

from dcn_det.cli.arguments import Parser, listing

BENCHMARKS = {
    "data": ("dcn_det.benchmark.data", "reading and preparing images"),
    "detector": ("dcn_det.benchmark.detector", "whole networks on random images, training and testing"),
    "eval": ("dcn_det.benchmark.evaluation", "the evaluation command with each backend"),
    "memory": ("dcn_det.benchmark.model_memory", "peak memory of whole networks, in training and testing"),
    "ops": ("dcn_det.benchmark.ops", "operators compared with torchvision's and the plain convolution"),
    "peer": ("dcn_det.benchmark.peer", "accuracy and time of plain Faster R-CNN and of torchvision's, trained alike"),
    "postprocess": ("dcn_det.benchmark.postprocess", "post-processing of a head's output, and multi-scale testing"),
    "train": ("dcn_det.benchmark.train", "training and its phases"),
}
"""Name, module (imported only when called) and summary; a module has ``main(argv) -> exit code``."""


def parser() -> argparse.ArgumentParser:
    """The command's arguments; each benchmark has a parser of its own for those that follow its name."""
    result = Parser(
        prog="dcn-det benchmark",
        description="Measure speed, as ratios of times taken side by side.",
        notes=listing("benchmarks", {name: text for name, (_, text) in BENCHMARKS.items()}),
        examples=["dcn-det benchmark data configs/sample/rfcn.yaml", "dcn-det benchmark ops --only forward+backward"],
    )
    result.add_argument(
        "benchmark", choices=BENCHMARKS, metavar="benchmark", help="one of the benchmarks below; each has --help"
    )
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark ``argv[0]`` with the remaining arguments; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in BENCHMARKS:
        return int(importlib.import_module(BENCHMARKS[argv[0]][0]).main(argv[1:]))
    parser().parse_args(argv)
    raise AssertionError("argparse exits on every list that does not begin with a benchmark")
