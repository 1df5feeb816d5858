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
import torch
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dcn_det.errors import UserError
from dcn_det.evaluation import results as results_module
from dcn_det.evaluation.coco import METRICS, evaluate, load_ground_truth, load_results, to_coco_results
from dcn_det.evaluation.results import rle_length
from dcn_det.files import write_json
from dcn_det.structures import Category, Detections


def ground_truth() -> dict:
    """Two images of 100 x 120; in the first a large cat and a small dog, in the second a crowd of dogs."""
    return {
        "images": [{"id": 5, "height": 100, "width": 120}, {"id": 7, "height": 100, "width": 120}],
        "categories": [{"id": 3, "name": "dog"}, {"id": 1, "name": "cat"}, {"id": 9, "name": "owl"}],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 1, "bbox": [0, 0, 100, 100], "area": 10000, "iscrowd": 0},
            {"id": 2, "image_id": 5, "category_id": 3, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0},
            {"id": 3, "image_id": 7, "category_id": 3, "bbox": [0, 0, 60, 60], "area": 3600, "iscrowd": 1},
        ],
    }


def result(**changes: object) -> dict:
    return {"image_id": 5, "category_id": 1, "bbox": [0, 0, 100, 100], "score": 0.5} | changes


def rle(rows: slice, columns: slice, height: int = 100, width: int = 120) -> dict:
    pixels = np.zeros((height, width), np.uint8, order="F")
    pixels[rows, columns] = 1
    encoded = mask.encode(pixels)
    return {"size": [height, width], "counts": encoded["counts"].decode()}


def random_case(seed: int) -> tuple[dict, list[dict]]:
    """Ground truth with crowds and empty images, and detections near objects with ties among their scores."""
    random = np.random.default_rng(seed)
    images = [{"id": 10 * i, "height": 300, "width": 400} for i in range(12)]
    categories = [{"id": 2 * c + 1, "name": f"class {c}"} for c in range(4)]
    annotations, results = [], []
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


# The numbers


@pytest.mark.shared
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_the_published_numbers_of_100_images(shared: Path, iou_type: str) -> None:
    folder = shared / "data" / "cocoeval_val2014_100"
    text = (folder / "val2014_fake_eval_res.txt").read_text()
    published = [float(n) for n in re.findall(r"\] = ([\d.]+)", text.partition(f"type={iou_type}")[2])[:12]]
    truth = load_ground_truth(folder / "instances_val2014_100.json")
    path = folder / f"instances_val2014_fake{iou_type}100_results.json"
    metrics = evaluate(truth, load_results(path, truth, iou_type), iou_type)
    assert [round(metrics[name], 3) for name in METRICS] == published
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
    table = metrics.table()
    assert table.startswith("bbox: 2 images, 2 objects, 1 detections (")
    for name in METRICS:
        value = metrics[name]
        assert re.search(rf"\b{name} +{'n/a' if math.isnan(value) else f'{value:.3f}'}", table)
    assert "owl" not in table
    assert re.search(r"\ncat +1\.000\ndog +0\.000\nowl +n/a$", metrics.table(per_class=True))


def test_nothing_is_printed_and_nothing_is_changed(capsys: pytest.CaptureFixture[str]) -> None:
    data, results = random_case(0)
    before = copy.deepcopy((data, results))
    truth = load_ground_truth(data)
    annotations = copy.deepcopy(truth.annotations)
    first = evaluate(truth, results)
    assert truth.annotations == annotations
    assert evaluate(truth, results).values == pytest.approx(first.values, nan_ok=True)
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
    assert metrics.notes[:2] == (
        "annotations without iscrowd: 3; taken as 0",
        "annotations without area: 3; that of the box is taken",
    )


def test_ground_truth_may_be_a_file_its_content_or_an_object(tmp_path: Path) -> None:
    data, results = random_case(1)
    path = tmp_path / "gt.json"
    path.write_text(json.dumps(data))
    with redirect_stdout(io.StringIO()):
        loaded = COCO(str(path))
    expected = pytest.approx(evaluate(data, results).values, nan_ok=True)
    for source in (path, str(path), loaded, load_ground_truth(path)):
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


# From detections to results


def test_results_have_half_open_sizes_and_the_files_ids() -> None:
    detections = Detections(
        torch.tensor([[1.0, 2.0, 11.0, 22.0], [0.0, 0.0, 0.5, 1.0]]),
        torch.tensor([0.75, 0.25]),
        torch.tensor([1, 0]),
    )
    assert to_coco_results(detections, 42, (Category(18, "dog"), Category(1, "person"))) == [
        {"image_id": 42, "category_id": 1, "bbox": [1.0, 2.0, 10.0, 20.0], "score": 0.75},
        {"image_id": 42, "category_id": 18, "bbox": [0.0, 0.0, 0.5, 1.0], "score": 0.25},
    ]
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert to_coco_results(nothing, 42, ()) == []


@pytest.mark.parametrize("field", ["boxes", "scores"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_detections_that_are_not_finite_are_refused(field: str, value: float) -> None:
    detections = Detections(torch.ones(2, 4), torch.ones(2), torch.zeros(2, dtype=torch.int64))
    getattr(detections, field)[1] = value
    with pytest.raises(UserError, match=r"^image 42: the detector returned boxes or scores that are not finite$"):
        to_coco_results(detections, 42, (Category(1, "cat"),))


def test_detections_survive_the_way_through_a_file(tmp_path: Path) -> None:
    boxes = torch.rand(20, 4, generator=torch.Generator().manual_seed(0)) * 50
    boxes[:, 2:] += boxes[:, :2]
    detections = Detections(boxes, torch.linspace(1, 0.1, 20), torch.arange(20) % 2)
    results = to_coco_results(detections, 5, (Category(1, "cat"), Category(3, "dog")))
    write_json(tmp_path / "new" / "results.json", results)
    table = load_results(tmp_path / "new" / "results.json", load_ground_truth(ground_truth()))
    assert table.boxes.tolist() == [entry["bbox"] for entry in results]
    assert table.scores.tolist() == [entry["score"] for entry in results]
    assert table.category_ids.tolist() == [entry["category_id"] for entry in results]
    assert set(table.image_ids.tolist()) == {5}


# Wrong results


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"annotations": []}, "r.json: expected a list of results, got an object"),
        (
            ground_truth(),
            "r.json: expected a list of results, got an object; this looks like a ground-truth file",
        ),
        (3, "r.json: expected a list of results, got a number"),
        ([result(), 3], "r.json: entry 1: expected an object, got a number"),
        ([{"image_id": 5}], "r.json: entry 0: has no 'category_id'"),
        ([{k: v for k, v in result().items() if k != "score"}], "r.json: entry 0: has no 'score'"),
        (
            [result(), result(image_id=6)],
            "r.json: entry 1: image_id 6 is not in the ground truth; is it that of another split?",
        ),
        ([result(image_id="5")], "r.json: entry 0: image_id '5' is not in the ground truth"),
        ([result(image_id=[5])], "r.json: entry 0: image_id [5] is not in the ground truth"),
        (
            [result(category_id=0)] * 3,
            "category_id 0 is not in the ground truth; labels must be mapped to its ids (3 of 3 entries)",
        ),
        ([result(score=math.nan)], "r.json: entry 0: score must be a finite number, got nan"),
        ([result(score=math.inf)], "r.json: entry 0: score must be a finite number, got inf"),
        ([result(score="0.5")], "r.json: entry 0: score must be a finite number, got '0.5'"),
        ([result(score=True)], "r.json: entry 0: score must be a finite number, got True"),
        (
            [result(bbox=[1, 2, 3])],
            "r.json: entry 0: bbox must be 4 finite numbers [x, y, width, height], got [1, 2, 3]",
        ),
        ([result(bbox=[1, 2, 3, None])], "r.json: entry 0: bbox must be 4 finite numbers"),
        ([result(bbox=[1, 2, math.inf, 3])], "r.json: entry 0: bbox must be 4 finite numbers"),
        ([result(bbox=[90, 80, -10, 5])], "has a negative size: [90, 80, -10, 5]; is it [x1, y1, x2, y2]?"),
    ],
)
def test_wrong_results_are_refused(tmp_path: Path, monkeypatch, entries: object, expected: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.json").write_text(json.dumps(entries))
    with pytest.raises(UserError) as caught:
        load_results("r.json", load_ground_truth(ground_truth()))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    if isinstance(entries, list):
        with pytest.raises(UserError, match=r"^results: entry "):
            evaluate(ground_truth(), entries)


def test_each_kind_of_problem_is_reported_once() -> None:
    entries = [result(), result(image_id=1), result(score=None), result(image_id=2), result(score=None)]
    with pytest.raises(UserError) as caught:
        evaluate(ground_truth(), entries)
    assert str(caught.value).splitlines() == [
        "results: entry 1: image_id 1 is not in the ground truth; is it that of another split? (2 of 5 entries)",
        "results: entry 2: score must be a finite number, got None (2 of 5 entries)",
    ]


@pytest.mark.parametrize(
    ("segmentation", "expected"),
    [
        ([[0, 0, 5, 0, 5, 5]], "segmentation must be a compressed RLE"),
        ({"size": [100, 120], "counts": [5, 11995]}, "segmentation must be a compressed RLE"),
        (
            rle(slice(0, 9), slice(0, 9), 120, 100),
            "segmentation is for size [120, 100], the image is [100, 120]",
        ),
        ({"size": None, "counts": "0"}, "segmentation is for size None"),
        (
            {"size": [100, 120], "counts": "52203"},
            "segmentation's counts do not cover the 100 x 120 image: damaged RLE",
        ),
        ({"size": [100, 120], "counts": ""}, "segmentation's counts do not cover the 100 x 120 image"),
    ],
)
def test_wrong_masks_are_refused(segmentation: object, expected: str) -> None:
    data = ground_truth()
    for annotation in data["annotations"]:
        annotation["segmentation"] = rle(slice(0, 9), slice(0, 9))
    entries = [{"image_id": 5, "category_id": 1, "score": 0.5, "segmentation": segmentation}]
    with pytest.raises(UserError, match=re.escape(f"results: entry 0: {expected}")):
        evaluate(data, entries, "segm")


def test_the_length_of_a_run_length_code_is_that_of_its_mask() -> None:
    random = np.random.default_rng(0)
    for _ in range(30):
        height, width = random.integers(1, 90, 2)
        pixels = np.asfortranarray(random.random((height, width)) < random.random(), np.uint8)
        counts = mask.encode(pixels)["counts"]
        assert rle_length(counts) == rle_length(counts.decode()) == height * width
        assert rle_length(counts[:-1]) != height * width
    for malformed in ("\x00", "~~~", "é", "O", "P"):
        assert rle_length(malformed) == -1


# Wrong ground truth


def changed(part: str, index: int, **changes: object) -> dict:
    data = ground_truth()
    data[part][index] |= changes
    return data


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ([result()], "gt.json: not COCO annotations: expected an object; this looks like a results file"),
        ("x", "gt.json: not COCO annotations: expected an object"),
        (
            {"images": [], "categories": []},
            "gt.json: not COCO annotations to evaluate with: has no list 'annotations'",
        ),
        (
            ground_truth() | {"images": {}},
            "gt.json: not COCO annotations to evaluate with: has no list 'images'",
        ),
        (changed("images", 1, height=None), "gt.json: image 1: 'height' is missing or not an integer"),
        (ground_truth() | {"images": [3]}, "gt.json: image 0: 'id' is missing or not an integer"),
        (changed("categories", 0, name=3), "gt.json: category 0: 'name' is missing or not a string"),
        (changed("categories", 0, name="cat"), "gt.json: two categories have the name 'cat'"),
        (changed("categories", 0, id=1), "gt.json: two categories have the id 1"),
        (changed("annotations", 2, image_id=6), "gt.json: annotation 2: image_id 6 is none of the images"),
        (
            changed("annotations", 2, image_id="7"),
            "gt.json: annotation 2: 'image_id' is missing or not an integer",
        ),
        (
            changed("annotations", 0, category_id=2),
            "gt.json: annotation 0: category_id 2 is none of the categories",
        ),
        (changed("annotations", 0, bbox=[1, 2]), "gt.json: annotation 0: bbox must be 4 finite numbers"),
        (
            changed("annotations", 0, bbox=[1, 2, -1, 1]),
            "gt.json: annotation 0: bbox [x, y, width, height] has a negative",
        ),
        (changed("annotations", 0, area="x"), "gt.json: annotation 0: area must be a finite number, got 'x'"),
        (
            changed("annotations", 0, iscrowd="x"),
            "gt.json: annotation 0: iscrowd must be a finite number, got 'x'",
        ),
        (ground_truth() | {"annotations": []}, "gt.json: has no object to find (crowds do not count)"),
        (
            ground_truth() | {"annotations": ground_truth()["annotations"][2:]},
            "gt.json: has no object to find (crowds do not count), so that no metric is defined",
        ),
    ],
)
def test_wrong_ground_truth_is_refused(tmp_path: Path, monkeypatch, data: object, expected: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("gt.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=f"^{re.escape(expected)}"):
        evaluate("gt.json", [result()])


def test_masks_need_ground_truth_with_masks() -> None:
    with pytest.raises(
        UserError, match=r"^ground truth: has annotations without segmentation; evaluate boxes instead$"
    ):
        evaluate(ground_truth(), [], "segm")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"images": [}', "gt.json:1: not valid JSON: Expecting value (column 13)"),
        (b"[1,\n2,", "gt.json:2: not valid JSON: Expecting value"),
        (b"", "gt.json:1: not valid JSON: "),
        (b"\xff\xfe", "gt.json: not UTF-8 text: "),
        (b"[" * 100_000, "gt.json: nested too deeply"),
    ],
)
def test_what_is_no_json_is_refused(tmp_path: Path, monkeypatch, content: bytes, expected: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("gt.json").write_bytes(content)
    with pytest.raises(UserError, match=f"^{re.escape(expected)}"):
        load_ground_truth("gt.json")


# Writing


def test_json_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    write_json(path, [1])
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, [math.nan])

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results_module.os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*x\.json'"):
        write_json(path, [2])
    assert json.loads(path.read_text()) == [1]
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_json_cannot_replace_a_folder(tmp_path: Path) -> None:
    (tmp_path / "x.json").mkdir()
    with pytest.raises(IsADirectoryError):
        write_json(tmp_path / "x.json", [])
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
