"""Image classification as a task of training, which gives detectors a backbone to start from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from dcn_det.config import to_plain
from dcn_det.config.classifier import METRICS, ClassificationConfig
from dcn_det.data.build import build_eval_loader, build_folders, build_train_loader
from dcn_det.data.loader import Loader
from dcn_det.distributed import Processes
from dcn_det.engine.logging import Log
from dcn_det.engine.task import Task
from dcn_det.engine.trainer import Evaluate
from dcn_det.errors import UserError
from dcn_det.models.build import build_classifier
from dcn_det.models.classifier import Classifier, positions
from dcn_det.precision import PRECISIONS, autocast
from dcn_det.progress import Progress
from dcn_det.structures import Category, LabelBatch
from dcn_det.weights import checkpoint
from dcn_det.weights.backbone import load_backbone_weights
from dcn_det.weights.settings import of_backbone

BACKBONE = "backbone.safetensors"
"""File name of the trained backbone in the folder of a run."""
_TOP = dict(zip(METRICS, (1, 5)))


class ClassificationTask(Task[ClassificationConfig]):
    """Trains a classifier; it is measured by the shares of images whose class is among the best one and best five.

    Args:
        config, processes: see :class:`dcn_det.engine.task.Task`.
    """

    schema = ClassificationConfig

    def __init__(self, config: ClassificationConfig, processes: Processes | None = None) -> None:
        super().__init__(config, processes)
        with self.processes.main_first():
            self.train_set = build_folders(config.data, "train", progress=Progress("digit"))
        self.val_set = None
        if config.data.val is not None:
            classes = [category.name for category in self.categories]
            self.val_set = build_folders(config.data, "val", classes)
        if len(self.categories) < 2:
            raise UserError(f"data.train: {self.train_set.index.folder} has one class; a classifier needs two")

    @property
    def categories(self) -> tuple[Category, ...]:
        return self.train_set.index.categories

    def fingerprint(self) -> str:
        return self.train_set.index.fingerprint()

    def build_model(self) -> Classifier:
        with self.processes.main_first():
            model = build_classifier(self.config.model, len(self.categories))
            load_backbone_weights(model.backbone, self.config.model.backbone)
        return model

    def train_batches(
        self, start_iteration: int, batch_size: int, accumulate: int, pin_memory: bool = False
    ) -> Loader[LabelBatch]:
        return build_train_loader(
            self.train_set,
            self.config.data,
            batch_size,
            self.config.seed,
            world_size=self.processes.world_size,
            rank=self.processes.rank,
            start_iteration=start_iteration,
            pin_memory=pin_memory,
            accumulate=accumulate,
        )

    def summary(self) -> list[str]:
        val = self.val_set
        lines = [
            f"train on  {self.train_set.index.report}",
            f"test on   {val.index.report if val else 'nothing: data.val is null'}",
        ]
        if val and val.index.folder.resolve() == self.train_set.index.folder.resolve():
            lines.append("warning   training and validation images are the same")
        return lines

    def evaluator(self, log: Log) -> Evaluate | None:
        """Returns a function that measures a model on the validation split, which the processes share."""
        val_set, processes, test = self.val_set, self.processes, self.config.test
        if val_set is None:
            return None

        def run(model: nn.Module, iteration: int) -> Mapping[str, float]:
            assert isinstance(model, Classifier)
            device = next(model.parameters()).device
            loader = build_eval_loader(
                val_set, self.config.data, test.batch_size, processes.world_size, processes.rank, device.type == "cuda"
            )
            model.eval()
            right = dict.fromkeys(METRICS, 0)
            with torch.inference_mode():
                for batch in loader:
                    batch = batch.to(device, non_blocking=True)
                    with autocast(device, PRECISIONS[test.precision]):
                        scores = model.scores(batch)
                    found = positions(scores, batch.labels)
                    for name, top in _TOP.items():
                        right[name] += int((found < top).sum())
            parts = processes.gather(right)
            metrics = {name: sum(part[name] for part in parts) / len(val_set) for name in METRICS}
            log.say("  ".join(f"{name} {value:.4f}" for name, value in metrics.items()) + f"  ({val_set.index.report})")
            return metrics

        return run

    def export(self, model: nn.Module, folder: Path) -> dict[str, Path]:
        """Writes the backbone with the settings that belong to its weights, for ``model.backbone.weights``."""
        assert isinstance(model, Classifier) and isinstance(model.backbone, nn.Module)
        path = folder / BACKBONE
        state = {
            "part": checkpoint.BACKBONE,
            "settings": of_backbone(to_plain(self.config)),
            "model": model.backbone.state_dict(),
        }
        checkpoint.save(path, state)
        return {"backbone": path}
