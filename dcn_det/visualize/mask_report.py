"""HTML report of predicted labels, in the style of :mod:`dcn_det.visualize.report`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

import numpy as np

from dcn_det.evaluation.metrics import text
from dcn_det.evaluation.segmentation import MaskMetrics
from dcn_det.images import Image
from dcn_det.visualize.html import PICTURE_SIDE, document, figure, jpeg, numbers, shrunk, table

TITLES = {"iou": "IoU by class", "confusion": "Shares of the pixels of each class, by predicted class, in percent"}


def mask_page(
    title: str,
    metrics: MaskMetrics,
    plots: Mapping[str, bytes],
    worst: int,
    picture: Callable[[int], tuple[str, Sequence[tuple[str, Image]]]],
) -> str:
    """Returns the report as HTML.

    Args:
        title: heading, such as the path of the results.
        metrics: metrics of the results.
        plots: PNG files by name, by the keys of :data:`TITLES`.
        worst: number of images to show, those with the lowest mean IoU.
        picture: returns the name of an image, and pictures with their captions.
    """
    body = [f"<p>{escape(metrics.counts)}.</p>", *(f"<p>{escape(note)}</p>" for note in metrics.notes)]
    body += [numbers(metrics.values), '<div class="plots">']
    body += [figure(TITLES[name], content) for name, content in plots.items()]
    body += ["</div>", _most_confused(metrics), "<h2>Classes</h2>", _classes(metrics), "<h2>Worst images</h2>"]
    for score in sorted(metrics.scores, key=lambda score: score.iou)[:worst]:
        name, drawn = picture(score.image_id)
        shown = "".join(figure(caption, jpeg(shrunk(image, PICTURE_SIDE)), "jpeg") for caption, image in drawn)
        said = f"mean IoU {text(score.iou).strip()}, {text(score.accuracy).strip()} of the pixels correct"
        body.append(f'<p><b>{escape(name)}</b>: {said}</p><div class="pair">{shown}</div>')
    return document(title, body)


def _most_confused(metrics: MaskMetrics) -> str:
    names, counts = list(metrics.per_class), metrics.confusion
    total = max(1, int(counts.sum()))
    pairs = [(int(counts[i, j]), names[i], names[j]) for i, j in np.argwhere(counts > 0).tolist() if i != j]
    top = sorted(pairs, key=lambda pair: -pair[0])[:5]
    if not top:
        return "<p>Every pixel has its class.</p>"
    most = "; ".join(f"{escape(a)} as {escape(b)} ({count / total:.1%})" for count, a, b in top)
    return f"<p>Largest confusions, as shares of all pixels: {most}.</p>"


def _classes(metrics: MaskMetrics) -> str:
    counts = metrics.confusion
    total = max(1, int(counts.sum()))
    rows = []
    for i, (name, iou) in enumerate(metrics.per_class.items()):
        true, predicted, both = int(counts[i].sum()), int(counts[:, i].sum()), int(counts[i, i])
        shares = [both / each if each else float("nan") for each in (true, predicted)]
        rows.append((iou, (name, text(iou).strip(), *(text(each).strip() for each in shares), f"{true / total:.2%}")))
    rows.sort(key=lambda row: (row[0] != row[0], row[0]))
    return table(("class", "IoU", "recall", "precision", "pixels"), [cells for _, cells in rows])
