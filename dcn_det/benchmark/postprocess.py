"""``tools/benchmark.py postprocess``: post-processing of a head's output compared with torchvision's operators, and
multi-scale testing compared with the same scales one by one."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torchvision

from dcn_det.benchmark.ratios import Bars, add_output, report, take_turns
from dcn_det.cli.arguments import Parser, positive
from dcn_det.config import from_plain
from dcn_det.inference.build import build_predictor
from dcn_det.models import boxes as box_ops
from dcn_det.models.build import build_detector
from dcn_det.models.postprocess import PostProcess, confident
from dcn_det.structures import Category

CLASSES = 80
ROIS = 300


def parser() -> argparse.ArgumentParser:
    """Returns the command's argument parser."""
    result = Parser(
        prog="dcn-det benchmark postprocess",
        description="Compare post-processing with torchvision's operators, and three scales with each of them alone.",
        examples=["dcn-det benchmark postprocess --rounds 3"],
    )
    result.add_argument("--rounds", type=positive, default=7, help="turns of each contestant (default: %(default)s)")
    add_output(result)
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_args(argv)
    return report(args, *postprocessing(args.rounds))


def postprocessing(rounds: int) -> tuple[dict[str, float], Bars]:
    """Times decoding, score threshold, NMS per class and the best 100 of one image with 80 classes x 300 boxes.

    Args:
        rounds: number of turns of each contestant.

    Returns:
        Milliseconds by name, and the bars; both include those of :func:`scales`.
    """
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(ROIS, 2, generator=generator) * torch.tensor([800.0, 450.0])
    rois = torch.cat([corners, corners + 30 + 150 * torch.rand(ROIS, 2, generator=generator)], dim=1)
    deltas = 0.5 * torch.randn(ROIS, CLASSES, 4, generator=generator)
    scores = (0.5 * torch.randn(ROIS, CLASSES, generator=generator)).softmax(dim=1)
    stds = (0.1, 0.1, 0.2, 0.2)
    select = PostProcess(score_threshold=1e-3, nms_iou=0.3, max_detections=100)

    def ours() -> Any:
        boxes = box_ops.clip(box_ops.decode(rois[:, None], deltas, stds), 600, 1000)
        return select(confident(scores, boxes, 1e-3)).scores

    coder = torchvision.models.detection._utils.BoxCoder(tuple(1 / std for std in stds))

    def theirs() -> Any:
        boxes = coder.decode(deltas.flatten(1), [rois])
        boxes = torchvision.ops.clip_boxes_to_image(boxes, (600, 1000)).reshape(-1, 4)
        labels = torch.arange(CLASSES).expand(ROIS, CLASSES).reshape(-1)
        flat = scores.reshape(-1)
        keep = (flat > 1e-3).nonzero()[:, 0]
        boxes, flat, labels = boxes[keep], flat[keep], labels[keep]
        kept = torchvision.ops.batched_nms(boxes, flat, labels, 0.3)[:100]
        return flat[kept]

    torch.testing.assert_close(ours(), theirs())
    medians = take_turns({"ours": ours, "torchvision": theirs}, rounds, 20)
    numbers = {f"post-processing per image, {name}: ms": 1e3 * value for name, value in medians.items()}
    bars: Bars = {"post-processing: torchvision / ours": (medians["torchvision"] / medians["ours"], ">=", 8)}
    views, view_bars = scales(rounds)
    return numbers | views, bars | view_bars


def scales(rounds: int) -> tuple[dict[str, float], Bars]:
    """Times one image at three sizes, together and one by one, with a small untrained detector.

    Args:
        rounds: number of turns of each contestant.

    Returns:
        Milliseconds by name, and the bars.
    """
    backbone = {"kind": "resnet18", "weights": "none", "norm": "bn", "frozen_stages": 0}
    model = {"backbone": backbone, "rpn": {"post_nms": 100}}
    sizes = [{"short_side": short, "max_side": short * 2} for short in (240, 320, 400)]
    image = np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8)
    categories = tuple(Category(i, str(i)) for i in range(1, CLASSES + 1))
    torch.manual_seed(0)
    works: dict[str, Callable[[], Any]] = {}
    for name, chosen in {"all": sizes, **{str(size["short_side"]): [size] for size in sizes}}.items():
        config = from_plain({"model": model, "test": {"scales": chosen}})
        predictor = build_predictor(build_detector(config, CLASSES), categories, config)
        works[name] = partial(predictor, image)
    medians = take_turns(works, rounds, 1)
    alone = sum(value for name, value in medians.items() if name != "all")
    numbers = {"three scales together: ms": 1e3 * medians["all"], "three scales one by one: ms": 1e3 * alone}
    return numbers, {"three scales: together / one by one": (medians["all"] / alone, "<=", 1.05)}
