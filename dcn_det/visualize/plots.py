"""Plots of the report, drawn with matplotlib without a display."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from dcn_det.errors import UserError
from dcn_det.evaluation.analysis import Analysis

RIGHT, WRONG, NEUTRAL = "#2a7f62", "#c8553d", "#3d5a80"
SHOWN_CLASSES = 20
"""Maximum number of classes in the confusion matrix; if there are more, the most confused are shown."""


def plots(analysis: Analysis) -> dict[str, bytes]:
    """Returns PNG files by name: ``precision_recall``, ``size``, ``scores``, ``ious``, ``confusion``, ``errors``.

    Raises:
        UserError: matplotlib is not installed.
    """
    require_matplotlib("report")
    return {
        "precision_recall": _precision_recall(analysis),
        "size": _size(analysis),
        "scores": _scores(analysis),
        "ious": _ious(analysis),
        "confusion": _confusion(analysis),
        "errors": _errors(analysis),
    }


def require_matplotlib(what: str) -> None:
    """Checks that plots can be drawn.

    Args:
        what: option or command that draws, for the message.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UserError(f'{what}: matplotlib is not installed: pip install "dcn_det[report]"') from error


def new_axes(width: float = 5.0, height: float = 3.6) -> tuple[Any, Any]:
    """Returns a figure of this size in inches, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def png_bytes(figure: Any) -> bytes:
    """Returns a figure as a PNG file."""
    # Without the version in the metadata, the same analysis gives the same bytes.
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _precision_recall(analysis: Analysis) -> bytes:
    figure, axes = new_axes()
    for (name, values), color in zip(analysis.precision.items(), ("#9fc5b3", "#5fa387", RIGHT, "black")):
        style = {"linestyle": "--", "linewidth": 1.2} if name == "mean" else {"linewidth": 1.8}
        label = "mean of 0.50 to 0.95" if name == "mean" else name
        axes.plot(analysis.recall, values, color=color, label=f"{label}: AP {values.mean():.3f}", **style)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    return png_bytes(figure)


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if value == value]
    return float(np.mean(defined)) if defined else float("nan")


def _size(analysis: Analysis) -> bytes:
    figure, axes = new_axes()
    names = ("small\n< 32² px", "medium", "large\n> 96² px", "all")
    values = [_mean([getattr(row, key) for row in analysis.classes]) for key in ("small", "medium", "large", "ap")]
    drawn = [0.0 if value != value else value for value in values]
    bars = axes.bar(names, drawn, color=[NEUTRAL] * 3 + ["black"])
    axes.bar_label(bars, ["no objects" if value != value else f"{value:.3f}" for value in values], padding=2)
    axes.set(ylabel="AP", ylim=(0, max(0.1, 1.15 * max(drawn))))
    return png_bytes(figure)


def _scores(analysis: Analysis) -> bytes:
    figure, axes = new_axes()
    groups = [analysis.right_scores.clip(0, 1), analysis.wrong_scores.clip(0, 1)]
    labels = [f"correct: {len(groups[0])}", f"wrong: {len(groups[1])}"]
    style = {"bins": 25, "range": (0, 1), "histtype": "step", "linewidth": 1.8, "log": True}
    axes.hist(groups, color=[RIGHT, WRONG], label=labels, **style)
    axes.set(xlabel="score", ylabel="detections (log scale)", xlim=(0, 1))
    axes.set_ylim(bottom=0.7)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    return png_bytes(figure)


def _ious(analysis: Analysis) -> bytes:
    figure, axes = new_axes()
    axes.hist(analysis.ious, bins=25, range=(0, 1), color=NEUTRAL)
    axes.axvline(0.5, color="black", linewidth=1, linestyle="--")
    axes.set(xlabel="highest IoU with an object of the class", ylabel="confident detections", xlim=(0, 1))
    return png_bytes(figure)


def confused_classes(analysis: Analysis) -> list[int]:
    """Returns the labels of the classes to show in the confusion matrix, in ascending order."""
    counts = analysis.confusion[:-1, :-1]
    between = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
    order = np.argsort(-between, kind="stable")[:SHOWN_CLASSES]
    return sorted(order.tolist())


def _confusion(analysis: Analysis) -> bytes:
    shown = [*confused_classes(analysis), len(analysis.classes)]
    names = [*(row.name for row in analysis.classes), "background"]
    counts = analysis.confusion[np.ix_(shown, shown)]
    totals = analysis.confusion[shown].sum(axis=1, keepdims=True)
    texts = [[str(count) if count else "" for count in row] for row in counts.tolist()]
    labels = [names[i] for i in shown]
    return confusion_png(counts / np.maximum(totals, 1), texts, labels, "detected class", "true class")


def confusion_png(
    shares: np.ndarray, texts: Sequence[Sequence[str]], names: Sequence[str], xlabel: str, ylabel: str
) -> bytes:
    """Draws a confusion matrix; returns a PNG file.

    Args:
        shares: (N, N), colors of the cells, from 0 to 1; rows are true classes.
        texts: of the cells, N rows of N.
        names: of the classes.
        xlabel, ylabel: titles of the columns and of the rows.
    """
    side = max(3.6, 0.34 * len(names) + 1.6)
    figure, axes = new_axes(side, side)
    axes.imshow(shares, cmap="Greens", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        ink = "white" if share > 0.6 else "black"
        axes.text(column, row, texts[row][column], ha="center", va="center", fontsize=7, color=ink)
    # A "$" in a class name does not start a formula.
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8, parse_math=False)
    axes.set_yticks(range(len(names)), names, fontsize=8, parse_math=False)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    return png_bytes(figure)


def _errors(analysis: Analysis) -> bytes:
    figure, axes = new_axes()
    errors = analysis.errors[::-1]
    bars = axes.barh([error.name for error in errors], [error.cost for error in errors], color=WRONG)
    axes.bar_label(bars, [f"{error.cost:.3f}" for error in errors], padding=3, fontsize=9)
    axes.locator_params(axis="x", nbins=5)
    axes.set(xlabel="AP at IoU 0.5 gained by fixing them", xlim=(0, 1.2 * max(0.01, *(e.cost for e in errors))))
    return png_bytes(figure)
