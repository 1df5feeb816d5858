"""HTML page on which a click on the image shows where the filters of that point sample."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from dcn_det.images import Image
from dcn_det.visualize.html import data_url, document, figure, jpeg, shrunk
from dcn_det.visualize.sampling import Stack
from dcn_det.visualize.sampling_pictures import GROUP_COLORS, UNIT_COLOR, short_name

SCRIPT = Path(__file__).with_suffix(".js")
STYLE = """
canvas { display: block; width: 100%; max-width: 60rem; cursor: crosshair; touch-action: manipulation; }
.controls { display: flex; flex-wrap: wrap; gap: .4rem 1.2rem; margin: .5rem 0; }
[hidden] { display: none; }
a { color: #2a7f62; }
.key span { white-space: nowrap; margin-right: .5rem; }
.key i { display: inline-block; width: .8rem; height: .8rem; border-radius: 50%; margin-right: .25rem; }
section { margin: 1.5rem 0; }
pre { max-height: 16rem; overflow: auto; font-size: .85rem; }
"""
PHOTO_SIDE = 1600
"""Longer side of the embedded image, in pixels."""
LARGEST_OFFSET = 60000.0
"""In cells; larger ones are shown as this, since they would be infinite in half precision."""


def page(
    title: str,
    image: Image,
    stack: Stack | None,
    points: Mapping[str, tuple[float, float]],
    pictures: Mapping[str, Image],
) -> str:
    """Returns the page, which contains its script, the image and the offsets in half precision, and loads nothing.

    Args:
        title: heading.
        image: the original image.
        stack: its offsets; None leaves out the part that can be clicked.
        points: x and y in pixels of the image by name; each becomes a link, and the first one is shown first.
        pictures: further pictures by caption.
    """
    body: list[str] = []
    if stack is not None:
        body += _clickable(image, stack, points)
    body += [f"<section>{figure(caption, jpeg(picture), 'jpeg')}</section>" for caption, picture in pictures.items()]
    if stack is not None:
        body.append(f'<script type="application/json" id="data">{_data(stack, points)}</script>')
        body.append(f"<script>\n{SCRIPT.read_text()}</script>")
    return document(title, body, STYLE)


def _clickable(image: Image, stack: Stack, points: Mapping[str, tuple[float, float]]) -> list[str]:
    taps = [layer.offset.shape[1] * layer.offset.shape[2] for layer in stack.layers]
    names = ", ".join(escape(short_name(layer.name)) for layer in stack.layers)
    several = stack.groups > 1
    groups = [(f"group {group}" if several else "samples", _color(group)) for group in range(stack.groups)]
    marks = "".join(
        f'<span><i style="background:{color}"></i>{name}</span> '
        for name, color in [*groups, ("unit", _hex(UNIT_COLOR))]
    )
    options = "".join(f'<option value="{group}">{name}</option>' for group, (name, _) in enumerate(groups))
    hidden = "" if several else " hidden"
    links = "".join(f'<a href="#{x:.1f},{y:.1f}">{escape(name)}</a>' for name, (x, y) in points.items())
    return [
        "<p>Click on the image to see where the unit of that point samples it, through the deformable convolutions "
        f"{names}: {math.prod(taps)} locations{' per offset group' if several else ''}. All layers of a path use the "
        "same offset group; plain layers in between count as their middle tap. Samples beyond a feature map, which "
        "read zeros, are not drawn.</p>",
        f'<div class="controls">{links}<select id="group"{hidden}><option value="all">all groups</option>{options}'
        '</select><label><input type="checkbox" id="regular"> without offsets (white)</label></div>',
        f'<img id="photo" alt="" hidden src="{data_url(jpeg(shrunk(image, PHOTO_SIDE)), "jpeg")}">'
        '<canvas id="canvas"></canvas>',
        f'<p class="key">{marks}</p><p id="readout"></p>',
        "<details><summary>Coordinates</summary><p>Offset group, x and y in pixels of the image, and 1 if the sample "
        'is on the feature maps.</p><pre id="points"></pre></details>',
    ]


def _data(stack: Stack, points: Mapping[str, tuple[float, float]]) -> str:
    layers: list[dict[str, Any]] = []
    for layer in stack.layers:
        groups, rows, columns, _axes, height, width = layer.offset.shape
        offset = layer.offset.clamp(-LARGEST_OFFSET, LARGEST_OFFSET).numpy().astype("<f2")
        layers.append(
            {
                "shape": [groups, rows, columns, height, width],
                "input": layer.input_size,
                "inputStride": layer.input_stride,
                "stride": layer.stride,
                "padding": layer.padding,
                "dilation": layer.dilation,
                "border": layer.border,
                "offset": base64.b64encode(offset.tobytes()).decode(),
            }
        )
    content = {
        "layers": layers,
        "scale": stack.scale,
        "size": stack.size,
        "start": next(iter(points.values()), (stack.size[1] / 2, stack.size[0] / 2)),
        "colors": [_color(group) for group in range(len(GROUP_COLORS))],
        "unitColor": _hex(UNIT_COLOR),
    }
    return json.dumps(content)


def _color(group: int) -> str:
    return _hex(GROUP_COLORS[group % len(GROUP_COLORS)])


def _hex(color: tuple[int, int, int]) -> str:
    return "#" + "".join(f"{part:02x}" for part in color)
