"""HTML report of an analysis: one page without scripts or external files, readable on a phone."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape

import cv2
import numpy as np

from dcn_det.evaluation.analysis import Analysis, BadImage
from dcn_det.evaluation.ground_truth import GroundTruth
from dcn_det.evaluation.metrics import Metrics, text
from dcn_det.evaluation.results import ResultTable
from dcn_det.images import Image, draw_boxes

PICTURE_SIDE = 480
"""Longer side of the pictures in pixels."""
TITLES = {
    "precision_recall": "Precision-recall curves",
    "size": "AP by object size",
    "scores": "Scores of correct and wrong detections at IoU 0.5",
    "ious": "IoU of confident detections",
    "errors": "Cost of each kind of error",
    "confusion": "Confusion matrix of confident detections",
}
STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; font: 16px/1.45 system-ui, sans-serif; color: #1c2321;
  background: #fff; }
h1 { font-size: 1.5rem; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; border-top: 1px solid #d5dcd9; padding-top: 1rem; }
p { margin: .4rem 0; max-width: 46rem; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(5.2rem, 1fr)); gap: .5rem; padding: 0; }
.numbers div { background: #eef3f1; border-radius: .4rem; padding: .45rem .6rem; }
.numbers b { display: block; font-size: 1.2rem; font-variant-numeric: tabular-nums; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
figure { margin: 0; }
figcaption { font-weight: 600; margin-bottom: .3rem; }
img { max-width: 100%; height: auto; display: block; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #e3e8e6; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
td.meaning { text-align: left; white-space: normal; min-width: 8rem; }
@media (max-width: 30rem) { th, td { padding: .25rem .4rem; font-size: .9rem; } }
.pair { display: flex; flex-wrap: wrap; gap: .5rem; margin: .4rem 0 1.4rem; }
.pair figure { flex: 1 1 18rem; max-width: 30rem; }
.pair figcaption { font-weight: 400; font-size: .9rem; }
"""


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


def document(title: str, body: Iterable[str]) -> str:
    """Returns a whole page with a heading."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # An inline icon keeps browsers from requesting one.
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def numbers(values: Mapping[str, float]) -> str:
    """Returns metrics by name, in a row of boxes."""
    boxes = (f"<div>{escape(name)}<b>{text(value).strip()}</b></div>" for name, value in values.items())
    return f'<div class="numbers">{"".join(boxes)}</div>'


def figure(caption: str, content: bytes, kind: str = "png") -> str:
    """Returns a picture, whose file has this content, with a caption above it."""
    caption = escape(caption)
    return f'<figure><figcaption>{caption}</figcaption><img alt="{caption}" src="{_data(content, kind)}"></figure>'


def _plot(name: str, png: bytes) -> str:
    return figure(TITLES[name], png)


def _data(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], last_class: str = "") -> str:
    """Returns a table that scrolls on narrow screens; ``last_class`` is the style of the last column."""
    titles = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = []
    for row in rows:
        cells = [f"<td>{escape(cell)}</td>" for cell in row]
        if last_class:
            cells[-1] = f'<td class="{last_class}">{escape(row[-1])}</td>'
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


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
    small, factor = _small(picture)
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
        f'<figure><img alt="{caption}" src="{_data(_jpeg(image), "jpeg")}"><figcaption>{caption}</figcaption></figure>'
        for image, caption in ((left, "ground truth"), (right, "confident detections"))
    )
    return f'{said}<div class="pair">{figures}</div>'


def shrunk(picture: Image) -> bytes:
    """Returns a picture of at most :data:`PICTURE_SIDE` pixels as a JPEG file."""
    return _jpeg(_small(picture)[0])


def _small(picture: Image) -> tuple[Image, float]:
    """Returns a picture that fits into a page, and the factor of its sides."""
    factor = min(1.0, PICTURE_SIDE / max(picture.shape[:2]))
    size = (max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8), factor


def _corners(boxes: np.ndarray, factor: float) -> np.ndarray:
    corners = boxes.copy()
    corners[:, 2:] += corners[:, :2]
    return corners * factor


def _jpeg(image: np.ndarray) -> bytes:
    good, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])
    assert good
    return data.tobytes()
