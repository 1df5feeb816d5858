"""Training from a config: the function behind ``dcn-det train``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from dcn_det import distributed
from dcn_det.config import RunConfig, as_any, print_config, to_plain
from dcn_det.distributed import Processes, resolve_device
from dcn_det.engine.guards import data_changes
from dcn_det.engine.lock import exclusive
from dcn_det.engine.logging import Log, RunLog
from dcn_det.engine.session import Session, set_up_process
from dcn_det.engine.signals import Interrupted
from dcn_det.engine.store import CheckpointStore
from dcn_det.engine.surroundings import save_surroundings
from dcn_det.engine.tasks import task_of
from dcn_det.errors import UserError
from dcn_det.files import write_text
from dcn_det.weights import checkpoint

Resume = Literal["no", "yes", "auto"]
WEIGHTS = "last.pth"
"""File name of the final weights in the folder of a run."""


@dataclass(frozen=True)
class TrainingResult:
    """Result of :func:`train`.

    Attributes:
        output: folder of the run.
        weights: the final weights, ``last.pth``; None if the run stopped before its end.
        iteration: completed optimizer steps.
        metrics: metrics of the last evaluation, by name; empty if there was none.
        files: further files of the final model, by name: ``backbone`` of a classifier.
    """

    output: Path
    weights: Path | None
    iteration: int
    metrics: Mapping[str, float]
    files: Mapping[str, Path] = field(default_factory=dict)


def train(
    config: RunConfig | str | Path,
    output: str | Path | None = None,
    *,
    resume: Resume = "no",
    stop_at: int | None = None,
    **overrides: Any,
) -> TrainingResult:
    """Trains the model that a config describes.

    Under ``torchrun``, every process calls this function, and the processes train together.

    Args:
        config: a config or its YAML file.
        output: folder of the run (weights, logs, resolved config); ``runs/<config name>`` by default.
        resume: ``yes`` continues the run in the folder, ``auto`` continues it if there is one and starts it otherwise.
        stop_at: iteration after which to save and stop; the run can be resumed.
        **overrides: settings laid over the config, as blocks (``train={"iterations": 100}``) or dotted keys
            (``**{"train.iterations": 100}``).

    Returns:
        The result; for a classifier, ``files["backbone"]`` is the file for ``model.backbone.weights`` of others.

    Raises:
        UserError: a setting is invalid, data or weights are missing, or the folder already contains a run or is in
            use by one.
        TrainingDiverged, OutOfMemory: training cannot continue; both are subclasses of UserError.
        Interrupted: SIGINT, SIGTERM or SIGUSR1 was received; a checkpoint is saved.
    """
    config = as_any(config, overrides)
    if stop_at is not None and stop_at < 1:
        raise UserError(f"stop_at is {stop_at}, expected an iteration of at least 1")
    output = Path(output or Path("runs") / config.name)
    processes, device = distributed.start(resolve_device(config.device), config.device)
    with warnings.catch_warnings(), exclusive(output, processes):
        if not processes.main:
            warnings.simplefilter("ignore")  # the main process issues the same ones
        result = _run(config, output, resume, stop_at, processes, device)
    distributed.stop()
    return result


def describe(config: RunConfig) -> str:
    """Builds data, model and optimizer of a config and describes them on several lines, without training."""
    processes, device = distributed.start(resolve_device(config.device), config.device)
    set_up_process(config, device)
    text = Session(task_of(config)(config, processes), device).summary()
    distributed.stop()
    return text if processes.main else ""


def _run(
    config: RunConfig,
    output: Path,
    resume: Resume,
    stop_at: int | None,
    processes: Processes,
    device: torch.device,
) -> TrainingResult:
    store = CheckpointStore(output, config.train.keep_checkpoints)
    resumed = None
    if resume != "no" or processes.restarts:
        resumed = _latest(store, processes)
        if resumed is None and resume == "yes":
            raise UserError(f"'{output}' contains no readable checkpoint to resume from")
        if resumed is not None:
            checkpoint.require(resumed[1], resumed[0], checkpoint.RESUMING)
    elif processes.share(bool(store.saved())):
        raise UserError(f"'{output}' already contains a run; continue it with --resume or choose another --output")

    set_up_process(config, device)
    task = task_of(config)(config, processes)
    config = task.config
    session = Session(task, device, resumed[1]["images_per_step"] if resumed else None)
    log = _open_log(config, store, resumed[1]["iteration"] if resumed else 0) if processes.main else Log()
    weights, files = None, {}
    try:
        log.say(session.summary())
        trainer = session.trainer(store, log, stop_at)
        if resumed is not None:
            path, state = resumed
            _warn_of_differences(to_plain(config), state["config"])
            changed = data_changes(state, trainer.metadata["categories"], trainer.metadata["data_fingerprint"])
            if changed:
                log.say(f"warning: {changed}")
            trainer.load_state(state, path)
            log.say(f"resumed from '{path}' at iteration {trainer.iteration}")
        try:
            metrics = trainer.run()
        except Interrupted as stop:
            log.say(str(stop))
            raise
        if trainer.iteration < session.length:
            log.say(f"stopped at iteration {trainer.iteration} as requested; continue with --resume")
        else:
            weights = output / WEIGHTS
            if processes.main:
                files = dict(session.task.export(trainer.evaluated_model, output))
                checkpoint.save(weights, trainer.exported())
                for name, path in files.items():
                    log.say(f"{name}: '{path}'")
                log.say(f"done: '{weights}'")
            files = processes.share(files)
        processes.wait()
    finally:
        log.close()
    return TrainingResult(output, weights, trainer.iteration, metrics, files)


def _open_log(config: RunConfig, store: CheckpointStore, iteration: int) -> Log:
    """Creates the folder of a run, records config and environment in it, and opens its logs."""
    output = store.folder
    output.mkdir(parents=True, exist_ok=True)
    store.tidy()
    write_text(output / "config.yaml", print_config(config))
    log = RunLog(output, iteration=iteration, wandb=config.train.wandb, config=to_plain(config))
    save_surroundings(output)
    return log


def _latest(store: CheckpointStore, processes: Processes) -> tuple[Path, dict[str, Any]] | None:
    """Returns the newest readable checkpoint. The main process selects it; the others load the same file."""
    found = store.latest() if processes.main else None
    path = processes.share(found[0] if found else None)
    if path is None or found is not None:
        return found
    return path, checkpoint.load(path)


def _warn_of_differences(now: dict, saved: dict) -> None:
    """Warns about settings that differ from those of the checkpoint; the current ones apply."""

    def flat(plain: object, prefix: str = "") -> dict[str, object]:
        if not isinstance(plain, dict):
            return {prefix: plain}
        return {key: leaf for name, value in plain.items() for key, leaf in flat(value, f"{prefix}.{name}").items()}

    present, before = flat(now), flat(saved)
    changed = [
        f"{key[1:]} {before.get(key)} -> {present.get(key)}"
        for key in sorted(present.keys() | before.keys())
        if present.get(key) != before.get(key)
    ]
    if changed:
        warnings.warn(f"settings differ from those of the checkpoint: {', '.join(changed)}", stacklevel=4)
