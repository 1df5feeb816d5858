"""State of steps in files: a record of each step, which its runner writes and everyone may read."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

from dcn_det.files import write_json
from dcn_det.reproduce.steps import Step

Condition = Literal["done", "running", "submitted", "interrupted", "stopped", "failed", "changed", "missing", "waiting"]
"""``interrupted``: its process is gone without a word; ``changed``: done or begun with other settings; ``missing``: an
input is; ``waiting``: for a step before, or for its turn."""


@dataclass(frozen=True)
class Record:
    """What is known of a step.

    Attributes:
        state: ``running``, ``submitted`` (to a queue), ``done``, ``failed`` or ``stopped``.
        key: that of the step when it was begun.
        hash: its hash of settings.
        command: as for a shell.
        commit: of the project.
        host, pid: of the process that runs it; the id of the job where a queue runs it.
        began: start, in seconds since 1970.
        seconds: time spent, of all attempts.
        cpu_seconds: CPU time of all processes, of all attempts; 0 if it is not known.
        reason: why it failed.
    """

    state: str
    key: str
    hash: str = ""
    command: str = ""
    commit: str = ""
    host: str = ""
    pid: int = 0
    job: str = ""
    began: float = 0.0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    reason: str = ""


class State:
    """Records and logs of the steps in an output folder."""

    def __init__(self, output: Path) -> None:
        self.folder = output / "steps"

    def _path(self, step: Step, suffix: str) -> Path:
        return self.folder / (step.name.replace("/", ".") + suffix)

    def log(self, step: Step) -> Path:
        """Returns the file that receives the output of a step."""
        return self._path(step, ".log")

    def record_path(self, step: Step) -> Path:
        return self._path(step, ".json")

    def read(self, step: Step) -> Record | None:
        """Returns the record of a step; None if there is none, or if it is unreadable."""
        try:
            plain = json.loads(self.record_path(step).read_text(encoding="utf-8"))
            known = {each.name for each in fields(Record)}
            return Record(**{key: value for key, value in plain.items() if key in known})
        except (OSError, ValueError, TypeError, AttributeError):
            return None

    def write(self, step: Step, record: Record) -> None:
        write_json(self.record_path(step), asdict(record))

    def condition(self, step: Step, steps: Mapping[str, Step]) -> tuple[Condition, str]:
        """Returns the condition of a step and a remark on it.

        Args:
            step: the step.
            steps: all steps by name.
        """
        record = self.read(step)
        if record is not None and record.state in ("running", "submitted"):
            if record.job:
                return ("running" if record.state == "running" else "submitted"), f"job {record.job}"
            if record.host != socket.gethostname():
                return "running", f"on {record.host}"
            return ("running", "") if _alive(record.pid) else ("interrupted", "")
        if record is not None and record.state == "done" and step.output.exists():
            return ("done", "") if record.key == step.key else ("changed", "its settings are others now")
        if record is not None and record.state in ("failed", "stopped"):
            return ("failed" if record.state == "failed" else "stopped"), record.reason
        if step.missing:
            return "missing", ", ".join(map(str, step.missing))
        before = [name for name in step.after if self.condition(steps[name], steps)[0] != "done"]
        return "waiting", f"for {', '.join(before)}" if before else ""

    def last_line(self, step: Step) -> str:
        """Returns the last line of a step's log."""
        try:
            with self.log(step).open("rb") as file:
                file.seek(max(0, self.log(step).stat().st_size - 4096))
                lines = file.read().decode(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1] if lines else ""

    def error(self, step: Step) -> str:
        """Returns the last line of a step's log that names an error, or else its last line."""
        try:
            lines = self.log(step).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return ""
        return next((line for line in reversed(lines[-200:]) if "rror:" in line), lines[-1] if lines else "")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
