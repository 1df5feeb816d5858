"""Which images make up which batch: pure functions of seed, epoch and position.

Nothing is carried along, so any iteration can be reached without replaying those before it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Sampler

_MASK = (1 << 64) - 1
# What a hash is for is hashed in as well: the order of an epoch, a coin and a seed must not be correlated.
_ORDER, _BATCHES, _COIN, _IMAGE, _REPEAT = range(5)


class Draw(NamedTuple):
    """One image of a batch.

    Attributes:
        image: position in the index.
        flipped: mirrored or not.
        seed: of every random choice for it.
        resize: short side and longest side, pixels; None takes the data set's.
    """

    image: int
    flipped: bool
    seed: int
    resize: tuple[int, int] | None = None


def mix(*parts: int) -> int:
    """Hashes integers to 63 bits, the same everywhere and always (splitmix64, Steele et al. 2014)."""
    state = 0
    for part in parts:
        state = (state + 0x9E3779B97F4A7C15 + (part & _MASK)) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


def permutation(length: int, *seed: int) -> NDArray[np.int64]:
    """Shuffles ``range(length)``; unlike NumPy's generators, the same in every release.

    Args:
        length: number of elements.
        seed: integers the order is a pure function of.

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
    """Orders one epoch.

    All entries are shuffled and the last ``entries % batch`` are left out of this epoch (others in the next);
    the authors' loader drops an incomplete batch likewise. Fewer entries than ``batch`` are repeated to fill
    one. With grouping, a batch is all landscape or all portrait, but for at most one mixed batch, in which
    landscape comes first.

    Args:
        landscape: bool (E,), per entry.
        batch: entries per global batch.
        aspect_grouping: whether to group.
        seed, epoch: what the order is a pure function of.

    Returns:
        int64 (iterations, batch), entries in 0..E-1.
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
    """How often to show each image so that rare classes are seen (LVIS, Gupta et al., CVPR 2019, appendix).

    A class in the share f of all images asks for ``max(1, sqrt(threshold / f))``; an image takes the largest of
    its classes, and 1 without any.

    Args:
        offsets: int64 (N + 1,); the objects of image ``i`` are ``offsets[i]`` to ``offsets[i + 1]``.
        labels: int64 (M,), crowds left out.
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
    """Endless batches of this process, from any iteration on.

    Every process takes its slice of the same global batches, so that how a global batch is divided between
    processes and passes changes neither its images nor their order.

    Args:
        image_ids: int64 (N,).
        landscape: bool (N,).
        batch_size: images of each batch.
        seed: of the run.
        flip: ``double`` lists every image twice an epoch, mirrored the second time; ``random`` tosses a coin
            per image and epoch; ``none``.
        aspect_grouping: see ``epoch_batches``.
        world_size, rank: number of processes and which this is.
        start_iteration: number of steps already taken.
        accumulate: batches of this process in each step; they are yielded one after the other.
        repeats: float64 (N,), how often an image is shown in an epoch, on average; None shows each once.
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
        """Steps of one pass over the list (twice the images when ``flip`` is ``double``)."""
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
        """The images of an epoch and, for each, how many times it came before in the list."""
        count = len(self.image_ids)
        if self.repeats is None:
            return np.arange(count), np.zeros(count, dtype=np.int64)
        # Systematic sampling: an image comes floor or ceil of its factor times, its factor on average, and the length
        # of the list is the same in every epoch, so that any iteration can be reached without replaying others.
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
        # An image that comes again in an epoch gets other random numbers than the first time.
        more = (again,) if again else ()
        if self.flip == "random":
            flipped = bool(mix(self.seed, epoch, image_id, _COIN, *more) & 1)
        return Draw(index, flipped, mix(self.seed, epoch, image_id, copy, _IMAGE, *more))


class EvalSampler(Sampler[list[Draw]]):
    """Every image once in each view, in order.

    Images are put into batches first, and each process takes a run of neighbouring batches: an image has the same
    neighbours, and with them the same padding, however many processes there are.

    Args:
        length: number of images.
        batch_size: images per batch; the last one may be smaller.
        world_size, rank: number of processes and which this is.
        views: how each batch is shown, one after the other: mirrored or not, and short and longest side in pixels
            (None: the data set's).
        done: positions that are not needed; a batch is left out when it has only such.
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
