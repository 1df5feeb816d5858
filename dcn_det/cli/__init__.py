"""The commands of ``dcn-det``. The scripts in ``tools/`` run the same functions."""

from __future__ import annotations

import importlib
import sys
from typing import NoReturn

from dcn_det import __version__
from dcn_det.cli.arguments import Parser, listing
from dcn_det.entry import run

COMMANDS = {
    "train": ("dcn_det.cli.train", "train a detector, a segmentation network, or a classifier that gives a backbone"),
    "train-classifier": ("dcn_det.cli.train", "the same as train"),
    "test": ("dcn_det.cli.test", "test a trained model"),
    "init": ("dcn_det.cli.init", "write a config for a folder of annotated images"),
    "check-dataset": ("dcn_det.cli.check_dataset", "check the images and annotations of a data set"),
    "convert-dataset": ("dcn_det.cli.convert_dataset", "write annotations of any format in COCO's format"),
    "download": ("dcn_det.cli.download", "download COCO, Pascal VOC or ImageNet weights"),
    "convert-weights": ("dcn_det.cli.convert_weights", "convert weights from other frameworks to a checkpoint"),
    "evaluate": ("dcn_det.cli.evaluate", "compute and compare the metrics of results"),
    "analyze": ("dcn_det.cli.analyze", "write a report on results: plots, confusions, worst images"),
    "effective-dilation": ("dcn_det.cli.effective_dilation", "measure how far deformable convolutions reach"),
    "sampling": ("dcn_det.cli.sampling", "draw where deformable layers sample an image"),
    "receptive-field": ("dcn_det.cli.receptive_field", "measure the effective receptive field"),
    "infer": ("dcn_det.cli.infer", "detect objects in images, or classify their pixels, and draw them"),
    "reproduce": ("dcn_det.cli.reproduce", "plan, run and fill a table of the paper"),
    "mnist": ("dcn_det.cli.mnist", "compare deformable convolution with other methods on scaled digits"),
    "model-info": ("dcn_det.cli.model_info", "count parameters, multiply-adds and memory of models"),
    "benchmark": ("dcn_det.cli.benchmark", "measure the speed of operators, loading, training or evaluation"),
    "config": ("dcn_det.cli.config", "list, show and compare configs, and describe their keys"),
    "completion": ("dcn_det.cli.completion", "print a script that completes commands in bash"),
    "env": ("dcn_det.cli.env", "print versions, devices and compiled operators"),
}
"""Name, module (imported only when called) and summary; a module has ``main(argv) -> exit code``."""


def main() -> NoReturn:
    """Entry point of ``dcn-det``."""
    run(lambda: dispatch(sys.argv[1:]))


def dispatch(argv: list[str]) -> int:
    """Runs the command ``argv[0]`` with the remaining arguments; returns the exit code."""
    if argv and argv[0] in COMMANDS:
        module = importlib.import_module(COMMANDS[argv[0]][0])
        return int(module.main(argv[1:]))
    parser = Parser(
        prog="dcn-det",
        description="Object detection with deformable convolutional networks.",
        notes=listing("commands", {name: text for name, (_, text) in COMMANDS.items()}),
        examples=[
            "dcn-det train configs/sample/faster_rcnn_dcn.yaml --output runs/digits",
            "dcn-det infer --weights runs/digits/last.pth --output pictures photos/",
            "dcn-det train --help",
        ],
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument(
        "command", choices=COMMANDS, metavar="command", help="one of the commands below; each has --help"
    )
    parser.parse_args(argv)
    raise AssertionError("argparse exits on every list that does not begin with a command")
