"""File of measured values: all runs of a table, to be printed again elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dcn_det.errors import UserError
from dcn_det.files import read_json, write_json
from dcn_det.reproduce.outcome import Outcome, Run, with_gains
from dcn_det.reproduce.tables import Table


def write_record(path: Path, table: Table, outcomes: Sequence[Outcome], surroundings: Mapping[str, str]) -> None:
    """Writes the runs of all rows that are measured.

    Args:
        path: JSON file.
        table: the table.
        outcomes: its rows.
        surroundings: machine and versions, by name.
    """
    rows = [
        {
            "row": each.row.label,
            "config": each.row.config,
            "split": each.split,
            "runs": [
                {
                    "seed": run.seed,
                    "seconds": round(run.seconds, 1),
                    "commit": run.commit,
                    "hash": run.hash,
                    "measured": dict(run.measured),
                }
                for run in each.runs
            ],
        }
        for each in outcomes
        if each.runs
    ]
    write_json(path, {"table": table.name, **surroundings, "rows": rows})


def read_record(path: Path, table: Table) -> list[Outcome]:
    """Reads the rows of a table as :func:`write_record` wrote them; rows without runs are not measured.

    Raises:
        UserError: the file is missing, malformed, or of another table.
    """
    plain = read_json(path)
    name = plain.get("table") if isinstance(plain, dict) else None
    if name != table.name:
        raise UserError(f"{path}: holds {f'results of {name}' if name else 'no results'}, not those of {table.name}")
    try:
        known = {row["row"]: _outcome(table, row["row"], row) for row in plain["rows"]}
    except (TypeError, KeyError, AttributeError, ValueError):
        raise UserError(f"{path}: not a file that dcn-det reproduce {table.name} wrote") from None
    return with_gains(known.get(row.label, Outcome(row, condition="not measured")) for row in table.rows)


def _outcome(table: Table, label: str, plain: Mapping[str, Any]) -> Outcome:
    (row,) = [row for row in table.rows if row.label == label]
    runs = tuple(
        Run(
            int(run["seed"]),
            {str(metric): float(value) for metric, value in run["measured"].items()},
            float(run["seconds"]),
            str(run["commit"]),
            str(run["hash"]),
        )
        for run in plain["runs"]
    )
    return Outcome(row, runs, split=str(plain["split"]), condition="done")
