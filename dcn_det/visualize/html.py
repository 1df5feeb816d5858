"""Self-contained HTML pages: one style, and pictures as data URLs. They need no network and fit phones."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape

import cv2
import numpy as np

from dcn_det.evaluation.metrics import text
from dcn_det.images import Image

PICTURE_SIDE = 480
"""Longer side of the pictures in pixels."""
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


def document(title: str, body: Sequence[str], style: str = "") -> str:
    """Returns a page.

    Args:
        title: of the page, as text; also its heading.
        body: its other elements, as HTML; they may contain scripts.
        style: further rules (CSS).
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # An inline icon keeps browsers from requesting one.
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def numbers(values: Mapping[str, float]) -> str:
    """Returns metrics by name, in a row of boxes."""
    boxes = (f"<div>{escape(name)}<b>{text(value).strip()}</b></div>" for name, value in values.items())
    return f'<div class="numbers">{"".join(boxes)}</div>'


def figure(caption: str, content: bytes, kind: str = "png") -> str:
    """Returns a picture, whose file has this content, with a caption (text) above it."""
    caption = escape(caption)
    return f'<figure><figcaption>{caption}</figcaption><img alt="{caption}" src="{data_url(content, kind)}"></figure>'


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


def data_url(content: bytes, kind: str) -> str:
    """Returns the URL of a picture; ``kind`` is ``png`` or ``jpeg``."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def jpeg(image: Image) -> bytes:
    """Encodes an image, uint8 (H, W, 3) RGB."""
    good, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])
    assert good
    return data.tobytes()


def shrunk(image: Image, side: int) -> Image:
    """Returns an image whose longer side is at most ``side`` pixels."""
    factor = min(1.0, side / max(image.shape[:2]))
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
