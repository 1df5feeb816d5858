"""``dcn-det model-info``: parameters and multiply-adds of models, next to the paper's numbers."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from dcn_det.cli.arguments import Parser, positive
from dcn_det.config import RunConfig, load_any
from dcn_det.config.model import ResidualBackboneConfig
from dcn_det.config.testing import ExpectedConfig
from dcn_det.errors import UserError
from dcn_det.models.build import build_model
from dcn_det.models.info import ModelInfo, model_info

PAPER_PARAMETERS = {
    ("deeplab", "none", 0): 46.0,
    ("deeplab", "none", 3): 46.1,
    ("class_aware_rpn", "none", 0): 46.0,
    ("class_aware_rpn", "none", 3): 46.1,
    ("faster_rcnn", "max", 0): 58.3,
    ("faster_rcnn", "deformable", 3): 59.9,
    ("rfcn", "average", 0): 47.1,
    ("rfcn", "deformable", 3): 49.5,
}
"""Millions of parameters in the paper's Table 4, by model, RoI pooling and number of deformable convolutions, with
ResNet-101 and the classes of Pascal VOC. Two-stage detectors seem to be counted without their RPN, see
``configs/README.md``."""
PAPER_CLASSES = {"deeplab": 21}
"""Numbers of classes, where it is not 20."""

NOTHING = "-"


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = Parser(
        prog="dcn-det model-info",
        description="Count parameters, multiply-adds and activation memory of models. Needs no weights or data.",
        examples=[
            "dcn-det model-info configs/coco/rfcn_r101.yaml configs/coco/rfcn_r101_dcn.yaml",
            "dcn-det model-info configs/coco/rfcn_r101.yaml --size 800x1333 --markdown",
        ],
    )
    result.add_argument(
        "configs", nargs="+", metavar="CONFIG", help="YAML files, then key=value settings that override them all"
    )
    result.add_argument("--size", metavar="HxW", help="input size in pixels (default: short and long side of training)")
    result.add_argument("--rois", type=positive, metavar="N", help="proposals per image (default: from the config)")
    result.add_argument(
        "--classes", type=positive, metavar="N", help="number of classes (default: from the config, else its data set)"
    )
    result.add_argument("--results", action="store_true", help="show published results instead of sizes")
    result.add_argument("--markdown", action="store_true", help="print a Markdown table")
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_args(argv)
    files = [each for each in args.configs if "=" not in each]
    overrides = [each for each in args.configs if "=" in each]
    if not files:
        raise UserError("no config given, only settings; name one or more YAML files first")
    size = None if args.size is None else _size(args.size)
    rows, notes = [], set()
    for file in files:
        config = load_any(file, *overrides)
        height, width = size or config.data.input_size
        classes = args.classes or config.data.num_classes
        if classes is None:
            raise UserError(f"--classes: give the number of classes of '{config.data.kind}' data")
        rois = args.rois or getattr(getattr(config.model, "rpn", None), "post_nms", 0)
        info = _count(config, classes, height, width, rois)
        rows.append(_results(file, config, info) if args.results else _sizes(file, config, info, classes))
        notes.add(f"{height}x{width} pixels" + (f" and {rois} RoIs" if rois else ""))
    print(_table(_without_empty_columns(rows), args.markdown))
    print()
    print(f"For one image of {', or '.join(sorted(notes))}. M: millions; G: billions of multiply-adds.")
    if not args.results:
        print(
            "Parameters include the constant scale and shift of batch norm, not its statistics. Activations: what a "
            "training step keeps for its backward pass, in float32. Table 4: the paper's count, without RPN."
        )
    return 0


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if match is None:
        raise UserError(f"--size: '{text}' is not a size; give height and width in pixels, such as 600x1000")
    return int(match[1]), int(match[2])


def _count(config: RunConfig, classes: int, height: int, width: int, rois: int) -> ModelInfo:
    with torch.device("meta"):
        model = build_model(config, classes)
    return model_info(model, height, width, rois)


def _million(count: int | None) -> str:
    return NOTHING if count is None else f"{count / 1e6:.2f}"


def _deformable(config: RunConfig) -> str:
    """Lists the deformable blocks, and pooling if it is deformable."""
    backbone, parts = config.model.backbone, []
    if isinstance(backbone, ResidualBackboneConfig) and backbone.deform.blocks:
        parts.append(" ".join(backbone.deform.blocks) + (" (v2)" if backbone.deform.kind == "v2" else ""))
    if config.model.deforms_rois:
        parts.append("pooling" + (" (v2)" if config.model.pooling == "modulated" else ""))
    return ", ".join(parts) or NOTHING


def _sizes(file: str, config: RunConfig, info: ModelInfo, classes: int) -> dict[str, str]:
    parts = info.parameters
    total = sum(parts.values())
    alone = total - parts.get("rpn", 0) if "head" in parts else total
    backbone = config.model.backbone
    dilation = getattr(backbone, "res5_dilation", None)
    default = backbone.kind == "resnet101" and classes == PAPER_CLASSES.get(config.model.kind, 20) and dilation == 2
    key = (config.model.kind, config.model.pooling, len(info.deformable))
    paper = PAPER_PARAMETERS.get(key) if default else None
    return {
        "config": _name(file),
        "parameters (M)": _million(total),
        "trainable": _million(info.trainable),
        "backbone": _million(parts["backbone"]),
        "rpn": _million(parts.get("rpn")),
        "head": _million(parts.get("head", parts.get("fc"))),
        "without RPN": _million(alone),
        "Table 4": NOTHING if paper is None else f"{paper:.1f}",
        "multiply-adds (G)": f"{sum(info.multiply_adds.values()) / 1e9:.1f}",
        "activations (MiB)": f"{info.activation_bytes / 2**20:.0f}",
        "stride": _range(info.strides),
        "deformable": _deformable(config),
    }


def _range(strides: Sequence[int]) -> str:
    return str(strides[0]) if len(strides) == 1 else f"{strides[0]}-{strides[-1]}"


def _results(file: str, config: RunConfig, info: ModelInfo) -> dict[str, str]:
    paper = [each for each in config.expected if each.source.startswith("paper")]
    released = [each for each in config.expected if each.source.startswith("the authors")]
    measured = {each.metric: each.value for each in config.expected if each.source.startswith("measured here")}
    return {
        "config": _name(file),
        "paper": _published(paper),
        "authors' code": _published(released),
        "here": " / ".join(f"{100 * value:.1f}" for value in measured.values()) or NOTHING,
        "parameters (M)": _million(sum(info.parameters.values())),
        "multiply-adds (G)": f"{sum(info.multiply_adds.values()) / 1e9:.1f}",
        "deformable": _deformable(config),
    }


def _published(expected: Sequence[ExpectedConfig]) -> str:
    """AP, mAP at 0.5 and 0.7, or mIoU, in percent."""
    values = {each.metric: f"{100 * each.value:.1f}" for each in expected}
    shown = [values[metric] for metric in ("AP", "mAP50", "mAP70", "mIoU") if metric in values]
    return " / ".join(shown) or NOTHING


def _without_empty_columns(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    empty = {column for column in rows[0] if all(row[column] == NOTHING for row in rows)}
    return [{column: cell for column, cell in row.items() if column not in empty} for row in rows]


def _name(file: str) -> str:
    return str(Path(file).with_suffix("")).removeprefix("configs/")


def _table(rows: list[dict[str, str]], markdown: bool) -> str:
    header = list(rows[0])
    lines = [header, *(list(row.values()) for row in rows)]
    if markdown:
        lines = [[f"`{line[0]}`" if line is not header else line[0], *line[1:]] for line in lines]
        lines.insert(1, ["---"] * len(header))
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in (0, len(header) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in lines
    )
