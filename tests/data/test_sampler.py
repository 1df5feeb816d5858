from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any, Literal

import numpy as np
import pytest
import torch

from dcn_det.data.sampler import Draw, EvalSampler, TrainSampler, epoch_batches, mix, permutation

IDS = torch.arange(1000, 1037)
LANDSCAPE = torch.arange(37) % 3 != 0


def sampler(**changes: Any) -> TrainSampler:
    settings: dict[str, Any] = {"batch_size": 4, "seed": 5, "flip": "double"} | changes
    return TrainSampler(IDS, LANDSCAPE, **settings)


def take(count: int, **changes: Any) -> list[list[Draw]]:
    return list(islice(sampler(**changes), count))


def epochs(flip: Literal["double", "random", "none"], count: int) -> Iterator[list[Draw]]:
    length = sampler(flip=flip).epoch_length
    batches = take(count * length, flip=flip)
    for start in range(0, len(batches), length):
        yield [draw for batch in batches[start : start + length] for draw in batch]


def test_hash_and_permutation_are_fixed_for_ever() -> None:
    """Other values would change the order of a run that is resumed with a newer release."""
    assert mix(0) == 0xE220A8397B1DCDAF >> 1  # the first output of splitmix64 seeded with 0
    assert mix(1, 2, 3) == 3851293329796251419
    assert permutation(8, 1, 2).tolist() == [1, 5, 0, 6, 7, 3, 4, 2]
    assert all(0 <= mix(seed, -1) < 2**63 for seed in range(100))
    assert len({mix(a, b, c) for a in range(20) for b in range(20) for c in range(20)}) == 8000


def test_permutation_is_one_and_looks_shuffled() -> None:
    order = permutation(10_000, 3)
    assert np.array_equal(np.sort(order), np.arange(10_000))
    assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.05
    assert not np.array_equal(order, permutation(10_000, 4))
    assert permutation(0, 1).shape == (0,)


def test_double_lists_every_image_and_its_mirror_once_per_epoch() -> None:
    assert sampler().epoch_length == 18
    for draws in epochs("double", 3):
        seen = Counter((draw.image, draw.flipped) for draw in draws)
        assert max(seen.values()) == 1
        assert len(seen) == 72, "74 entries in batches of 4 leave 2 out"


def test_what_an_epoch_leaves_out_differs_from_epoch_to_epoch() -> None:
    everything = {(image, flipped) for image in range(37) for flipped in (False, True)}
    left_out = [everything - {(d.image, d.flipped) for d in draws} for draws in epochs("double", 20)]
    assert {len(missing) for missing in left_out} == {2}
    assert len(set().union(*left_out)) > 20
    # Neither shape is favoured: portraits are a third of the images.
    portraits = sum(not LANDSCAPE[image] for missing in left_out for image, _ in missing)
    assert 5 <= portraits <= 22


def test_random_flips_about_half_and_none_flips_nothing() -> None:
    assert sampler(flip="random").epoch_length == sampler(flip="none").epoch_length == 9
    flips = [{d.image: d.flipped for d in draws} for draws in epochs("random", 40)]
    share = np.mean([flipped for epoch in flips for flipped in epoch.values()])
    assert 0.45 < share < 0.55
    assert len({tuple(sorted(epoch.items())) for epoch in flips}) == 40
    assert not any(d.flipped for draws in epochs("none", 2) for d in draws)


def test_seeds_differ_by_image_epoch_copy_and_run() -> None:
    draws = [d for epoch in epochs("double", 3) for d in epoch]
    assert len({d.seed for d in draws}) == len(draws)
    first = {(d.image, d.flipped): d.seed for d in draws[:72]}
    again = {(d.image, d.flipped): d.seed for batch in take(18, seed=6) for d in batch}
    assert all(again[key] != seed for key, seed in first.items() if key in again)


def test_an_images_seed_does_not_depend_on_its_batch() -> None:
    first = {(d.image, d.flipped): d.seed for batch in take(18) for d in batch}
    other = {(d.image, d.flipped): d.seed for batch in take(74, batch_size=1) for d in batch}
    assert all(other[key] == seed for key, seed in first.items())


def test_batches_hold_one_shape_but_for_at_most_one() -> None:
    for epoch in range(10):
        batches = epoch_batches(LANDSCAPE.numpy(), 4, True, 0, epoch)
        shapes = LANDSCAPE.numpy()[batches]
        mixed = shapes[shapes.any(axis=1) & ~shapes.all(axis=1)]
        assert len(mixed) <= 1
        assert all(np.array_equal(row, np.sort(row)[::-1]) for row in mixed), "landscape first"
        assert len(np.unique(batches)) == batches.size == 36
    # Batches of both shapes are spread over the epoch rather than one after the other.
    many = np.arange(400) % 2 == 0
    first_shapes = many[epoch_batches(many, 4, True, 0, 0)][:, 0]
    assert 30 < np.abs(np.diff(first_shapes.astype(int))).sum() < 70


def test_without_grouping_shapes_mix() -> None:
    shapes = LANDSCAPE.numpy()[epoch_batches(LANDSCAPE.numpy(), 4, False, 0, 0)]
    assert (shapes.any(axis=1) & ~shapes.all(axis=1)).sum() > 2


@pytest.mark.parametrize("flip", ["double", "random"])
def test_starting_anywhere_continues_the_uninterrupted_run(flip: Literal["double", "random"]) -> None:
    whole = take(60, flip=flip)
    for start in (0, 1, 8, 9, 17, 18, 19, 36, 50):
        assert take(60 - start, flip=flip, start_iteration=start) == whole[start:]


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_dividing_the_global_batch_changes_nothing_in_it(world_size: int) -> None:
    whole = take(40, batch_size=8)
    parts = [take(40, batch_size=8 // world_size, world_size=world_size, rank=r) for r in range(world_size)]
    assert [[draw for part in iteration for draw in part] for iteration in zip(*parts)] == whole


def test_a_list_shorter_than_a_batch_is_repeated() -> None:
    few = TrainSampler(IDS[:3], LANDSCAPE[:3], batch_size=8, seed=0, flip="none")
    assert few.epoch_length == 1
    for batch in islice(few, 3):
        assert sorted(Counter(d.image for d in batch).values()) == [2, 3, 3]


@pytest.mark.parametrize("length", [0, 1, 5, 10, 11])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_evaluation_sees_every_image_once(length: int, world_size: int, batch_size: int) -> None:
    ranks = [EvalSampler(length, batch_size, world_size, rank) for rank in range(world_size)]
    assert [len(list(rank)) for rank in ranks] == [len(rank) for rank in ranks]
    draws = [draw for rank in ranks for batch in rank for draw in batch]
    assert draws == [Draw(i, False, 0) for i in range(length)]
    counts = [sum(map(len, rank)) for rank in ranks]
    assert max(counts) - min(counts) <= batch_size
    assert all(len(batch) <= batch_size for rank in ranks for batch in rank)
