from collections import Counter
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from dcn_det.config.data import CocoSplitConfig, CropConfig, DataConfig, JitterConfig, ResizeConfig, SampleDataConfig
from dcn_det.data import build, sample
from dcn_det.data.augment import Augmentation, ColorJitter, Plan, RandomCrop, crop_boxes
from dcn_det.data.cache import ImageCache
from dcn_det.data.dataset import DetectionDataset
from dcn_det.data.sampler import Draw, TrainSampler, repeat_factors
from dcn_det.errors import UserError
from tests.data.helpers import load_coco, write_set

BOXES = np.array([[10, 10, 40, 30], [60, 50, 90, 75]], np.float32)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample.make_sample(tmp_path_factory.mktemp("augment") / "set", train_images=8, val_images=2)


def settings(root: Path, **changes: object) -> DataConfig:
    values: dict[str, object] = {
        "kind": "sample",
        "root": str(root),
        "train": CocoSplitConfig(images="train", annotations="annotations/train.json"),
        "test": CocoSplitConfig(images="val", annotations="annotations/val.json"),
        "resize": ResizeConfig(short_side=96, max_side=200),
        "workers": 0,
    }
    return SampleDataConfig.model_validate(values | changes)


def test_a_plan_is_a_function_of_the_seed() -> None:
    augmentation = Augmentation((100, 200, 300), RandomCrop(1.0), ColorJitter(1.0))
    plans = [augmentation.plan(seed, 80, 100, BOXES) for seed in range(200)]
    again = augmentation.plan(7, 80, 100, BOXES)
    assert (again.short_side, again.crop, again.colors) == (plans[7].short_side, plans[7].crop, plans[7].colors)
    assert set(Counter(plan.short_side for plan in plans)) == {100, 200, 300}
    assert len({plan.crop for plan in plans}) > 150
    assert len({tuple(name for name, _ in plan.colors) for plan in plans}) == 24, "all orders"
    nothing = Augmentation().plan(3, 80, 100, BOXES)
    assert (nothing.short_side, nothing.crop, nothing.colors) == (None, None, ())


def test_crops_keep_boxes_and_boxes_follow() -> None:
    augmentation = Augmentation(crop=RandomCrop(1.0, min_side=0.4, min_visible=0.5))
    for seed in range(300):
        plan = augmentation.plan(seed, 80, 100, BOXES)
        assert plan.crop is not None
        x1, y1, x2, y2 = plan.crop
        assert 0 <= x1 < x2 <= 100 and 0 <= y1 < y2 <= 80 and x2 - x1 >= 40 and y2 - y1 >= 32
        assert plan.kept.any()
        inside = crop_boxes(BOXES, plan.crop)
        for box, original, kept in zip(inside, BOXES, plan.kept):
            share = (box[2:] - box[:2]).prod() / (original[2:] - original[:2]).prod()
            assert bool(kept) == bool(share >= 0.5)
    assert crop_boxes(BOXES, (20, 15, 80, 80)).tolist() == [[0, 0, 20, 15], [40, 35, 60, 60]]
    alone = augmentation.plan(1, 80, 100, BOXES[:0])
    assert alone.crop is not None and len(alone.kept) == 0


@pytest.mark.parametrize("flipped", [False, True])
def test_a_crop_shows_what_its_boxes_say(tmp_path: Path, flipped: bool) -> None:
    """A white rectangle on black: after crop and resize the box surrounds the white pixels to half a pixel."""
    folder = write_set(tmp_path / "set", [(100, 140)])
    index = load_coco(folder / "boxes.json", folder / "images")
    augmentation = Augmentation(short_sides=(150, 210), crop=RandomCrop(1.0, min_visible=0.1))
    dataset = DetectionDataset(index, 120, 900, True, augmentation)
    shapes = set()
    for seed in range(25):
        pixels, info, target = dataset[Draw(0, flipped, seed)]
        assert target is not None and (info.input_height, info.input_width) == tuple(pixels.shape[1:])
        rows, columns = torch.nonzero(pixels[0] > 127, as_tuple=True)
        found = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
        torch.testing.assert_close(target.boxes[0], found, rtol=0, atol=1.01)
        shapes.add(min(pixels.shape[1:]))
    assert shapes <= {150, 210} and len(shapes) == 2


@pytest.mark.parametrize(
    ("name", "amount", "expected"),
    [
        ("brightness", 0.1, [126, 76, 51]),
        ("brightness", -0.3, [24, 0, 0]),
        ("contrast", 0.5, [150, 75, 38]),
        ("saturation", -1.0, [62, 62, 62]),
        ("saturation", 1.0, [138, 38, 0]),
        ("hue", 1 / 3, [25, 100, 50]),
    ],
)
def test_colours_change_as_their_formulas_say(name: str, amount: float, expected: list[int]) -> None:
    """Grey is 0.299 R + 0.587 G + 0.114 B; a third of the hue circle turns red into green."""
    image = np.full((2, 3, 3), (100, 50, 25), np.uint8)
    image.setflags(write=False)
    changed = Augmentation.distort(image, Plan(colors=((name, amount),)))
    assert np.abs(changed[0, 0].astype(int) - expected).max() <= 1


def test_repeat_factors_follow_the_papers_rule() -> None:
    """Class 0 is in all four images, class 1 in one; at threshold 1/2 that one counts sqrt(2) times."""
    factors = repeat_factors(np.array([0, 2, 3, 4, 5]), np.array([0, 1, 0, 0, 0]), 0.5)
    assert factors.tolist() == pytest.approx([np.sqrt(2), 1, 1, 1])
    assert repeat_factors(np.array([0, 0, 0]), np.zeros(0, np.int64), 0.5).tolist() == [1, 1]


def test_repeated_images_come_as_often_as_their_factor() -> None:
    ids, repeats = torch.arange(10), np.array([1.0] * 8 + [1.7, 2.3])
    sampler = TrainSampler(ids, torch.ones(10, dtype=torch.bool), 2, 3, flip="random", repeats=repeats)
    assert sampler.epoch_length == 6
    epochs = 400
    draws = [draw for batch in islice(sampler, 6 * epochs) for draw in batch]
    counts = Counter(draw.image for draw in draws)
    assert [counts[i] / epochs for i in range(10)] == pytest.approx(repeats, abs=0.08)
    first = draws[:12]
    assert len({draw.seed for draw in first}) == 12, "an image that comes twice is augmented in two ways"
    later = TrainSampler(
        ids, torch.ones(10, dtype=torch.bool), 2, 3, flip="random", repeats=repeats, start_iteration=100
    )
    assert [d for batch in islice(later, 3) for d in batch] == draws[200:206], "any iteration can be reached at once"


def test_passes_divide_a_step_in_order() -> None:
    ids, wide = torch.arange(40), torch.ones(40, dtype=torch.bool)
    whole = list(islice(TrainSampler(ids, wide, 8, 1), 12))
    for world, size, passes in ((1, 2, 4), (2, 4, 1), (2, 2, 2), (4, 1, 2)):
        ranks = [
            list(islice(TrainSampler(ids, wide, size, 1, world_size=world, rank=r, accumulate=passes), 12 * passes))
            for r in range(world)
        ]
        for step in range(12):
            together = [d for rank in ranks for batch in rank[step * passes : (step + 1) * passes] for d in batch]
            assert together == whole[step]


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_a_cache_changes_nothing_and_spares_decoding(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    changes: dict[str, object] = {"cache": kind, "cache_folder": str(tmp_path / "cache")}
    changes |= {"short_sides": (64, 96), "crop": CropConfig(probability=0.5), "jitter": JitterConfig(probability=0.5)}
    plain = settings(root, **changes | {"cache": "none"})
    expected = list(islice(build.build_train_loader(build.build_dataset(plain, "train"), plain, 2, seed=1), 40))
    cached = settings(root, **changes)
    dataset = build.build_dataset(cached, "train")
    assert dataset.cache is not None
    for _ in range(2):
        found = list(islice(build.build_train_loader(dataset, cached, 2, seed=1), 40))
        for a, b in zip(expected, found):
            assert torch.equal(a.images, b.images) and a.infos == b.infos
        monkeypatch.setattr(
            "dcn_det.data.dataset.read_annotated", lambda path, *more: pytest.fail(f"{path} was decoded again")
        )


def _no_decoding(path: str, *more: object) -> None:
    pytest.fail(f"{path} was decoded again")


def test_a_changed_file_is_decoded_anew_and_a_damaged_entry_too(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.zeros((4, 4, 3), np.uint8))
    cache = ImageCache(tmp_path / "cache")
    made = []

    def make() -> np.ndarray:
        made.append(1)
        return np.full((4, 4, 3), len(made), np.uint8)

    assert cache.get(path, "whole", make)[0, 0, 0] == cache.get(path, "whole", make)[0, 0, 0] == 1
    assert cache.get(path, "half", make)[0, 0, 0] == 2
    cv2.imwrite(str(path), np.ones((9, 9, 3), np.uint8))
    assert cache.get(path, "whole", make)[0, 0, 0] == 3
    for entry in (tmp_path / "cache").rglob("*.npy"):
        entry.write_bytes(entry.read_bytes()[:20])
    assert cache.get(path, "whole", make)[0, 0, 0] == 4


def test_a_cache_without_room_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"x")
    cache = ImageCache(tmp_path / "cache")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("U", (), {"free": 10, "total": 1000})())
    image = np.zeros((4, 4, 3), np.uint8)
    assert cache.get(path, "whole", lambda: image) is image
    assert not list((tmp_path / "cache").rglob("*.npy"))
    with pytest.raises(UserError, match=r"data\.cache_folder: .*below a file"):
        ImageCache(path / "below a file")
