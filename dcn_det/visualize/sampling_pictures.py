"""Pictures of sampling locations, lengths of offsets and moved bins, drawn with OpenCV. All are uint8 (H, W, 3) RGB."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from dcn_det.images import Image, sheet
from dcn_det.visualize.parts import Parts
from dcn_det.visualize.sampling import Samples, Stack

SIDE = 640
"""Longer side of a panel, in pixels."""
GROUP_COLORS = ((255, 40, 40), (255, 190, 0), (60, 200, 255), (235, 90, 255))
"""Of the samples, by offset group; further groups start again."""
UNIT_COLOR = (40, 235, 60)
BOX_COLOR = (255, 225, 0)
CAPTION = 30
"""Height of a caption, in pixels."""
_SHIFT = 4
"""Fractional bits of OpenCV's coordinates."""


def sampling_picture(image: Image, stack: Stack, points: Mapping[str, tuple[float, float]], side: int = SIDE) -> Image:
    """Draws, for each point, the sampling locations of the unit nearest to it.

    Args:
        image: the original image.
        stack: its offsets.
        points: x and y in pixels of the image, by caption; at least one.
        side: longer side of the picture of one point, in pixels.
    """
    panels = []
    for name, (x, y) in points.items():
        panel, factor = _panel(image, side)
        samples = stack.samples(x, y)
        _draw_samples(panel, samples, factor)
        count = int(samples.reads.sum())
        panels.append(_captioned(panel, f"{name} at {x:.0f},{y:.0f}: {count} samples"))
    return sheet(panels, columns=min(3, len(panels)))


def _draw_samples(panel: Image, samples: Samples, factor: float) -> None:
    radius = max(2.0, max(panel.shape[:2]) / 220)
    for group, (points, reads) in enumerate(zip(samples.points, samples.reads)):
        for x, y in points[reads].tolist():
            _dot(panel, x * factor, y * factor, radius, GROUP_COLORS[group % len(GROUP_COLORS)])
    x, y = samples.unit
    _dot(panel, x * factor, y * factor, 1.8 * radius, UNIT_COLOR)


def length_picture(image: Image, stack: Stack) -> Image:
    """Draws the mean length of the offsets of each layer as a heat map over the image; brighter is longer."""
    panels = []
    for layer in stack.layers:
        panel, factor = _panel(image)
        lengths = _on_panel(
            stack.lengths(layer).numpy(), panel, [each / layer.output_stride for each in stack.scale], factor
        )
        shades = (255 * lengths / max(float(lengths.max()), 1e-6)).astype(np.uint8)
        colors = cv2.cvtColor(cv2.applyColorMap(shades, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
        blended = np.asarray(cv2.addWeighted(panel, 0.35, colors, 0.65, 0), np.uint8)
        caption = f"{short_name(layer.name)}: {lengths.min():.1f} to {lengths.max():.1f} px, mean {lengths.mean():.1f}"
        panels.append(_captioned(blended, caption))
    return sheet(panels, columns=min(3, len(panels)))


def short_name(name: str) -> str:
    """Returns the name of a layer without the part that all layers of a backbone share."""
    return name.removeprefix("backbone.")


def _on_panel(cells: np.ndarray, panel: Image, per_pixel: Sequence[float], factor: float) -> np.ndarray:
    """Interpolates a map at the pixels of a panel; ``per_pixel``: its cells per pixel of the image, along x and y."""
    x, y = (each / factor for each in per_pixel)
    # From the pixel of the panel to the cell: both have their index at their middle.
    matrix = np.array([[x, 0, x / 2 - 0.5], [0, y, y / 2 - 0.5]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    size = (panel.shape[1], panel.shape[0])
    return np.asarray(cv2.warpAffine(cells, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE))


def parts_picture(image: Image, parts: Sequence[Parts], names: Sequence[str]) -> Image:
    """Draws the box and the moved bins of each detection, on the part of the image around it.

    Args:
        image: the original image.
        parts: at least one.
        names: class names by label.
    """
    panels = []
    for each in parts:
        corners = np.concatenate((each.bins.reshape(-1, 4).numpy(), each.box.numpy()[None]))
        low, high = corners[:, :2].min(axis=0), corners[:, 2:].max(axis=0)
        margin = 0.1 * (high - low).max()
        left, top = np.maximum(np.floor(low - margin), 0).astype(int)
        right, bottom = np.minimum(np.ceil(high + margin).astype(int), image.shape[1::-1])
        panel, factor = _panel(image[top:bottom, left:right], SIDE // 2)
        for box in each.bins.reshape(-1, 4).tolist():
            _rectangle(panel, box, (left, top), factor, GROUP_COLORS[0], 1)
        _rectangle(panel, each.box.tolist(), (left, top), factor, BOX_COLOR, 2)
        panels.append(_captioned(panel, f"{names[each.label]}: {each.score:.2f}"))
    return sheet(panels, columns=min(4, len(panels)))


def _panel(image: Image, side: int = SIDE) -> tuple[Image, float]:
    """Returns a resized copy of an image, and the pixels of it per pixel of the image."""
    factor = side / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, size, interpolation=how), np.uint8), factor


def _dot(panel: Image, x: float, y: float, radius: float, color: tuple[int, int, int]) -> None:
    """Draws a disk with a dark rim around a point, in continuous coordinates: pixel 0 reaches from 0 to 1."""
    if not (0 <= x < panel.shape[1] and 0 <= y < panel.shape[0]):
        return
    center = (round((x - 0.5) * 2**_SHIFT), round((y - 0.5) * 2**_SHIFT))
    for size, paint in ((radius + 0.8, (30, 0, 0)), (radius, color)):
        cv2.circle(panel, center, round(size * 2**_SHIFT), paint, -1, cv2.LINE_AA, _SHIFT)


def _rectangle(
    panel: Image, box: Sequence[float], origin: tuple[int, int], factor: float, color: tuple[int, int, int], thick: int
) -> None:
    x1, y1, x2, y2 = ((side - origin[axis % 2]) * factor for axis, side in enumerate(box))
    x1, y1, x2, y2 = (round((side - 0.5) * 2**_SHIFT) for side in (x1, y1, x2, y2))
    cv2.rectangle(panel, (x1, y1), (x2, y2), color, thick, cv2.LINE_AA, _SHIFT)


def _captioned(panel: Image, text: str) -> Image:
    """Adds a line of text below a panel, smaller if it would be too long."""
    width = panel.shape[1]
    strip = np.full((CAPTION, width, 3), 255, np.uint8)
    size = 0.6
    (length, _height), _base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, 1)
    size *= min(1.0, (width - 8) / length)
    cv2.putText(strip, text, (4, CAPTION - 10), cv2.FONT_HERSHEY_SIMPLEX, size, (28, 35, 33), 1, cv2.LINE_AA)
    return np.concatenate((panel, strip))
