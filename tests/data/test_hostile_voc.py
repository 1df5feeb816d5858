"""Mutated Pascal VOC sets: a result or one line, and ``check-dataset`` lists what others refuse."""

import random
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest

from dcn_det.config import Config
from dcn_det.data.build import build_dataset
from dcn_det.data.formats import open_split
from dcn_det.evaluation.truth import Truth
from tests.data.hostile import VALUES
from tests.data.test_hostile_coco import is_listed, refusal

XML = (
    "<annotation><filename>{name}.jpg</filename><size><width>32</width><height>24</height><depth/></size>"
    "<object><name>cat</name><difficult>0</difficult><bndbox><xmin>2</xmin><ymin>3.5</ymin><xmax>20</xmax>"
    "<ymax>22</ymax></bndbox></object><object><name>dog</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>32</xmax>"
    "<ymax>24</ymax></bndbox></object></annotation>"
)
NAMES = ("Blood Image_00001", "b.2", "scan-3")
CASES = 300


def write(root: Path, name: str, content: bytes | None = None, suffix: str = ".jpg") -> None:
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / "VOC" / folder).mkdir(parents=True, exist_ok=True)
    (root / "VOC/Annotations" / f"{name}.xml").write_bytes(content or XML.format(name=name).encode())
    cv2.imwrite(str(root / "VOC/JPEGImages" / f"{name}{suffix}"), np.full((24, 32, 3), 99, np.uint8))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, suffix in zip(NAMES, (".jpg", ".PNG", ".jpeg")):
        write(tmp_path, name, suffix=suffix)
    (tmp_path / "VOC/ImageSets/Main/all.txt").write_text("\n".join(NAMES))
    return tmp_path


def config(root: Path) -> Config:
    sets = {"sets": ["VOC/ImageSets/Main/all.txt"]}
    data = {"kind": "voc", "root": str(root), "classes": ["cat", "dog"], "train": sets, "test": sets}
    return Config.model_validate({"data": data, "train": {"best_metric": "mAP50"}})


def text(value: object) -> str:
    try:
        return str(value)
    except ValueError:  # too many digits
        return "1" + 400 * "0"


def mutated(content: bytes, rng: random.Random) -> bytes:
    kind = rng.randrange(5)
    at = rng.randrange(len(content))
    if kind == 0:
        return content[:at]
    if kind == 1:
        return content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]
    if kind == 2:
        start = content.index(b">", at) if b">" in content[at:] else 0
        return content[: start + 1] + text(rng.choice(VALUES)).encode("utf-8", "replace") + content[start + 1 :]
    if kind == 3:
        other = rng.randrange(len(content))
        return content[: min(at, other)] + content[max(at, other) :]
    return content.replace(
        *rng.choice(((b"32", b"0"), (b"24", b"1e30"), (b"20", b"nan"), (b"cat", b""), (b"22", b"1")))
    )


def test_a_mutated_set_is_read_or_refused_in_one_line(root: Path) -> None:
    refused = 0
    for seed in range(CASES):
        rng = random.Random(seed)
        path = root / "VOC/Annotations" / f"{rng.choice(NAMES)}.xml"
        before = path.read_bytes()
        path.write_bytes(mutated(before, rng))
        data = config(root).data
        found = [
            refusal(partial(build_dataset, data, "train")),
            refusal(partial(build_dataset, data, "test")),
            refusal(lambda: Truth.of_config(config(root))),
        ]
        assert is_listed(open_split(data, "train")) or not any(found), f"seed {seed}: {found}"
        refused += any(found)
        path.write_bytes(before)
    assert 0.2 * CASES < refused < 0.95 * CASES


@pytest.mark.parametrize(
    "line", ["{}", "{}.jpg", "JPEGImages/{}.jpg", "  {}  ", "/somewhere/else/JPEGImages/{}.png", "C:\\set\\{}.jpg"]
)
def test_sets_name_images_in_many_ways(root: Path, line: str) -> None:
    (root / "VOC/ImageSets/Main/all.txt").write_text("\n".join(line.format(name) for name in NAMES) + "\n")
    index = build_dataset(config(root).data, "train").index
    assert sorted(Path(index.file_name(i)).name for i in range(3)) == [
        "Blood Image_00001.jpg",
        "b.2.PNG",
        "scan-3.jpeg",
    ]
    assert len(set(index.image_ids.tolist())) == 3 and int(index.image_ids.max()) < 2**53
    assert len(index.boxes) == 6


def test_a_repeated_name_counts_once(root: Path) -> None:
    (root / "VOC/ImageSets/Main/all.txt").write_text("\n".join([*NAMES, NAMES[0]]))
    index = build_dataset(config(root).data, "train").index
    assert len(index) == 3 and f"counted once: {NAMES[0]}" in index.report


def test_ids_do_not_depend_on_the_rest_of_the_set(root: Path) -> None:
    whole = build_dataset(config(root).data, "train").index
    by_name = {whole.file_name(i): whole.image_id(i) for i in range(3)}
    (root / "VOC/ImageSets/Main/all.txt").write_text(NAMES[2])
    part = build_dataset(config(root).data, "train").index
    assert part.image_id(0) == by_name[part.file_name(0)]


@pytest.mark.parametrize("encoding", ["gb2312", "gbk", "utf-16", "iso-8859-1", "utf-8-sig"])
def test_annotations_in_other_encodings_are_read(root: Path, encoding: str) -> None:
    name = "b.2"
    declared = "utf-8" if encoding == "utf-8-sig" else encoding
    text = f'<?xml version="1.0" encoding="{declared}"?>' + XML.format(name="\u00e9" if "iso" in encoding else "\u56fe")
    write(root, name, text.encode(encoding), suffix=".PNG")
    assert len(build_dataset(config(root).data, "train").index.boxes) == 6


def test_a_size_of_zero_is_that_of_the_image(root: Path) -> None:
    write(root, "scan-3", XML.format(name="x").replace(">32<", ">0<").replace(">24<", ">0<").encode(), suffix=".jpeg")
    index = build_dataset(config(root).data, "train").index
    assert {index.size(i) for i in range(3)} == {(24, 32)}


def test_objects_of_other_classes_are_left_out_and_a_misspelt_class_is_refused(root: Path) -> None:
    data = config(root).data
    index = build_dataset(data.model_copy(update={"classes": ("dog",)}), "train").index
    assert len(index.boxes) == 3 and "of other classes, left out: 'cat' 3" in index.report
    message = refusal(lambda: build_dataset(data.model_copy(update={"classes": ("dog", "catt")}), "train"))
    assert message is not None and "did you mean 'cat'" in message
