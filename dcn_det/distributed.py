"""The processes of a run: who they are, and the little they tell one another besides gradients.

``torchrun`` (or anything else that sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT) starts one
process per GPU. Gradients travel by NCCL between GPUs and by gloo between CPUs; the numbers here are few and travel
by gloo always, so that they need neither a GPU's memory nor its attention.
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
"""The longest wait for another process; an evaluation by one of them has to fit into it."""


@dataclass(frozen=True)
class Processes:
    """This process among those of the run. Alone by default, and then everything below does nothing.

    Every method has to be called by all processes, in the same order.

    Attributes:
        rank: number of this process.
        world_size: how many there are.
        local_rank: number of this process on its machine.
        restarts: how often the launcher has restarted the run.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    restarts: int = 0

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    @property
    def many(self) -> bool:
        return self.world_size > 1

    def mean(self, values: Sequence[float]) -> list[float]:
        """Means over the processes; not finite where one process has a number that is not."""
        return [value / self.world_size for value in self._reduce(values, dist.ReduceOp.SUM)]

    def maximum(self, values: Sequence[float]) -> list[float]:
        """Maxima over the processes."""
        return self._reduce(values, dist.ReduceOp.MAX)

    def _reduce(self, values: Sequence[float], operation: Any) -> list[float]:
        if not self.many:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, operation)
        return tensor.tolist()

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in order of rank, in all of them."""
        if not self.many:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def collect(self, value: Any) -> list[Any]:
        """The values of all processes, in order of rank, in the main one; the others get an empty list."""
        if not self.many:
            return [value]
        values: list[Any] | None = [None] * self.world_size if self.main else None
        dist.gather_object(value, values, dst=0)
        return values or []

    def share(self, value: Any) -> Any:
        """The main process's value, in all of them."""
        if not self.many:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def wait(self) -> None:
        """Returns when all have come here."""
        self.maximum([0.0])

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Lets the main process go through the block before the others: it downloads and writes what they read."""
        if not self.main:
            self.wait()
        yield
        if self.main:
            self.wait()

    def share_buffers(self, model: nn.Module) -> None:
        """Gives all processes the main one's buffers, such as running statistics of batch norm."""
        if self.many:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """A module whose call is ``model``'s and whose backward pass averages gradients over the processes.

        Buffers are left alone: frozen batch norm has nothing to share, and running statistics are not read while
        training. Parameters that take no part in a step are looked for, which costs a walk over the graph, so that
        no model can make the others wait for ever.
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
        """Inside, backward passes of what ``wrap`` returned keep their gradients to themselves."""
        return model.no_sync() if isinstance(model, nn.parallel.DistributedDataParallel) else nullcontext()


class _WithUnused(nn.Module):
    """A model and a parameter that takes no part: where all do, torch would warn that it looked for nothing."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.model = model
        self.unused = nn.Parameter(torch.zeros(1, device=device))

    def forward(self, *args: Any) -> Any:
        return self.model(*args)


def resolve_device(name: str) -> torch.device:
    """Turns ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` into a device.

    Raises:
        UserError: the name is none of these, or CUDA is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device '{name}' is unknown; allowed: auto, cpu, cuda, cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device '{name}' is not there: torch sees {torch.cuda.device_count()} CUDA device(s)")
    return device


def start(device: torch.device, asked: str, timeout: timedelta = TIMEOUT) -> tuple[Processes, torch.device]:
    """Joins the other processes that the environment speaks of, if any.

    Args:
        device: what this process would use if it were alone.
        asked: the setting ``device``, for messages.
        timeout: the longest wait for another process.

    Returns:
        Who this process is, and its device: each process of a machine takes the GPU of its local rank.

    Raises:
        UserError: the environment is incomplete, or there are fewer GPUs than processes.
    """
    world_size = _number("WORLD_SIZE", 1)
    restarts = _number("TORCHELASTIC_RESTART_COUNT", 0)
    if world_size <= 1:
        return Processes(restarts=restarts), device
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise UserError(f"WORLD_SIZE is {world_size} but {', '.join(missing)} not set; start with torchrun")
    rank = _number("RANK", 0)
    if not 0 <= rank < world_size:
        raise UserError(f"environment variable RANK is {rank}, expected 0 to {world_size - 1} (WORLD_SIZE - 1)")
    local_rank = _number("LOCAL_RANK", rank)
    if device.type == "cuda":
        if asked not in ("auto", "cuda"):
            raise UserError(f"device: {asked} is one GPU; with {world_size} processes say cuda, each takes its own")
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"process {local_rank} of this machine has no GPU: torch sees {torch.cuda.device_count()}; start as "
                "many processes as there are GPUs, or set device=cpu"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store, _, _ = next(dist.rendezvous("env://", rank, world_size, timeout=timeout))
    # A launcher that restarts the run keeps its store, in which the addresses of the dead would still be found.
    store = dist.PrefixStore(f"attempt {restarts}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    return Processes(rank, world_size, local_rank, restarts), device


def stop() -> None:
    """Leaves the other processes; all have to do so, after their last message."""
    if dist.is_initialized():
        dist.destroy_process_group()


def launched() -> bool:
    """Whether a launcher started this process; it repeats signals, which then count once."""
    return any(os.environ.get(name) for name in ("TORCHELASTIC_RUN_ID", "SLURM_PROCID")) or _number("WORLD_SIZE", 1) > 1


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise UserError(f"environment variable {name} is '{text}', expected a whole number") from None
