"""Parts and fractions of splits, drawn by name, and images of other sets left out."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dcn_det.config import Config, load_config
from dcn_det.data.build import build_dataset
from dcn_det.data.subset import draw
from dcn_det.evaluation.truth import Truth
from tests.data.fod_like import make_fod
from tests.data.helpers import write_set
from tests.messages import refused, says

NAMES = [f"JPEGImages/{i:06d}.jpg" for i in range(4000)]


def load(root: Path, *overrides: str, train: str = "", test: str = "") -> Config:
    path = root / "config.yaml"
    sets = "sets: [ImageSets/Main/{}.txt]"
    path.write_text(
        f"data:\n  kind: voc\n  root: {root}\n  classes: [Bolt, Wire]\n"
        f"  train: {{{train or sets.format('trainval')}}}\n  test: {{{test or sets.format('test')}}}\n"
        "train: {best_metric: mAP50}\n"
    )
    return load_config(path, *overrides)


def names(config: Config, split: Any) -> list[str]:
    index = build_dataset(config.data, split).index
    return [Path(index.file_name(i)).stem for i in range(len(index))]


def test_numbers_depend_on_seed_purpose_and_name_alone() -> None:
    found = draw(NAMES, 3, "part")
    expected = int.from_bytes(hashlib.blake2b(b"3:part:" + NAMES[7].encode(), digest_size=8).digest(), "big") / 2**64
    assert found[7] == pytest.approx(expected, abs=1e-15)
    assert (draw(NAMES[::-1], 3, "part")[::-1] == found).all() and (draw(NAMES[9:], 3, "part") == found[9:]).all()
    assert found.min() >= 0 and found.max() < 1
    assert np.abs(np.histogram(found, 10, (0, 1))[0] - 400).max() < 100
    for other in (draw(NAMES, 4, "part"), draw(NAMES, 3, "fraction")):
        assert abs(np.corrcoef(found, other)[0, 1]) < 0.06


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lines = [f"{i:06d}" for i in range(120)]
    return make_fod(tmp_path_factory.mktemp("many"), {"trainval": lines[:90], "test": lines[90:]}, side=16)


def test_parts_of_the_same_images_have_none_in_common(many: Path) -> None:
    sets = "sets: [ImageSets/Main/trainval.txt], part: "
    config = load(many, train=sets + "[0, 0.8]", test=sets + "[0.8, 1]")
    train, test = set(names(config, "train")), set(names(config, "test"))
    assert not train & test and len(train | test) == 90 and 5 <= len(test) <= 35
    assert Truth.of_config(config).coco.images.keys() == set(
        build_dataset(config.data, "test").index.image_ids.tolist()
    )
    assert "part 0.8-1" in config.data.test_title
    assert says(build_dataset(config.data, "train").index.report, "data.train.part", "left out", len(test))


def test_a_fraction_is_of_both_splits_and_in_larger_ones(many: Path) -> None:
    tenth, half, whole = (load(many, f"data.fraction={fraction}") for fraction in (0.1, 0.5, 1))
    for split, count in (("train", 90), ("test", 30)):
        small, large = set(names(tenth, split)), set(names(half, split))
        assert small < large < set(names(whole, split)) and abs(len(large) - count / 2) < count / 4
    assert (tenth.data.test_title, whole.data.test_title) == ("test fraction 0.1", "test")
    other = load(many, "data.fraction=0.5", "data.part_seed=1")
    assert names(other, "train") != names(half, "train")
    assert names(load(many, "data.fraction=0.5", "seed=1"), "train") == names(half, "train")


def test_a_selection_without_images_and_an_empty_part_are_refused(many: Path) -> None:
    with refused("data.fraction", "none of the 90", "trainval.txt"):
        build_dataset(load(many, "data.fraction=1e-6").data, "train")
    with refused("data.test", "part", "0.9", "empty"):
        load(many, "data.test.part=[0.9, 0.1]")
    for wrong in ("0", "1.5"):
        with refused("data.fraction"):
            load(many, f"data.fraction={wrong}")


def test_a_fraction_of_a_split_in_cocos_format(tmp_path: Path) -> None:
    write_set(tmp_path, [(20, 30)] * 40)
    split = "{images: images, annotations: boxes.json}"
    (tmp_path / "c.yaml").write_text(f"data: {{kind: coco, root: {tmp_path}, train: {split}, test: {split}}}")
    config = load_config(
        tmp_path / "c.yaml", "data.fraction=0.5", "data.train.part=[0, 0.7]", "data.test.part=[0.7, 1]"
    )
    train, test = (set(names(config, split)) for split in ("train", "test"))
    assert train and test and not train & test and len(train | test) < 35
    truth = Truth.of_config(config)
    assert {str(number) for number in truth.coco.images} == test
    assert len(truth.coco.annotations) == len(test)


def test_images_of_the_training_set_are_left_out_of_the_test_set_and_counted(tmp_path: Path) -> None:
    config = load(make_fod(tmp_path), test="sets: [ImageSets/Main/test.txt], without: [ImageSets/Main/trainval.txt]")
    assert names(config, "train") == ["000001", "000002", "000003", "000004"]
    assert names(config, "test") == ["000005", "000006"]
    report = build_dataset(config.data, "test").index.report
    assert says(report, "ImageSets/Main/trainval.txt", "left out", 2, "000001", "000003")
    assert says(report, "counted once", "000005")
    assert len(Truth.of_config(config).coco.images) == 2


def test_the_same_image_is_found_under_any_spelling_of_its_name(tmp_path: Path) -> None:
    lines = {"trainval": ["left hand", "b.c.jpg", "sub/Ø-1"], "test": ["b.c", "Ø-1.xml", "new one"]}
    spelled = {"b.c.jpg": "b.c", "sub/Ø-1": "Ø-1", "Ø-1.xml": "Ø-1"}
    test = "sets: [ImageSets/Main/test.txt], without: [ImageSets/Main/trainval.txt]"
    config = load(make_fod(tmp_path, lines, names=spelled), test=test)
    assert set(names(config, "train")) == {"left hand", "b.c", "Ø-1"} and names(config, "test") == ["new one"]


def test_a_test_set_of_nothing_new_and_a_missing_set_are_refused(tmp_path: Path) -> None:
    make_fod(tmp_path, {"trainval": ["1", "2"], "test": ["2", "1"]})
    test = "sets: [ImageSets/Main/test.txt], without: [ImageSets/Main/{}.txt]"
    with refused("ImageSets/Main/test.txt", "ImageSets/Main/trainval.txt"):
        build_dataset(load(tmp_path, test=test.format("trainval")).data, "test")
    with refused("ImageSets/Main/trainvil.txt"):
        build_dataset(load(tmp_path, test=test.format("trainvil")).data, "test")
