"""``dcn-det evaluate`` from files to text, JSON and exit codes."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from dcn_det.cli.evaluate import main
from dcn_det.entry import exit_code
from dcn_det.errors import UserError
from tests.messages import says

ROOT = Path(__file__).resolve().parents[2]
BOX = [10.0, 10.0, 50.0, 50.0]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """gt.json and results.json in the working directory; one of two classes is detected."""
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
def test_swapped_files_are_recognized() -> None:
    with pytest.raises(UserError, match=r"^results.json: not COCO annotations: .* is it a results file\?$"):
        main(["results.json", "gt.json"])


@pytest.mark.usefixtures("files")
def test_boxes_cannot_be_evaluated_as_masks() -> None:
    with pytest.raises(UserError, match=r"^results.json: entry 0: has no 'segmentation'$"):
        main(["gt.json", "results.json", "--iou-type", "segm"])


@pytest.mark.usefixtures("files")
def test_a_missing_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    for names in (["gt.json", "nothing.json"], ["nothing.json", "results.json"]):
        assert exit_code(partial(main, names)) == 2
        out, error = capsys.readouterr()
        assert (out, error.count("\n")) == ("", 1) and error.startswith("error: nothing.json:")


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


SECOND = [{"image_id": 1, "category_id": 2, "bbox": [10.0, 10.0, 50.0, 30.0], "score": 0.9}]
EXPECTED = "expected: [{{metric: AP50, value: {}, tolerance: 0.01, source: a paper}}]\n"


@pytest.mark.usefixtures("files")
def test_several_results_are_put_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    Path("other").mkdir()
    Path("other/results.json").write_text(json.dumps(SECOND))
    Path("config.yaml").write_text(EXPECTED.format(0.5))
    command = ["gt.json", "results.json", "other/results.json", "--config", "config.yaml", "--per-class"]
    assert main([*command, "--json", "all.json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("bbox: 1 images, 2 objects (hotcoco ")
    table = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    assert table["AP50"] == ["0.500", "0.500", "0.500"]
    assert table["AP75"] == ["0.500", "0.000"]
    assert table["dog"] == ["0.000", "0.300"]
    assert table["detections"] == ["1", "1"]
    assert ["results.json", "other/results.json", "expected"] in [line.split() for line in lines]
    assert set(json.loads(Path("all.json").read_text())) == {"results.json", "other/results.json"}


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(("value", "code"), [(0.5, 0), (0.509, 0), (0.52, 1), (0.48, 1)])
def test_a_metric_outside_its_tolerance_exits_with_1(
    capsys: pytest.CaptureFixture[str], value: float, code: int
) -> None:
    Path("config.yaml").write_text(EXPECTED.format(value))
    assert main(["gt.json", "results.json", "--config", "config.yaml"]) == code
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(f"AP50: measured 0.500, expected {value:.3f} +- 0.010 (a paper)")
    assert line.endswith("  MISSED") == bool(code)


@pytest.mark.usefixtures("files")
def test_the_ground_truth_may_be_a_config(capsys: pytest.CaptureFixture[str]) -> None:
    Path("config.yaml").write_text(EXPECTED.format(0.5))
    truth = json.loads(Path("gt.json").read_text())
    for row in truth["images"]:
        row["file_name"] = f"{row['id']}.png"
    Path("gt.json").write_text(json.dumps(truth))
    place = ["--set", "data.root=.", "--set", "data.test={images: ., annotations: gt.json}"]
    assert main(["config.yaml", "results.json", *place, "--backend", "pycocotools"]) == 0
    assert "(pycocotools " in capsys.readouterr().out
    with pytest.raises(UserError, match=r"data\.root: folder datasets/coco does not exist"):
        main(["config.yaml", "results.json"])
    with pytest.raises(UserError, match=r"^--set: "):
        main(["gt.json", "results.json", "--set", "seed=1"])
    with pytest.raises(UserError, match=r"^--config: "):
        main(["config.yaml", "results.json", "--config", "config.yaml"])


@pytest.mark.usefixtures("files")
def test_entries_that_repeat_are_left_out_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    entries = json.loads(Path("results.json").read_text())
    Path("results.json").write_text(json.dumps(entries * 2 + SECOND))
    assert main(["gt.json", "results.json"]) == 0
    printed = capsys.readouterr().out
    assert "entries that repeat another exactly, left out: 1 (entry 1 repeats entry 0)" in printed
    assert "2 detections" in printed


@pytest.mark.usefixtures("files")
def test_a_promise_of_another_kind_of_metric_is_refused() -> None:
    Path("config.yaml").write_text(EXPECTED.format(0.5).replace("AP50", "mAP50"))
    with pytest.raises(UserError, match=r"expected: 'mAP50' is none of the metrics AP, .*; did you mean 'AP50'\?"):
        main(["gt.json", "results.json", "--config", "config.yaml"])


@pytest.mark.usefixtures("files")
def test_of_several_sources_one_has_to_be_met(capsys: pytest.CaptureFixture[str]) -> None:
    item = "  - {{metric: AP50, value: {}, tolerance: 0.01, source: {}}}\n"
    Path("config.yaml").write_text("expected:\n" + item.format(0.9, "a paper") + item.format(0.5, "its code"))
    assert main(["gt.json", "results.json", "--config", "config.yaml"]) == 0
    first, second = capsys.readouterr().out.splitlines()[-2:]
    assert first.endswith("(a paper)  MISSED") and second.endswith("(its code)")


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("file", "split", "compared"),
    [
        ("instances_val2017.json", "val2017", True),
        ("instances_minival2014.json", "val2017", True),
        ("image_info_test-dev2015.json", "test-dev", True),
        ("instances_val2017.json", "test-dev", False),
        ("gt.json", "gt", True),
        ("gt.json", "val2017", False),
    ],
)
def test_a_number_is_compared_on_its_split_only(
    capsys: pytest.CaptureFixture[str], file: str, split: str, compared: bool
) -> None:
    Path("gt.json").rename(file)
    Path("config.yaml").write_text(EXPECTED.format(0.9).replace("source", f"split: {split}, source"))
    assert main([file, "results.json", "--config", "config.yaml"]) == compared
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.endswith("MISSED" if compared else f"other split: {split}")
    assert main([file, "results.json", "results.json", "--config", "config.yaml"]) == compared
    assert ("other split" in capsys.readouterr().out) != compared
    Path("config.yaml").write_text(EXPECTED.format(0.9).replace("AP50", "mAP50").replace("source", "split: x, source"))
    assert main([file, "results.json", "--config", "config.yaml"]) == 0
    assert says(capsys.readouterr().out, "mAP50", "not measured", "other split")
