"""The training loop."""

from __future__ import annotations

import dataclasses
import math
import resource
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from dcn_det.engine.logging import RunLog, duration
from dcn_det.engine.schedule import Factor
from dcn_det.engine.store import CheckpointStore
from dcn_det.errors import UserError
from dcn_det.structures import Batch
from dcn_det.weights import checkpoint

Evaluate = Callable[[nn.Module, int], Mapping[str, float]]
"""Takes the model (in training mode) and the iteration; returns metrics by name."""


class TrainingDiverged(UserError):
    """A loss or a gradient is not finite; the message says where and what was saved."""


class Interrupted(Exception):
    """A signal asked the run to stop; it has been saved. Tools exit with 128 + ``signum``, as shells expect."""

    def __init__(self, signum: int, saved: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}; saved '{saved}', continue with --resume")
        self.signum = signum


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """How long to train and how often to do what, in optimizer steps.

    Attributes:
        length: steps of the whole run.
        stop_at: the loop returns after this step, with a checkpoint saved; None goes to the end.
        log_every, checkpoint_every: steps between log lines and between checkpoints.
        eval_every: steps between evaluations; 0 evaluates only after the last.
        clip_norm: total gradient norm above which gradients are scaled down; 0 never.
        precision: dtype of autocast, float32 for none.
        best_metric: a name in what the evaluation returns; larger is better.
    """

    length: int
    stop_at: int | None = None
    log_every: int = 20
    checkpoint_every: int = 1000
    eval_every: int = 0
    clip_norm: float = 0.0
    precision: torch.dtype = torch.float32
    best_metric: str = "AP"


class Trainer:
    """Steps a model through batches, watching, saving and evaluating on the way.

    Args:
        model: called with a Batch, returns a dict of scalar losses whose sum is minimised.
        optimizer: its groups hold ``base_lr`` (see ``parameter_groups``).
        factor: learning-rate factor of an iteration.
        batches: given the first iteration wanted, yields one Batch an iteration without end.
        settings: see LoopSettings.
        store: where checkpoints go.
        log: where lines, numbers and pictures go.
        device: where the model is.
        metadata: plain containers added to every checkpoint (config, categories).
        evaluate: called when an evaluation is due.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        factor: Factor,
        batches: Callable[[int], Iterable[Batch]],
        settings: LoopSettings,
        store: CheckpointStore,
        log: RunLog,
        device: torch.device,
        metadata: Mapping[str, Any],
        evaluate: Evaluate | None = None,
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
        self.iteration = 0
        self.best: float | None = None
        self.metrics: dict[str, float] = {}
        self._scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == torch.float16)
        self._gradient_norm = math.nan
        self._signal: int | None = None

    def state(self) -> dict[str, Any]:
        return {
            **self.metadata,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "iteration": self.iteration,
            "best": self.best,
        }

    def load_state(self, state: Mapping[str, Any], source: Path) -> None:
        """Continues where ``state`` was saved. Learning rate and decay stay those of the present settings."""
        checkpoint.load_weights(self.model, state["model"], source)
        own = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except (ValueError, KeyError) as error:
            raise UserError(f"checkpoint '{source}' holds another optimizer than the config: {error}") from error
        for group, settings in zip(self.optimizer.param_groups, own):
            group.update(settings)
        self._scaler.load_state_dict(state["scaler"])
        self.iteration = state["iteration"]
        self.best = state["best"]

    def run(self) -> dict[str, float]:
        """Trains to the end of the run and returns the last evaluation's metrics.

        Raises:
            TrainingDiverged: a loss or gradient is not finite.
            Interrupted: SIGINT or SIGTERM came; the step was finished and a checkpoint saved.
        """
        self.model.train()
        with self._signals():
            self._loop()
        return self.metrics

    def _loop(self) -> None:
        settings = self.settings
        window = _Window()
        started, first = time.monotonic(), self.iteration
        stream: Iterator[Batch] | None = None
        end = settings.length if settings.stop_at is None else settings.stop_at
        while self.iteration < end:
            if stream is None:
                stream = iter(self.batches(self.iteration))
            before = time.monotonic()
            batch = next(stream)
            waited = time.monotonic() - before
            losses = self._step(batch)
            self.iteration += 1
            window.add(losses, len(batch), waited, time.monotonic() - before)
            last = self.iteration == end
            if self.iteration % settings.log_every == 0 or last or self.iteration - first == 1:
                left = (time.monotonic() - started) / (self.iteration - first) * (settings.length - self.iteration)
                self._report(window, left)
                window = _Window()
            evaluate = self.evaluate is not None and (
                self.iteration == settings.length
                or (settings.eval_every > 0 and self.iteration % settings.eval_every == 0)
            )
            # Before the evaluation, so that a failure in it costs nothing, and once more after it if it matters.
            saved = self.iteration % settings.checkpoint_every == 0 or last or self._signal is not None
            if saved:
                path = self.store.save(self.iteration, self.state())
                if self._signal is not None:
                    raise Interrupted(self._signal, path)
            if evaluate and self._evaluate() and saved:
                self.store.save(self.iteration, self.state())

    def _step(self, batch: Batch) -> dict[str, float]:
        settings = self.settings
        factor = self.factor(self.iteration)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        on_device = batch.to(self.device, non_blocking=True)
        mixed = settings.precision != torch.float32
        with torch.autocast(self.device.type, dtype=settings.precision if mixed else None, enabled=mixed):
            losses: dict[str, Tensor] = self.model(on_device)
        total = torch.stack([loss.float() for loss in losses.values()]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(total).backward()
        self._scaler.unscale_(self.optimizer)
        previous = self._gradient_norm
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        limit = settings.clip_norm if settings.clip_norm > 0 else math.inf
        self._gradient_norm = float(nn.utils.clip_grad_norm_(parameters, limit))
        values = {name: float(loss.detach()) for name, loss in losses.items()} | {"loss": float(total.detach())}
        # A scaler meets infinite gradients by design: it skips the step and lowers its scale.
        if not math.isfinite(values["loss"]) or not (self._scaler.is_enabled() or math.isfinite(self._gradient_norm)):
            self._diverged(batch, values, previous)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        return values

    def _diverged(self, batch: Batch, losses: Mapping[str, float], previous_norm: float) -> None:
        path = self.store.folder / f"diverged_{self.iteration:08d}.pth"
        evidence = {
            "images": batch.images,
            "infos": [dataclasses.asdict(info) for info in batch.infos],
            "targets": [{"boxes": target.boxes, "labels": target.labels} for target in batch.targets],
        }
        checkpoint.save(path, {**self.state(), "batch": evidence})
        parts = ", ".join(f"{name} {value:g}" for name, value in losses.items())
        images = ", ".join(str(info.image_id) for info in batch.infos)
        raise TrainingDiverged(
            f"the loss or its gradient is not finite at iteration {self.iteration + 1}: {parts}; gradient norm "
            f"{self._gradient_norm:g} (the step before: {previous_norm:g}); image ids {images}; weights, optimizer "
            f"and batch are in '{path}'; a lower train.optimizer.lr, a longer train.warmup or train.clip_norm help"
        )

    def _report(self, window: _Window, seconds_left: float) -> None:
        means = window.means()
        lr = max(group["lr"] for group in self.optimizer.param_groups)
        memory = (
            torch.cuda.max_memory_allocated(self.device) / 2**30
            if self.device.type == "cuda"
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        )
        parts = " ".join(f"{name} {value:.3f}" for name, value in means.items() if name != "loss")
        self.log.say(
            f"iter {self.iteration}/{self.settings.length}  loss {means['loss']:.4f} ({parts})  lr {lr:.2e}  "
            f"grad {self._gradient_norm:.2f}  {window.images_per_second:.1f} img/s  "
            f"data {window.data_share:.0%}  mem {memory:.1f} GiB  eta {duration(seconds_left)}"
        )
        self.log.scalars(
            self.iteration,
            {
                **means,
                "lr": lr,
                "gradient_norm": self._gradient_norm,
                "images_per_second": window.images_per_second,
                "data_seconds": window.data_seconds,
                "memory_gib": memory,
            },
            "train",
        )

    def _evaluate(self) -> bool:
        """Runs the evaluation; returns whether it gave a new best, which then has been saved."""
        assert self.evaluate is not None
        self.metrics = dict(self.evaluate(self.model, self.iteration))
        self.model.train()
        self.log.scalars(self.iteration, self.metrics, "test")
        score = self.metrics[self.settings.best_metric]
        if self.best is not None and score <= self.best:
            return False
        self.best = score
        self.store.save_best(self.state())
        self.log.say(f"best {self.settings.best_metric} so far {score:.4f}, saved '{self.store.best_path}'")
        return True

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Turns the first SIGINT or SIGTERM into a wish to stop after the step; a second one acts at once."""
        previous: dict[int, Any] = {}

        def wish(signum: int, frame: FrameType | None) -> None:
            self._signal = signum
            signal.signal(signum, previous[signum])
            self.log.say(f"{signal.Signals(signum).name}: finishing this step, then saving; again to stop at once")

        try:
            for signum in (signal.SIGINT, signal.SIGTERM):
                previous[signum] = signal.signal(signum, wish)
        except ValueError:  # not the main thread: the caller handles signals
            previous.clear()
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


class _Window:
    """Sums between two log lines."""

    def __init__(self) -> None:
        self.steps = 0
        self.images = 0
        self.waited = 0.0
        self.seconds = 0.0
        self.sums: dict[str, float] = {}

    def add(self, losses: Mapping[str, float], images: int, waited: float, seconds: float) -> None:
        self.steps += 1
        self.images += images
        self.waited += waited
        self.seconds += seconds
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        return {name: value / self.steps for name, value in self.sums.items()}

    @property
    def images_per_second(self) -> float:
        return self.images / max(self.seconds, 1e-9)

    @property
    def data_seconds(self) -> float:
        return self.waited / self.steps

    @property
    def data_share(self) -> float:
        return self.waited / max(self.seconds, 1e-9)
