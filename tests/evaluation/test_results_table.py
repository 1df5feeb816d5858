"""Results read piece by piece: as JSON has them, or refused with the place."""

import json
from pathlib import Path

import numpy as np
import pytest

from dcn_det.errors import UserError
from dcn_det.evaluation import results as module
from dcn_det.evaluation.results import check_results
from dcn_det.files import iterate_json
from tests.messages import says

IMAGES = {1: (100, 100), 2: (100, 100)}


def entry(**changes: object) -> dict:
    return {"image_id": 1, "category_id": 3, "bbox": [1, 2.5, 3, 4], "score": 0.5} | changes


@pytest.mark.parametrize("text", ["[]", " [ ] \n", '[1, "a, ]", {"b": [2]}, [null]]', "\ufeff[ 1\n,\t2 ]"])
def test_lists_are_read_as_json_reads_them(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    assert list(iterate_json(tmp_path / "x.json")) == json.loads(text.removeprefix("\ufeff"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2", r"x\.json:1: not valid JSON: Expecting ',' delimiter \(column 6\)"),
        ("[1 2]", r"x\.json:1: not valid JSON: Expecting ',' delimiter \(column 4\)"),
        ("[1,\n]", r"x\.json:2: not valid JSON: Expecting value \(column 1\)"),
        ("[1]\n[2]", r"x\.json:2: not valid JSON: Extra data \(column 1\)"),
        ("", r"x\.json:1: not valid JSON"),
        ("{", r"x\.json:1: not valid JSON"),
        ('{"images": []}', r"expected a list of results, got an object; this looks like a ground-truth file"),
        ("3", r"expected a list of results, got a number"),
        ("[" * 200_000, r"x\.json: nested too deeply"),
    ],
)
def test_what_is_no_list_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=message):
        list(iterate_json(tmp_path / "x.json"))


def test_problems_are_counted_over_all_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 4)
    entries = [entry(score=i / 20) for i in range(19)]
    assert check_results(entries, IMAGES, {3}, "bbox").scores.tolist() == [i / 20 for i in range(19)]
    for i in (5, 6, 18):
        entries[i] = entry(image_id=9)
    entries[11] = entry(score="0.5")
    with pytest.raises(UserError) as caught:
        check_results(entries, IMAGES, {3}, "bbox", "r.json")
    images, scores = str(caught.value).splitlines()
    assert says(images, "r.json: entry 5", "image_id 9", "3 of 19 entries")
    assert says(scores, "r.json: entry 11", "score", "'0.5'") and "entries" not in scores


def test_numbers_of_numpy_are_numbers_and_booleans_are_none() -> None:
    numbers = entry(image_id=np.int64(2), score=np.float32(0.25), bbox=list(np.arange(4.0)))
    table = check_results([entry(), numbers], IMAGES, {3}, "bbox")
    assert table.image_ids.tolist() == [1, 2] and table.scores.tolist() == [0.5, 0.25]
    for wrong in (entry(score=True), entry(bbox=[1, 2, 3, True])):
        with pytest.raises(UserError, match="entry 1: "):
            check_results([entry(), wrong], IMAGES, {3}, "bbox")


def test_repetitions_are_left_out_wherever_they_are() -> None:
    different = [entry(), entry(score=0.4), entry(image_id=2), entry(bbox=[1, 2.5, 3, 5]), entry(bbox=[1, 2.5, 3, 4.5])]
    assert not check_results(different, IMAGES, {3}, "bbox").notes
    table = check_results([*different, entry(image_id=2), entry()], IMAGES, {3}, "bbox")
    assert table.scores.tolist() == [each["score"] for each in different]
    assert table.boxes.tolist() == [each["bbox"] for each in different]
    assert table.notes == ("entries that repeat another exactly, left out: 2 (entry 5 repeats entry 2)",)


def test_no_results_are_an_empty_table() -> None:
    table = check_results([], IMAGES, {3}, "bbox")
    assert len(table) == 0 and table.boxes.shape == (0, 4) and table.notes == ()
