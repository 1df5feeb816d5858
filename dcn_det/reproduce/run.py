"""Runs steps on this machine, one after another."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from dcn_det.distributed import Processes
from dcn_det.engine.lock import exclusive
from dcn_det.engine.surroundings import commit
from dcn_det.entry import exit_code
from dcn_det.errors import UserError
from dcn_det.progress import Say, duration
from dcn_det.reproduce.state import Record, State
from dcn_det.reproduce.steps import Step

Dispatch = Callable[[list[str]], int]
"""Runs a ``dcn-det`` command in this process; returns the exit code."""

STOPPED = {128 + number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
"""Exit codes of commands that a signal stopped and that can continue."""
PATIENCE = 60.0
"""Seconds to wait for the process of an earlier, killed run to save and leave its folder."""


class Runner:
    """Runs the steps of a graph that are not done, and records their state.

    A signal that requests a stop is passed on to the running command, which saves and exits; then the run ends.
    Commands also receive SIGTERM if this process is killed.

    Args:
        state: records and logs.
        steps: all steps by name, for the conditions of steps before.
        launch: command that starts several processes, such as ``torchrun --nproc_per_node 8``; empty for one.
        dispatch: runs a command without a launcher, in a copy of this process: importing PyTorch again takes seconds.
        say: receives a line when a step begins, ends or cannot run.
    """

    def __init__(self, state: State, steps: Mapping[str, Step], launch: str, dispatch: Dispatch, say: Say) -> None:
        self.state = state
        self.steps = steps
        self.launch = launcher(launch)
        self.dispatch = dispatch
        self.say = say
        self.commit = commit()
        self.signum: int | None = None
        self._pid: int | None = None

    def run(self, chosen: Sequence[Step], finished: Callable[[], None]) -> bool:
        """Runs steps in order; a failed one does not prevent those that do not need it.

        Args:
            chosen: the steps.
            finished: called after each step that is done.

        Returns:
            Whether all steps are done. After a stop, ``signum`` is set.
        """
        stopping = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        previous = {number: signal.signal(number, self._stop) for number in stopping}
        try:
            for number, step in enumerate(chosen, start=1):
                if self.signum is not None:
                    break
                title = f"[{number}/{len(chosen)}] {step.name}"
                problem = self._problem(step)
                if problem == "done":
                    self.say(f"{title}: done before")
                elif problem:
                    self.say(f"{title}: not run: {problem}")
                else:
                    self._run(step, title)
                    finished()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        return all(self.state.condition(step, self.steps)[0] == "done" for step in chosen)

    def _problem(self, step: Step) -> str:
        """Returns why a step is not to be run: ``done``, or what is missing; empty if it is to be run."""
        if self.state.condition(step, self.steps)[0] == "done":
            return "done"
        for name in step.after:
            condition, _ = self.state.condition(self.steps[name], self.steps)
            if condition != "done":
                return f"{name} is not done ({condition})"
        return "; ".join(f"'{path}' is missing: {how}" for path, how in step.missing.items())

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        again = self.signum is not None
        self.signum = signum
        self.say(f"{signal.Signals(signum).name}: stopping the step" + ("" if again else "; it saves and can continue"))
        if self._pid is not None:
            os.kill(self._pid, signal.SIGTERM)

    def _run(self, step: Step, title: str) -> None:
        before = set_aside(self.state, step, self.say)
        log, folder = self.state.log(step), step.output.parent
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            wait_until_free(folder)
        except UserError as error:
            self.say(f"{title}: not run: {error}")
            return
        parallel = step.parallel and self.launch
        argv = [*self.launch, "-m", "dcn_det", *step.command] if parallel else list(step.command)
        shown = shlex.join(argv if parallel else ["dcn-det", *argv])
        with log.open("a", encoding="utf-8") as file:
            file.write(f"\n$ {shown}\n")
        self.say(f"{title}: log in '{log}'")
        spent = before or Record("", step.key)
        began, busy = time.time(), _cpu_seconds()
        record = Record("running", step.key, step.hash, shown, self.commit, socket.gethostname(), began=began)
        try:
            pid, wait = start_launched(argv, log) if parallel else start_copy(self.dispatch, argv, log)
        except OSError as error:
            self.state.write(step, replace(record, state="failed", reason=f"{argv[0]}: {error.strerror}"))
            self.say(f"{title}: failed: {argv[0]}: {error.strerror}")
            return
        self._pid = pid
        if self.signum is not None:  # the signal came before the process
            os.kill(pid, signal.SIGTERM)
        record = replace(record, pid=pid, seconds=spent.seconds, cpu_seconds=spent.cpu_seconds)
        self.state.write(step, record)
        code = wait()
        self._pid = None
        record = replace(
            record,
            seconds=spent.seconds + time.time() - began,
            cpu_seconds=spent.cpu_seconds + _cpu_seconds() - busy,
        )
        self.state.write(step, record := self._ended(step, record, code))
        self.say(f"{title}: {record.state} in {duration(record.seconds)}" + (record.reason and f": {record.reason}"))

    def _ended(self, step: Step, record: Record, code: int) -> Record:
        if self.signum is not None or code in STOPPED:
            return replace(record, state="stopped")
        if code == 0 and step.output.exists():
            return replace(record, state="done")
        reason = self.state.error(step) if code else f"'{step.output}' was not written"
        return replace(record, state="failed", reason=f"exit code {code}: {reason}" if code else reason)


def launcher(text: str) -> list[str]:
    """Returns the words of a launcher; ``torchrun`` is found without being on the path.

    Raises:
        UserError: quotes are not closed, or the program is not found.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"--launch: '{text}': {error}") from None
    if not words or shutil.which(words[0]):
        return words
    if words[0] == "torchrun":
        return [sys.executable, "-m", "torch.distributed.run", *words[1:]]
    raise UserError(f"--launch: '{words[0]}' is not on the path; for example: torchrun --nproc_per_node 8")


def set_aside(state: State, step: Step, say: Say) -> Record | None:
    """Renames the folder of a step that was begun with other settings; returns the record of one with the same."""
    record, folder = state.read(step), step.output.parent
    if record is None or record.key == step.key:
        return record
    if folder.exists():
        aside = folder.with_name(f"{folder.name}.{record.key}")
        number = 1
        while aside.exists():
            number += 1
            aside = folder.with_name(f"{folder.name}.{record.key}.{number}")
        folder.rename(aside)
        say(f"{step.name}: its settings have changed; the former files are in '{aside}'")
    state.record_path(step).unlink()
    return None


def wait_until_free(folder: Path) -> None:
    """Waits while a command uses the folder, at most :data:`PATIENCE` seconds.

    Raises:
        UserError: it still uses it.
    """
    deadline = time.monotonic() + PATIENCE
    while folder.exists():
        try:
            with exclusive(folder, Processes()):
                return
        except UserError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def start_launched(argv: Sequence[str], log: Path) -> tuple[int, Callable[[], int]]:
    """Starts a command; returns its process id, and a function that waits for it and returns the exit code."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in a terminal would reach it twice
            preexec_fn=_end_with_parent,
        )
    return process.pid, lambda: _code(process.wait())


def start_copy(dispatch: Dispatch, argv: Sequence[str], log: Path) -> tuple[int, Callable[[], int]]:
    """Runs a ``dcn-det`` command in a copy of this process; returns the same as :func:`start_launched`."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    process = multiprocessing.get_context("fork").Process(target=_copy, args=(dispatch, list(argv), log))
    process.start()

    def wait() -> int:
        process.join()
        assert process.exitcode is not None
        return _code(process.exitcode)

    assert process.pid is not None
    return process.pid, wait


def _copy(dispatch: Dispatch, argv: list[str], log: Path) -> None:
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _end_with_parent()
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    sys.argv = ["dcn-det", *argv]
    try:
        code = exit_code(lambda: dispatch(argv))
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


def _cpu_seconds() -> float:
    """Returns the CPU time of all processes that this one started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _end_with_parent() -> None:
    """Asks Linux to send this process SIGTERM when its parent dies."""
    with_death_signal: Any = getattr(ctypes.CDLL(None), "prctl", None)
    if with_death_signal is not None:
        with_death_signal(1, int(signal.SIGTERM))


def _code(code: int) -> int:
    """Returns the exit code that a shell would report."""
    return 128 - code if code < 0 else code
