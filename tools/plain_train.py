"""A complete training loop in its simplest form: one process, float32, one checkpoint at the end.

    python tools/plain_train.py configs/sample/faster_rcnn.yaml train.iterations=100 --output plain.pth

Losses equal those of ``tools/train.py``. This is the place to start reading.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from dcn_det.config import load_any, to_plain
from dcn_det.config.train import TrainConfig
from dcn_det.distributed import resolve_device
from dcn_det.engine.logging import Log
from dcn_det.engine.tasks import task_of
from dcn_det.entry import run
from dcn_det.weights import checkpoint


def learning_rate_factor(train: TrainConfig, iteration: int, length: int, epoch_length: int) -> float:
    """Returns the learning-rate factor of an iteration (counted from 0): schedule times warm-up."""
    schedule, warmup = train.schedule, train.warmup
    scale = train.reference_batch / train.batch_size
    warmup_length = round(warmup.iterations * scale)
    if schedule.kind == "step":
        unit = {"share": length, "epochs": epoch_length, "iterations": scale}[schedule.unit]
        factor = schedule.gamma ** sum(iteration >= round(drop * unit) for drop in schedule.drops)
    else:
        share = torch.tensor(min(iteration / length, 1.0), dtype=torch.float64)
        factor = float(schedule.final + (1 - schedule.final) * 0.5 * (1 + torch.cos(torch.pi * share)))
    if warmup.kind == "none" or iteration >= warmup_length:
        return factor
    if warmup.kind == "constant":
        return factor * warmup.factor
    return factor * (warmup.factor + (1 - warmup.factor) * iteration / warmup_length)


def build_optimizer(train: TrainConfig, model: nn.Module, multipliers: Mapping[str, float]) -> torch.optim.Optimizer:
    """Returns an optimizer with one group per parameter, with its own learning rate and decay.

    One-dimensional parameters (biases and those of normalization layers) are decayed only with
    ``train.optimizer.decay_bias``.
    """
    settings = train.optimizer
    rate = settings.lr * (train.batch_size / train.reference_batch if train.scale_lr else 1)
    groups = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = settings.weight_decay if parameter.ndim > 1 or settings.decay_bias else 0.0
            groups.append({"params": [parameter], "base": rate * multipliers.get(name, 1.0), "weight_decay": decay})
    if settings.kind == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=settings.momentum, fused=True)
    return torch.optim.AdamW(groups, lr=rate, betas=settings.betas, fused=True)


def main(argv: list[str] | None = None) -> int:
    """Trains, tests and saves; prints the losses of every iteration."""
    parser = argparse.ArgumentParser(prog="plain_train.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path, help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that override the config")
    parser.add_argument("--output", type=Path, default=Path("plain.pth"), help="checkpoint (default: %(default)s)")
    args = parser.parse_intermixed_args(argv)
    config = load_any(args.config, *args.overrides)
    train, device = config.train, resolve_device(config.device)

    # Data: batches are a function of the seed and the iteration. The task opens data, and builds and measures models.
    task = task_of(config)(config)
    loader = task.train_batches(0, train.batch_size, 1)
    copies = 2 if getattr(config.data, "flip", "none") == "double" else 1
    epoch_length = max(copies * len(task.train_set) // train.batch_size, 1)
    wanted = (train.epochs or 0) * epoch_length
    if train.iterations is not None:  # stated for reference_batch images
        wanted = train.iterations * train.reference_batch / train.batch_size
    length = max(1, round(wanted))

    # Model and optimizer.
    torch.manual_seed(config.seed)
    model = task.build_model().to(device)
    if train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    model.train()
    optimizer = build_optimizer(train, model, model.lr_multipliers())

    # Training.
    for iteration, batch in zip(range(length), loader):
        factor = learning_rate_factor(train, iteration, length, epoch_length)
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * factor
        losses = model(batch.to(device))
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        total.backward()
        if train.clip_norm > 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), train.clip_norm)
        optimizer.step()
        parts = "  ".join(f"{name} {loss.item():.6f}" for name, loss in losses.items())
        print(f"iter {iteration + 1}/{length}  loss {total.item():.6f}  {parts}", flush=True)

    # Testing.
    measure = task.evaluator(Log())
    for name, value in measure(model, length).items() if measure is not None else ():
        print(f"{name} {value:.4f}")

    # Checkpoint, in the format that dcn-det test and dcn-det infer read.
    categories = checkpoint.categories_to_plain(task.categories)
    state = {
        "config": to_plain(task.config),
        "categories": categories,
        "model": model.state_dict(),
        "iteration": length,
    }
    checkpoint.save(args.output, state)
    print(f"saved '{args.output}'")
    return 0


if __name__ == "__main__":
    run(main)
