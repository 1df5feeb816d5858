"""A data set laid out like FOD-A, small enough to be checked by looking."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

OBJECT = (
    "<object><name>{}</name><difficult>0</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>"
    "<ymax>{}</ymax></bndbox></object>"
)
SETS = {
    "trainval": ("000001", "000002", "000003", "000002", "000004"),
    "test": ("000005", "000003", "000006", "000001", "000005"),
}
"""One image twice in each split, two images in both."""
CLASSES = ("Bolt", "Wire")


def make_fod(
    folder: Path, sets: Mapping[str, Sequence[str]] = SETS, side: int = 60, names: Mapping[str, str] | None = None
) -> Path:
    """Writes images of one bright bar, with fractional coordinates and an empty ``depth``.

    Args:
        folder: folder to write to.
        sets: lines of the image sets.
        side: of the images, in pixels.
        names: names of files by line; other lines are names themselves.
    """
    for inner in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / inner).mkdir(parents=True, exist_ok=True)
    for each, lines in sets.items():
        (folder / "ImageSets" / "Main" / f"{each}.txt").write_text("".join(f"{line}\n" for line in lines))
    for number, line in enumerate(sorted({line for lines in sets.values() for line in lines})):
        name = (names or {}).get(line, line)
        image = np.full((side, side, 3), 40, np.uint8)
        image[side // 4 : side // 2, side // 5 : 4 * side // 5] = (250, 60, 90)[number % 3]
        cv2.imwrite(str(folder / "JPEGImages" / f"{name}.jpg"), image)
        thing = OBJECT.format(CLASSES[number % 2], side / 5 + 0.3875, side / 4, 4 * side / 5, side / 2)
        size = f"<size><width>{side}</width><height>{side}</height><depth /></size>"
        (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{thing}</annotation>")
    return folder
