"""HTML report of an analysis: one page without scripts or external files, readable on a phone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

import numpy as np

from dcn_det.evaluation.analysis import Analysis, BadImage
from dcn_det.evaluation.ground_truth import GroundTruth
from dcn_det.evaluation.metrics import Metrics, text
from dcn_det.evaluation.results import ResultTable
from dcn_det.images import draw_boxes
from dcn_det.visualize.html import PICTURE_SIDE, document, figure, jpeg, numbers, shrunk, table

TITLES = {
    "precision_recall": "Precision-recall curves",
    "size": "AP by object size",
    "scores": "Scores of correct and wrong detections at IoU 0.5",
    "ious": "IoU of confident detections",
    "errors": "Cost of each kind of error",
    "confusion": "Confusion matrix of confident detections",
}


def page(
    title: str,
    metrics: Sequence[Metrics],
    analysis: Analysis,
    plots: dict[str, bytes],
    truth: GroundTruth,
    results: ResultTable,
    read_picture: Callable[[int], np.ndarray | None],
) -> str:
    """Returns the report as HTML.

    Args:
        title: heading, such as the path of the results file.
        metrics: metrics of the results, in the order to show.
        analysis: analysis of the results.
        plots: PNG files by name, as :func:`dcn_det.visualize.plots.plots` returns them.
        truth, results: ground truth and detections that were analyzed, for the pictures of the worst images.
        read_picture: returns the image of an id as uint8 (H, W, 3) RGB, or None if its file is missing.
    """
    body = []
    for each in metrics:
        body.append(
            f"<p>{escape(each.kind)}: {each.images:,} images, {each.objects:,} objects, {each.detections:,} "
            f"detections; computed by {escape(each.backend)}.</p>"
        )
        body += [f"<p>{escape(note)}</p>" for note in each.notes]
        body.append(numbers(each.values))
    body.append('<h2>Curves and histograms</h2><div class="plots">')
    body += [_plot(name, data) for name, data in plots.items() if name != "confusion"]
    body.append("</div>")
    body.append(
        f"<p>Confident detections have a score of at least {analysis.score:g}. A detection is correct if its IoU with "
        "an object of its class is at least 0.5 and no detection with a higher score matches that object.</p>"
    )
    body += ["<h2>Kinds of errors</h2>", _errors(analysis)]
    body += ["<h2>Confusion between classes</h2>", _plot("confusion", plots["confusion"]), _confusion_note(analysis)]
    body += ["<h2>Classes</h2>", _classes(analysis)]
    body += ["<h2>Worst images</h2>", *_worst(analysis, truth, results, read_picture)]
    return document(title, body)


def _plot(name: str, png: bytes) -> str:
    return figure(TITLES[name], png)


def _errors(analysis: Analysis) -> str:
    rows = [(e.name, f"{e.count:,}", f"{e.cost:.3f}", e.meaning) for e in analysis.errors]
    note = (
        f"<p>AP at IoU 0.5 is {analysis.ap50:.3f}. The cost of a kind of error is the gain in this AP if all errors of "
        "that kind, and no others, were fixed (TIDE, Bolya et al., ECCV 2020). Costs do not add up.</p>"
    )
    return note + table(("kind", "count", "cost", ""), rows, "meaning")


def _confusion_note(analysis: Analysis) -> str:
    counts = analysis.confusion
    names = [row.name for row in analysis.classes]
    pairs = [(int(counts[i, j]), names[i], names[j]) for i, j in np.argwhere(counts[:-1, :-1] > 0).tolist() if i != j]
    top = sorted(pairs, key=lambda pair: -pair[0])[:5]
    if not top:
        return "<p>No object was detected as another class.</p>"
    most = "; ".join(f"{escape(a)} as {escape(b)} ({count})" for count, a, b in top)
    return f"<p>Objects most often detected as another class: {most}.</p>"


def _classes(analysis: Analysis) -> str:
    ordered = sorted(analysis.classes, key=lambda row: (row.ap != row.ap, row.ap))
    rows = []
    for row in ordered:
        numbers = (row.ap, row.ap50, row.ap75, row.small, row.medium, row.large)
        rows.append((row.name, *(text(n).strip() for n in numbers), f"{row.objects:,}", f"{row.detections:,}"))
    return table(("class", "AP", "AP50", "AP75", "small", "medium", "large", "objects", "detections"), rows)


def _worst(
    analysis: Analysis,
    truth: GroundTruth,
    results: ResultTable,
    read_picture: Callable[[int], np.ndarray | None],
) -> list[str]:
    if not analysis.worst:
        return ["<p>Confident detections match every object, and none of them is wrong.</p>"]
    return [_pair(bad, analysis, truth, results, read_picture(bad.image_id)) for bad in analysis.worst]


def _pair(
    bad: BadImage, analysis: Analysis, truth: GroundTruth, results: ResultTable, picture: np.ndarray | None
) -> str:
    names = [category.name for category in truth.categories]
    label = {category.id: i for i, category in enumerate(truth.categories)}
    file_name = truth.file_names.get(bad.image_id, "")
    said = f"<p><b>{bad.image_id}</b> {escape(file_name)}: {len(bad.wrong)} wrong, {len(bad.missed)} missed</p>"
    if picture is None:
        return said + "<p>The image file was not found.</p>"
    objects = [a for a in truth.annotations if a["image_id"] == bad.image_id and not a["iscrowd"]]
    rows = np.flatnonzero((results.image_ids == bad.image_id) & (results.scores >= analysis.score))
    rows = rows[np.argsort(-results.scores[rows], kind="stable")]
    small = shrunk(picture, PICTURE_SIDE)
    factor = min(1.0, PICTURE_SIDE / max(picture.shape[:2]))
    left = draw_boxes(
        small,
        _corners(np.array([a["bbox"] for a in objects], np.float64).reshape(-1, 4), factor),
        [label[a["category_id"]] for a in objects],
        names,
    )
    right = draw_boxes(
        small,
        _corners(results.boxes[rows], factor),
        [label[i] for i in results.category_ids[rows].tolist()],
        names,
        results.scores[rows].tolist(),
    )
    figures = "".join(
        figure(caption, jpeg(image), "jpeg")
        for caption, image in (("ground truth", left), ("confident detections", right))
    )
    return f'{said}<div class="pair">{figures}</div>'


def _corners(boxes: np.ndarray, factor: float) -> np.ndarray:
    corners = boxes.copy()
    corners[:, 2:] += corners[:, :2]
    return corners * factor
