"""Testing of a trained detector on a data set: the function behind ``dcn-det test``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from dcn_det import distributed
from dcn_det.config import Config, as_config, print_config
from dcn_det.data.build import build_dataset
from dcn_det.data.dataset import DetectionDataset
from dcn_det.data.index import DatasetIndex
from dcn_det.distributed import Processes, resolve_device
from dcn_det.engine.lock import exclusive
from dcn_det.evaluation.measure import evaluation_settings
from dcn_det.evaluation.metrics import Metrics
from dcn_det.evaluation.results import Result
from dcn_det.evaluation.submission import write_submission
from dcn_det.evaluation.truth import Truth, truth_class
from dcn_det.files import write_json, write_text
from dcn_det.heap import keep_freed_memory
from dcn_det.images import draw_boxes, read_image, sheet
from dcn_det.inference.build import restore_predictor, with_settings_of_weights
from dcn_det.inference.dataset import detect_dataset
from dcn_det.inference.predictor import Predictor
from dcn_det.progress import Progress, Say, say_on_stderr
from dcn_det.weights import checkpoint

MINIMUM_SCORE = 0.5
"""Minimum score of drawn detections (exclusive)."""


PATIENCE = timedelta(days=7)
"""Maximum time that a process waits for the slowest one."""


@dataclass(frozen=True)
class TestResult:
    """Result of :func:`test`.

    Attributes:
        output: folder with ``detections.json``, ``metrics.json`` and the resolved ``config.yaml``.
        detections: COCO results of all images.
        metrics: None if the split has no annotations.
        files: paths of the results by name, such as ``detections`` and ``metrics``.
    """

    output: Path
    detections: list[Result]
    metrics: Metrics | None
    files: Mapping[str, Path]


def test(
    config: Config | str | Path,
    weights: str | Path,
    output: str | Path | None = None,
    *,
    submission: str | None = None,
    say: Say = say_on_stderr,
    **overrides: Any,
) -> TestResult | None:
    """Detects objects in the test split of a config and evaluates the detections.

    Finished images are stored in the output folder: after a kill, the same call continues. Under ``torchrun``, every
    process calls this function, and the processes share the images.

    Args:
        config: a config or its YAML file. Settings that belong to the weights are taken from the checkpoint.
        weights: checkpoint written by training or by ``dcn-det convert-weights``.
        output: folder of the results; ``test/`` next to the weights by default.
        submission: name of the method; if given, also writes the zip file for COCO's test-dev server.
        say: receives progress lines.
        **overrides: settings laid over the config, see :func:`dcn_det.inference.build.load`.

    Returns:
        The results; None in all processes but the main one.

    Raises:
        UserError: a setting is invalid, a file is missing, another run uses the folder, or the classes of weights and
            annotations differ.
    """
    config, weights = as_config(config, **overrides), Path(weights)
    keep_freed_memory()
    output = Path(output or weights.parent / "test")
    processes, device = distributed.start(resolve_device(config.device), config.device, PATIENCE)
    with warnings.catch_warnings(), exclusive(output, processes):
        if not processes.main:
            warnings.simplefilter("ignore")  # the main process issues the same ones
        result = _run(config, weights, output, submission, say, processes, str(device))
    distributed.stop()
    return result


def _run(
    config: Config, weights: Path, output: Path, submission: str | None, say: Say, processes: Processes, device: str
) -> TestResult | None:
    state = checkpoint.load(weights, checkpoint.TESTING)
    config = with_settings_of_weights(config, state, weights)
    predictor = restore_predictor(state, weights, config, device)
    with processes.main_first():
        dataset = build_dataset(
            config.data, "test", config.test.resize, progress=Progress("sample image"), classes=predictor.names
        )
    predictor.categories = dataset.categories  # the same classes, with the ids of these annotations
    output.mkdir(parents=True, exist_ok=True)  # on every machine of the run
    if processes.main:
        say(f"test on {dataset.index.report}")
    results, metrics = run_test(predictor, dataset, config, output, say, processes)
    if not processes.main:
        return None
    write_text(output / "config.yaml", print_config(config))
    write_json(output / "detections.json", results)
    files = {"detections": output / "detections.json"}
    written = truth_class(config.data).write_results(output, results, dataset.index, config.data)
    if written is not None:
        files["result files"] = written
    if submission:
        files["submission"] = write_submission(output, submission, results, dataset.index)
    if metrics is not None:
        write_json(output / "metrics.json", metrics.to_plain())
        files["metrics"] = output / "metrics.json"
    return TestResult(output, results, metrics, files)


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


def pictures(predictor: Predictor, index: DatasetIndex, count: int) -> list[tuple[str, np.ndarray]]:
    """Returns names and pictures (uint8 RGB) of the first images: detections on the left, ground truth on the right."""
    drawn = []
    for i in range(min(count, len(index))):
        path = index.folder / index.file_name(i)
        image = read_image(path)
        boxes, labels = index.objects(i)
        truth = draw_boxes(image, boxes, labels.tolist(), predictor.names)
        drawn.append((path.stem, sheet([predictor(image).above(MINIMUM_SCORE).draw(image), truth], 2)))
    return drawn
