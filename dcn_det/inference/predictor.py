"""Detection in images with a trained detector."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, Protocol, overload

import numpy as np
import torch
from torch import Tensor, nn

from dcn_det.data.dataset import collate
from dcn_det.data.transforms import flip_image, resize_short_side
from dcn_det.images import Image
from dcn_det.inference.box_average import BoxAverage, iterate
from dcn_det.inference.sources import apply
from dcn_det.models.detector import TwoStageDetector
from dcn_det.models.folded import Folding
from dcn_det.models.postprocess import PostProcess
from dcn_det.precision import autocast
from dcn_det.structures import Batch, Category, Detections, ImageInfo

if TYPE_CHECKING:
    import PIL.Image

BoxCorners = Literal["half_open", "inclusive"]


def to_original(detections: Detections, info: ImageInfo, box_corners: BoxCorners = "half_open") -> Detections:
    """Maps detections from the network's input back to the original image.

    Args:
        detections: boxes in input pixels, half-open.
        info: the image of the detections; a mirrored input is mirrored back.
        box_corners: corners that are divided by the scale. ``half_open``: a box becomes ``(x2 - x1) / scale`` wide.
            ``inclusive``: the last pixel of the box, ``x2 - 1``, is divided, as in the authors' released code, so a
            box becomes ``1 - 1 / scale`` wider, also where it touches the right or bottom of the image.

    Returns:
        The same detections, half-open, in original pixels, clipped to the image, on the CPU.
    """
    boxes = detections.boxes.detach().to("cpu", torch.float32)
    if info.flipped:
        boxes = torch.stack(
            (info.input_width - boxes[:, 2], boxes[:, 1], info.input_width - boxes[:, 0], boxes[:, 3]), dim=1
        )
    scale_x, scale_y = info.scale
    scales = boxes.new_tensor((scale_x, scale_y, scale_x, scale_y))
    limit = boxes.new_tensor((info.width, info.height, info.width, info.height))
    if box_corners == "inclusive":
        last = boxes.new_tensor((0, 0, 1, 1))
        boxes, limit = (boxes - last) / scales + last, limit + last * (1 - 1 / scales)
        # Boxes that are narrower than a pixel of a shrunk input would turn inside out.
        boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2])
    else:
        boxes = boxes / scales
    boxes = torch.minimum(boxes.clamp(min=0), limit)
    return Detections(boxes, detections.scores.detach().cpu().float(), detections.labels.detach().cpu())


class Detector(Protocol):
    """Interface that a :class:`Predictor` requires of a detector: a module with :meth:`candidates`."""

    training: bool

    def train(self, mode: bool = True) -> Any: ...

    def candidates(self, batch: Batch) -> list[Detections]: ...


@dataclass(frozen=True, slots=True)
class View:
    """Size and orientation of an image in the detector's input.

    Attributes:
        short_side, max_side: resizing rule, see :func:`dcn_det.data.transforms.resized_size`; pixels.
        flipped: mirrored left to right.
    """

    short_side: int
    max_side: int
    flipped: bool = False


class Predictor:
    """Runs a detector on images, in one or more views of each.

    The whole detector runs on every view; candidates are mapped back to the original image, concatenated in the order
    of the views, and post-processed once, as in multi-scale testing of the authors' released code.

    Args:
        model: the detector.
        categories: categories by label.
        views: at least one.
        device: device of the model.
        postprocess: turns candidates in original pixels into detections.
        box_average: iterative box averaging; requires a two-stage detector.
        precision: dtype of autocast; float32 disables it.
        box_corners: how boxes are mapped back to the original image, see :func:`to_original`.
        fold: whether to run the detector in its folded form, see :mod:`dcn_det.models.folded`: faster, with results
            that differ by rounding.
    """

    def __init__(
        self,
        model: Detector,
        categories: tuple[Category, ...],
        views: Sequence[View],
        device: torch.device,
        postprocess: PostProcess | None = None,
        box_average: BoxAverage | None = None,
        precision: torch.dtype = torch.float32,
        box_corners: BoxCorners = "half_open",
        fold: bool = False,
    ) -> None:
        assert views
        self.model = model
        self.categories = categories
        self.views = tuple(views)
        self.device = device
        self.postprocess = postprocess or PostProcess()
        self.box_average = box_average
        self.precision = precision
        self.box_corners: BoxCorners = box_corners
        self._folding = Folding(model, precision) if fold and isinstance(model, nn.Module) else None

    @property
    def names(self) -> list[str]:
        return [category.name for category in self.categories]

    @overload
    def __call__(
        self, images: list[Any] | tuple[Any, ...], *, recursive: bool = False, every: int = 1
    ) -> list[Detections]: ...

    @overload
    def __call__(self, images: np.ndarray | Tensor | PIL.Image.Image) -> Detections: ...

    @overload
    def __call__(self, images: str | PathLike[str] | int, *, recursive: bool = False, every: int = 1) -> Any: ...

    def __call__(self, images: Any, *, recursive: bool = False, every: int = 1) -> Any:
        """Detects objects in an image, or in each of many images.

        Args:
            images: a PIL image, a uint8 RGB array (H, W, 3), a uint8 RGB tensor (3, H, W), or a file or address of an
                image, which is turned upright; a folder, a pattern, a list in a text file, a video, or the number of a
                camera, see :func:`dcn_det.inference.sources.find_sources`; or a list of these.
            recursive: whether images in subfolders of a folder are included.
            every: use every so many frames of a video or camera.

        Returns:
            Detections in the image's pixels, best score first, on the CPU: those of a single image; an iterator over
            those of the frames for a video or a camera; otherwise a list.

        Raises:
            UserError: an image does not exist or cannot be read.
        """
        return apply(self._detect, images, recursive, every)

    def _detect(self, image: Image) -> Detections:
        return self.predict([batch_of(image, view) for view in self.views])[0]

    def predict(self, batches: Sequence[Batch]) -> list[Detections]:
        """Detects objects in a batch of images.

        Args:
            batches: the same images in each of ``views``, in the order of the views.

        Returns:
            One result per image, in original pixels, best score first, on the CPU.
        """
        assert len(batches) == len(self.views)
        found = [self.candidates(batch) for batch in batches]
        kept = [self.postprocess(Detections.join(views)) for views in zip(*found)]
        return [Detections(each.boxes, each.scores, each.labels, self.categories) for each in kept]

    def candidates(self, batch: Batch) -> list[Detections]:
        """Finds the scored boxes of a batch of images before suppression, in original pixels, on the CPU."""
        training = self.model.training
        if training:  # visiting all modules of a deep network takes milliseconds
            self.model.train(False)
        model: Any = self.model if self._folding is None else self._folding.current()
        try:
            with torch.inference_mode(), autocast(self.device, self.precision):
                batch = batch.to(self.device, non_blocking=True)
                if self.box_average is None:
                    found = model.candidates(batch)
                else:
                    assert isinstance(model, TwoStageDetector)
                    found = iterate(model, batch, self.box_average)
        finally:
            if training:
                self.model.train()
        return [to_original(candidates, info, self.box_corners) for candidates, info in zip(found, batch.infos)]

    def stream(self, batches: Iterable[Batch]) -> Iterator[tuple[ImageInfo, Detections]]:
        """Yields the detections of every image; ``batches`` contains each batch of images once per view, in order."""
        upcoming = iter(batches)
        while shown := list(islice(upcoming, len(self.views))):
            yield from zip(shown[0].infos, self.predict(shown))


def batch_of(image: Image, view: View) -> Batch:
    """Returns a batch of one image, resized and mirrored; the image does not change."""
    resized = resize_short_side(image, view.short_side, view.max_side)
    info = ImageInfo(0, "", image.shape[0], image.shape[1], resized.shape[0], resized.shape[1], flipped=view.flipped)
    if view.flipped:
        # In place, so not on the caller's image, which an image of the right size still is.
        resized = flip_image(resized.copy() if resized is image else resized)
    pixels: Tensor = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
    return collate([(pixels, info, None)])
