"""Samplers: the images of each batch are pure functions of seed, epoch and position.

There is no state, so training can start at any iteration without going through those before it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Sampler

_MASK = (1 << 64) - 1
# The purpose of a random number is part of its hash, so that numbers for different purposes are not correlated.
_ORDER, _BATCHES, _COIN, _IMAGE, _REPEAT = range(5)


class Draw(NamedTuple):
    """One image of a batch.

    Attributes:
        image: position in the index.
        flipped: whether it is mirrored.
        seed: seed of its random changes.
        resize: short side and maximum side in pixels; None uses those of the data set.
    """

    image: int
    flipped: bool
    seed: int
    resize: tuple[int, int] | None = None


def mix(*parts: int) -> int:
    """Hashes integers to 63 bits, independently of platform and release (splitmix64, Steele et al., 2014)."""
    state = 0
    for part in parts:
        state = (state + 0x9E3779B97F4A7C15 + (part & _MASK)) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


def permutation(length: int, *seed: int) -> NDArray[np.int64]:
    """Returns a permutation of ``range(length)`` that, unlike those of NumPy, is the same in every release.

    Args:
        length: number of elements.
        seed: integers that determine the order.

    Returns:
        int64 (length,).
    """
    state = np.arange(1, length + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(mix(*seed))
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(state ^ (state >> np.uint64(31)), kind="stable")


def epoch_batches(
    landscape: NDArray[np.bool_], batch: int, aspect_grouping: bool, seed: int, epoch: int
) -> NDArray[np.int64]:
    """Returns the batches of one epoch.

    Entries are shuffled, and the last ``E % batch`` are left out, which are others in every epoch; the authors'
    released loader also drops the incomplete batch. Fewer entries than ``batch`` are repeated to fill one batch. With
    grouping, a batch has only landscape or only portrait images, except for at most one mixed batch, in which landscape
    images come first.

    Args:
        landscape: bool (E,), whether each entry is in landscape format.
        batch: entries per global batch.
        aspect_grouping: whether to group entries by landscape and portrait.
        seed, epoch: integers that determine the order.

    Returns:
        int64 (iterations, batch), entries from 0 to E - 1.
    """
    order = permutation(len(landscape), seed, epoch, _ORDER)
    if len(order) < batch:
        return np.resize(order, (1, batch))
    order = order[: len(order) // batch * batch]
    if aspect_grouping:
        groups = order[landscape[order]], order[~landscape[order]]
        whole = [group[: len(group) // batch * batch] for group in groups]
        rest = [group[len(kept) :] for group, kept in zip(groups, whole)]
        order = np.concatenate([*whole, *rest])
    batches = order.reshape(-1, batch)
    return batches[permutation(len(batches), seed, epoch, _BATCHES)]


def repeat_factors(offsets: NDArray[np.int64], labels: NDArray[np.int64], threshold: float) -> NDArray[np.float64]:
    """Returns repeat factors of images, which oversample rare classes (LVIS, Gupta et al., CVPR 2019, appendix).

    The factor of a class is ``max(1, sqrt(threshold / f))``, where f is the share of images with this class. The factor
    of an image is the largest of its classes, or 1 if it has no objects.

    Args:
        offsets: int64 (N + 1,); the objects of image ``i`` are ``offsets[i]`` to ``offsets[i + 1]``.
        labels: int64 (M,), without crowds.
        threshold: share of images below which a class is rare.

    Returns:
        float64 (N,), at least 1.
    """
    images = len(offsets) - 1
    factors = np.ones(images)
    if len(labels) == 0:
        return factors
    owners = np.repeat(np.arange(images), np.diff(offsets))
    pairs = np.unique(np.stack([owners, labels]), axis=1)
    share = np.bincount(pairs[1], minlength=labels.max() + 1) / images
    np.maximum.at(factors, pairs[0], np.sqrt(threshold / share[pairs[1]]))
    return factors


class TrainSampler(Sampler[list[Draw]]):
    """Sampler of endless training batches of this process, from any iteration on.

    Each process takes its part of the same global batches: images and order of a global batch do not depend on the
    number of processes or on ``accumulate``.

    Args:
        image_ids: int64 (N,).
        landscape: bool (N,), whether images are at least as wide as high.
        batch_size: images per batch.
        seed: seed of the run.
        flip: ``double`` lists every image twice per epoch, as it is and mirrored; ``random`` mirrors each image
            with probability 0.5; ``none`` never mirrors.
        aspect_grouping: see ``epoch_batches``.
        world_size, rank: number of processes and index of this one.
        start_iteration: number of optimizer steps already taken.
        accumulate: batches of this process per optimizer step, in sequence.
        repeats: float64 (N,), average number of times that an image is shown per epoch; None shows each once.
    """

    def __init__(
        self,
        image_ids: Tensor,
        landscape: Tensor,
        batch_size: int,
        seed: int,
        flip: Literal["double", "random", "none"] = "double",
        aspect_grouping: bool = True,
        world_size: int = 1,
        rank: int = 0,
        start_iteration: int = 0,
        accumulate: int = 1,
        repeats: NDArray[np.float64] | None = None,
    ) -> None:
        assert len(image_ids) == len(landscape) > 0 and batch_size > 0 and 0 <= rank < world_size and accumulate > 0
        self.image_ids = image_ids
        self.landscape = landscape.numpy()
        self.batch_size = batch_size
        self.seed = seed
        self.flip = flip
        self.aspect_grouping = aspect_grouping
        self.world_size = world_size
        self.rank = rank
        self.start_iteration = start_iteration
        self.accumulate = accumulate
        self.repeats = repeats

    @property
    def epoch_length(self) -> int:
        """Optimizer steps per epoch, which has every image twice if ``flip`` is ``double``."""
        copies = 2 if self.flip == "double" else 1
        images = len(self.image_ids) if self.repeats is None else round(float(self.repeats.sum()))
        return max(copies * images // (self.batch_size * self.accumulate * self.world_size), 1)

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch, position = divmod(self.start_iteration, self.epoch_length)
        while True:
            images, repeat = self._list(epoch)
            for step in self._epoch(self.landscape[images], epoch)[position:]:
                for batch in step.reshape(self.accumulate, self.batch_size):
                    yield [self._draw(images, repeat, int(entry), epoch) for entry in batch]
            epoch, position = epoch + 1, 0

    def _list(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns the images of an epoch and, for each entry, the number of earlier entries of the same image."""
        count = len(self.image_ids)
        if self.repeats is None:
            return np.arange(count), np.zeros(count, dtype=np.int64)
        # Systematic sampling: the number of entries of an image is its factor, rounded up or down at random. The length
        # of the list is the same in every epoch, so that any iteration can be computed without those before it.
        total = round(float(self.repeats.sum()))
        ends = np.cumsum(self.repeats) * (total / self.repeats.sum())
        ends[-1] = total
        start = (mix(self.seed, epoch, _REPEAT) >> 43) / 2**20
        times = np.diff(np.floor(ends + start).astype(np.int64), prepend=0)
        images = np.repeat(np.arange(count), times)
        return images, np.arange(len(images)) - np.repeat(np.cumsum(times) - times, times)

    def _epoch(self, landscape: NDArray[np.bool_], epoch: int) -> NDArray[np.int64]:
        copies = 2 if self.flip == "double" else 1
        share = self.batch_size * self.accumulate
        batches = epoch_batches(
            np.tile(landscape, copies), share * self.world_size, self.aspect_grouping, self.seed, epoch
        )
        return batches[:, self.rank * share : (self.rank + 1) * share]

    def _draw(self, images: NDArray[np.int64], repeat: NDArray[np.int64], entry: int, epoch: int) -> Draw:
        copy, place = divmod(entry, len(images))
        index, again = int(images[place]), int(repeat[place])
        image_id = int(self.image_ids[index])
        flipped = copy == 1
        # Repeated entries of an image get different random numbers.
        more = (again,) if again else ()
        if self.flip == "random":
            flipped = bool(mix(self.seed, epoch, image_id, _COIN, *more) & 1)
        return Draw(index, flipped, mix(self.seed, epoch, image_id, copy, _IMAGE, *more))


class EvalSampler(Sampler[list[Draw]]):
    """Sampler of every image, in order, once in each view.

    Batches are formed before they are divided among processes, and each process takes consecutive ones: the images of a
    batch, and so its padding, do not depend on the number of processes.

    Args:
        length: number of images.
        batch_size: images per batch; the last batch may be smaller.
        world_size, rank: number of processes and index of this one.
        views: views of each batch, in sequence: whether it is mirrored, and short side and maximum side in pixels
            (None uses those of the data set).
        done: positions of finished images; a batch that has only these is left out.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        world_size: int = 1,
        rank: int = 0,
        views: Sequence[tuple[bool, tuple[int, int] | None]] = ((False, None),),
        done: Collection[int] = (),
    ) -> None:
        assert length >= 0 and batch_size > 0 and 0 <= rank < world_size
        count = -(-length // batch_size)
        chosen = range(count * rank // world_size, count * (rank + 1) // world_size)
        batches = [range(i * batch_size, min((i + 1) * batch_size, length)) for i in chosen]
        self.batches = [batch for batch in batches if not all(i in done for i in batch)]
        self.views = views

    def __len__(self) -> int:
        return len(self.batches) * len(self.views)

    def __iter__(self) -> Iterator[list[Draw]]:
        for batch in self.batches:
            for flipped, resize in self.views:
                yield [Draw(i, flipped, 0, resize) for i in batch]
