"""Semantic segmentation as a task."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dcn_det.config.model import ResidualBackboneConfig
from dcn_det.config.registry import resolve
from dcn_det.config.segmentation import SegmentationConfig
from dcn_det.data.build import build_eval_loader, build_masks
from dcn_det.data.masks.dataset import MaskDataset
from dcn_det.distributed import Processes
from dcn_det.engine.logging import Log
from dcn_det.engine.task import Page, PageOptions, Task, TestJob, TestResult, Trial
from dcn_det.engine.trainer import Evaluate
from dcn_det.errors import UserError
from dcn_det.evaluation.segmentation import MaskEvaluator, MaskMetrics, resize_nearest
from dcn_det.evaluation.segmentation_files import (
    evaluate_folder,
    palette,
    prediction_path,
    read_prediction,
    write_prediction,
)
from dcn_det.images import Image, index_png, sheet
from dcn_det.inference.mask_writers import MASK_WRITERS
from dcn_det.inference.segmenter import LabelMap, Segmenter, segmenter_of
from dcn_det.models.deeplab import DeepLab
from dcn_det.progress import Progress, Say
from dcn_det.structures import Category, ImageInfo, MaskBatch
from dcn_det.visualize.masks import confusion_picture, draw_masks, iou_picture
from dcn_det.visualize.plots import require_matplotlib

DRAWN_IMAGES = 8
"""Test images drawn at each evaluation."""
MASKS = "masks"
"""Folder of the predicted labels in the folder of a test."""
SPEAK_EVERY = 15.0
"""Seconds between progress lines of a test."""


class SegmentationTask(Task[SegmentationConfig]):
    """Trains a network that classifies pixels; it is measured by the mean IoU of the classes.

    Args:
        config, processes: see :class:`dcn_det.engine.task.Task`.
    """

    schema = SegmentationConfig
    title = "segmentation"
    writers = MASK_WRITERS

    def __init__(self, config: SegmentationConfig, processes: Processes | None = None) -> None:
        super().__init__(config, processes)
        with self.processes.main_first():
            self.train_set = build_masks(config.data, "train", progress=Progress("sample image"))
        self.test_set = self._annotated_test_set()

    def _annotated_test_set(self) -> MaskDataset | None:
        """Returns the test split, or None if it has no masks."""
        data = self.config.data
        if data.test is None:
            return None
        names = [category.name for category in self.categories]
        dataset = build_masks(data, "test", self.config.test.resize, classes=names)
        if not dataset.index.annotated:
            warnings.warn(f"'{dataset.index.source}' has no masks: training is not evaluated", stacklevel=3)
            return None
        return dataset

    @property
    def categories(self) -> tuple[Category, ...]:
        categories: tuple[Category, ...] = self.train_set.categories
        return categories

    def summary(self) -> list[str]:
        backbone = self.config.model.backbone
        blocks = backbone.deform.blocks if isinstance(backbone, ResidualBackboneConfig) else ()
        return [
            f"deform    convolutions {', '.join(blocks) or 'none'}",
            f"train on  {self.train_set.index.report}",
            f"test on   {self.test_set.index.report if self.test_set else 'nothing: no masks'}",
        ]

    def evaluator(self, log: Log) -> Evaluate | None:
        """Returns a function that measures a model on the test split, which the processes share."""
        test_set, processes = self.test_set, self.processes
        if test_set is None:
            return None

        def run(model: nn.Module, iteration: int) -> Mapping[str, float]:
            assert isinstance(model, DeepLab)
            segmenter = segmenter_of(model, self.categories, self.config)
            metrics = segment(segmenter, test_set, self.config, processes, log.say)
            assert metrics is not None
            log.say(metrics.table())
            log.scalars(iteration, {f"IoU of class/{name}": iou for name, iou in metrics.per_class.items()}, "test")
            if processes.main:
                for name, picture in pictures(segmenter, test_set, DRAWN_IMAGES):
                    log.image(iteration, f"pictures/{name}", picture)
            return metrics.values

        return run

    @classmethod
    def test(cls, job: TestJob[SegmentationConfig]) -> TestResult:
        """Classifies the pixels of the test split; writes a PNG file of labels for each image, at its size."""
        config, folder = job.config, job.output / MASKS
        segmenter: Segmenter = cls.restore(job.state, job.weights, config, job.device)
        with job.processes.main_first():
            dataset = build_masks(
                config.data, "test", config.test.resize, Progress("sample image"), classes=segmenter.names
            )
        if job.submission is not None and config.data.submission is None:
            raise UserError(f"--submission: there is no server for '{config.data.kind}' data")
        if job.processes.main:
            job.say(f"test on {dataset.index.report}")

        def write(name: str, labels: np.ndarray) -> None:
            write_prediction(folder, name, labels, config.data)

        metrics = segment(segmenter, dataset, config, job.processes, job.say, write)
        job.processes.wait()  # all files are written
        files = {"masks": folder}
        if metrics is not None:
            files["metrics"] = job.output / "metrics.json"
        if job.submission is not None and job.processes.main:
            assert config.data.submission is not None
            target = job.output / f"{job.submission}{config.data.submission_suffix}"
            files["submission"] = resolve(config.data.submission)(folder, target, dataset.index)
        return TestResult(job.output, metrics, files)

    @classmethod
    def predictor(cls, model: Any, categories: tuple[Category, ...], config: SegmentationConfig) -> Segmenter:
        return segmenter_of(model, categories, config)

    @classmethod
    def random_batch(cls, count: int, height: int, width: int, seed: int, classes: int) -> MaskBatch:
        """Returns images of noise, each with one class in each quarter."""
        generator = torch.Generator().manual_seed(seed)
        images = torch.randint(256, (count, height, width, 3), dtype=torch.uint8, generator=generator)
        labels = torch.randint(classes, (count, 2, 2), dtype=torch.uint8, generator=generator)
        labels = torch.stack([resize_nearest(each, height, width) for each in labels])
        infos = [ImageInfo(i, "", height, width, height, width, seed=i) for i in range(count)]
        return MaskBatch(images.permute(0, 3, 1, 2), infos, labels)

    @classmethod
    def trial(cls, model: Any, categories: tuple[Category, ...], config: SegmentationConfig, batch: MaskBatch) -> Trial:
        """The network up to the scores of cells; then upsampling, the best class, and its copy to the CPU."""
        segmenter, shown = segmenter_of(model, categories, config), MaskBatch(batch.images, batch.infos)
        return Trial(lambda: segmenter.scores(shown), lambda: [labels.cpu() for labels, _ in segmenter.predict(shown)])

    @classmethod
    def draw(cls, image: Image, result: LabelMap, score: float | None = None) -> Image:
        shown = result if score is None else result.above(score)
        return draw_masks(image, shown.labels, result.categories, result.palette)

    @classmethod
    def record(cls, result: LabelMap) -> Mapping[str, Any]:
        return {"shares": {name: round(share, 6) for name, share in result.shares().items()}}

    @classmethod
    def files(cls, result: LabelMap) -> Mapping[str, bytes]:
        return {".png": index_png(result.labels, result.palette)}

    @classmethod
    def read_truth(cls, config: SegmentationConfig) -> MaskTruth:
        return MaskTruth(config)

    @classmethod
    def measure(cls, config: SegmentationConfig, truth: MaskTruth, results: Path, **options: Any) -> MaskMetrics:
        for name in options:
            raise UserError(f"--{name.replace('_', '-')}: of detection; masks are compared in one way")
        return evaluate_folder(masks_in(results), truth.dataset.index, config.data)

    @classmethod
    def page(cls, config: SegmentationConfig, truth: MaskTruth, source: Path, options: PageOptions) -> Page:
        """Describes predictions: metrics, IoU by class, confusion of classes, and the worst images."""
        from dcn_det.visualize.mask_report import mask_page

        if options.score is not None or options.images is not None:
            raise UserError("--score, --images: of detection; masks have no scores, and the config names the images")
        require_matplotlib("report")
        folder, index, data = masks_in(source), truth.dataset.index, config.data
        metrics = evaluate_folder(folder, index, data)
        plots = {"iou": iou_picture(metrics), "confusion": confusion_picture(metrics)}
        position = {int(image_id): i for i, image_id in enumerate(index.image_ids)}

        def picture(image_id: int) -> tuple[str, list[tuple[str, Image]]]:
            i = position[image_id]
            image, labels = truth.dataset.read(i)
            assert labels is not None
            predicted = read_prediction(prediction_path(folder, index.name(i)), len(index.categories))
            predicted = resize_nearest(torch.from_numpy(predicted), *labels.shape).numpy()
            drawn = [draw_masks(image, each, index.categories, palette(data)) for each in (labels, predicted)]
            return index.name(i), list(zip(("ground truth", "prediction"), drawn))

        title = str(Path(*source.resolve().parts[-2:]))
        return Page(
            mask_page(title, metrics, plots, options.worst, picture),
            {f"{name}.png": content for name, content in plots.items()},
        )


class MaskTruth:
    """Images and masks of the test split of a config.

    Raises:
        UserError: they are missing, or the split has no masks.
    """

    def __init__(self, config: SegmentationConfig) -> None:
        self.dataset = build_masks(config.data, "test")
        self.title = config.data.test_title
        if not self.dataset.index.annotated:
            raise UserError(f"{self.dataset.index.source}: no masks to compare with")


def masks_in(folder: Path) -> Path:
    """Returns the folder of the labels: that of a test has it inside."""
    if not folder.is_dir():
        raise UserError(f"'{folder}' is no folder; expected predicted labels as PNG files")
    return folder / MASKS if (folder / MASKS).is_dir() else folder


def segment(
    segmenter: Segmenter,
    dataset: MaskDataset,
    config: SegmentationConfig,
    processes: Processes,
    say: Say,
    write: Callable[[str, np.ndarray], object] | None = None,
) -> MaskMetrics | None:
    """Classifies the pixels of this process's share of the images and measures the results of all processes.

    Args:
        segmenter: the network.
        dataset: the images.
        config: settings of loading and evaluation.
        processes: they share the images.
        say: receives progress lines, in the main process.
        write: receives the name and the labels, uint8 (height, width), of every image.

    Returns:
        The metrics, in every process; None if the images have no masks.
    """
    index, cuda = dataset.index, segmenter.device.type == "cuda"
    evaluator = MaskEvaluator(index.categories, config.data.compare_at, segmenter.device)
    loader = build_eval_loader(dataset, config.data, config.test.batch_size, processes.world_size, processes.rank, cuda)
    position = {int(image_id): i for i, image_id in enumerate(index.image_ids)}
    spoken, share = time.monotonic(), -(-len(index) // processes.world_size)
    for done, (info, labels, truth) in enumerate(segmenter.stream(loader), start=1):
        if truth is not None:
            evaluator.add(info.image_id, labels, truth)
        if write is not None:
            write(index.name(position[info.image_id]), resize_nearest(labels, info.height, info.width).cpu().numpy())
        if processes.main and time.monotonic() - spoken > SPEAK_EVERY:
            spoken = time.monotonic()
            say(f"{done} of {share} images")
    return evaluator.metrics(processes) if index.annotated else None


def pictures(segmenter: Segmenter, dataset: MaskDataset, count: int) -> list[tuple[str, Image]]:
    """Returns names and pictures (uint8 RGB) of the first images: prediction on the left, ground truth on the right."""
    drawn, index = [], dataset.index
    for i in range(min(count, len(index))):
        image, truth = dataset.read(i)
        assert truth is not None
        expected = draw_masks(image, truth, segmenter.categories, segmenter.palette)
        drawn.append((index.name(i), sheet([SegmentationTask.draw(image, segmenter(image)), expected], 2)))
    return drawn
