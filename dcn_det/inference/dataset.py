"""Detections of a whole data set, kept on disk as they come in: a kill costs no more than the batch at hand."""

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
from dcn_det.data.sampler import EvalSampler
from dcn_det.distributed import Processes
from dcn_det.errors import UserError
from dcn_det.evaluation.results import Result
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
    """Detections of every image as COCO results, in the order of the images.

    Each process writes a line for every finished image into a file of its own in ``folder``; a later call with the
    same weights, settings and images goes on from there, with any number of processes. As an image is always in the
    same batch, neither that number nor interruptions change the results.

    Args:
        predictor: finds them.
        dataset: the images.
        data: how they are loaded.
        batch_size: images per batch.
        folder: exists; shared by all processes, or else of each of them and empty.
        say: called with a progress line now and then, and at the end.
        processes: which share of the images is this process's; all of them unless given.

    Returns:
        All detections in the main process; an empty list in the others.

    Raises:
        UserError: an image cannot be used.
    """
    processes = processes or Processes()
    parts = _Parts(folder, _fingerprint(predictor, dataset, batch_size))
    image_ids = dataset.index.image_ids.tolist()
    before = parts.finished().keys()
    if before and processes.main:
        say(f"going on: {len(before)} of {len(image_ids)} images are done in '{folder}'")
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
    found = parts.finished()
    for share in shares:
        found |= share
    missing = [image_id for image_id in image_ids if image_id not in found]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(image_ids)} images have no results in '{folder}', the first is {missing[0]}; "
            "do all processes see the same folder? run again to go on"
        )
    parts.remove()
    return [entry for image_id in image_ids for entry in found[image_id]]


class _Parts:
    """The files of finished images: one for each process, a line of JSON for each image.

    Args:
        folder: where they are.
        fingerprint: tells what the results depend on; files of another one are left aside.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder = folder
        self.fingerprint = fingerprint

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob(f"part-{self.fingerprint}-*.jsonl"))

    def finished(self) -> dict[int, list[Result]]:
        """The results by image id; a line that a kill cut off counts as absent."""
        found: dict[int, list[Result]] = {}
        for path in self._files():
            for line in path.read_bytes().split(b"\n")[:-1]:
                record = json.loads(line)
                found.setdefault(record["image_id"], record["results"])
        return found

    @contextlib.contextmanager
    def writer(self, processes: Processes) -> Iterator[Callable[[int, list[Result]], None]]:
        """Gives a function that appends an image, each in one piece."""
        path = self.folder / f"part-{self.fingerprint}-{processes.rank}-of-{processes.world_size}.jsonl"
        with path.open("ab") as file:
            file.truncate(_whole_lines(path))

            def write(image_id: int, results: list[Result]) -> None:
                record = json.dumps({"image_id": image_id, "results": results}, allow_nan=False)
                file.write(record.encode() + b"\n")
                file.flush()

            yield write

    def remove(self) -> None:
        """Deletes the files, those of other settings too: their results are no longer wanted here."""
        for path in self.folder.glob("part-*.jsonl"):
            path.unlink()


def _whole_lines(path: Path) -> int:
    """Length of a file up to the end of its last whole line, bytes."""
    return path.read_bytes().rfind(b"\n") + 1


def _fingerprint(predictor: Predictor, dataset: DetectionDataset, batch_size: int) -> str:
    """A short hash of what the results depend on."""
    digest = hashlib.sha256()
    settings: list[Any] = [predictor.views, predictor.postprocess, predictor.box_average, predictor.categories]
    settings += [predictor.precision, predictor.device.type, batch_size, dataset.index.image_ids.tolist()]
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
