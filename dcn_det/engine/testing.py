"""Testing of trained models: the functions behind ``dcn-det test`` and ``dcn-det infer``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from dcn_det import distributed
from dcn_det.config import RunConfig, any_from_plain, as_any, print_config
from dcn_det.distributed import resolve_device
from dcn_det.engine.lock import exclusive
from dcn_det.engine.task import Task, TestJob, TestResult
from dcn_det.engine.tasks import task_of
from dcn_det.errors import UserError
from dcn_det.files import write_json, write_text
from dcn_det.heap import keep_freed_memory
from dcn_det.inference.build import with_settings_of_weights
from dcn_det.inference.predictor import Predictor
from dcn_det.progress import Say, say_on_stderr
from dcn_det.weights import checkpoint

__all__ = ["TestResult", "load", "load_detector", "load_task", "test"]

PATIENCE = timedelta(days=7)
"""Maximum time that a process waits for the slowest one."""


def test(
    config: RunConfig | str | Path,
    weights: str | Path,
    output: str | Path | None = None,
    *,
    submission: str | None = None,
    say: Say = say_on_stderr,
    **overrides: Any,
) -> TestResult | None:
    """Applies a trained model to the test split of a config and measures the results.

    In detection, finished images are stored in the output folder: after a kill, the same call continues. Under
    ``torchrun``, every process calls this function, and the processes share the images.

    Args:
        config: a config or its YAML file. Settings that belong to the weights are taken from the checkpoint.
        weights: checkpoint written by training or by ``dcn-det convert-weights``.
        output: folder of the results; ``test/`` next to the weights by default.
        submission: name of the method; if given, also writes the files for the server of the data set.
        say: receives progress lines.
        **overrides: settings laid over the config, see :func:`load`.

    Returns:
        The results; None in all processes but the main one.

    Raises:
        UserError: a setting is invalid, a file is missing, another run uses the folder, or the classes of weights and
            annotations differ.
    """
    config, weights = as_any(config, overrides), Path(weights)
    keep_freed_memory()
    output = Path(output or weights.parent / "test")
    processes, device = distributed.start(resolve_device(config.device), config.device, PATIENCE)
    with warnings.catch_warnings(), exclusive(output, processes):
        if not processes.main:
            warnings.simplefilter("ignore")  # the main process issues the same ones
        state = checkpoint.load(weights, checkpoint.TESTING)
        config = with_settings_of_weights(config, state, weights)
        output.mkdir(parents=True, exist_ok=True)  # on every machine of the run
        result = task_of(config).test(TestJob(config, state, weights, output, submission, str(device), processes, say))
        if processes.main:
            write_text(output / "config.yaml", print_config(config))
            if result.metrics is not None:
                write_json(output / "metrics.json", result.metrics.to_plain())
    distributed.stop()
    return result if processes.main else None


def load_task(
    weights: str | Path,
    device: str = "auto",
    config: RunConfig | str | Path | None = None,
    **overrides: Any,
) -> tuple[type[Task[Any]], Callable[[Any], Any]]:
    """Loads a trained model with its task; see :func:`load`."""
    weights = Path(weights)
    state = checkpoint.load(weights, checkpoint.TESTING)
    if config is not None:
        settings = with_settings_of_weights(as_any(config, overrides), state, weights)
    else:
        settings = as_any(any_from_plain(state["config"], str(weights)), overrides)
    task = task_of(settings)
    return task, task.restore(state, weights, settings, device)


def load(
    weights: str | Path,
    device: str = "auto",
    config: RunConfig | str | Path | None = None,
    **overrides: Any,
) -> Any:
    """Loads a trained model, ready for images.

    Args:
        weights: checkpoint written by training or by ``dcn-det convert-weights``; contains config and class names.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        config: a config or its YAML file, used instead of the one in the checkpoint. Settings that belong to the
            weights are still taken from the checkpoint.
        **overrides: settings laid over the config, as blocks (``test={"nms": "gaussian"}``) or dotted keys
            (``**{"test.nms_iou": 0.5}``).

    Returns:
        A detector's :class:`dcn_det.inference.predictor.Predictor`, where ``predictor(image)`` gives
        :class:`dcn_det.structures.Detections`; or a :class:`dcn_det.inference.segmenter.Segmenter`, which gives
        :class:`dcn_det.inference.segmenter.LabelMap`.

    Raises:
        UserError: the file is missing, damaged or of a different model than ``config``, a setting is invalid, or the
            device is not available.
    """
    return load_task(weights, device, config, **overrides)[1]


def load_detector(
    weights: str | Path, device: str = "auto", config: RunConfig | str | Path | None = None, **overrides: Any
) -> Predictor:
    """Loads a trained detector; see :func:`load`.

    Raises:
        UserError: the checkpoint is of another task; see also :func:`load`.
    """
    task, predictor = load_task(weights, device, config, **overrides)
    if not isinstance(predictor, Predictor):
        raise UserError(f"'{weights}' is a network for {task.title}; give a detector")
    return predictor
