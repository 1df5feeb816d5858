"""``tools/benchmark.py train``: images per second of training, and the share of each phase of a step."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN

from dcn_det.cli.arguments import Parser, add_config, natural, positive
from dcn_det.config import load_any
from dcn_det.config.data import DataConfig
from dcn_det.engine.session import Session
from dcn_det.engine.step import Step
from dcn_det.engine.tasks import task_of
from dcn_det.env import cpu_model
from dcn_det.errors import UserError
from dcn_det.files import write_json
from dcn_det.precision import PRECISIONS
from dcn_det.structures import AnyBatch, Batch, Detections

PHASES = ("data", "forward", "backward", "optimizer")


def parser() -> argparse.ArgumentParser:
    """Returns the command's argument parser."""
    result = Parser(
        prog="dcn-det benchmark train",
        description="Measure images per second of a config's training, and the share of each phase.",
        examples=["dcn-det benchmark train configs/sample/rfcn.yaml --steps 20"],
    )
    add_config(result)
    result.add_argument("--steps", type=positive, default=10, help="number of timed steps (default: %(default)s)")
    result.add_argument(
        "--warmup", type=natural, default=2, help="number of steps before timing (default: %(default)s)"
    )
    result.add_argument(
        "--torchvision",
        action="store_true",
        help="also train torchvision's Faster R-CNN (ResNet-50, FPN) on the same batches",
    )
    result.add_argument("--save", type=Path, help="write the numbers as JSON")
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_intermixed_args(argv)
    if args.steps < 1:
        raise UserError(f"--steps is {args.steps}, expected at least 1")
    config = load_any(args.config, *args.overrides)
    if args.torchvision and not isinstance(config.data, DataConfig):
        raise UserError(f"--torchvision: its Faster R-CNN needs boxes, which '{config.data.kind}' data do not have")
    session = Session(task_of(config)(config))
    print(session.summary())
    print(f"device    {_device_name(session.device)}, {torch.get_num_threads()} threads, {config.train.precision}")
    records = {config.name: _time(session, session.model.train(), session.optimizer, args.steps, args.warmup)}
    if args.torchvision:
        theirs = TorchvisionFasterRCNN(len(session.categories), *config.data.input_size)
        model = theirs.to(session.device).train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=1e-4, momentum=0.9, fused=True)
        records["torchvision"] = _time(session, model, optimizer, args.steps, args.warmup)
    for name, record in records.items():
        parts = "  ".join(f"{phase} {record[phase]:.0%}" for phase in PHASES)
        print(f"{name}: {record['images_per_second']:.2f} images/s  {parts}")
    if len(records) == 2:
        ours, others = (record["images_per_second"] for record in records.values())
        print(f"{config.name} / torchvision: {ours / others:.2f} (different networks: compare speed, not accuracy)")
    if args.save:
        versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
        write_json(args.save, {"device": _device_name(session.device), **versions, "runs": records})
    return 0


class _Clock:
    """Accumulates the time of each phase, including the work queued on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._cuda = device.type == "cuda"
        self._last = time.perf_counter()

    def __call__(self, phase: str) -> None:
        if self._cuda:
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[phase] += now - self._last
        self._last = now


def _time(
    session: Session, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, warmup: int
) -> dict[str, float]:
    train, division = session.config.train, session.division
    clock = _Clock(session.device)
    step = Step(model, optimizer, session.device, PRECISIONS[train.precision], train.clip_norm, mark=clock)
    batches: Iterator[AnyBatch] = iter(session.train_batches(0, division.batch_size, division.accumulate))
    for number in range(warmup + steps):
        if number == warmup:
            clock("optimizer")
            clock.seconds = dict.fromkeys(PHASES, 0.0)
        passes = [next(batches) for _ in range(division.accumulate)]
        clock("data")
        if not step.gradients(passes).finite:
            raise UserError("a loss is not finite; lower train.optimizer.lr")
        step.apply()
    total = sum(clock.seconds.values())
    shares = {phase: seconds / total for phase, seconds in clock.seconds.items()}
    return {"images_per_second": steps * division.global_batch / total, **shares}


class TorchvisionDetector(nn.Module):
    """One of torchvision's detectors on our batches.

    Args:
        network: takes images from 0 to 1 and, in training, boxes and labels from 1; does not change their size.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network

    def forward(self, batch: Batch) -> Any:
        """Returns losses by name in training mode, else torchvision's detections of each image."""
        images = [
            image[:, : info.input_height, : info.input_width].float() / 255
            for image, info in zip(batch.images, batch.infos)
        ]
        if not self.training:
            return self.network(images)
        return self.network(images, [{"boxes": each.boxes, "labels": each.labels + 1} for each in batch.targets])

    def candidates(self, batch: Batch) -> list[Detections]:
        """Returns torchvision's detections of each image, in input pixels."""
        return [Detections(each["boxes"], each["scores"], each["labels"] - 1) for each in self(batch)]


class TorchvisionFasterRCNN(TorchvisionDetector):
    """torchvision's Faster R-CNN on our batches: the same boxes, and images of the same size.

    Stem, first stage and batch norm are frozen, as with ImageNet weights; torchvision's own builder does not freeze
    them when it loads no weights.
    """

    def __init__(self, classes: int, short_side: int, max_side: int) -> None:
        body = torchvision.models.resnet50(weights=None, norm_layer=torchvision.ops.FrozenBatchNorm2d)
        for part in (body.conv1, body.layer1):
            part.requires_grad_(False)
        layers = {f"layer{i}": str(i - 1) for i in range(1, 5)}
        backbone = BackboneWithFPN(body, layers, [256, 512, 1024, 2048], 256)
        super().__init__(FasterRCNN(backbone, num_classes=classes + 1, min_size=short_side, max_size=max_side))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()
