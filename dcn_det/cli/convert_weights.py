"""``tools/convert_weights.py``: weights that other programs wrote, as a checkpoint of ours."""

from __future__ import annotations

import argparse
from pathlib import Path

from dcn_det.config import load_config
from dcn_det.errors import UserError
from dcn_det.weights import checkpoint
from dcn_det.weights.convert import FORMATS, Converted, convert
from dcn_det.weights.settings import as_overrides, describe

SUFFIXES = (".pth", checkpoint.SAFETENSORS)


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = argparse.ArgumentParser(
        prog="convert_weights",
        description="Converts the authors' released detectors, and ImageNet weights of ResNet from MXNet, Caffe and "
        "torchvision. Every name and shape must fit the config; what else the weights depend on goes with them.",
    )
    result.add_argument("source", metavar="IN", type=Path, help="MXNet .params, PyTorch .pth, .safetensors or .pkl")
    result.add_argument("target", metavar="OUT", type=Path, help="checkpoint to write, .pth or .safetensors")
    result.add_argument("overrides", nargs="*", metavar="key=value", help="settings laid over the config")
    result.add_argument("--config", type=Path, required=True, help="YAML file of the detector the weights are for")
    result.add_argument(
        "--format", choices=("auto", *FORMATS), default="auto", help="what wrote IN (default: found out)"
    )
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_intermixed_args(argv)
    if args.target.suffix not in SUFFIXES:
        raise UserError(f"'{args.target}': the suffix says how it is written; allowed: {', '.join(SUFFIXES)}")
    if args.target.exists() and args.source.exists() and args.target.samefile(args.source):
        raise UserError(f"'{args.target}' would overwrite what is to be converted; give another OUT")
    config = load_config(args.config, *args.overrides)
    converted = convert(args.source, config, None if args.format == "auto" else args.format)
    args.target.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(args.target, converted.state)
    print(report(converted, args.target))
    return 0


def report(converted: Converted, target: Path) -> str:
    """What was converted and what to do with it, on several lines."""
    weights, state = converted.state["model"], converted.state
    numbers = sum(value.numel() for value in weights.values())
    lines = [f"{converted.title}: {len(weights)} arrays, {numbers:,} numbers, all used and none missing"]
    if converted.dropped:
        lines.append(f"left out, without a place here: {', '.join(converted.dropped)}")
    if converted.changed:
        lines.append(f"settings that the weights bring: {describe(converted.changed)}")
    if "categories" in state:
        names = [category["name"] for category in state["categories"]]
        lines.append(f"{len(names)} classes, in this order: {', '.join(names[:3])}, ... {names[-1]}")
        lines.append(f"written to '{target}'; use it as --weights of tools/test.py and tools/infer.py")
    else:
        settings = {"model.backbone.weights": str(target), **state["settings"]}
        lines.append(f"written to '{target}'; train from it with {as_overrides(settings)}")
    return "\n".join(lines)
