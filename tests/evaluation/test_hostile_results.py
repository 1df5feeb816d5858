"""Mutated results files: metrics or one line, for both back ends and for the analysis."""

import json
import math
from pathlib import Path

import pytest

from dcn_det.errors import UserError
from dcn_det.evaluation.analysis import analyse
from dcn_det.evaluation.ground_truth import load_ground_truth
from dcn_det.evaluation.truth import Truth
from tests.data.hostile import mutated
from tests.evaluation.helpers import evaluate, ground_truth, result

RESULTS = [
    result(),
    result(category_id=3, bbox=[10, 10, 20.5, 20], score=0.9),
    result(image_id=7, category_id=9, bbox=[-3, 0, 500, 1], score=1),
]


@pytest.mark.parametrize("start", range(0, 300, 100))
def test_results_are_evaluated_or_refused_in_one_line(tmp_path: Path, start: int) -> None:
    truth = Truth(load_ground_truth(ground_truth()))
    refused = 0
    for seed in range(start, start + 100):
        path = tmp_path / "results.json"
        try:
            path.write_text(json.dumps(mutated(RESULTS, seed)))
        except (ValueError, UnicodeEncodeError):
            continue  # JSON cannot hold it
        try:
            table = truth.read(path)
        except UserError as error:
            refused += 1
            assert all(len(line) < 400 for line in str(error).splitlines())
            continue
        metrics = truth.measure(table)
        assert math.isnan(metrics["AP"]) or 0 <= metrics["AP"] <= 1
        if len(table):
            analyse(truth.coco, table)
    assert 30 < refused < 100


@pytest.mark.parametrize(
    ("box", "hint"),
    [([90, 90, 118, 99], "x1, y1, x2, y2"), ([0.1, 0.1, 0.8, 0.7], "relative to"), ([9, 9, 50, 50], None)],
)
def test_boxes_of_another_format_get_a_hint(box: list[float], hint: str | None) -> None:
    notes = [note for note in evaluate(ground_truth(), [result(bbox=box)]).notes if "are they" in note]
    assert len(notes) == bool(hint) and all(str(hint) in note for note in notes)


def test_more_objects_than_count_are_noted() -> None:
    data = ground_truth()
    one = data["annotations"][1]
    data["annotations"] += [{**one, "id": 10 + i, "bbox": [i % 50, i // 50, 9, 9]} for i in range(120)]
    perfect = [
        result(category_id=each["category_id"], bbox=each["bbox"], score=0.9 - 0.001 * i)
        for i, each in enumerate(data["annotations"])
        if not each["iscrowd"]
    ]
    metrics = evaluate(data, perfect)
    assert metrics.per_class["dog"] < 0.9
    assert any("more than 100 objects: 1" in note for note in metrics.notes)
    for backend in ("pycocotools", "hotcoco"):
        counted = evaluate(data, perfect, backend=backend, max_detections=200)
        assert counted.per_class["dog"] == pytest.approx(1)
        assert any("200 detections" in note for note in counted.notes)
