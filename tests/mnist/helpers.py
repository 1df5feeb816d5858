"""Drawn digits in MNIST's files, and schedules of two steps."""

import gzip
import struct
from dataclasses import replace
from pathlib import Path

import torch

from dcn_det.mnist.data import Digits
from dcn_det.mnist.runs import SCHEDULES

SCHEDULES_OF_TWO_STEPS = {name: replace(each, images=8, batch_size=4) for name, each in SCHEDULES.items()}


def drawn(number: int, seed: int = 0) -> Digits:
    """One pattern of blocks for each class, with noise."""
    patterns = torch.randint(0, 2, (10, 1, 5, 5), generator=torch.Generator().manual_seed(9)) * 150
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(number) % 10
    images = torch.randint(0, 100, (number, 1, 28, 28), generator=generator)
    images[:, :, 4:24, 4:24] += patterns[labels].repeat_interleave(4, 2).repeat_interleave(4, 3)
    return Digits(images.to(torch.uint8), labels)


def write_files(folder: Path, zipped: bool = True, number: int = 40) -> Path:
    """Writes the four files, with drawn digits."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, digits in (("train", drawn(number)), ("t10k", drawn(20, seed=1))):
        images = struct.pack(">IIII", 2051, len(digits), 28, 28) + digits.images.numpy().tobytes()
        labels = struct.pack(">II", 2049, len(digits)) + digits.labels.to(torch.uint8).numpy().tobytes()
        for kind, content in (("images-idx3", images), ("labels-idx1", labels)):
            path = folder / f"{name}-{kind}-ubyte{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(content) if zipped else content)
    return folder
