"""The whole training of one config, as plain as it can be written: one process, float32, no checkpoints but the last.

    python tools/plain_train.py configs/sample/faster_rcnn.yaml train.iterations=20 --output plain.pth

It gives the same losses as ``tools/train.py``, whose loop does the same among much else. Read this one first.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from dcn_det.config import load_config, to_plain
from dcn_det.config.train import TrainConfig
from dcn_det.data.build import build_dataset, build_eval_loader, build_train_loader
from dcn_det.distributed import resolve_device
from dcn_det.entry import run
from dcn_det.evaluation.truth import Truth
from dcn_det.inference.build import build_predictor
from dcn_det.models.build import build_detector
from dcn_det.weights import checkpoint
from dcn_det.weights.backbone import load_backbone_weights


def learning_rate_factor(train: TrainConfig, iteration: int, length: int, epoch_length: int) -> float:
    """What the learning rate of an iteration (from 0) is multiplied by: schedule times warm-up."""
    schedule, warmup = train.schedule, train.warmup
    if schedule.kind == "step":
        unit = {"share": length, "epochs": epoch_length, "iterations": 1}[schedule.unit]
        factor = schedule.gamma ** sum(iteration >= round(drop * unit) for drop in schedule.drops)
    else:
        share = torch.tensor(min(iteration / length, 1.0), dtype=torch.float64)
        factor = float(schedule.final + (1 - schedule.final) * 0.5 * (1 + torch.cos(torch.pi * share)))
    if warmup.kind == "none" or iteration >= warmup.iterations:
        return factor
    if warmup.kind == "constant":
        return factor * warmup.factor
    return factor * (warmup.factor + (1 - warmup.factor) * iteration / warmup.iterations)


def main(argv: list[str] | None = None) -> int:
    """Trains, tests and saves; prints the losses of every iteration."""
    parser = argparse.ArgumentParser(prog="plain_train", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path, help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings laid over the config")
    parser.add_argument("--output", type=Path, default=Path("plain.pth"), help="checkpoint (default %(default)s)")
    args = parser.parse_intermixed_args(argv)
    config = load_config(args.config, args.overrides)
    train, device = config.train, resolve_device(config.device)

    # Data: batches are a function of the seed and the iteration.
    train_set = build_dataset(config.data, "train")
    loader = build_train_loader(train_set, config.data, train.batch_size, config.seed)
    copies = 2 if config.data.flip == "double" else 1
    epoch_length = max(copies * len(train_set) // train.batch_size, 1)
    length = train.iterations or max(1, round((train.epochs or 0) * epoch_length))

    # Model.
    torch.manual_seed(config.seed)
    model = build_detector(config, len(train_set.categories))
    load_backbone_weights(model.backbone, config.model.backbone)
    model = model.to(device)
    if train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    model.train()

    # Optimizer: a group for each parameter, with its own learning rate and decay; one-dimensional parameters (biases
    # and those of normalisation) are not decayed unless asked for.
    settings = train.optimizer
    rate = settings.lr * (train.batch_size / train.reference_batch if train.scale_lr else 1)
    multipliers = model.lr_multipliers()
    groups = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = settings.weight_decay if parameter.ndim > 1 or settings.decay_bias else 0.0
            groups.append({"params": [parameter], "base": rate * multipliers.get(name, 1.0), "weight_decay": decay})
    optimizer: torch.optim.Optimizer
    if settings.kind == "sgd":
        optimizer = torch.optim.SGD(groups, lr=rate, momentum=settings.momentum)
    else:
        optimizer = torch.optim.AdamW(groups, lr=rate, betas=settings.betas)

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
    if config.data.test is not None:
        test_set = build_dataset(config.data, "test", config.test.resize)
        predictor = build_predictor(model.eval(), train_set.categories, config)
        views = [(view.flipped, (view.short_side, view.max_side)) for view in predictor.views]
        results = []
        batches = build_eval_loader(test_set, config.data, config.test.batch_size, views=views)
        for info, detections in predictor.stream(batches):  # boxes in pixels of the original images
            results += detections.to_coco(info.image_id)
        if test_set.index.annotated:
            print(Truth.of_config(config).measure(results).table())

    # The checkpoint that tools/test.py and tools/infer.py read.
    categories = checkpoint.categories_to_plain(train_set.categories)
    state = {"config": to_plain(config), "categories": categories, "model": model.state_dict(), "iteration": length}
    checkpoint.save(args.output, state)
    print(f"saved '{args.output}'")
    return 0


if __name__ == "__main__":
    run(main)
