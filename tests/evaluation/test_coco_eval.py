"""COCO metrics are those of pycocotools, and input that would silently give wrong ones is refused."""

import copy
import io
import json
import math
import re
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dcn_det.config.data import CocoDataConfig
from dcn_det.evaluation.backends import IouType
from dcn_det.evaluation.ground_truth import load_ground_truth
from dcn_det.evaluation.truth import Truth
from tests.evaluation.helpers import evaluate, ground_truth, result, rle
from tests.messages import says


def random_case(seed: int) -> tuple[dict, list[dict]]:
    """Ground truth with crowds and empty images, and detections near objects with ties among their scores."""
    random = np.random.default_rng(seed)
    images = [{"id": 10 * i, "height": 300, "width": 400} for i in range(12)]
    categories = [{"id": 2 * c + 1, "name": f"class {c}"} for c in range(4)]
    annotations: list[dict] = []
    results: list[dict] = []
    for image in images[1:]:
        for _ in range(random.integers(0, 9)):
            x, y = random.uniform(0, 250, 2)
            width, height = np.exp(random.uniform(1, 5, 2))
            category = categories[random.integers(4)]["id"]
            common = {"image_id": image["id"], "category_id": category}
            annotations.append(
                common
                | {
                    "id": len(annotations) + 1,
                    "bbox": [x, y, width, height],
                    "area": width * height * 0.8,
                    "iscrowd": int(random.random() < 0.1),
                }
            )
            for _ in range(random.integers(0, 4)):
                box = np.array([x, y, width, height]) * random.uniform(0.8, 1.25, 4)
                results.append(common | {"bbox": box.tolist(), "score": round(float(random.random()), 1)})
    return {"images": images, "categories": categories, "annotations": annotations}, results


@pytest.mark.shared
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_the_published_numbers_of_100_images(shared: Path, iou_type: IouType) -> None:
    folder = shared / "data" / "cocoeval_val2014_100"
    text = (folder / "val2014_fake_eval_res.txt").read_text()
    published = [float(n) for n in re.findall(r"\] = ([\d.]+)", text.partition(f"type={iou_type}")[2])[:12]]
    truth = Truth.of_file(folder / "instances_val2014_100.json")
    path = folder / f"instances_val2014_fake{iou_type}100_results.json"
    metrics = truth.measure(truth.read(path, iou_type), iou_type=iou_type)
    assert [round(metrics[name], 3) for name in CocoDataConfig.metrics] == published
    assert (metrics.images, metrics.detections, len(metrics.per_class)) == (100, 734, 80)


@pytest.mark.parametrize("seed", range(3))
def test_all_numbers_are_those_of_pycocotools_itself(seed: int) -> None:
    data, results = random_case(seed)
    with redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(data)
        truth.createIndex()
        reference = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), "bbox")
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
    metrics = evaluate(data, results)
    assert list(metrics.values.values()) == [
        float(v) if v >= 0 else pytest.approx(math.nan, nan_ok=True) for v in reference.stats
    ]
    assert 0 < metrics["AP"] < 1
    precision = reference.eval["precision"][:, :, :, 0, -1]
    for index, name in enumerate(metrics.per_class):
        assert metrics.per_class[name] == pytest.approx(precision[:, :, index].mean(), abs=1e-12)


def test_metrics_without_objects_are_undefined_and_not_zero() -> None:
    metrics = evaluate(ground_truth(), [result()])
    assert metrics["AP"] == pytest.approx(0.5)  # the cat is found, the dog is not, there is no owl
    assert metrics["APl"] == pytest.approx(1)
    assert metrics["APs"] == 0.0
    assert math.isnan(metrics["APm"])
    assert metrics.per_class["cat"] == pytest.approx(1)
    assert metrics.per_class["dog"] == 0.0
    assert math.isnan(metrics.per_class["owl"])
    plain = metrics.to_plain()
    assert plain["metrics"]["APm"] is None
    assert plain["per_class"]["owl"] is None
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert (metrics.images, metrics.objects, metrics.detections) == (2, 2, 1)
    assert metrics.notes == ("images without results, where nothing was detected: 1",)


def test_no_results_give_zero_with_a_note() -> None:
    metrics = evaluate(ground_truth(), [])
    assert metrics["AP"] == metrics["AP50"] == metrics["AR100"] == 0.0
    assert "there are no results: nothing was detected in any image" in metrics.table()


def test_the_table_shows_all_metrics_and_the_classes_when_asked() -> None:
    metrics = evaluate(ground_truth(), [result()])
    assert tuple(metrics.values) == CocoDataConfig.metrics
    table = metrics.table()
    assert table.startswith("bbox: 2 images, 2 objects, 1 detections (")
    for name in CocoDataConfig.metrics:
        value = metrics[name]
        assert re.search(rf"\b{name} +{'n/a' if math.isnan(value) else f'{value:.3f}'}", table)
    assert "owl" not in table
    assert re.search(r"\ncat +1\.000\ndog +0\.000\nowl +n/a$", metrics.table(per_class=True))


def test_nothing_is_printed_and_nothing_is_changed(capsys: pytest.CaptureFixture[str]) -> None:
    data, results = random_case(0)
    before = copy.deepcopy((data, results))
    truth = load_ground_truth(data)
    annotations = copy.deepcopy(truth.annotations)
    first = Truth(truth).measure(results)
    assert truth.annotations == annotations
    assert Truth(truth).measure(results).values == pytest.approx(first.values, nan_ok=True)
    assert (data, results) == before
    assert capsys.readouterr() == ("", "")


def test_an_annotation_with_id_0_counts_as_found() -> None:
    data = ground_truth()
    for index, annotation in enumerate(data["annotations"]):
        annotation["id"] = index
    assert evaluate(data, [result()])["AP"] == pytest.approx(0.5)


def test_missing_ids_crowd_flags_and_areas_are_filled_in_and_said() -> None:
    data = ground_truth()
    for annotation in data["annotations"]:
        del annotation["id"], annotation["area"], annotation["iscrowd"]
    metrics = evaluate(data, [result()])
    assert metrics.objects == 3
    assert says(metrics.notes[0], "iscrowd", 3) and says(metrics.notes[1], "area", 3)


def test_ground_truth_may_be_a_file_or_its_content(tmp_path: Path) -> None:
    data, results = random_case(1)
    path = tmp_path / "gt.json"
    path.write_text(json.dumps(data))
    expected = pytest.approx(evaluate(data, results).values, nan_ok=True)
    for source in (path, str(path)):
        assert evaluate(source, results).values == expected


def test_masks_have_their_own_area_even_where_a_box_is_given() -> None:
    data = ground_truth()
    for annotation in data["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
    dog = {"image_id": 5, "category_id": 3}
    found = [
        dog | {"segmentation": rle(slice(80, 90), slice(0, 9)), "score": 0.9},
        dog | {"segmentation": rle(slice(10, 30), slice(10, 30)), "score": 0.5},
    ]
    plain = evaluate(data, found, "segm")
    assert plain["APs"] == pytest.approx(0.5)
    # By the area of its box the false positive would be large and would not count among the small ones.
    boxed = evaluate(data, [entry | {"bbox": [0, 0, 120, 100]} for entry in found], "segm")
    assert boxed.values == pytest.approx(plain.values, nan_ok=True)
