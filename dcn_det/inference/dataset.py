"""Detection over a data set. Results are stored after every batch, so that a kill loses at most the current one."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dcn_det.config.data import DataConfig
from dcn_det.data.build import build_eval_loader
from dcn_det.data.dataset import DetectionDataset
from dcn_det.data.rules import is_number
from dcn_det.data.sampler import EvalSampler
from dcn_det.distributed import Processes
from dcn_det.errors import UserError
from dcn_det.evaluation.results import Result, box_problem
from dcn_det.inference.predictor import Predictor
from dcn_det.progress import Progress, Say

T = TypeVar("T")

SPEAK_EVERY = 15.0
"""Seconds between progress lines."""


def detect_dataset(
    predictor: Predictor,
    dataset: DetectionDataset,
    data: DataConfig,
    batch_size: int,
    folder: Path,
    say: Say,
    processes: Processes | None = None,
) -> list[Result]:
    """Detects the objects of all images; returns COCO results in the order of the images.

    Each process appends one line per finished image to its own file in ``folder``; a later call with the same
    weights, settings and images continues from there, with any number of processes. An image is always in the same
    batch, so results depend neither on that number nor on interruptions.

    Args:
        predictor: the detector.
        dataset: the images.
        data: settings of loading.
        batch_size: images per batch.
        folder: existing folder, shared by all processes or separate and empty for each.
        say: receives progress lines.
        processes: determines the share of this process; by default it gets all images.

    Returns:
        All detections in the main process; an empty list in the others.

    Raises:
        UserError: an image cannot be read, or results of other processes are missing.
    """
    processes = processes or Processes()
    parts = _Parts(folder, _fingerprint(predictor, dataset, batch_size))
    image_ids = dataset.index.image_ids.tolist()
    before, damaged = parts.finished()
    if damaged and processes.main:
        say(f"warning: {damaged} lines of results in '{folder}' cannot be read; their images are detected again")
    if before and processes.main:
        say(f"continuing: {len(before)} of {len(image_ids)} images are finished in '{folder}'")
    batches = build_eval_loader(
        dataset,
        data,
        batch_size,
        processes.world_size,
        processes.rank,
        pin_memory=predictor.device.type == "cuda",
        views=[(view.flipped, (view.short_side, view.max_side)) for view in predictor.views],
        done={i for i, image_id in enumerate(image_ids) if image_id in before},
    )
    assert isinstance(batches.sampler, EvalSampler)
    total = sum(map(len, batches.sampler.batches))
    mine: dict[int, list[Result]] = {}
    with parts.writer(processes) as write:
        for info, detections in _with_progress(predictor.stream(batches), total, say):
            mine[info.image_id] = detections.to_coco(info.image_id)
            write(info.image_id, mine[info.image_id])
    shares = processes.collect(mine)
    if not processes.main:
        return []
    found, _ = parts.finished()
    for share in shares:
        found |= share
    missing = [image_id for image_id in image_ids if image_id not in found]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(image_ids)} images have no results in '{folder}' (first id: {missing[0]}); "
            "check that all processes use the same folder, and run again to continue"
        )
    parts.remove()
    return [entry for image_id in image_ids for entry in found[image_id]]


class _Parts:
    """Files of finished images: one file per process, one line of JSON per image.

    Args:
        folder: folder of the files.
        fingerprint: hash of everything the results depend on; files with another one are ignored.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder = folder
        self.fingerprint = fingerprint

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob(f"part-{self.fingerprint}-*.jsonl"))

    def finished(self) -> tuple[dict[int, list[Result]], int]:
        """Returns the results by image id, and the number of unreadable lines; an incomplete last one is ignored."""
        found: dict[int, list[Result]] = {}
        damaged = 0
        for path in self._files():
            for line in path.read_bytes().split(b"\n")[:-1]:
                record = _record(line)
                if record is None:
                    damaged += 1
                else:
                    found.setdefault(*record)
        return found, damaged

    @contextlib.contextmanager
    def writer(self, processes: Processes) -> Iterator[Callable[[int, list[Result]], None]]:
        """Yields a function that appends the results of an image as one line."""
        path = self.folder / f"part-{self.fingerprint}-{processes.rank}-of-{processes.world_size}.jsonl"
        with path.open("ab") as file:
            file.truncate(_whole_lines(path))

            def write(image_id: int, results: list[Result]) -> None:
                record = json.dumps({"image_id": image_id, "results": results}, allow_nan=False)
                try:
                    file.write(record.encode() + b"\n")
                    file.flush()
                except OSError as error:  # of a full disk, it does not name the file
                    raise OSError(error.errno, error.strerror, str(path)) from None

            yield write

    def remove(self) -> None:
        """Deletes the files, including those of other settings."""
        for path in self.folder.glob("part-*.jsonl"):
            path.unlink()


def _record(line: bytes) -> tuple[int, list[Result]] | None:
    """Returns image id and results of a line, or None if it is damaged."""
    try:
        record = json.loads(line)
        image_id, results = record["image_id"], record["results"]
        sound = type(image_id) is int and all(
            entry["image_id"] == image_id
            and type(entry["category_id"]) is int
            and is_number(entry["score"])
            and box_problem(entry["bbox"]) is None
            for entry in results
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return (image_id, results) if sound else None


def _whole_lines(path: Path) -> int:
    """Length of a file in bytes, up to the end of its last complete line."""
    return path.read_bytes().rfind(b"\n") + 1


def _fingerprint(predictor: Predictor, dataset: DetectionDataset, batch_size: int) -> str:
    """Returns a short hash of everything the results depend on."""
    digest = hashlib.sha256()
    settings: list[Any] = [predictor.views, predictor.postprocess, predictor.box_average, predictor.categories]
    settings += [predictor.box_corners, predictor.precision, predictor.device.type]
    settings += [batch_size, dataset.exif, dataset.index.image_ids.tolist()]
    digest.update(repr(settings).encode())
    assert isinstance(predictor.model, nn.Module)
    for name, tensor in predictor.model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()[:12]


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return flat.numpy().tobytes()


def _with_progress(items: Iterable[T], total: int, say: Say) -> Iterator[T]:
    progress = Progress("test image", say, SPEAK_EVERY)
    for done, item in enumerate(items, start=1):
        yield item
        progress(done, total)
