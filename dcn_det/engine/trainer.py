"""The training loop."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dcn_det.data.loader import StoppedWaiting, WorkerDied
from dcn_det.distributed import Processes, launched
from dcn_det.engine import guards, randomness
from dcn_det.engine.ema import WeightAverage
from dcn_det.engine.guards import TrainingDiverged
from dcn_det.engine.logging import Log
from dcn_det.engine.schedule import Factor
from dcn_det.engine.signals import Interrupted, StopRequests
from dcn_det.engine.step import Outcome, Step
from dcn_det.engine.store import CheckpointStore
from dcn_det.engine.watch import OffsetMeter, Window, memory_gib
from dcn_det.errors import UserError
from dcn_det.progress import duration
from dcn_det.structures import AnyBatch
from dcn_det.weights import checkpoint
from dcn_det.weights.files import load_into

__all__ = ["Batches", "Evaluate", "Interrupted", "LoopSettings", "Trainer", "TrainingDiverged"]

Evaluate = Callable[[nn.Module, int], Mapping[str, float]]
"""Takes the model (in training mode) and the iteration; returns metrics by name, the same in every process."""
Batches = Callable[[int, int, int], Iterable[AnyBatch]]
"""Takes the first step, images per pass and passes per step; yields the batches of all passes, endlessly."""

WORKER_RESTARTS = 3
"""Consecutive restarts of the loader to attempt after a worker has died."""


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """Length of training, and intervals of logging, saving and evaluation, in optimizer steps.

    Attributes:
        length: steps of the whole run.
        stop_at: step after which the loop saves a checkpoint and returns; None runs to the end.
        batch_size, accumulate: images per pass in this process, and passes per step.
        log_every, checkpoint_every: steps between log lines and between checkpoints.
        eval_every: steps between evaluations; 0 evaluates only after the last step.
        clip_norm: total gradient norm above which gradients are scaled down; 0 disables clipping.
        precision: dtype of autocast; float32 disables it.
        best_metric: metric that selects the best weights; larger is better.
        nonfinite_skips: consecutive non-finite steps to tolerate.
        oom_retry: on out of memory, retry with half the batch size and twice the passes.
        measure_offsets: log the mean magnitude of the offsets of deformable layers.
    """

    length: int
    stop_at: int | None = None
    batch_size: int = 1
    accumulate: int = 1
    log_every: int = 20
    checkpoint_every: int = 1000
    eval_every: int = 0
    clip_norm: float = 0.0
    precision: torch.dtype = torch.float32
    best_metric: str = "AP"
    nonfinite_skips: int = 0
    oom_retry: bool = False
    measure_offsets: bool = True


class Trainer:
    """Trains a model, with logging, checkpoints and evaluation.

    Args:
        model: called with a batch, returns a dict of scalar losses whose sum is minimized.
        optimizer: its groups hold ``base_lr`` (see ``parameter_groups``).
        factor: learning-rate factor of an iteration.
        batches: source of the batches.
        settings: see LoopSettings.
        store: checkpoints of the run; only the main process writes them.
        log: receives text, numbers and images.
        device: device of the model.
        metadata: plain containers added to every checkpoint (config, categories).
        evaluate: called when an evaluation is due.
        processes: the processes that train the same model.
        average: moving average of the weights; if given, it is evaluated and exported in their place.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        factor: Factor,
        batches: Batches,
        settings: LoopSettings,
        store: CheckpointStore,
        log: Log,
        device: torch.device,
        metadata: Mapping[str, Any],
        evaluate: Evaluate | None = None,
        processes: Processes | None = None,
        average: WeightAverage | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.factor = factor
        self.batches = batches
        self.settings = settings
        self.store = store
        self.log = log
        self.device = device
        self.metadata = dict(metadata)
        self.evaluate = evaluate
        self.processes = processes or Processes()
        self.average = average
        self.iteration = 0
        self.best: float | None = None
        self.history: list[dict[str, float]] = []
        self.batch_size, self.accumulate = settings.batch_size, settings.accumulate
        self.step = Step(model, optimizer, device, settings.precision, settings.clip_norm, self.processes)
        self._offsets = OffsetMeter(model)
        self._allocations = guards.FailedAllocations(device)
        self._gradient_norm = math.nan
        self._skipped = 0
        self._stream: Iterator[AnyBatch] | None = None
        self._saved: Path | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the last evaluation."""
        return {name: value for name, value in self.history[-1].items() if name != "iteration"} if self.history else {}

    @property
    def evaluated_model(self) -> nn.Module:
        """Model with the averaged weights if there are any, otherwise the trained model."""
        return self.average.model if self.average else self.model

    def state(self) -> dict[str, Any]:
        """Returns everything needed to resume. Must be called by all processes."""
        return {
            **self.metadata,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.step.scaler.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "iteration": self.iteration,
            "images_per_step": self.batch_size * self.accumulate * self.processes.world_size,
            "best": self.best,
            "history": self.history,
            "skipped": self._skipped,
            "random": self.processes.gather(randomness.state(self.device)),
        }

    def exported(self) -> dict[str, Any]:
        """Returns what testing needs: the evaluated weights and the metadata."""
        return {
            **self.metadata,
            "model": self.evaluated_model.state_dict(),
            "iteration": self.iteration,
            "best": self.best,
            "history": self.history,
        }

    def load_state(self, state: Mapping[str, Any], source: Path) -> None:
        """Restores ``state``, except for learning rate and weight decay, which come from the current settings."""
        load_into(self.model, state["model"], source=source)
        own = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        try:
            saved = state["optimizer"]
            # It decides where the step counts are loaded to, and was not set by earlier versions.
            groups = [{**group, "fused": own[0].get("fused")} for group in saved["param_groups"]]
            self.optimizer.load_state_dict({**saved, "param_groups": groups})
            fits = all(
                value is None or value.shape in (parameter.shape, ())  # AdamW counts its steps in a scalar
                for parameter, values in self.optimizer.state.items()
                for value in values.values()
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"checkpoint '{source}' has a different optimizer than the config: {error}") from error
        if not fits:
            raise UserError(f"checkpoint '{source}' has a different optimizer than the config: other shapes")
        for group, settings in zip(self.optimizer.param_groups, own):
            group.update(settings)
        try:
            if state["scaler"] or not self.step.scaler.is_enabled():
                self.step.scaler.load_state_dict(state["scaler"])
            if len(state["random"]) == self.processes.world_size:
                randomness.load(state["random"][self.processes.rank], self.device)
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise UserError(f"checkpoint '{source}' cannot be resumed: {error}") from error
        if self.average:
            # If averaging is new in this run, it starts from the current weights.
            self.average.load_state_dict(state.get("average") or state["model"], source)
        self.iteration = state["iteration"]
        self.best = state["best"]
        self.history = list(state["history"])
        self._skipped = state["skipped"]
        self._saved = source

    def run(self) -> dict[str, float]:
        """Trains to the end of the run and returns the last evaluation's metrics.

        Raises:
            TrainingDiverged: too many consecutive steps have non-finite losses or gradients.
            Interrupted: SIGINT, SIGTERM or SIGUSR1 was received; the step was finished, or no batch came for it, and a
                checkpoint saved.
            OutOfMemory: a step needs more memory than the device has.
        """
        self.model.train()
        with StopRequests(self.log.say, insist=not launched()) as stop:
            try:
                if self._evaluation_due() and self.iteration not in [entry["iteration"] for entry in self.history]:
                    self._evaluate()  # the run was stopped between a checkpoint and its evaluation
                self._loop(stop)
            except StoppedWaiting:
                raise Interrupted(stop.signum or 0, self._saved) from None
        return self.metrics

    def _loop(self, stop: StopRequests) -> None:
        settings = self.settings
        window = Window()
        started, first = time.monotonic(), self.iteration
        end = settings.length if settings.stop_at is None else settings.stop_at
        while self.iteration < end:
            before = time.monotonic()
            batches = self._fetch()
            waited = time.monotonic() - before
            following = self.iteration + 1
            report = following % settings.log_every == 0 or following in (end, first + 1)
            losses = self._advance(batches, measure=report and settings.measure_offsets)
            if losses is None:
                continue
            self.iteration += 1
            window.add(losses, sum(map(len, batches)), waited, time.monotonic() - before)
            if report:
                left = (time.monotonic() - started) / (self.iteration - first) * (settings.length - self.iteration)
                self._report(window, left)
                window = Window()
            signum = int(self.processes.maximum([stop.signum or 0])[0])
            # Saves before an evaluation, so that a failure or kill during it loses nothing, and again after it.
            evaluate = self._evaluation_due()
            saved = self.iteration % settings.checkpoint_every == 0 or self.iteration == end or evaluate or signum
            if saved:
                self._save()
            if signum:
                raise Interrupted(signum, self._saved)
            if evaluate:
                self._evaluate()
                self._save()

    def _fetch(self) -> list[AnyBatch]:
        """Returns the batches of one step; they depend only on the iteration, so the loader can be restarted."""
        for attempt in range(WORKER_RESTARTS + 1):
            if self._stream is None:
                self._stream = iter(self.batches(self.iteration, self.batch_size, self.accumulate))
            try:
                return [next(self._stream) for _ in range(self.accumulate)]
            except StoppedWaiting:
                if not self.processes.many:  # the others may be at another step
                    self._save()
                raise
            except WorkerDied as error:
                self._stream = None
                if attempt == WORKER_RESTARTS:
                    raise
                self.log.say(f"warning: {error}; restarting the loader")
        raise AssertionError

    def _advance(self, batches: Sequence[AnyBatch], measure: bool) -> dict[str, float] | None:
        """Runs one step and returns its losses: an empty dict if it was skipped, None if it must be retried."""
        factor = self.factor(self.iteration)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        try:
            with self._offsets.measuring() if measure else nullcontext():
                outcome = self.step.gradients(batches)
        except RuntimeError as error:
            if not self._allocations.caused(error):
                raise
            advice = guards.out_of_memory(error, batches, self.batch_size)
            if not self.settings.oom_retry or self.processes.many or self.batch_size == 1:
                raise advice from error
            self._halve(str(advice))
            return None
        previous, self._gradient_norm = self._gradient_norm, outcome.gradient_norm
        if not outcome.finite:
            self._skip(outcome, batches, previous)
            self.step.skip()
            return {}
        self._skipped = 0
        self.step.apply()
        if self.average:
            self.average.update(self.model, self.iteration + 1)
        return outcome.losses

    def _halve(self, reason: str) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        passes, rest = divmod(self.batch_size * self.accumulate, self.batch_size // 2)
        size = self.batch_size // 2
        while rest:  # odd batch size: take the next smaller one that divides the step
            size -= 1
            passes, rest = divmod(self.batch_size * self.accumulate, size)
        self.batch_size, self.accumulate, self._stream = size, passes, None
        self.log.say(f"warning: {reason}; continuing with {size} images per pass and {passes} passes per step")

    def _skip(self, outcome: Outcome, batches: Sequence[AnyBatch], previous_norm: float) -> None:
        self._skipped += 1
        what = guards.describe(outcome, batches, previous_norm)
        where = f"non-finite loss or gradient at iteration {self.iteration + 1}: {what}"
        buffer = guards.nonfinite_buffer(self.model)
        if self._skipped <= self.settings.nonfinite_skips and not buffer:
            self.log.say(
                f"warning: {where}; step skipped ({self._skipped} of {self.settings.nonfinite_skips} in a row)"
            )
            return
        path = self.store.folder / f"diverged_{self.iteration:08d}.pth"
        state = self.state()
        if self.processes.main:
            checkpoint.save(path, {**state, "batches": guards.evidence(batches)})
        self.processes.wait()
        also = f"; buffer {buffer} contains non-finite values" if buffer else ""
        raise TrainingDiverged(
            f"{where}{also}; weights, optimizer and batches are saved in '{path}'; "
            "try a lower train.optimizer.lr, a longer train.warmup or train.clip_norm"
        )

    def _report(self, window: Window, seconds_left: float) -> None:
        means = window.means()
        lr = max(group["lr"] for group in self.optimizer.param_groups)
        # The slowest process, which is the one that waits longest for data, determines the duration of a step.
        waited, seconds, memory = self.processes.maximum([window.waited, window.seconds, memory_gib(self.device)])
        speed = window.images * self.processes.world_size / max(seconds, 1e-9)
        parts = " ".join(f"{name} {value:.3f}" for name, value in means.items() if name != "loss")
        self.log.say(
            f"iter {self.iteration}/{self.settings.length}  loss {means.get('loss', math.nan):.4f} ({parts})  "
            f"lr {lr:.2e}  grad {self._gradient_norm:.2f}  {speed:.1f} img/s  data {waited / max(seconds, 1e-9):.0%}  "
            f"mem {memory:.1f} GiB  eta {duration(seconds_left)}"
        )
        self.log.scalars(
            self.iteration,
            {
                **means,
                "lr": lr,
                "gradient_norm": self._gradient_norm,
                "images_per_second": speed,
                "data_seconds": waited / window.steps,
                "memory_gib": memory,
                **{f"offset/{name}": value for name, value in self._offsets.magnitudes().items()},
            },
            "train",
        )

    def _save(self) -> None:
        """Saves a checkpoint; if that fails, for example on a full disk, warns and continues."""
        state, problem, path = self.state(), None, None
        if self.processes.main:
            try:
                path = self.store.save(self.iteration, state)
            except OSError as error:
                problem = error.strerror or str(error)
        problem, path = self.processes.share((problem, path))
        if problem is None:
            self._saved = path
            return
        kept = f"the newest is '{self._saved}'" if self._saved else "none is saved yet"
        self.log.say(f"warning: checkpoint of iteration {self.iteration} not saved: {problem}; {kept}")

    def _evaluation_due(self) -> bool:
        every = self.settings.eval_every
        due = self.iteration == self.settings.length or (
            every > 0 and self.iteration > 0 and self.iteration % every == 0
        )
        return self.evaluate is not None and due

    def _evaluate(self) -> None:
        """Runs the evaluation, and saves the weights if they are the best so far."""
        assert self.evaluate is not None
        self.processes.share_buffers(self.evaluated_model)
        metrics = dict(self.evaluate(self.evaluated_model, self.iteration))
        self.model.train()
        self.history.append({"iteration": self.iteration, **metrics})
        self.log.scalars(self.iteration, metrics, "test")
        score = metrics[self.settings.best_metric]
        if math.isnan(score) or (self.best is not None and score <= self.best):
            return
        self.best = score
        if not self.processes.main:
            return
        try:
            self.store.save_best(self.exported())
            self.log.say(f"best {self.settings.best_metric} so far {score:.4f}, saved '{self.store.best_path}'")
        except OSError as error:
            self.log.say(f"warning: best weights not saved: {error.strerror or error}")
