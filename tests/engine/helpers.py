"""A minimal model, its batches and a trainer for both."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from dcn_det.engine.logging import RunLog
from dcn_det.engine.optim import parameter_groups
from dcn_det.engine.store import CheckpointStore
from dcn_det.engine.trainer import LoopSettings, Trainer
from dcn_det.structures import Batch, ImageInfo, Target


class Mean(nn.Module):
    """Model that fits the mean of the images, in place of a detector."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.zeros(1))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        error = batch.images.float().mean() / 255 - self.level
        return {"square": (error**2).sum(), "absolute": 0.1 * error.abs().sum()}


def level(run: Trainer) -> nn.Parameter:
    """The parameter of a run's model."""
    return run.model.get_parameter("level")


def batches(first: int, size: int = 2, passes: int = 1) -> Iterator[Batch]:
    while True:
        generator = torch.Generator().manual_seed(first)
        images = torch.randint(0, 256, (2, 3, 8, 8), generator=generator, dtype=torch.uint8)
        infos = [ImageInfo(10 * first + k, "", 8, 8, 8, 8) for k in range(2)]
        targets = [Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)) for _ in range(2)]
        yield Batch(images, infos, targets)
        first += 1


def trainer(folder: Path, length: int = 10, factor=lambda iteration: 1.0, lr: float = 0.1, **settings) -> Trainer:
    evaluate = settings.pop("evaluate", None)
    model = Mean()
    optimizer = torch.optim.SGD(parameter_groups(model, lr, 0.0, False, {}), lr=lr, momentum=0.9)
    return Trainer(
        model,
        optimizer,
        factor,
        batches,
        LoopSettings(length, **({"batch_size": 2, "log_every": 5, "checkpoint_every": 5} | settings)),
        CheckpointStore(folder, keep=3),
        RunLog(folder, quiet=True),
        torch.device("cpu"),
        {"config": {"name": "toy"}},
        evaluate,
    )
