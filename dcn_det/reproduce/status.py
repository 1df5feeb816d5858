"""State of a table as text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dcn_det.progress import duration
from dcn_det.reproduce.outcome import main_column, measured_cells, read_outcomes
from dcn_det.reproduce.results import SERVER
from dcn_det.reproduce.state import State
from dcn_det.reproduce.steps import Graph, Options
from dcn_det.reproduce.tables import Row
from dcn_det.reproduce.write import aligned, summary


def status(options: Options, graph: Graph, rows: Sequence[Row]) -> str:
    """Describes steps and table on several lines. Only reads files.

    Args:
        options: what is reproduced.
        graph: its rows and steps.
        rows: the rows to show.
    """
    state = State(options.output)
    steps = graph.select(rows)
    lines = []
    done = 0
    for step in steps:
        condition, remark = state.condition(step, graph.steps)
        if condition == "done":
            done += 1
            continue
        said = state.last_line(step) if condition in ("running", "interrupted") else ""
        lines.append([step.name, condition, "; ".join(text for text in (remark, said) if text)])
    outcomes = [each for each in read_outcomes(graph, state) if each.row in rows]
    table = [["row", *(column.title for column in options.table.columns), "paper", "time", "state"]]
    for each in outcomes:
        cells = measured_cells(each, options.table)
        column = main_column(each, options.table)
        paper = column.text(each.paper.get(column.metric))
        spent = duration(each.seconds) if each.seconds else ""
        table.append([each.row.label, *cells, paper, spent, each.condition])
    parts = [f"{done} of {len(steps)} steps done in '{options.output}'", *aligned(lines), "", *aligned(table)]
    parts += ["", summary(outcomes)]
    parts += [upload(each.submission) for each in outcomes if each.submission is not None and not each.measured]
    return "\n".join(parts)


def upload(path: Path) -> str:
    """Returns the line that says what to do with a submission."""
    return (
        f"upload '{path}' to COCO's detection server (https://cocodataset.org/#upload, bounding boxes, test-dev), and "
        f"save the 12 lines that it prints as '{path.with_name(SERVER)}'"
    )
