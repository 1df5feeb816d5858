"""A detector ready for use: images in, detections in original pixels out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dcn_det.config import Config, from_plain
from dcn_det.data.loader import collate
from dcn_det.data.transforms import resize_short_side
from dcn_det.errors import UserError
from dcn_det.models.build import build_detector
from dcn_det.structures import Batch, Category, Detections, ImageInfo
from dcn_det.weights import checkpoint


def to_original(detections: Detections, info: ImageInfo) -> Detections:
    """Maps detections from the network's input back to the original image.

    Args:
        detections: boxes in input pixels, half-open.
        info: the image they were found in; a mirrored input is mirrored back.

    Returns:
        The same detections in original pixels, clipped to the image, on the CPU.
    """
    boxes = detections.boxes.detach().to("cpu", torch.float32)
    if info.flipped:
        boxes = torch.stack(
            (info.input_width - boxes[:, 2], boxes[:, 1], info.input_width - boxes[:, 0], boxes[:, 3]), dim=1
        )
    scale_x, scale_y = info.scale
    boxes = boxes / boxes.new_tensor((scale_x, scale_y, scale_x, scale_y))
    limit = boxes.new_tensor((info.width, info.height, info.width, info.height))
    boxes = torch.minimum(boxes.clamp(min=0), limit)
    return Detections(boxes, detections.scores.detach().cpu().float(), detections.labels.detach().cpu())


class Predictor:
    """Runs a detector on images.

    Args:
        model: a detector; called with a Batch in evaluation mode it returns detections in input pixels.
        categories: names of the labels.
        short_side, max_side: resizing rule of the input, pixels.
        device: where the model is.
        precision: dtype of autocast, float32 for none.
    """

    def __init__(
        self,
        model: nn.Module,
        categories: tuple[Category, ...],
        short_side: int,
        max_side: int,
        device: torch.device,
        precision: torch.dtype = torch.float32,
    ) -> None:
        self.model = model
        self.categories = categories
        self.short_side = short_side
        self.max_side = max_side
        self.device = device
        self.precision = precision

    @classmethod
    def from_checkpoint(cls, path: str | Path, device: str = "auto") -> Predictor:
        """Rebuilds the detector from a checkpoint alone: it carries its config and its class names.

        Args:
            path: written by ``tools/train.py``.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

        Raises:
            UserError: the file is missing, damaged or not a checkpoint.
        """
        state = checkpoint.load(Path(path))
        config: Config = from_plain(state["config"])
        categories = checkpoint.categories_from_plain(state["categories"])
        where = resolve_device(device)
        model = build_detector(config.model, len(categories), config.test, load_backbone_weights=False)
        checkpoint.load_weights(model, state["model"], Path(path))
        resize = config.test.resize or config.data.resize
        return cls(model.to(where).eval(), categories, resize.short_side, resize.max_side, where)

    @property
    def names(self) -> list[str]:
        return [category.name for category in self.categories]

    def __call__(self, image: np.ndarray) -> Detections:
        """Detects objects in one image.

        Args:
            image: uint8 (H, W, 3) RGB.

        Returns:
            Detections in the image's pixels, best score first, on the CPU.
        """
        resized = resize_short_side(image, self.short_side, self.max_side)
        info = ImageInfo(0, "", image.shape[0], image.shape[1], resized.shape[0], resized.shape[1])
        pixels: Tensor = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        return self.predict(collate([(pixels, info, None)]))[0]

    def predict(self, batch: Batch) -> list[Detections]:
        """Detects objects in a batch; one result per image, in original pixels, on the CPU."""
        training = self.model.training
        self.model.eval()
        mixed = self.precision != torch.float32
        try:
            with (
                torch.inference_mode(),
                torch.autocast(self.device.type, dtype=self.precision if mixed else None, enabled=mixed),
            ):
                found = self.model(batch.to(self.device, non_blocking=True))
        finally:
            self.model.train(training)
        return [to_original(detections, info) for detections, info in zip(found, batch.infos)]

    def stream(self, batches: Iterable[Batch]) -> Iterator[tuple[ImageInfo, Detections]]:
        """Detects objects in every image of ``batches``, in their order."""
        for batch in batches:
            yield from zip(batch.infos, self.predict(batch))


def resolve_device(name: str) -> torch.device:
    """Turns ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` into a device.

    Raises:
        UserError: the name is none of these, or CUDA is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device '{name}' is unknown; allowed: auto, cpu, cuda, cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device '{name}' is not there: torch sees {torch.cuda.device_count()} CUDA device(s)")
    return device
