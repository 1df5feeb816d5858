"""``tools/benchmark.py detector``: images per second of whole networks, in training and in testing, side by side.

Images, boxes and weights are random: there is no data set and no download. A random network is first brought into the
state of a trained one as far as speed depends on it, see :func:`settle` and :func:`limit_candidates`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from dcn_det.benchmark.ratios import Bars, add_output, print_bars
from dcn_det.benchmark.timing import Work, measure
from dcn_det.benchmark.train import TorchvisionFasterRCNN
from dcn_det.cli.arguments import Parser, positive, seconds
from dcn_det.config import Config, RunConfig, as_any, load_any
from dcn_det.distributed import resolve_device
from dcn_det.engine.build import build_optimizer
from dcn_det.engine.detection import limit_candidates
from dcn_det.engine.prepare import compile_regions, recompute_stages
from dcn_det.engine.step import Step
from dcn_det.engine.tasks import task_of
from dcn_det.env import machine
from dcn_det.errors import UserError
from dcn_det.files import write_json
from dcn_det.models.build import build_model
from dcn_det.models.info import count_parameters
from dcn_det.models.norm import FrozenBatchNorm2d
from dcn_det.ops import DeformConv2d
from dcn_det.precision import PRECISIONS, autocast
from dcn_det.structures import AnyBatch, Batch, Category

STAGES = ("training", "network", "testing")
"""What is measured of a detector; see :class:`Contestant`."""
CLASSES = 80
LIMIT = 1.15
"""Maximum time of a deformable detector, relative to the plain one."""
SPREAD = {"backbone": 2.0, "head": 1.0}
"""Standard deviation of offsets: cells of the feature map in convolutions; in pooling, before the factor 0.1."""
NORMS = (FrozenBatchNorm2d, torchvision.ops.FrozenBatchNorm2d, nn.BatchNorm2d)
TORCHVISION = "torchvision faster_rcnn_r50_fpn"


def parser() -> argparse.ArgumentParser:
    """Returns the command's argument parser."""
    result = Parser(
        prog="dcn-det benchmark detector",
        description="Measure images per second of whole detectors on random images: training steps, and testing with "
        "post-processing. Ratios are to the first config.",
        examples=[
            "dcn-det benchmark detector configs/coco/rfcn_r101.yaml \\",
            "    configs/coco/rfcn_r101_dcn.yaml model.backbone.weights=none",
        ],
    )
    result.add_argument(
        "arguments",
        nargs="+",
        metavar="config | key=value",
        help="YAML files, and settings that override all of them",
    )
    result.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    result.add_argument(
        "--precision", choices=PRECISIONS, help="instead of the configs' train.precision and test.precision"
    )
    result.add_argument("--batch", type=positive, default=1, help="images per training step (default: %(default)s)")
    result.add_argument(
        "--size",
        type=positive,
        nargs=2,
        default=[600, 1000],
        metavar=("SHORT", "LONG"),
        help="sides of an image in pixels (default: 600 1000)",
    )
    result.add_argument(
        "--stages",
        nargs="+",
        choices=STAGES,
        default=["training", "testing"],
        metavar="STAGE",
        help="what to measure: training (a step), network (an image, up to scored boxes) or testing (the same with "
        "post-processing) (default: training testing)",
    )
    result.add_argument("--classes", type=positive, default=CLASSES, help="number of classes (default: %(default)s)")
    result.add_argument("--rounds", type=positive, default=7, help="turns of each contestant (default: %(default)s)")
    result.add_argument("--seconds", type=seconds, default=1.0, help="length of a turn (default: %(default)s)")
    result.add_argument(
        "--torchvision", action="store_true", help="also measure torchvision's Faster R-CNN (ResNet-50, FPN)"
    )
    add_output(result)
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_intermixed_args(argv)
    if min(args.batch, args.rounds) < 1 or not 0 < args.seconds < 3600:
        raise UserError("--batch and --rounds must be at least 1, --seconds positive")
    short, long = args.size
    if not 32 <= short <= long:
        raise UserError(f"--size is {short} {long}; expected the shorter side first, at least 32")
    configs = read_configs(args.arguments, args.precision)
    device = resolve_device(args.device)
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)  # the events that measure are on the current device
    size = (args.batch, short, long, args.classes)
    contestants = {
        name: ours(config, device, *random_batches(config, device, *size), args.classes)
        for name, config in configs.items()
    }
    first, *others = contestants
    if args.torchvision:
        config = configs[first]
        if not isinstance(config, Config):
            raise UserError(f"--torchvision: its Faster R-CNN is compared with a detector, not with {first}")
        contestants[TORCHVISION] = theirs(config, device, *random_batches(config, device, *size), args.classes)

    facts = machine(device.type) | {"size": args.size, "batch": args.batch}
    where = facts["gpu"] if device.type == "cuda" else f"{facts['cpu']}, {torch.get_num_threads()} threads"
    print(f"{where}, torch {torch.__version__}, images of {short}x{long}")
    for name, contestant in contestants.items():
        print(f"  {name}: {contestant.summary}")
    runs: dict[str, dict[str, Any]] = {name: {"parameters": each.parameters} for name, each in contestants.items()}
    bars: Bars = {}
    for kind in args.stages:
        images = args.batch if kind == "training" else 1
        works = {name: getattr(contestant, kind) for name, contestant in contestants.items()}
        medians = measure(works, args.rounds, args.seconds, device.type)
        print(f"{kind}, {images} image{'s' * (images > 1)} at a time, median of {args.rounds} rounds")
        for name, milliseconds in medians.items():
            speed, ratio = images / milliseconds * 1e3, milliseconds / medians[first]
            runs[name][kind] = {"milliseconds": milliseconds, "images_per_second": speed, "ratio": ratio}
            print(f"  {name:<32} {milliseconds:9.2f} ms {speed:8.2f} images/s  {ratio:5.2f} x {first}")
        for name in others if kind != "network" else ():
            if contestants[name].deformable and not contestants[first].deformable:
                bars[f"{kind}: {name} / {first}"] = (medians[name] / medians[first], "<=", LIMIT)
    missed = print_bars(bars)
    if args.save:
        precisions = {
            "precision": {name: config.train.precision for name, config in configs.items()},
            "test_precision": {name: config.test.precision for name, config in configs.items()},
        }
        write_json(args.save, facts | precisions | {"runs": runs})
    return 1 if args.check and missed else 0


def random_batches(
    config: RunConfig, device: torch.device, count: int, short: int, long: int, classes: int
) -> tuple[Any, Any]:
    """Returns images of noise: those of a training step, and one to test, in the memory that the loader uses."""
    batches = [task_of(config).random_batch(each, short, long, seed, classes) for seed, each in enumerate((count, 1))]
    train, test = (batch.pin_memory() if device.type == "cuda" else batch for batch in batches)
    return train, test


def read_configs(arguments: Sequence[str], precision: str | None) -> dict[str, RunConfig]:
    """Reads the configs of the command, by name, each with all overrides.

    Args:
        arguments: files and overrides ``key=value``.
        precision: value of ``train.precision`` and ``test.precision``; None leaves them.

    Raises:
        UserError: there is no file, two have the same name, or a setting is invalid.
    """
    files = [argument for argument in arguments if "=" not in argument]
    overrides = [argument for argument in arguments if "=" in argument]
    if precision:
        overrides += [f"{section}.precision={precision}" for section in ("train", "test")]
    if not files:
        raise UserError("no config given; expected at least one YAML file")
    loaded = [in_one_view(load_any(Path(file), *overrides)) for file in files]
    configs = {config.name: config for config in loaded}
    if len(configs) < len(files):
        raise UserError(f"two of the configs have the same name: {', '.join(config.name for config in loaded)}")
    return configs


def in_one_view(config: RunConfig) -> RunConfig:
    """Returns the settings without multi-scale testing: the images already have their size."""
    views = {"test.scales": None, "test.flip": False} if isinstance(config, Config) else {}
    return as_any(config, views)


@dataclass(frozen=True)
class Contestant:
    """A detector ready to be measured.

    Attributes:
        training: runs one training step.
        network: computes the scored boxes of one image.
        testing: detects the objects of one image: the network, suppression, and the copy to the CPU.
        deformable: whether it has deformable layers.
        parameters: number of parameters by part, or under ``all``; see
            :func:`dcn_det.models.info.count_parameters`.
        summary: what it is, in words.
    """

    training: Work
    network: Work
    testing: Work
    deformable: bool
    parameters: dict[str, int]
    summary: str


def ours(
    config: RunConfig, device: torch.device, train_batch: AnyBatch, test_batch: AnyBatch, classes: int = CLASSES
) -> Contestant:
    """Builds the network of a config as training and testing do.

    Args:
        config: the settings.
        device: where to run.
        train_batch, test_batch: images of a training step, and one to test.
        classes: number of classes.
    """
    torch.manual_seed(config.seed)
    model = build_model(config, classes).to(device)
    if config.train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    settle(model, train_batch.to(device))
    recompute_stages(model, config.train.recompute_stages)
    if config.train.compile:
        compile_regions(model)
    # The learning rate changes nothing about the speed; at 0, all turns do the same work.
    optimizer = build_optimizer(config.train, model, 0.0, model.lr_multipliers())
    precision = PRECISIONS[config.train.precision]
    categories = tuple(Category(i, str(i)) for i in range(1, classes + 1))
    trial = task_of(config).trial(model, categories, config, test_batch)

    def testing(work: Work) -> Work:
        def run() -> None:
            if model.training:
                model.eval()
            work()

        return run

    deforms = any(isinstance(module, DeformConv2d) for module in model.modules())
    deformable = deforms or config.model.deforms_rois
    parameters = {name: count_parameters(getattr(model, name)) for name in model.parts}
    parts = [config.model.kind, "deformable" if deformable else "plain", f"{sum(parameters.values()):,} parameters"]
    return Contestant(
        training_step(model, optimizer, device, precision, config.train.clip_norm, train_batch),
        testing(trial.network),
        testing(trial.testing),
        deformable,
        parameters,
        ", ".join([*parts, _precisions(config), *trial.notes]),
    )


def _precisions(config: RunConfig) -> str:
    return f"{config.train.precision} (testing: {config.test.precision})"


def theirs(
    config: Config, device: torch.device, train_batch: Batch, test_batch: Batch, classes: int = CLASSES
) -> Contestant:
    """Builds torchvision's Faster R-CNN with the precision, memory format and suppression of a config.

    Args:
        config, device, train_batch, test_batch, classes: see :func:`ours`.
    """
    torch.manual_seed(config.seed)
    model = TorchvisionFasterRCNN(classes, *train_batch.images.shape[2:]).to(device)
    if config.train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    settle(model, train_batch.to(device))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.0, momentum=0.9, fused=True)
    heads = model.network.roi_heads

    def detect() -> list[dict[str, Tensor]]:
        if model.training:
            model.eval()
        with torch.inference_mode(), autocast(device, PRECISIONS[config.test.precision]):
            found = model(test_batch.to(device, non_blocking=True))
        return [{name: value.cpu() for name, value in each.items()} for each in found]

    def scores(threshold: float) -> Tensor:
        # Without suppression, every candidate is returned.
        heads.score_thresh, heads.nms_thresh, heads.detections_per_img = threshold, 1.0, classes * 1000
        return detect()[0]["scores"]

    count = limit_candidates(scores)
    heads.nms_thresh, heads.detections_per_img = config.test.nms_iou, config.test.max_detections
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Contestant(
        training_step(
            model, optimizer, device, PRECISIONS[config.train.precision], config.train.clip_norm, train_batch
        ),
        detect,  # it offers no other way
        detect,
        False,
        {"all": parameters},
        f"{parameters:,} parameters, {_precisions(config)}, {count} candidates",
    )


def training_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    precision: torch.dtype,
    clip_norm: float,
    batch: AnyBatch,
) -> Work:
    """Returns a callable that runs one training step on ``batch``; the other arguments are those of ``Step``."""
    step = Step(model, optimizer, device, precision, clip_norm)

    def train() -> None:
        if not model.training:
            model.train()
        outcome = step.gradients([batch])
        if not outcome.finite:
            raise UserError(f"the losses of random weights are not finite: {outcome.losses}")
        step.apply()

    return train


def settle(model: nn.Module, batch: AnyBatch) -> None:
    """Brings a network of random weights into a state like that of a trained one, in one forward pass.

    Batch norm gets the statistics of its input: without, activations grow with every block until losses overflow.
    Offsets, which start from zero, get the spread of :data:`SPREAD`: on the regular grid, sampling would be faster.

    Args:
        model: called with ``batch`` in training mode.
        batch: on the model's device.
    """
    hooks: list[Any] = []
    for name, module in model.named_modules():
        if isinstance(module, NORMS):
            hooks.append(module.register_forward_pre_hook(_take_statistics))
        elif isinstance(module, nn.Conv2d | nn.Linear) and "offset" in name:
            nn.init.normal_(module.weight, std=1 / math.sqrt(module.weight[0].numel()))
            hooks.append(module.register_forward_hook(_spread_to(SPREAD[name.partition(".")[0]])))
    model.train()
    with torch.no_grad():
        model(batch)
    for hook in hooks:
        hook.remove()


def _take_statistics(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    variance, mean = torch.var_mean(inputs[0].float(), dim=(0, 2, 3))
    assert isinstance(module.running_mean, Tensor) and isinstance(module.running_var, Tensor)
    module.running_mean.copy_(mean)
    module.running_var.copy_(variance)


def _spread_to(spread: float) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def scale(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        factor = spread / output.std().clamp(min=1e-6)
        assert isinstance(module.weight, Tensor)
        module.weight.mul_(factor)
        return output * factor  # biases are zero

    return scale
