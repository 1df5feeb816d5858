"""Picture of a table that was measured with several seeds: bars of the means, with error bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from dcn_det.reproduce.outcome import Outcome
from dcn_det.reproduce.tables import Column, Table

WIDTH, LABEL, LINE, HEAD = 760, 270, 26, 64
"""Pixels of the picture, of the labels, of a row, and of the heading."""
PLAIN, DEFORMABLE, DARK = "#8a9a96", "#2f6f62", "#1c2321"
FONT = "font-family='Helvetica, Arial, sans-serif'"


def picture(table: Table, outcomes: Sequence[Outcome], column: Column | None = None) -> str:
    """Draws the means of a column as SVG; an error bar is one standard deviation to both sides, a dot is one seed.

    Args:
        table: the table.
        outcomes: its rows; those without a result have no bar.
        column: the column; the first one by default.
    """
    column = column or table.columns[0]
    values = [
        column.factor * run.measured[column.metric]
        for each in outcomes
        for run in each.runs
        if column.metric in run.measured
    ]
    end = math.ceil(max([10.0, *values]) / 10) * 10
    scale = (WIDTH - LABEL - 70) / end
    height = HEAD + LINE * len(outcomes) + 34
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height}' width='{WIDTH}' height='{height}'>",
        f"<rect width='{WIDTH}' height='{height}' fill='#ffffff'/>",
        _text(12, 24, column.title + " in percent: mean, standard deviation and single seeds", size=15, weight="bold"),
        _key(12, 44),
    ]
    for tick in range(0, end + 1, 10):
        x = LABEL + scale * tick
        parts.append(f"<line x1='{x:.1f}' x2='{x:.1f}' y1='{HEAD}' y2='{height - 30}' stroke='#dde3e1'/>")
        parts.append(_text(x, height - 14, str(tick), anchor="middle", color="#55605c"))
    for number, each in enumerate(outcomes):
        parts += _row(each, column, HEAD + LINE * number, scale)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _key(x: float, y: float) -> str:
    words = (("plain", PLAIN), ("compared with plain", DEFORMABLE))
    parts, at = [], x
    for word, color in words:
        parts.append(f"<rect x='{at}' y='{y - 10}' width='14' height='12' fill='{color}'/>")
        parts.append(_text(at + 20, y, word, color="#55605c"))
        at += 80
    return "\n".join(parts)


def _row(outcome: Outcome, column: Column, top: float, scale: float) -> list[str]:
    middle, parts = top + LINE / 2, [_text(LABEL - 8, top + LINE / 2 + 4, outcome.row.label, anchor="end")]
    mean = outcome.measured.get(column.metric)
    if mean is None:
        return [*parts, _text(LABEL + 6, middle + 4, "not measured", color="#55605c")]
    length = scale * column.factor * mean
    color = DEFORMABLE if outcome.row.baseline else PLAIN
    parts.append(f"<rect x='{LABEL}' y='{top + 5}' width='{length:.1f}' height='{LINE - 10}' fill='{color}'/>")
    reach = scale * column.factor * outcome.spread.get(column.metric, 0.0)
    right = LABEL + length + reach
    if reach:
        left = LABEL + length - reach
        parts.append(
            f"<path d='M{left:.1f} {middle - 5}v10M{left:.1f} {middle}H{right:.1f}M{right:.1f} {middle - 5}v10' "
            f"stroke='{DARK}' stroke-width='1.3' fill='none'/>"
        )
    values = [column.factor * run.measured[column.metric] for run in outcome.runs if column.metric in run.measured]
    for value in values if len(values) > 1 else ():
        x = LABEL + scale * value
        parts.append(f"<circle cx='{x:.1f}' cy='{middle}' r='2.4' fill='#ffffff' stroke='{DARK}' stroke-width='0.8'/>")
    shown = column.text(mean, error=outcome.spread.get(column.metric))
    end = max([right, *(LABEL + scale * value for value in values)])
    return [*parts, _text(end + 8, middle + 4, shown)]


def _text(
    x: float,
    y: float,
    words: str,
    anchor: str = "start",
    size: int = 12,
    color: str = "#1c2321",
    weight: str = "normal",
) -> str:
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' {FONT} font-size='{size}' font-weight='{weight}' fill='{color}' "
        f"text-anchor='{anchor}'>{escape(words)}</text>"
    )
