"""The back ends of COCO's evaluation give the same arrays to the bit."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dcn_det.evaluation import backends
from dcn_det.evaluation.ground_truth import load_ground_truth
from dcn_det.evaluation.results import check_results
from dcn_det.evaluation.truth import Truth
from tests.evaluation.helpers import evaluate
from tests.messages import refused

pytestmark = pytest.mark.skipif(importlib.util.find_spec("hotcoco") is None, reason="hotcoco is not installed")


def case(seed: int, images: int = 12, crowds: float = 0.15, decimals: int = 1) -> tuple[dict, list[dict]]:
    """Objects and detections near them and elsewhere, with crowds, tied scores, empty images on either side, classes
    without objects, areas that differ from the box's, and some at the very bounds of the area ranges."""
    random = np.random.default_rng(seed)
    listed = [{"id": 10 * i + 3, "height": 400, "width": 500} for i in range(images)]
    random.shuffle(listed)
    categories: list[dict] = [{"id": 2 * c + 1, "name": f"class {c}"} for c in range(5)]
    annotations: list[dict] = []
    results: list[dict] = []
    for image in listed[1:-1]:
        for _ in range(random.integers(0, 14)):
            x, y = random.uniform(0, 300, 2)
            width, height = np.exp(random.uniform(1, 5.2, 2))
            area = float(random.choice([width * height * random.uniform(0.5, 1), 32**2, 96**2, 32**2 - 1e-9]))
            common = {"image_id": image["id"], "category_id": categories[random.integers(4)]["id"]}
            box = [float(v) for v in (x, y, width, height)]
            crowd = int(random.random() < crowds)
            annotations.append(common | {"id": len(annotations) + 1, "bbox": box, "area": area, "iscrowd": crowd})
            for _ in range(random.integers(0, 5)):
                near = np.array(box) + random.normal(0, 0.15, 4) * np.array([width, height, width, height])
                near[2:] = near[2:].clip(min=0)
                results.append(common | {"bbox": near.tolist(), "score": round(float(random.random()), decimals)})
    for image in listed[1:]:
        for _ in range(random.integers(0, 8)):
            box = [*random.uniform(0, 300, 2).tolist(), *random.uniform(0, 150, 2).tolist()]
            category = categories[random.integers(5)]["id"]
            score = round(float(random.random()), decimals)
            results.append({"image_id": image["id"], "category_id": category, "bbox": box, "score": score})
    order = random.permutation(len(results))
    return {"images": listed, "categories": categories, "annotations": annotations}, [results[i] for i in order]


def both(truth: dict, results: list[dict]) -> Iterator[backends.Arrays]:
    checked = load_ground_truth(truth)
    table = check_results(results, checked.images, checked.category_ids, "bbox")
    for backend in ("pycocotools", "hotcoco"):
        yield backends.accumulate(checked, table, "bbox", backend)


def assert_same(ours: backends.Arrays, theirs: backends.Arrays) -> None:
    assert ours.category_ids == theirs.category_ids
    for name in ("precision", "recall", "scores"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name


@pytest.mark.parametrize("seed", range(12))
def test_arrays_are_equal_with_crowds_ties_and_empty_images(seed: int) -> None:
    reference, fast = both(*case(seed))
    assert_same(reference, fast)
    assert 0 < reference.precision[..., 0, 2].clip(0).mean() < 1, "the case is no trivial one"
    assert (reference.precision[:, :, 4] == -1).all(), "one class has no objects"


def test_arrays_are_equal_without_crowds_and_with_all_scores_tied() -> None:
    assert_same(*both(*case(1, crowds=0, decimals=0)))


def test_arrays_are_equal_beyond_100_detections_an_image() -> None:
    data, _ = case(3, images=3)
    image = data["annotations"][0]["image_id"]
    random = np.random.default_rng(0)
    results = [
        {"image_id": image, "category_id": 1, "bbox": random.uniform(0, 200, 4).tolist(), "score": round(i / 90, 2)}
        for i in range(180)
    ]
    assert_same(*both(data, results))


def test_arrays_are_equal_without_results() -> None:
    data, _ = case(4)
    reference, fast = both(data, [])
    assert_same(reference, fast)
    assert (reference.precision <= 0).all()


@pytest.mark.shared
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_arrays_are_equal_on_real_annotations(shared: Path, iou_type: backends.IouType) -> None:
    folder = shared / "data" / "cocoeval_val2014_100"
    truth = load_ground_truth(folder / "instances_val2014_100.json")
    table = Truth(truth).read(folder / f"instances_val2014_fake{iou_type}100_results.json", iou_type)
    assert_same(*(backends.accumulate(truth, table, iou_type, name) for name in ("pycocotools", "hotcoco")))


def test_the_fast_one_is_taken_when_installed_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data, results = case(0)
    assert evaluate(data, results).backend.startswith("hotcoco ")
    assert evaluate(data, results, backend="pycocotools").backend.startswith("pycocotools ")
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    metrics = evaluate(data, results)
    assert metrics.backend.startswith("pycocotools ")
    assert "(pycocotools " in metrics.table()
    assert metrics.to_plain()["backend"] == metrics.backend
    with refused("backend", "hotcoco", "pip install", "pycocotools"):
        evaluate(data, results, backend="hotcoco")
