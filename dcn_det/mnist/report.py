"""The table and the picture of a comparison."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from dcn_det.mnist.data import SCALE_EDGES, Digits
from dcn_det.mnist.networks import METHODS
from dcn_det.mnist.runs import FAIR, PROTOCOLS, SOURCES, Run
from dcn_det.mnist.samples import SCALES, Points, examples
from dcn_det.visualize.plots import new_axes, png_bytes

PUBLISHED = {(SOURCES, "plain"): "98.74 / 57.01", (SOURCES, "deformable"): "97.27 / 92.55"}
"""Regular and scaled accuracy that the Keras demonstration prints, in percent."""
HEAD = ("protocol", "network", "regular, %", "scaled, %", "published", "parameters", "multiply-adds")
COLORS = ("#777777", "#c8553d", "#e0a13d", "#8b6bb1", "#3d5a80", "#2a7f62")


def table(record: dict[str, Any]) -> str:
    """Returns what was measured, in Markdown: means over seeds, with standard deviations if there are several.

    The duration of a training is that by the clock on a GPU; on a CPU it is the processor time of all threads, which
    depends less on what else the machine does.
    """
    key, what = ("seconds", "training, s") if "gpu" in record else ("cpu_seconds", "training, CPU s")
    lines = [(*HEAD, what), ("---",) * (len(HEAD) + 1)]
    for protocol in PROTOCOLS:
        for method, title in METHODS.items():
            runs = _runs(record, protocol, method)
            if runs:
                lines.append(
                    (
                        protocol,
                        title,
                        _percent([run["regular"] for run in runs]),
                        _percent([run["scaled"] for run in runs]),
                        PUBLISHED.get((protocol, method), "-"),
                        f"{runs[0]['parameters'] / 1e3:.0f} k",
                        f"{runs[0]['multiply_adds'] / 1e6:.1f} M",
                        f"{statistics.fmean(run[key] for run in runs):.0f}",
                    )
                )
    return f"{_facts(record)}\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _facts(record: dict[str, Any]) -> str:
    seeds = len({run["seed"] for run in record["runs"]})
    versions = record["versions"]
    return (
        f"{record.get('gpu', record['cpu'])}, {record['date'][:10]}, torch {versions['torch']}, {seeds} "
        f"seed{'s' if seeds > 1 else ''}, {record['test_digits']:,} test digits:"
    )


def _runs(record: dict[str, Any], protocol: str, method: str) -> list[Run]:
    return [run for run in record["runs"] if (run["protocol"], run["method"]) == (protocol, method)]


def _percent(values: Sequence[float]) -> str:
    mean = f"{100 * statistics.fmean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.2f}"


def picture(record: dict[str, Any], digits: Digits) -> bytes:
    """Draws where the networks of the first seed sample, and accuracy by scale.

    Args:
        record: results with the runs of at least the first seed.
        digits: the test digits.

    Returns:
        A PNG file.
    """
    figure, whole = new_axes(9.0, 7.0)
    whole.remove()
    grid = figure.add_gridspec(len(SCALES) + 2, len(METHODS))
    images = examples(digits)[:, 0].cpu()
    for column, (method, title) in enumerate(METHODS.items()):
        samples: list[list[Points]] = next(
            (run["samples"] for run in _runs(record, FAIR, method) if run["samples"]), []
        )
        for row, image in enumerate(images):
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(image.numpy(), cmap="gray_r", vmin=0, vmax=1.6)
            axes.set(xticks=[], yticks=[], xlim=(-4.5, 31.5), ylim=(31.5, -4.5))
            if row == 0:
                axes.set_title(title.replace(" ", "\n", 1), fontsize=8)
            if column == 0:
                axes.set_ylabel(f"{SCALES[row]:g} times smaller" if row else "regular", fontsize=8)
            for step, points in enumerate(samples[row] if samples else []):
                y, x = zip(*points)
                if len(points) == 4:
                    style = {"alpha": 1.0 if step == len(samples[row]) - 1 else 0.4}
                    axes.plot([*x, x[0]], [*y, y[0]], color=COLORS[column], linewidth=1.5, **style)
                else:
                    axes.plot(x, y, ".", color=COLORS[column], markersize=2, alpha=0.7)
    _draw_accuracy(figure.add_subplot(grid[len(SCALES) :, :4]), record)
    return png_bytes(figure)


def _draw_accuracy(axes: Any, record: dict[str, Any]) -> None:
    """Draws the mean of the seeds, and a bar from the lowest to the highest."""
    centers = [(low + high) / 2 for low, high in pairwise(SCALE_EDGES)]
    for protocol in PROTOCOLS:
        for (method, title), color in zip(METHODS.items(), COLORS):
            columns = list(zip(*(run["by_scale"] for run in _runs(record, protocol, method))))
            known = [(x, [100 * v for v in column]) for x, column in zip(centers, columns) if None not in column]
            if not known:
                continue
            means = [statistics.fmean(values) for _, values in known]
            spans = [
                [mean - min(v) for mean, (_, v) in zip(means, known)],
                [max(v) - mean for mean, (_, v) in zip(means, known)],
            ]
            axes.errorbar(
                [x for x, _ in known],
                means,
                spans,
                color=color,
                linestyle="-" if protocol == FAIR else "--",
                label=title if protocol == FAIR else f"{title}, as in the sources",
                linewidth=1.6,
                capsize=2,
            )
    axes.set(
        xlabel="times smaller",
        xlim=(SCALE_EDGES[0], SCALE_EDGES[-1]),
        ylabel="accuracy, %",
    )
    axes.spines[["top", "right"]].set_visible(False)
    legend = axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.02, 0.5))
    legend.set_in_layout(False)  # it would push the columns above apart
