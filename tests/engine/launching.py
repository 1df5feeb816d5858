"""Runs functions in several processes that form a gloo group, and commands, with time limits."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["dcn_det.cli.train"])  # importing torch takes seconds, forking does not


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _enter(work: Callable[..., Any], args: tuple[Any, ...], environment: dict[str, str], answers: Any) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    if answers is None:
        work(*args)
        return
    rank = int(environment["RANK"])
    try:
        answers.put((rank, work(*args), None))
    except BaseException:
        answers.put((rank, None, traceback.format_exc()))
        raise


def start(work: Callable[..., Any], *args: Any, answers: Any = None, **environment: str) -> Any:
    """Starts a process that runs ``work`` with additional environment variables."""
    process = _context.Process(target=_enter, args=(work, args, ENVIRONMENT | environment, answers), daemon=False)
    process.start()
    return process


def together(count: int, work: Callable[..., Any], *args: Any, seconds: float = 120) -> list[Any]:
    """Returns the results of ``work(*args)`` in ``count`` processes that form a group, in order of rank."""
    answers = _context.Queue()
    port = str(free_port())
    processes = [
        start(
            work,
            *args,
            answers=answers,
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(count),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
        )
        for rank in range(count)
    ]
    try:
        found = sorted((answers.get(timeout=seconds) for _ in range(count)), key=lambda answer: answer[0])
        failed = [text for _, _, text in found if text]
        assert not failed, "\n".join(failed)
        return [value for _, value, _ in found]
    finally:
        for process in processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()


def run_command(arguments: list[str], seconds: float = 300, **environment: str) -> tuple[int, str]:
    """Runs a command and returns its exit code and output; see :func:`finish`."""
    process, output = popen(arguments, **environment)
    return finish(process, output, seconds)


def popen(arguments: list[str], **environment: str) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    """Starts a command under this Python. Output goes to a file, since grandchildren would keep a pipe open."""
    output = tempfile.TemporaryFile()  # noqa: SIM115 (finish closes it)
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | ENVIRONMENT | environment,
        stdout=output,
        stderr=subprocess.STDOUT,
    )
    return process, output


def children(pid: int) -> list[int]:
    """Returns all descendants of a process."""
    try:
        own = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return own + [later for child in own for later in children(child)]


def finish(process: subprocess.Popen[bytes], output: IO[bytes], seconds: float) -> tuple[int, str]:
    """Returns exit code and output of a command; after ``seconds``, kills it with its descendants and fails."""
    try:
        process.wait(seconds)
        late = ""
    except subprocess.TimeoutExpired:
        late = f"still running after {seconds} s"
        for pid in [process.pid, *children(process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(10)
    output.seek(0)
    text = output.read().decode(errors="replace")
    output.close()
    assert not late, f"{late}:\n{text}"
    return process.returncode, text


def until(true: Callable[[], bool], seconds: float = 300, every: float = 0.02) -> bool:
    """Waits until a condition is true; returns whether that happened in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(every)
    return true()
