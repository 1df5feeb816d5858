"""Workers share the annotation index: COCO's size costs no more memory than a handful of images."""

import os
import re
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest

from dcn_det.data.dataset import DetectionDataset
from dcn_det.data.index import DatasetIndex, build_index
from dcn_det.data.loader import Loader
from dcn_det.data.records import Records
from dcn_det.data.sampler import TrainSampler
from dcn_det.structures import Category

WORKERS = 8
COCO_IMAGES, COCO_BOXES = 118_287, 860_001


def index_of(folder: Path, images: int, boxes: int) -> DatasetIndex:
    """An index of that size, all of whose entries are the same small file."""
    rng = np.random.default_rng(0)
    corners = np.sort(rng.uniform(0, 16, (boxes, 2, 2)), axis=1).reshape(boxes, 4) + [0, 0, 1, 1]
    records = Records(
        source=folder / "x.json",
        categories=tuple(Category(i, str(i)) for i in range(80)),
        image_ids=np.arange(images),
        names=["a.png"] * images,
        sizes=np.full((images, 2), 16),
        owners=rng.integers(0, images, boxes),
        boxes=corners,
        labels=rng.integers(0, 80, boxes),
        crowd=np.zeros(boxes, dtype=np.bool_),
    )
    return build_index(records, folder)


def private_mib(index: DatasetIndex) -> float:
    """Memory that belongs to the workers alone after each has loaded some hundred images from all over the index."""
    dataset = DetectionDataset(index, 16, 16, with_targets=True)
    sampler = TrainSampler(index.image_ids, index.landscape, 64, seed=0)
    before = set(children())
    stream = iter(Loader(dataset, sampler, WORKERS))
    for _ in islice(stream, 6 * WORKERS):
        pass
    workers = set(children()) - before
    assert len(workers) == WORKERS
    total = 0
    for pid in workers:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        total += sum(int(number) for number in re.findall(r"^Private_\w+: +(\d+) kB", text, re.MULTILINE))
    del stream
    return total / 1024


def children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="the kernel does not tell private memory")
def test_eight_workers_add_little_memory_to_an_index_of_cocos_size(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((16, 16, 3), np.uint8))
    few = private_mib(index_of(tmp_path, 1000, 7000))
    many = private_mib(index_of(tmp_path, COCO_IMAGES, COCO_BOXES))
    print(f"{WORKERS} workers: {few:.0f} MiB of their own with 1,000 images, {many:.0f} MiB with {COCO_IMAGES}")
    assert many - few < 150


def test_an_index_reads_the_memory_that_its_tensors_have_now(tmp_path: Path) -> None:
    """A tensor moves to shared memory when a loader process receives it, and its former memory is freed."""
    assert cv2.imwrite(str(tmp_path / "a.png"), np.zeros((16, 16, 3), np.uint8))
    index = index_of(tmp_path, 4, 8)
    assert (index.image_id(0), index.size(0), index.file_name(0)) == (0, (16, 16), "a.png")
    boxes, _ = index.objects(0)
    assert boxes.any()
    for tensor in (index.image_ids, index.sizes, index.boxes, index.name_bytes, index.name_offsets, index.offsets):
        before = tensor.data_ptr()
        tensor.share_memory_()
        assert tensor.data_ptr() != before
    index.image_ids.add_(100)
    index.sizes.fill_(7)
    index.boxes.zero_()
    index.name_bytes[0] = ord("b")
    assert (index.image_id(0), index.size(0), index.file_name(0)) == (100, (7, 7), "b.png")
    boxes, _ = index.objects(0)
    assert len(boxes) and not boxes.any()
