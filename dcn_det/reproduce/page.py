"""HTML page of a table: one file without scripts or external files, readable on a phone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from dcn_det.progress import duration
from dcn_det.reproduce.outcome import Outcome, lines_of, main_column
from dcn_det.reproduce.tables import Table

MINUS = "\u2212"
STYLE = """
:root { color-scheme: light; --measured: #2f6f62; --paper: #b3541e; --readme: #4a5fae; --line: #d5dcd9; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; font: 16px/1.45 system-ui, sans-serif; color: #1c2321;
  background: #fff; }
h1 { font-size: 1.3rem; margin: .5rem 0; }
p { margin: .4rem 0; max-width: 52rem; }
.key span { margin-right: 1.2rem; white-space: nowrap; }
.key i { display: inline-block; margin-right: .4rem; vertical-align: middle; }
i.measured { width: 1.4rem; height: .7rem; background: var(--measured); }
i.paper, i.readme { width: 3px; height: 1rem; }
i.paper { background: var(--paper); }
i.readme { background: var(--readme); }
article { display: grid; grid-template-columns: 17rem minmax(8rem, 1fr) 26rem; gap: .3rem 1.5rem; align-items: center;
  border-top: 1px solid var(--line); padding: .55rem 0; }
h2 { font-size: 1rem; margin: 0; }
small { display: block; color: #55605c; font-size: .8rem; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: 1.6rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; font-size: .9rem; }
th, td { padding: .05rem .35rem; text-align: right; font-weight: 400; }
th:first-child { text-align: left; width: 8.5rem; white-space: nowrap; }
thead th { color: #55605c; }
tr.measured { font-weight: 600; }
tr.measured th { font-weight: 600; }
@media (max-width: 60rem) { article { grid-template-columns: minmax(0, 1fr); } }
@media (max-width: 30rem) { th, td { padding: .05rem .2rem; } th:first-child { width: 7rem; } body { padding: .7rem; } }
"""


def page(title: str, table: Table, outcomes: Sequence[Outcome], summary: str) -> str:
    """Returns a page with a bar for the first value of each row, and all numbers.

    Args:
        title: heading.
        table: the table.
        outcomes: its rows.
        summary: line below the heading.
    """
    columns = [main_column(outcome, table) for outcome in outcomes]
    values = [
        column.factor * each[column.metric]
        for outcome, column in zip(outcomes, columns)
        for each in _sources(outcome).values()
        if column.metric in each
    ]
    end = math.ceil(max([10.0, *values]) / 10) * 10
    key = "".join(
        f'<span><i class="{name}"></i>{text}</span>'
        for name, text in (("measured", "measured"), ("paper", "paper"), ("readme", "authors&#x27; README"))
    )
    titles = " or ".join(dict.fromkeys(column.title for column in columns))
    note = f"<p>{escape(table.note)}</p>" if table.note else ""
    rows = "\n".join(_article(table, each, end) for each in outcomes)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p>{escape(summary)}</p>
{note}
<p class="key">{key}<span>bars: {escape(titles)} from 0 to {end}</span></p>
{rows}
</body>
</html>
"""


def _sources(outcome: Outcome) -> dict[str, Mapping[str, float]]:
    return {"measured": outcome.measured, "paper": outcome.paper, "readme": outcome.readme}


def _article(table: Table, outcome: Outcome, end: int) -> str:
    facts = [outcome.row.config, outcome.split, outcome.condition]
    if outcome.measured:
        facts += [f"commit {outcome.commit}", f"config {outcome.hash}", duration(outcome.seconds)]
    small = escape(" · ".join(fact for fact in facts if fact))
    return f"""<article>
<header><h2>{escape(outcome.row.label)}</h2><small>{small}</small></header>
{_bar(table, outcome, end)}
{_numbers(table, outcome)}
</article>"""


def _bar(table: Table, outcome: Outcome, end: int) -> str:
    """Returns a bar of the measured value, with a mark for each published one; ``end`` is as shown in the table."""
    column = main_column(outcome, table)
    known = {
        name: column.factor * values[column.metric]
        for name, values in _sources(outcome).items()
        if column.metric in values
    }
    parts = ['<rect x="0" y="0.9" width="100" height="0.2" fill="#e3e8e6"/>']
    if "measured" in known:
        width = 100 * known["measured"] / end
        parts.append(f'<rect x="0" y="0.45" width="{width:.2f}" height="1.1" fill="var(--measured)"/>')
    for name in ("paper", "readme"):
        if name in known:
            parts.append(
                f'<rect x="{100 * known[name] / end - 0.3:.2f}" y="0" width="0.6" height="2" fill="var(--{name})"/>'
            )
    words = ", ".join(f"{name} {value:.{column.digits}f}" for name, value in known.items()) or "not measured"
    return (
        f'<svg viewBox="0 0 100 2" preserveAspectRatio="none" role="img" aria-label="{escape(words)}">'
        f"{''.join(parts)}</svg>"
    )


def _numbers(table: Table, outcome: Outcome) -> str:
    head = "".join(f"<th>{escape(column.title)}</th>" for column in table.columns)
    rows = "".join(
        f'<tr class="{escape(name.partition(" ")[0])}"><th>{escape(name)}</th>'
        + "".join(f"<td>{escape(cell.replace('-', MINUS))}</td>" for cell in cells)
        + "</tr>"
        for name, cells in lines_of(outcome, table)
    )
    return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table>"
