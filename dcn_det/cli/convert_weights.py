"""``dcn-det convert-weights``: converts weights from other frameworks to a checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from dcn_det.cli.arguments import Parser
from dcn_det.config import load_any
from dcn_det.errors import UserError
from dcn_det.weights import checkpoint, storage
from dcn_det.weights.convert import FORMATS, Converted, convert
from dcn_det.weights.settings import as_overrides, describe

SUFFIXES = (".pth", storage.SAFETENSORS)


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = Parser(
        prog="dcn-det convert-weights",
        description="Convert the authors' released networks, and ImageNet weights of ResNet from MXNet, Caffe and "
        "torchvision. Every name and shape must fit the config; other settings of the weights are stored with them.",
        examples=[
            "dcn-det convert-weights weights/resnet101.pth weights/caffe.safetensors \\",
            "    --config configs/coco/rfcn_r101.yaml --format caffe",
        ],
    )
    result.add_argument("source", metavar="IN", type=Path, help="MXNet .params, PyTorch .pth, .safetensors or .pkl")
    result.add_argument("target", metavar="OUT", type=Path, help="checkpoint to write, .pth or .safetensors")
    result.add_argument("overrides", nargs="*", metavar="key=value", help="settings that override the config")
    result.add_argument("--config", type=Path, required=True, help="YAML file of the model that the weights belong to")
    result.add_argument(
        "--format", choices=("auto", *FORMATS), default="auto", help="format of IN (default: %(default)s)"
    )
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_intermixed_args(argv)
    if args.target.suffix not in SUFFIXES:
        raise UserError(f"'{args.target}': unknown suffix '{args.target.suffix}'; allowed: {', '.join(SUFFIXES)}")
    if args.target.exists() and args.source.exists() and args.target.samefile(args.source):
        raise UserError(f"'{args.target}' is both IN and OUT; choose another OUT")
    config = load_any(args.config, *args.overrides)
    converted = convert(args.source, config, None if args.format == "auto" else args.format)
    args.target.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(args.target, converted.state)
    print(report(converted, args.target))
    return 0


def report(converted: Converted, target: Path) -> str:
    """Describes the conversion and how to use the result, on several lines."""
    weights, state = converted.state["model"], converted.state
    numbers = sum(value.numel() for value in weights.values())
    lines = [f"{converted.title}: {len(weights)} arrays, {numbers:,} numbers, none unused, none missing"]
    if converted.dropped:
        lines.append(f"left out, not part of the model: {', '.join(converted.dropped)}")
    if converted.changed:
        lines.append(f"settings stored with the weights: {describe(converted.changed)}")
    if "categories" in state:
        names = [category["name"] for category in state["categories"]]
        lines.append(f"{len(names)} classes, in this order: {', '.join(names[:3])}, ... {names[-1]}")
        lines.append(f"written to '{target}'; use it as --weights of dcn-det test and dcn-det infer")
    else:
        settings = {"model.backbone.weights": str(target), **state["settings"]}
        lines.append(f"written to '{target}'; train from it with {as_overrides(settings)}")
    return "\n".join(lines)
