"""Which of several processes this is, when torchrun started them to share a test."""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist

from dcn_det.errors import UserError

_PATIENCE = datetime.timedelta(days=7)
"""How long a process waits for the slowest one."""


@dataclass(frozen=True)
class Processes:
    """This process among those that share the work.

    Attributes:
        rank: from 0.
        world_size: how many there are.
        local_rank: among those of this machine, which chooses its device.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls) -> Processes:
        """What torchrun's RANK, WORLD_SIZE and LOCAL_RANK say; a single process without them.

        Raises:
            UserError: they are no numbers or contradict each other.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        defaults = ("0", "1", os.environ.get("RANK", "0"))
        values = [os.environ.get(name, default) for name, default in zip(names, defaults)]
        if not all(value.isdecimal() for value in values) or not int(values[0]) < int(values[1]):
            given = ", ".join(f"{name}={value}" for name, value in zip(names, values))
            raise UserError(f"environment: {given} do not fit together; start with torchrun")
        return cls(*map(int, values))

    @property
    def first(self) -> bool:
        return self.rank == 0

    def device(self, name: str) -> str:
        """``name``, but of several processes each takes a CUDA device of its own where that is left to us."""
        if self.world_size > 1 and name in ("auto", "cuda") and torch.cuda.device_count() > self.local_rank:
            return f"cuda:{self.local_rank}"
        return name

    def wait(self) -> None:
        """Returns once every process has called this, or torchrun ends all of them because one failed."""
        if self.world_size == 1:
            return
        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=_PATIENCE)
        dist.monitored_barrier(timeout=_PATIENCE)
