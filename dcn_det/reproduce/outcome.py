"""What was measured for each row of a table, next to what was published."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dcn_det.config.data import COCO_METRICS
from dcn_det.evaluation.expected import applies
from dcn_det.reproduce.state import State
from dcn_det.reproduce.steps import Graph, PlannedRow
from dcn_det.reproduce.tables import Row, Table

SERVER = "server.txt"
"""File in the folder of a tested row for what the test-dev server prints: COCO's summary of 12 lines."""


@dataclass(frozen=True)
class Outcome:
    """Measured and published values of a row, as fractions by metric.

    Attributes:
        row: the row.
        measured: empty if it is not measured.
        paper, readme: published in the paper, and in the README of the authors' released code.
        comparable: whether ``measured`` is of the split of the published values.
        split: the split that was tested.
        commit, hash: of the project, and of the settings of the test.
        seconds: of training (or conversion) and testing; rows that share a training count it each.
        condition: of the row's steps, in words.
        submission: file for the server, if the split has no annotations.
    """

    row: Row
    measured: Mapping[str, float] = field(default_factory=dict)
    paper: Mapping[str, float] = field(default_factory=dict)
    readme: Mapping[str, float] = field(default_factory=dict)
    comparable: bool = True
    split: str = ""
    commit: str = ""
    hash: str = ""
    seconds: float = 0.0
    condition: str = ""
    submission: Path | None = None

    def difference(self, metric: str) -> float | None:
        """Returns measured minus published in the paper; None if either is missing or they are of other splits."""
        if not self.comparable or metric not in self.measured or metric not in self.paper:
            return None
        return self.measured[metric] - self.paper[metric]


def read_outcomes(graph: Graph, state: State) -> list[Outcome]:
    """Reads the outcome of every row from the files of its steps."""
    return [_outcome(each, graph, state) for each in graph.rows]


def _outcome(planned: PlannedRow, graph: Graph, state: State) -> Outcome:
    if planned.config is None:
        return Outcome(planned.row, condition=planned.reason)
    split = planned.config.data.test_title
    paper = _published_dilation(planned.row) or dict(planned.row.published)
    readme: dict[str, float] = {}
    for item in planned.config.expected if not paper else ():
        (paper if item.source.startswith("paper") else readme)[item.metric] = item.value
    conditions = [state.condition(step, graph.steps) for step in planned.steps]
    worst = next(
        (number for number, (condition, _) in enumerate(conditions) if condition != "done"), len(conditions) - 1
    )
    step, (condition, remark) = planned.steps[worst], conditions[worst]
    words = condition if condition == "done" else f"{step.name.partition('/')[0]} {condition}"
    tested = planned.steps[-1]
    outcome = Outcome(
        planned.row,
        paper=paper,
        readme=readme,
        split=split,
        hash=tested.hash,
        condition=f"{words}: {remark}" if remark else words,
    )
    if condition != "done":
        return outcome
    records = [record for step in planned.steps if (record := state.read(step)) is not None]
    submission = tested.output if tested.output.suffix == ".zip" else None
    measured = _read_server(tested.output.parent / SERVER) if submission else _read_metrics(tested.output)
    if timed := tested.name.startswith("time/"):
        measured, split = _read_benchmark(tested.output), ""
    elif planned.row.layer:
        measured = _read_dilation(tested.output, planned.row.layer)
    return Outcome(
        planned.row,
        measured=measured,
        paper=paper,
        readme=readme,
        comparable=timed or all(applies(item, split) for item in planned.config.expected),
        split=split,
        commit=records[-1].commit,
        hash=tested.hash,
        seconds=sum(record.seconds for record in records),
        condition="done" if measured else "to be submitted",
        submission=submission,
    )


def _read_metrics(path: Path) -> dict[str, float]:
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))["metrics"]
        return {str(name): float(value) for name, value in plain.items() if value is not None}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _published_dilation(row: Row) -> dict[str, float]:
    """Returns the paper's values for a layer; empty for other rows."""
    if not row.layer:
        return {}
    from dcn_det.visualize.effective_dilation import PAPER  # imports PyTorch, which plans do without

    places = PAPER[row.layer].items()
    return {place: mean for place, (mean, _) in places} | {f"{place} std": std for place, (_, std) in places}


def _read_dilation(path: Path, layer: str) -> dict[str, float]:
    """Reads the effective dilation of a layer; places without filters are left out."""
    try:
        layers = json.loads(path.read_text(encoding="utf-8"))["layers"]
        (record,) = (each for each in layers if each["name"] == layer)
        places = {place: value for place, value in record.items() if isinstance(value, dict) and "filters" in value}
        found = {place: value["mean"] for place, value in places.items()}
        found |= {f"{place} std": value["std"] for place, value in places.items()}
        return {name: float(value) for name, value in found.items() if value is not None}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _read_server(path: Path) -> dict[str, float]:
    """Reads the summary that the server prints, whose 12 values are in a fixed order."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    values = re.findall(r"\(A[PR]\).*=\s*(-?[0-9.]+)\s*$", text, re.MULTILINE)
    return dict(zip(COCO_METRICS, map(float, values))) if len(values) == len(COCO_METRICS) else {}


def _read_benchmark(path: Path) -> dict[str, float]:
    """Reads the times of a detector in seconds, and its number of parameters as the paper counts it."""
    try:
        (run,) = json.loads(path.read_text(encoding="utf-8"))["runs"].values()
        parts = run["parameters"]
        counted = sum(parts.values()) - (parts.get("rpn", 0) if "head" in parts else 0)
        times = {name: run[name]["milliseconds"] / 1e3 for name in ("network", "testing")}
        return {"parameters": float(counted), **times}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def lines_of(outcome: Outcome, table: Table) -> Iterator[tuple[str, list[str]]]:
    """Yields name and cells of the lines of a row; lines without values are left out, except the first."""

    def cells(values: Mapping[str, float]) -> list[str]:
        return [column.text(values.get(column.metric)) for column in table.columns]

    yield "measured", cells(outcome.measured)
    if outcome.paper:
        yield "paper", cells(outcome.paper)
    if outcome.readme:
        yield "authors' README", cells(outcome.readme)
    differences = [column.text(outcome.difference(column.metric), signed=True) for column in table.columns]
    if any(differences):
        yield "difference", differences
