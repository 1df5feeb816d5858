"""``tools/evaluate.py`` from files to text, JSON and exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dcn_det.cli.evaluate import main
from dcn_det.cli.run import exit_code
from dcn_det.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
BOX = [10.0, 10.0, 50.0, 50.0]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """gt.json and results.json in the working directory: of two classes one is found."""
    monkeypatch.chdir(tmp_path)
    annotation = {"image_id": 1, "bbox": BOX, "area": 2500.0, "iscrowd": 0}
    truth = {
        "images": [{"id": 1, "height": 100, "width": 100}],
        "categories": [{"id": 4, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [annotation | {"id": 1, "category_id": 4}, annotation | {"id": 2, "category_id": 2}],
    }
    results = [{"image_id": 1, "category_id": 4, "bbox": BOX, "score": 0.9}]
    Path("gt.json").write_text(json.dumps(truth))
    Path("results.json").write_text(json.dumps(results))


@pytest.mark.usefixtures("files")
def test_metrics_are_printed_and_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gt.json", "results.json", "--per-class", "--json", "out/metrics.json"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("bbox: 1 images, 2 objects, 1 detections (hotcoco ")
    assert "AP50 0.500" in printed
    assert printed.endswith("dog  0.000\ncat  1.000\n")
    written = json.loads(Path("out/metrics.json").read_text())
    assert written["metrics"]["AP"] == pytest.approx(0.5)
    assert written["metrics"]["APs"] is None
    assert written["per_class"] == pytest.approx({"cat": 1.0, "dog": 0.0})


@pytest.mark.usefixtures("files")
def test_an_empty_list_is_said_and_gives_zeros(capsys: pytest.CaptureFixture[str]) -> None:
    Path("results.json").write_text("[]")
    assert main(["gt.json", "results.json"]) == 0
    printed = capsys.readouterr().out
    assert "there are no results: nothing was detected in any image" in printed
    assert "AP 0.000" in printed
    assert "-1" not in printed


@pytest.mark.usefixtures("files")
def test_swapped_files_are_recognised() -> None:
    with pytest.raises(UserError, match=r"^results.json: not COCO annotations: .* this looks like a results file$"):
        main(["results.json", "gt.json"])


@pytest.mark.usefixtures("files")
def test_boxes_cannot_be_evaluated_as_masks() -> None:
    with pytest.raises(UserError, match=r"^results.json: entry 0: has no 'segmentation'$"):
        main(["gt.json", "results.json", "--iou-type", "segm"])


@pytest.mark.usefixtures("files")
def test_a_missing_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    for names in (["gt.json", "nothing.json"], ["nothing.json", "results.json"]):
        assert exit_code(lambda names=names: main(names)) == 2
        assert capsys.readouterr() == ("", "error: nothing.json: No such file or directory\n")


def tool(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "evaluate.py"), *args]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})


@pytest.mark.usefixtures("files")
def test_the_tool_ends_with_codes() -> None:
    good = tool("gt.json", "results.json")
    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout.startswith("bbox: ")

    Path("results.json").write_text('[{"image_id": 1}, 3]')
    wrong = tool("gt.json", "results.json")
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines() == [
        "error: results.json: entry 0: has no 'category_id'",
        "error: results.json: entry 1: expected an object, got a number",
    ]
