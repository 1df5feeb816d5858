"""A config for new data over one of the project's configs, with the reasons for its values."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from dcn_det.config import Config, load_config
from dcn_det.config.source import Dumper
from dcn_det.config.train import StepScheduleConfig
from dcn_det.distributed import resolve_device
from dcn_det.errors import UserError, printable
from dcn_det.starting.anchors import Boxes, fit_anchors, fit_size
from dcn_det.starting.data import OwnData, section_of
from dcn_det.starting.memory import fitting_batch, free_memory, step_memory
from dcn_det.weights.torchvision import available

PASSES, FEWER_PASSES = 24, 12
"""Passes over the images, of up to ``MANY`` images and of many more."""
MANY, FEWEST = 2500, 2000
"""Images from which more images lead to fewer passes; images that a run sees at least."""
_GIB = 2**30


@dataclass(frozen=True)
class Base:
    """A config of the project to start from, and why."""

    file: str
    why: str


def default_base(device: torch.device) -> Base:
    """Returns a config for the device: deformable Faster R-CNN, from ImageNet weights if they can be had."""
    kind, place = ("resnet50", "on a GPU") if device.type == "cuda" else ("resnet18", "without a GPU")
    how = available(kind)
    if how is None:
        why = f"a narrow network from scratch, since torchvision's weights for {kind} cannot be downloaded from here"
        return Base("own/faster_rcnn_narrow_dcn.yaml", why)
    file = f"own/faster_rcnn_r{kind.removeprefix('resnet')}_dcn.yaml"
    return Base(file, f"for training {place}; ImageNet weights of {kind} are {how}")


@dataclass(frozen=True)
class Plan:
    """Settings over those of a base.

    Attributes:
        base: file of the base.
        settings: plain values by section.
        lines: what was chosen and why, one line each.
    """

    base: Path
    settings: dict[str, Any]
    lines: tuple[str, ...]

    def text(self, output: Path, comments: Sequence[str]) -> str:
        """Returns the config as YAML, for a file at ``output``, with lines of comments before it."""
        plain = {"base": _reference(self.base, output), **self.settings}
        body = yaml.dump(plain, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None)
        escaped = (printable(line).replace("\n", "\\n") for line in comments)
        return "\n".join([*(f"# {line}" for line in escaped), body])


def _reference(base: Path, output: Path) -> str:
    """Returns the path of the base for a config: relative within the same project, absolute elsewhere."""
    base, folder = base.resolve(), output.resolve().parent
    project = Path(__file__).resolve().parents[2]
    near = base.is_relative_to(folder) or (base.is_relative_to(project) and folder.is_relative_to(project))
    return Path(os.path.relpath(base, folder)).as_posix() if near else str(base)


def make_plan(data: OwnData, base: Path) -> Plan:
    """Chooses input size, anchors, length, warm-up and batch size.

    Args:
        data: images with at least one object to train on.
        base: a detector's config.

    Raises:
        UserError: the base is not a detector's config, or contradicts the data.
    """
    section = section_of(data.settings)
    best = {} if (first := section.metrics[0]) == _best(base) else {"best_metric": first}
    settings: dict[str, Any] = {"data": dict(data.settings), "train": best}
    settings["data"] |= _reset(base, section.kind, data.settings)
    config = load_config(base, settings)
    device = resolve_device(config.device)
    boxes = Boxes.of(data.records, data.trained)
    if not len(boxes.corners):
        raise UserError(f"{data.settings['root']}: no object to train on")
    lines: list[str] = []
    _choose_input(settings, config, boxes, len(data.classes), lines)
    config = load_config(base, settings)
    _choose_length(settings, config, int(data.trained.sum()), lines)
    _choose_batch(settings, config, len(data.classes), device, lines)
    load_config(base, settings)
    return Plan(base, _sorted(settings), tuple(lines))


def _best(base: Path) -> str:
    return load_config(base).train.best_metric


def _reset(base: Path, kind: str, own: dict[str, Any]) -> dict[str, Any]:
    """Returns the splits with defaults for keys that the base has set for its own data."""
    inherited = load_config(base).data
    found = {}
    for name in ("train", "test"):
        split = getattr(inherited, name)
        if inherited.kind == kind and own[name] is not None and split is not None:
            fields = type(split).model_fields
            others = {
                key: fields[key].default
                for key in fields
                if key not in own[name] and not fields[key].is_required() and getattr(split, key) != fields[key].default
            }
            found[name] = {**own[name], **{key: _plain(value) for key, value in others.items()}}
    return found


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _choose_input(settings: dict[str, Any], config: Config, boxes: Boxes, classes: int, lines: list[str]) -> None:
    *_, strides = step_memory(config, classes)
    size, why = fit_size(boxes, config.data.resize, min(strides))
    settings["data"]["resize"] = {"short_side": size.short_side, "max_side": size.max_side}
    if any(side > size.max_side for side in config.data.short_sides):
        settings["data"]["short_sides"] = []
    lines.append(f"input     {size.short_side}, at most {size.max_side} pixels: {why}")
    anchors = getattr(getattr(config.model, "rpn", None), "anchors", None)
    if anchors is None:
        return
    fit = fit_anchors(boxes, size, anchors, strides)
    text = f"scales {_listed(fit.scales)}, ratios {_listed(fit.ratios)}"
    if fit.changed:
        settings["model"] = {"rpn": {"anchors": {"scales": list(fit.scales), "ratios": list(fit.ratios)}}}
        lines.append(f"anchors   {text}: mean IoU with boxes {fit.after:.2f}, {fit.before:.2f} with those of the base")
    else:
        lines.append(f"anchors   {text}, those of the base: mean IoU with boxes {fit.after:.2f}")


def _listed(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def run_length(images: int, reference_batch: int) -> tuple[int, int]:
    """Returns the iterations of a run and of its warm-up, for a number of training images."""
    seen = max(FEWEST, min(PASSES * images, max(PASSES * MANY, FEWER_PASSES * images)))
    iterations = -(-seen // reference_batch)
    return iterations, max(1, min(iterations // 20, 1000))


def _choose_length(settings: dict[str, Any], config: Config, images: int, lines: list[str]) -> None:
    train = config.train
    iterations, warmup = run_length(images, train.reference_batch)
    settings["train"] |= {"iterations": iterations, "warmup": {"iterations": warmup}}
    if isinstance(train.schedule, StepScheduleConfig) and train.schedule.unit != "share":
        settings["train"]["schedule"] = {"drops": [0.7, 0.9], "unit": "share"}
    every = max(1, iterations // 5)
    if every < train.checkpoint_every:
        settings["train"]["checkpoint_every"] = every
    passes = iterations * train.reference_batch / images
    lines.append(
        f"length    {iterations} iterations of {train.reference_batch} images: {passes:.0f} passes over {images}; "
        f"{warmup} of warm-up"
    )


def _choose_batch(
    settings: dict[str, Any], config: Config, classes: int, device: torch.device, lines: list[str]
) -> None:
    images, free = config.train.reference_batch, free_memory(device)
    fixed, per_image, _ = step_memory(config, classes)
    batch = fitting_batch(images, free, fixed, per_image)
    settings["train"]["batch_size"] = batch
    if images // batch != config.train.accumulate:
        settings["train"]["accumulate"] = images // batch
    passes = "" if batch == images else f", {images // batch} passes per step"
    lines.append(
        f"batch     {batch}{passes}: {free / _GIB:.1f} GiB of {device.type} memory are free; about "
        f"{per_image / _GIB:.2f} GiB per image and {fixed / _GIB:.2f} GiB for the weights"
    )


def _sorted(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: settings[key] for key in ("model", "data", "train") if settings.get(key)}
