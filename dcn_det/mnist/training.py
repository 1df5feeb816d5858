"""Training and testing of one network."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from dcn_det.errors import UserError
from dcn_det.mnist.data import SCALE_EDGES, Digits, range_of, scaled
from dcn_det.mnist.networks import DigitNet
from dcn_det.progress import Count

TEST_SEED = 0
"""Of the reduction of the test digits, which is the same for every network."""
_TEST_BATCH = 250


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a network is trained: AdamW, with a rate that rises for a quarter and falls to zero.

    Attributes:
        images: number of training images, drawn without replacement in each epoch.
        scaled: whether they are :func:`dcn_det.mnist.data.scaled`, anew each time.
        batch_size: images per step.
        lr: highest learning rate.
        branch_lr: factor on the rate of the layers that predict offsets and warps, which move far with small steps.
        constant_statistics: whether batch norm keeps its means and variances, those of the digits learned before.
    """

    images: int
    scaled: bool
    batch_size: int
    lr: float
    branch_lr: float
    constant_statistics: bool = False


@dataclass(frozen=True)
class Accuracy:
    """Fractions of the test digits that are classified correctly.

    Attributes:
        regular: of the digits as they are.
        scaled: of the scaled digits.
        by_scale: of those in each range of :data:`dcn_det.mnist.data.SCALE_EDGES`; None for a range without any.
    """

    regular: float
    scaled: float
    by_scale: list[float | None]


@dataclass(frozen=True)
class Cost:
    """Duration of a training.

    Attributes:
        seconds: by the clock.
        cpu_seconds: of processor time, summed over threads.
    """

    seconds: float
    cpu_seconds: float


def train(network: DigitNet, digits: Digits, schedule: Schedule, seed: int, progress: Count) -> Cost:
    """Trains a network in place.

    Args:
        network: on the device of the digits.
        digits: the training digits.
        schedule: see there.
        seed: of the order and of the scaling.
        progress: receives the numbers of images seen and to see.

    Raises:
        UserError: the loss is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    named = list(network.named_parameters())
    branches = [each for name, each in named if ".offset." in name or name.startswith("transformer.")]
    rest = [each for _, each in named if all(each is not branch for branch in branches)]
    groups = [(rest, schedule.lr), (branches, schedule.lr * schedule.branch_lr)]
    optimizer = torch.optim.AdamW([{"params": each, "lr": lr} for each, lr in groups if each])
    steps = max(schedule.images // schedule.batch_size, 1)
    rates = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=steps, pct_start=0.25
    )
    network.train()
    for module in network.modules():
        if schedule.constant_statistics and isinstance(module, nn.BatchNorm2d):
            module.eval()
    wall, cpu = time.perf_counter(), time.process_time()
    order = torch.empty(0, dtype=torch.int64)
    for step in range(steps):
        if len(order) < schedule.batch_size:
            order = torch.cat([order, torch.randperm(len(digits), generator=generator)])
        chosen, order = order[: schedule.batch_size].to(digits.labels.device), order[schedule.batch_size :]
        images = digits.images[chosen].float() / 255
        if schedule.scaled:
            images = scaled(images, generator)[0]
        loss = functional.cross_entropy(network(images), digits.labels[chosen])
        if not bool(loss.isfinite()):
            raise UserError(f"the loss is not finite at step {step}; this is a defect of the schedule or the machine")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
        progress((step + 1) * schedule.batch_size, steps * schedule.batch_size)
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


@torch.no_grad()
def measure(network: DigitNet, digits: Digits) -> Accuracy:
    """Tests a network on digits as they are, and on the same digits scaled.

    Args:
        network: on the device of the digits; is switched to evaluation.
        digits: the test digits.
    """
    network.eval()
    generator = torch.Generator().manual_seed(TEST_SEED)
    regular, right, ranges = [], [], []
    for images, labels in zip(digits.images.split(_TEST_BATCH), digits.labels.split(_TEST_BATCH)):
        images = images.float() / 255
        smaller, scales = scaled(images, generator)
        regular.append(network(images).argmax(1) == labels)
        right.append(network(smaller).argmax(1) == labels)
        ranges.append(range_of(scales))
    correct, chosen = torch.cat(right).double(), torch.cat(ranges)
    by_scale = [correct[chosen == index] for index in range(len(SCALE_EDGES) - 1)]
    return Accuracy(
        float(torch.cat(regular).double().mean()),
        float(correct.mean()),
        [float(each.mean()) if len(each) else None for each in by_scale],
    )
