"""Tables of outcomes as Markdown, CSV and HTML."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from dcn_det.env import cpu_model
from dcn_det.files import write_text
from dcn_det.progress import duration
from dcn_det.reproduce.outcome import Outcome, lines_of
from dcn_det.reproduce.page import page
from dcn_det.reproduce.picture import picture
from dcn_det.reproduce.record import write_record
from dcn_det.reproduce.steps import Options
from dcn_det.reproduce.tables import Table


def write_table(options: Options, outcomes: Sequence[Outcome]) -> list[Path]:
    """Writes ``<table>.md``, ``.csv`` and ``.html`` into the output folder; returns their paths.

    With several seeds, there are also a picture, ``.svg``, and a file of all runs, ``.json``.
    """
    heading = title(options)
    contents = {
        "md": f"# {heading}\n\n{markdown(options.table, outcomes)}\n{summary(outcomes)}\n",
        "csv": comma_separated(options.table, outcomes),
        "html": page(heading, options.table, outcomes, summary(outcomes)),
    }
    if options.seeds > 1:
        contents["svg"] = picture(options.table, outcomes)
    paths = []
    for suffix, content in contents.items():
        paths.append(options.output / f"{options.table.name}.{suffix}")
        write_text(paths[-1], content)
    if options.seeds > 1:
        paths.append(options.output / f"{options.table.name}.json")
        write_record(paths[-1], options.table, outcomes, machine())
    return paths


def machine() -> dict[str, str]:
    """Returns what measures: processor or GPU, and versions."""
    from importlib.metadata import version

    return {"cpu": cpu_model(), "torch": version("torch"), "torchvision": version("torchvision")}


def title(options: Options) -> str:
    """Returns the heading of a table, which names what its numbers come from."""
    trained = f"{options.seeds} seeds" if options.seeds > 1 else f"{options.schedule} schedule"
    trained = "on this machine" if options.table.timed else trained
    kind = (
        "smoke run: small networks on few images, no results"
        if options.smoke
        else ("the authors' weights" if options.weights == "authors" else trained)
    )
    number = options.table.name.removeprefix("table")
    name = f"Table {number}: " if number.isdigit() else ""
    return f"{name}{options.table.title} ({kind})"


def summary(outcomes: Sequence[Outcome]) -> str:
    """Returns a line on what is measured and what the differences mean."""
    measured = [each for each in outcomes if each.measured]
    line = f"{len(measured)} of {sum(bool(each.row.config) for each in outcomes)} rows measured."
    others = sorted({each.split for each in measured if not each.comparable})
    if others:
        line += f" Measured on another split than the published numbers ({', '.join(others)}): no differences."
    return line


def markdown(table: Table, outcomes: Sequence[Outcome], facts: bool = True) -> str:
    """Returns a table with a line for what is measured, and one for each source and comparison, of each row.

    Args:
        table: the table.
        outcomes: its rows.
        facts: whether to show where the results come from, in further columns.
    """
    header = ["row", "", *(column.title for column in table.columns)]
    header += ["split", "commit", "config", "time", "state"] if facts else []
    rows = [header, ["---"] * len(header)]
    for each in outcomes:
        for name, cells in lines_of(each, table):
            first = name == "measured"
            known = [each.split, each.commit, each.hash, _time(each), each.condition] if first else [""] * 5
            rows.append([each.row.label if first else "", name, *cells, *(known if facts else [])])
    note = f"\n{table.note}\n" if table.note else ""
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in rows) + note


def _time(outcome: Outcome) -> str:
    return duration(outcome.seconds) if outcome.seconds else ""


def comma_separated(table: Table, outcomes: Sequence[Outcome]) -> str:
    """Returns a line per row. Values are fractions; what is not known is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    kinds = ("", " std", " paper", " readme", " difference")
    values = [f"{column.metric}{kind}" for column in table.columns for kind in kinds]
    writer.writerow(["row", "config", "split", "commit", "config_hash", "seconds", "state", *values])
    for each in outcomes:
        facts: list[object] = [each.row.label, each.row.config, each.split, each.commit, each.hash]
        facts += [f"{each.seconds:.0f}" if each.seconds else "", each.condition]
        for column in table.columns:
            known = (each.measured, each.spread, each.paper, each.readme)
            cells = [values.get(column.metric) for values in known] + [each.difference(column.metric)]
            facts += ["" if value is None else f"{value:.4f}" for value in cells]
        writer.writerow(facts)
    return text.getvalue()


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns lines with columns of equal width."""
    if not rows:
        return []
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
