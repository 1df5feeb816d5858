"""Detection as a task of training."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dcn_det.config import Config
from dcn_det.config.model import ResidualBackboneConfig
from dcn_det.config.testing import EvaluationConfig
from dcn_det.data.build import build_dataset
from dcn_det.data.dataset import DetectionDataset, collate
from dcn_det.data.findings import first_few
from dcn_det.distributed import Processes
from dcn_det.engine.logging import Log
from dcn_det.engine.task import Page, PageOptions, Task, TestJob, TestResult, Trial
from dcn_det.engine.trainer import Evaluate
from dcn_det.engine.watch import log_offsets
from dcn_det.errors import UserError
from dcn_det.evaluation.analysis import analyse
from dcn_det.evaluation.backends import Backend, IouType
from dcn_det.evaluation.measure import evaluation_settings
from dcn_det.evaluation.metrics import Metrics
from dcn_det.evaluation.results import Result
from dcn_det.evaluation.submission import write_submission
from dcn_det.evaluation.truth import Truth, truth_class
from dcn_det.files import write_json
from dcn_det.images import Image, draw_boxes, read_annotated, sheet
from dcn_det.inference.build import build_predictor
from dcn_det.inference.dataset import detect_dataset
from dcn_det.inference.predictor import Predictor
from dcn_det.inference.writers import MINIMUM_SCORE, WRITERS
from dcn_det.models.detector import Detector
from dcn_det.precision import autocast
from dcn_det.progress import Progress, Say
from dcn_det.structures import Batch, Category, Detections, ImageInfo, Target

DRAWN_IMAGES = 8
"""Test images drawn at each evaluation."""
OBJECTS = 8
"""Objects per image of noise; COCO has 7."""
CANDIDATES = 1000
"""Boxes per image of noise that reach suppression. Untrained, all 80 x 300 have about the same score and would."""
CONFIDENT = 0.3
"""Minimum score of the detections that a report counts as confident."""


class DetectionTask(Task[Config]):
    """Trains a detector; it is measured by the metrics of the data format.

    Args:
        config, processes: see :class:`dcn_det.engine.task.Task`.
    """

    schema = Config
    title = "detection"
    results_file = "detections.json"
    writers = WRITERS

    def __init__(self, config: Config, processes: Processes | None = None) -> None:
        super().__init__(config, processes)
        with self.processes.main_first():
            self.train_set = build_dataset(config.data, "train", progress=Progress("sample image"))
        self.truth: Truth | None = None
        self.test_set = self._annotated_test_set()

    def _annotated_test_set(self) -> DetectionDataset | None:
        """Returns the test split, or None if it has no annotations."""
        data = self.config.data
        if data.test is None:
            return None
        names = [category.name for category in self.categories]
        dataset = build_dataset(data, "test", self.config.test.resize, classes=names)
        if not dataset.index.annotated:
            warnings.warn(f"'{dataset.index.source}' has no annotations: training is not evaluated", stacklevel=3)
            return None
        self.truth = Truth.of_config(self.config)  # refuses now what evaluation would refuse after hours of training
        return dataset

    @property
    def categories(self) -> tuple[Category, ...]:
        return self.train_set.categories

    def summary(self) -> list[str]:
        model = self.config.model
        blocks = model.backbone.deform.blocks if isinstance(model.backbone, ResidualBackboneConfig) else ()
        lines = [
            f"deform    convolutions {', '.join(blocks) or 'none'}; RoI pooling {model.pooling}",
            f"train on  {self.train_set.index.report}",
            f"test on   {self.test_set.index.report if self.test_set else 'nothing: no annotations'}",
        ]
        shared = self._shared_images()
        if shared:
            lines.append(
                f"warning   images in both the training and the test split: {len(shared)} ({first_few(shared)})"
            )
        return lines

    def _shared_images(self) -> list[str]:
        """Returns the images that are trained on and tested on, which makes the metrics too good."""
        if self.test_set is None:
            return []
        train, test = (
            {f"{index.folder}/{index.file_name(i)}" for i in range(len(index))}
            for index in (self.train_set.index, self.test_set.index)
        )
        return sorted(train & test)

    def evaluator(self, log: Log) -> Evaluate | None:
        """Returns a function that evaluates a model on the test split and logs metrics, some images and offsets.

        The processes share the images. Returns None if there are no annotations to evaluate against.
        """
        processes, test_set = self.processes, self.test_set
        if test_set is None:
            return None

        def run(model: nn.Module, iteration: int) -> Mapping[str, float]:
            assert isinstance(model, Detector)  # the session's model or its average
            predictor = build_predictor(model, test_set.categories, self.config)
            with tempfile.TemporaryDirectory(prefix="dcn_det-test-") as folder:
                _, metrics = run_test(predictor, test_set, self.config, Path(folder), log.say, processes, self.truth)
            values = None
            if processes.main:
                assert metrics is not None
                log.say(metrics.table())
                log.scalars(iteration, {f"AP of class/{name}": ap for name, ap in metrics.per_class.items()}, "test")
                for name, picture in pictures(predictor, test_set, DRAWN_IMAGES):
                    log.image(iteration, f"pictures/{name}", picture)
                if not self.config.train.compile:  # compiled regions do not run hooks
                    log_offsets(log, iteration, predictor, test_set)
                values = metrics.values
            return processes.share(values)

        return run

    @classmethod
    def test(cls, job: TestJob[Config]) -> TestResult:
        """Detects the objects of the test split; writes ``detections.json`` and result files of the data format."""
        config, output, processes = job.config, job.output, job.processes
        predictor: Predictor = cls.restore(job.state, job.weights, config, job.device)
        with processes.main_first():
            dataset = build_dataset(
                config.data, "test", config.test.resize, progress=Progress("sample image"), classes=predictor.names
            )
        predictor.categories = dataset.categories  # the same classes, with the ids of these annotations
        if processes.main:
            job.say(f"test on {dataset.index.report}")
        results, metrics = run_test(predictor, dataset, config, output, job.say, processes)
        files = {"detections": output / "detections.json"}
        if not processes.main:
            return TestResult(output, metrics, files, results)
        write_json(files["detections"], results)
        written = truth_class(config.data).write_results(output, results, dataset.index, config.data)
        if written is not None:
            files["result files"] = written
        if job.submission:
            files["submission"] = write_submission(output, job.submission, results, dataset.index)
        if metrics is not None:
            files["metrics"] = output / "metrics.json"
        return TestResult(output, metrics, files, results)

    @classmethod
    def predictor(cls, model: Any, categories: tuple[Category, ...], config: Config) -> Predictor:
        return build_predictor(model, categories, config)

    @classmethod
    def random_batch(cls, count: int, height: int, width: int, seed: int, classes: int) -> Batch:
        """Returns images of noise with :data:`OBJECTS` boxes of 5% to 50% of the sides in each."""
        generator = torch.Generator().manual_seed(seed)
        sides = torch.tensor([width, height])
        examples = []
        for number in range(count):
            pixels = torch.randint(256, (height, width, 3), dtype=torch.uint8, generator=generator).permute(2, 0, 1)
            size = (0.05 + 0.45 * torch.rand(OBJECTS, 2, generator=generator)) * sides
            start = torch.rand(OBJECTS, 2, generator=generator) * (sides - size)
            labels = torch.randint(classes, (OBJECTS,), generator=generator)
            info = ImageInfo(number, "", height, width, height, width, seed=number)
            examples.append((pixels, info, Target(torch.cat([start, start + size], dim=1), labels)))
        return collate(examples)

    @classmethod
    def trial(cls, model: Any, categories: tuple[Category, ...], config: Config, batch: Batch) -> Trial:
        """The network up to scored boxes; then suppression. About :data:`CANDIDATES` boxes reach it."""
        predictor, batch = build_predictor(model, categories, config), replace(batch, targets=[])
        device = predictor.device

        def scores(threshold: float) -> Tensor:
            model.score_threshold = threshold
            with torch.inference_mode(), autocast(device, predictor.precision):
                found: Tensor = model.eval().candidates(batch.to(device))[0].scores
            return found

        notes = [f"{limit_candidates(scores)} candidates"]
        return Trial(lambda: predictor.candidates(batch), lambda: predictor.predict([batch]), notes)

    @classmethod
    def draw(cls, image: Image, result: Detections, score: float | None = None) -> Image:
        return result.above(MINIMUM_SCORE if score is None else score).draw(image)

    @classmethod
    def record(cls, result: Detections) -> Mapping[str, Any]:
        return {"detections": result.to_plain()}

    @classmethod
    def read_truth(cls, config: Config) -> Truth:
        return Truth.of_config(config)

    @classmethod
    def measure(cls, config: Config, truth: Truth, results: Path, **options: Any) -> Metrics:
        backend: Backend | None = options.pop("backend", None)
        iou_type: IouType = options.pop("iou_type", "bbox")
        assert not options
        return truth.measure(truth.read(results, iou_type), evaluation_settings(config, backend), iou_type)

    @classmethod
    def page(cls, config: Config, truth: Truth, source: Path, options: PageOptions) -> Page:
        return detection_page(truth, evaluation_settings(config), source, options)


def run_test(
    predictor: Predictor,
    dataset: DetectionDataset,
    config: Config,
    folder: Path,
    say: Say,
    processes: Processes | None = None,
    truth: Truth | None = None,
) -> tuple[list[Result], Metrics | None]:
    """Detects the objects of a data set and evaluates the detections.

    Args:
        predictor: the detector.
        dataset: the images.
        config: settings of loading and evaluation.
        folder, say, processes: see :func:`dcn_det.inference.dataset.detect_dataset`.
        truth: ground truth of the data set; None reads that of the config.

    Returns:
        COCO results, and their metrics if the data set is annotated. In all processes but the main one, an empty list
        and None.
    """
    results = detect_dataset(predictor, dataset, config.data, config.test.batch_size, folder, say, processes)
    if (processes is not None and not processes.main) or not dataset.index.annotated:
        return results, None
    return results, (truth or Truth.of_config(config)).measure(results, evaluation_settings(config))


def pictures(predictor: Predictor, dataset: DetectionDataset, count: int) -> list[tuple[str, np.ndarray]]:
    """Returns names and pictures (uint8 RGB) of the first images: detections on the left, ground truth on the right."""
    drawn = []
    for i in range(min(count, len(dataset))):
        image = dataset.image(i)
        boxes, labels = dataset.index.objects(i)
        truth = draw_boxes(image, boxes, labels.tolist(), predictor.names)
        drawn.append(
            (Path(dataset.index.file_name(i)).stem, sheet([DetectionTask.draw(image, predictor(image)), truth], 2))
        )
    return drawn


def detection_page(truth: Truth, settings: EvaluationConfig, source: Path, options: PageOptions) -> Page:
    """Describes detections: metrics, curves, histograms, confusions, error types and the worst images.

    Args:
        truth: ground truth of the split.
        settings: settings of the evaluation.
        source: results in COCO's format, or a folder of result files of the data format.
        options: what to show.

    Raises:
        UserError: the results cannot be read or evaluated, or plots cannot be drawn.
    """
    from dcn_det.visualize.plots import plots
    from dcn_det.visualize.report import page

    results = truth.read(source)
    metrics = truth.measures(results, settings)
    analysis = analyse(truth.coco, results, CONFIDENT if options.score is None else options.score, options.worst)
    drawn = plots(analysis)
    folder = options.images or truth.image_folder
    absent: list[str] = []

    def picture(image_id: int) -> Image | None:
        name = truth.coco.file_names.get(image_id)
        if folder is None or name is None or not (folder / name).is_file():
            absent.append(str(image_id))
            return None
        return read_annotated(folder / name, truth.coco.images[image_id])

    title = str(Path(*source.resolve().parts[-2:]))
    html = page(title, metrics, analysis, drawn, truth.coco, results, picture)
    warned = [f"{len(absent)} of the worst images not found; set their folder with --images"] if absent else []
    return Page(html, {f"{name}.png": content for name, content in drawn.items()}, warned)


def limit_candidates(scores: Callable[[float], Tensor]) -> int:
    """Chooses a score threshold that leaves about :data:`CANDIDATES` boxes to suppression.

    Args:
        scores: sets a threshold and returns the scores above it, of one image.

    Returns:
        The number of candidates that are left.

    Raises:
        UserError: there are none, or a score is not finite.
    """
    found = scores(0.0)
    if not len(found) or not found.isfinite().all():
        raise UserError("the detector has no candidates with random weights, or their scores are not finite")
    if len(found) > CANDIDATES:
        found = scores(float(found.sort(descending=True).values[CANDIDATES]))
    return len(found)
