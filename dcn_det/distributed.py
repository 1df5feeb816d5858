"""The processes of a run: ranks, devices, and exchange of small values.

``torchrun``, or another launcher that sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, starts one
process per GPU. Gradients are exchanged with NCCL between GPUs and with gloo between CPUs. The few values exchanged
here always use gloo, which needs neither GPU memory nor GPU synchronization.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from dcn_det.errors import UserError

TIMEOUT = timedelta(minutes=30)
"""Maximum time to wait for another process; must be longer than an evaluation by one of them."""


@dataclass(frozen=True)
class Processes:
    """This process and its rank among the processes of the run. By default, it is the only one.

    All processes must call the same methods in the same order; a single process exchanges nothing.

    Attributes:
        rank: index of this process.
        world_size: number of processes.
        local_rank: index of this process on its machine.
        restarts: number of times the launcher has restarted the run.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    restarts: int = 0

    @property
    def main(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0

    @property
    def many(self) -> bool:
        """Whether there is more than one process."""
        return self.world_size > 1

    def mean(self, values: Sequence[float]) -> list[float]:
        """Returns the means over the processes; non-finite where the value of any process is."""
        return [value / self.world_size for value in self._reduce(values, dist.ReduceOp.SUM)]

    def maximum(self, values: Sequence[float]) -> list[float]:
        """Returns the maxima over the processes."""
        return self._reduce(values, dist.ReduceOp.MAX)

    def _reduce(self, values: Sequence[float], operation: Any) -> list[float]:
        if not self.many:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, operation)
        return tensor.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Returns the values of all processes, in order of rank, in every process."""
        if not self.many:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def collect(self, value: Any) -> list[Any]:
        """Returns the values of all processes, in order of rank, in the main process; an empty list in the others."""
        if not self.many:
            return [value]
        values: list[Any] | None = [None] * self.world_size if self.main else None
        dist.gather_object(value, values, dst=0)
        return values or []

    def share(self, value: Any) -> Any:
        """Returns the main process's value in every process."""
        if not self.many:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def wait(self) -> None:
        """Blocks until all processes have called it."""
        self.maximum([0.0])

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Runs the block in the main process first, so that the others find the files it downloads and writes."""
        if not self.main:
            self.wait()
        yield
        if self.main:
            self.wait()

    def share_buffers(self, model: nn.Module) -> None:
        """Copies the main process's buffers, such as running statistics of batch norm, to all processes."""
        if self.many:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Returns a module that calls ``model`` and whose backward pass averages gradients over the processes.

        Buffers are not synchronized: frozen batch norm has nothing to share, and running statistics are not used in
        training. Unused parameters are searched for in every step, which costs a walk over the graph, so that a step
        without them cannot cause a deadlock.
        """
        if not self.many:
            return model
        wrapper = nn.parallel.DistributedDataParallel
        renamed = "forward_sync_buffers" in inspect.signature(wrapper).parameters  # from torch 2.15 on
        buffers: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
        return wrapper(
            _WithUnused(model, device),
            device_ids=[device.index] if device.type == "cuda" else None,
            find_unused_parameters=True,
            gradient_as_bucket_view=True,
            **buffers,
        )

    def apart(self, model: nn.Module) -> AbstractContextManager[None]:
        """Returns a context in which backward passes of a wrapped model do not exchange gradients."""
        return model.no_sync() if isinstance(model, nn.parallel.DistributedDataParallel) else nullcontext()


class _WithUnused(nn.Module):
    """A model and an unused parameter; without one, torch warns that the search for them was unnecessary."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.model = model
        self.unused = nn.Parameter(torch.zeros(1, device=device))

    def forward(self, *args: Any) -> Any:
        return self.model(*args)


def resolve_device(name: str) -> torch.device:
    """Turns ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` into a device.

    Raises:
        UserError: the name is unknown, or the device is not available.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device '{name}' is unknown; allowed: auto, cpu, cuda, cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device '{name}' is not supported; allowed: auto, cpu, cuda, cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device '{name}' is not available: torch finds {torch.cuda.device_count()} CUDA device(s)")
    return device


def start(device: torch.device, setting: str, timeout: timedelta = TIMEOUT) -> tuple[Processes, torch.device]:
    """Joins the process group that the environment variables describe, if any.

    Args:
        device: device of a single process.
        setting: value of the setting ``device``.
        timeout: maximum time to wait for another process.

    Returns:
        This process and its device: of several GPUs, the one of its local rank.

    Raises:
        UserError: environment variables are missing or invalid, or there are fewer GPUs than processes.
    """
    world_size = _number("WORLD_SIZE", 1)
    restarts = _number("TORCHELASTIC_RESTART_COUNT", 0)
    if world_size <= 1:
        return Processes(restarts=restarts), device
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise UserError(f"WORLD_SIZE is {world_size} but {', '.join(missing)} not set; use torchrun")
    rank = _number("RANK", 0)
    if not 0 <= rank < world_size:
        raise UserError(f"environment variable RANK is {rank}, expected 0 to {world_size - 1} (WORLD_SIZE - 1)")
    local_rank = _number("LOCAL_RANK", rank)
    if device.type == "cuda":
        if setting not in ("auto", "cuda"):
            raise UserError(f"device: {setting} is a single GPU; use device=cuda with {world_size} processes")
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"process {local_rank} of this machine has no GPU: torch finds {torch.cuda.device_count()}; start one "
                "process per GPU, or set device=cpu"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store, _, _ = next(dist.rendezvous("env://", rank, world_size, timeout=timeout))
    # A launcher keeps its store when it restarts the run; the prefix hides the addresses of earlier processes.
    store = dist.PrefixStore(f"attempt {restarts}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    return Processes(rank, world_size, local_rank, restarts), device


def stop() -> None:
    """Leaves the process group. Must be called by all processes, after their last exchange."""
    if dist.is_initialized():
        dist.destroy_process_group()


def launched() -> bool:
    """Returns whether a launcher started this process; launchers may deliver a signal twice."""
    return any(os.environ.get(name) for name in ("TORCHELASTIC_RUN_ID", "SLURM_PROCID")) or _number("WORLD_SIZE", 1) > 1


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise UserError(f"environment variable {name} is '{text}', expected a whole number") from None
