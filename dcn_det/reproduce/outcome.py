"""What was measured for each row of a table, next to what was published."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from dcn_det.evaluation.expected import applies
from dcn_det.reproduce.results import count_parameters, read_result, submission
from dcn_det.reproduce.state import State
from dcn_det.reproduce.steps import Graph, PlannedRow, Step
from dcn_det.reproduce.tables import Column, Row, Table


@dataclass(frozen=True)
class Run:
    """Result of a row with one seed.

    Attributes:
        seed: number of the seed, from 0.
        measured: values by metric.
        seconds: of all steps; rows that share a training count it each.
        commit, hash: of the project, and of the settings of the test.
    """

    seed: int
    measured: Mapping[str, float]
    seconds: float = 0.0
    commit: str = ""
    hash: str = ""


@dataclass(frozen=True)
class Outcome:
    """Measured and published values of a row, as fractions by metric.

    Attributes:
        row: the row.
        runs: what is measured, by seed.
        paper, readme: published in the paper, and in the README of the authors' released code.
        gain: difference of the means from those of another row, with its standard error, by metric; without error if
            either row has one run.
        comparable: whether the measured split is that of the published values.
        split: the split that was tested.
        hash: of the settings of the test.
        condition: of the row's steps, in words.
        submission: file for the server, if the split has no annotations.
    """

    row: Row
    runs: tuple[Run, ...] = ()
    paper: Mapping[str, float] = field(default_factory=dict)
    readme: Mapping[str, float] = field(default_factory=dict)
    gain: Mapping[str, tuple[float, float | None]] = field(default_factory=dict)
    comparable: bool = True
    split: str = ""
    hash: str = ""
    condition: str = ""
    submission: Path | None = None

    @property
    def measured(self) -> dict[str, float]:
        """Means over the runs, of metrics that all of them have; empty if nothing is measured."""
        return {name: statistics.fmean(values) for name, values in self._values().items()}

    @property
    def spread(self) -> dict[str, float]:
        """Standard deviations over the runs (with n - 1); empty for fewer than two."""
        return {name: statistics.stdev(values) for name, values in self._values().items() if len(values) > 1}

    def _values(self) -> dict[str, list[float]]:
        names = self.runs[0].measured if self.runs else ()
        shared = [name for name in names if all(name in run.measured for run in self.runs)]
        return {name: [run.measured[name] for run in self.runs] for name in shared}

    @property
    def commit(self) -> str:
        """Commits of the project that measured."""
        return ", ".join(dict.fromkeys(run.commit for run in self.runs if run.commit))

    @property
    def seconds(self) -> float:
        """Of training (or conversion) and testing, of all runs."""
        return sum(run.seconds for run in self.runs)

    def difference(self, metric: str) -> float | None:
        """Returns measured minus published in the paper; None if either is missing or they are of other splits."""
        measured = self.measured
        if not self.comparable or metric not in measured or metric not in self.paper:
            return None
        return measured[metric] - self.paper[metric]


def read_outcomes(graph: Graph, state: State) -> list[Outcome]:
    """Reads the outcome of every row from the files of its steps."""
    return with_gains([_outcome(each, graph, state) for each in graph.rows])


def with_gains(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Compares rows with those that are their baseline."""
    found = {each.row.label: each for each in outcomes}
    return [replace(each, gain=_gain(each, found.get(each.row.baseline))) for each in found.values()]


def _gain(outcome: Outcome, baseline: Outcome | None) -> dict[str, tuple[float, float | None]]:
    if baseline is None:
        return {}
    ours, theirs, errors = outcome.measured, baseline.measured, (_errors(outcome), _errors(baseline))
    return {
        name: (
            ours[name] - theirs[name],
            math.hypot(errors[0][name], errors[1][name]) if all(name in each for each in errors) else None,
        )
        for name in ours
        if name in theirs
    }


def _errors(outcome: Outcome) -> dict[str, float]:
    """Returns the standard errors of the means."""
    return {name: value / math.sqrt(len(outcome.runs)) for name, value in outcome.spread.items()}


def _outcome(planned: PlannedRow, graph: Graph, state: State) -> Outcome:
    row, config = planned.row, planned.config
    if config is None:
        return Outcome(row, condition=planned.absent)
    paper = _published_dilation(row) or dict(row.published)
    readme: dict[str, float] = {}
    for item in config.expected if not paper else ():
        (paper if item.source.startswith("paper") else readme)[item.metric] = item.value
    tested = planned.chains[0][-1]
    timed, split = tested.name.startswith("time/"), config.data.test_title
    runs = tuple(run for seed in range(len(planned.chains)) if (run := _run(planned, seed, graph, state)) is not None)
    condition = _condition(planned, graph, state)
    if condition == "done" and not runs:
        condition = "to be submitted" if submission(tested) else "no result in its file"
    return Outcome(
        row,
        runs=runs,
        paper=paper,
        readme=readme,
        comparable=timed or all(applies(item, split) for item in config.expected),
        split="" if timed and runs else split,
        hash=tested.hash,
        condition=condition,
        submission=submission(tested) if condition in ("done", "to be submitted") else None,
    )


def _run(planned: PlannedRow, seed: int, graph: Graph, state: State) -> Run | None:
    """Reads the result of a row with one seed; None if it is not there."""
    chain = planned.chains[seed]
    if any(state.condition(step, graph.steps)[0] != "done" for step in chain):
        return None
    measured = read_result(planned.row, chain[-1])
    if not measured:
        return None
    records = [record for step in chain if (record := state.read(step)) is not None]
    if "parameters" not in measured and any(column.metric == "parameters" for column in graph.table.columns):
        assert planned.config is not None
        measured["parameters"] = float(count_parameters(planned.config))
    if len(chain) > 1 and records[0].cpu_seconds:
        measured["cpu_seconds"] = records[0].cpu_seconds
    return Run(seed, measured, sum(each.seconds for each in records), records[-1].commit, chain[-1].hash)


def _condition(planned: PlannedRow, graph: Graph, state: State) -> str:
    """Returns the condition of the first step that is not done, in words; ``done`` if there is none."""
    for done, chain in enumerate(planned.chains):
        for step in chain:
            condition, remark = state.condition(step, graph.steps)
            if condition != "done":
                words = f"{_kind(step)} {condition}" + (f": {remark}" if remark else "")
                return words if len(planned.chains) == 1 else f"{done} of {len(planned.chains)} seeds; {words}"
    return "done"


def _kind(step: Step) -> str:
    return step.name.partition("/")[0]


def _published_dilation(row: Row) -> dict[str, float]:
    """Returns the paper's values for a layer; empty for other rows."""
    if not row.layer:
        return {}
    from dcn_det.visualize.effective_dilation import PAPER  # imports PyTorch, which plans do without

    places = PAPER[row.layer].items()
    return {place: mean for place, (mean, _) in places} | {f"{place} std": std for place, (_, std) in places}


def lines_of(outcome: Outcome, table: Table) -> Iterator[tuple[str, list[str]]]:
    """Yields name and cells of the lines of a row; lines without values are left out, except the first."""

    def cells(values: Mapping[str, float]) -> list[str]:
        return [column.text(values.get(column.metric)) for column in table.columns]

    yield "measured", measured_cells(outcome, table)
    if outcome.paper:
        yield "paper", cells(outcome.paper)
    if outcome.readme:
        yield "authors' README", cells(outcome.readme)
    differences = [column.text(outcome.difference(column.metric), signed=True) for column in table.columns]
    if any(differences):
        yield "difference", differences
    if outcome.gain:
        gains = [outcome.gain.get(column.metric, (None, None)) for column in table.columns]
        yield "difference", [column.text(value, True, error) for column, (value, error) in zip(table.columns, gains)]


def main_column(outcome: Outcome, table: Table) -> Column:
    """Returns the first column of which a row has a value, measured or published."""
    known = {*outcome.measured, *outcome.paper, *outcome.readme}
    return next((column for column in table.columns if column.metric in known), table.columns[0])


def measured_cells(outcome: Outcome, table: Table) -> list[str]:
    """Returns the means of a row by column, with standard deviations if there are several runs."""
    measured, spread = outcome.measured, outcome.spread
    return [column.text(measured.get(column.metric), error=spread.get(column.metric)) for column in table.columns]
