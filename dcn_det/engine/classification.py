"""Image classification as a task of training, which gives detectors a backbone to start from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from dcn_det.config import to_plain
from dcn_det.config.classifier import METRICS, ClassificationConfig
from dcn_det.data.build import build_eval_loader, build_folders
from dcn_det.data.folders import FolderDataset
from dcn_det.distributed import Processes
from dcn_det.engine.logging import Log
from dcn_det.engine.task import Task, TestJob, TestResult
from dcn_det.engine.trainer import Evaluate
from dcn_det.errors import UserError
from dcn_det.evaluation.metrics import Metrics
from dcn_det.inference.build import restore_model
from dcn_det.models.build import build_classifier
from dcn_det.models.classifier import Classifier, positions
from dcn_det.precision import PRECISIONS, autocast
from dcn_det.progress import Progress
from dcn_det.structures import Category
from dcn_det.weights import checkpoint
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
    title = "classification"

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
        val_set, processes = self.val_set, self.processes
        if val_set is None:
            return None

        def run(model: nn.Module, iteration: int) -> Mapping[str, float]:
            metrics = measure(model, val_set, self.config, processes).values
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

    @classmethod
    def test(cls, job: TestJob[ClassificationConfig]) -> TestResult:
        """Measures a classifier on the validation images."""
        config = job.config
        if config.data.val is None:
            raise UserError("data.val: null, so there are no images to test on")
        classes = [category.name for category in checkpoint.categories_from_plain(job.state["categories"])]
        val_set = build_folders(config.data, "val", classes)
        model = restore_model(build_classifier(config.model, len(classes)), config, job.state, job.weights, job.device)
        metrics = measure(model, val_set, config, job.processes)
        return TestResult(job.output, metrics, {"metrics": job.output / "metrics.json"})


def measure(model: nn.Module, val_set: FolderDataset, config: ClassificationConfig, processes: Processes) -> Metrics:
    """Measures a classifier; the processes share the images, and each returns the metrics of all of them."""
    assert isinstance(model, Classifier)
    device, test = next(model.parameters()).device, config.test
    loader = build_eval_loader(
        val_set, config.data, test.batch_size, processes.world_size, processes.rank, device.type == "cuda"
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
    parts, count = processes.gather(right), len(val_set)
    values = {name: sum(part[name] for part in parts) / count for name in METRICS}
    return Metrics("classification", f"torch {torch.__version__}", values, {}, count, count, count)
