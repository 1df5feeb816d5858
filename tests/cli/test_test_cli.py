"""``dcn-det test``: kills, several processes, submissions, data without annotations, Pascal VOC."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from dcn_det.cli import evaluate, train
from dcn_det.cli import test as command
from dcn_det.config import load_config
from dcn_det.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
VIEWS = [
    "test.scales=[{short_side: 64, max_side: 80}, {short_side: 96, max_side: 96}]",
    "test.flip=true",
    "test.box_average={}",
    "test.nms=gaussian",
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, tiny_settings: dict) -> Path:
    """A checkpoint trained with the tiny config, which is in the parent folder of the run."""
    import yaml

    folder = tmp_path_factory.mktemp("run")
    config = folder / "tiny.yaml"
    config.write_text(yaml.safe_dump(tiny_settings))
    arguments = [str(config), "--output", str(folder / "run"), "train.iterations=2"]
    assert train.main([*arguments, "test.score_threshold=0.05"]) == 0
    return folder / "run" / "last.pth"


def arguments(weights: Path, output: Path, *more: str) -> list[str]:
    config = weights.parent.parent / "tiny.yaml"
    # The scores of an untrained detector are low.
    return [str(config), "--weights", str(weights), "--output", str(output), "test.score_threshold=0.05", *more]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_several_scales_a_flip_box_averaging_and_soft_suppression_run(weights: Path, tmp_path: Path) -> None:
    assert command.main(arguments(weights, tmp_path / "plain")) == 0
    assert command.main(arguments(weights, tmp_path / "all", *VIEWS)) == 0
    plain, every = (json.loads((tmp_path / name / "detections.json").read_text()) for name in ("plain", "all"))
    assert plain and every and plain != every
    assert {entry["image_id"] for entry in every} == {100001, 100002, 100003, 100004}
    assert load_config(tmp_path / "all" / "config.yaml").test.flip
    assert not list((tmp_path / "all").glob("part-*"))


@pytest.mark.slow
def test_one_two_and_three_processes_write_the_same_bytes(weights: Path, tmp_path: Path) -> None:
    written = []
    for count in (1, 2, 3):
        output = tmp_path / str(count)
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"] if count > 1 else []
        line = [sys.executable, *launcher, str(ROOT / "tools/test.py"), *arguments(weights, output, *VIEWS)]
        done = subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=300, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("detections: '") == 1, "only one process prints"
        written.append((output / "detections.json").read_bytes())
    assert written[0] == written[1] == written[2]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_test_goes_on_to_the_same_bytes(weights: Path, tmp_path: Path, number: signal.Signals) -> None:
    assert command.main(arguments(weights, tmp_path / "whole", *VIEWS)) == 0
    line = [sys.executable, str(ROOT / "tools/test.py"), *arguments(weights, tmp_path / "part", *VIEWS)]
    process = subprocess.Popen(line, env=environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not any(path.stat().st_size for path in (tmp_path / "part").glob("part-*")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert "Traceback" not in said
    again = subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    whole, part = ((tmp_path / name / "detections.json").read_bytes() for name in ("whole", "part"))
    assert whole == part


@pytest.fixture
def unannotated(sample_root: Path, tmp_path: Path) -> str:
    """An override that sets a test split without annotations, like test-dev."""
    document = json.loads((sample_root / "annotations" / "val.json").read_text())
    del document["annotations"]
    path = tmp_path / "image_info.json"
    path.write_text(json.dumps(document))
    return f"data.test={{images: {sample_root / 'val'}, annotations: {path}}}"


def test_a_submission_needs_no_annotations(
    weights: Path, tmp_path: Path, unannotated: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert command.main([*arguments(weights, output, unannotated), "--submission", "dcn.r101"]) == 0
    printed = capsys.readouterr().out
    assert "submission: '" in printed
    assert not (output / "metrics.json").exists()
    name = "detections_test-dev2017_dcn.r101_results"
    with zipfile.ZipFile(output / f"{name}.zip") as archive:
        assert archive.namelist() == [f"{name}.json"]
        assert json.loads(archive.read(f"{name}.json")) == json.loads((output / "detections.json").read_text())


def test_training_does_without_annotations_to_test_on(
    weights: Path, tmp_path: Path, unannotated: str, recwarn: pytest.WarningsRecorder
) -> None:
    config = str(weights.parent.parent / "tiny.yaml")
    assert train.main([config, unannotated, "--output", str(tmp_path / "a"), "train.iterations=1"]) == 0
    assert any("has no annotations: training is not evaluated" in str(each.message) for each in recwarn)
    assert train.main([config, "data.test=null", "--output", str(tmp_path / "b"), "train.iterations=1"]) == 0
    assert "test on   nothing" in (tmp_path / "b" / "log.txt").read_text()
    with pytest.raises(UserError, match=r"data\.test: is null"):
        command.main(arguments(weights, tmp_path / "out", "data.test=null"))


def test_pascal_voc_is_tested_and_measured_by_its_own_rules(
    weights: Path, tmp_path: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "voc" / "VOC2007"
    for folder in ("Annotations", "ImageSets/Main"):
        (base / folder).mkdir(parents=True)
    shutil.copytree(sample_root / "val", base / "JPEGImages")
    document = json.loads((sample_root / "annotations" / "val.json").read_text())
    for image in document["images"]:
        objects = ""
        for each in document["annotations"]:
            if each["image_id"] == image["id"]:
                x, y, width, height = each["bbox"]
                corners = zip(("xmin", "ymin", "xmax", "ymax"), (x + 1, y + 1, x + width, y + height))
                box = "".join(f"<{key}>{value}</{key}>" for key, value in corners)
                name = each["category_id"] - 1
                objects += f"<object><name>{name}</name><bndbox>{box}</bndbox></object>"
        text = f"<annotation><size><width>256</width><height>256</height></size>{objects}</annotation>"
        (base / "Annotations" / image["file_name"].replace("jpg", "xml")).write_text(text)
    names = [image["file_name"].removesuffix(".jpg") for image in document["images"]]
    (base / "ImageSets/Main/test.txt").write_text("\n".join(names))
    voc = [
        "data.kind=voc",
        "train.best_metric=mAP50",
        f"data.root={tmp_path / 'voc'}",
        "data.train={sets: [VOC2007/ImageSets/Main/test.txt]}",
        "data.test={sets: [VOC2007/ImageSets/Main/test.txt]}",
        "data.classes=[" + ", ".join(f"'{digit}'" for digit in range(10)) + "]",
    ]
    output = tmp_path / "out"
    assert command.main(arguments(weights, output, *voc)) == 0
    printed = capsys.readouterr().out
    assert "voc: 4 images" in printed and "mAP50" in printed and "mAP70" in printed
    lines = [line for path in (output / "voc").glob("comp4_det_test_*.txt") for line in path.read_text().splitlines()]
    assert len(lines) == len(json.loads((output / "detections.json").read_text())) > 0
    assert evaluate.main([str(output / "config.yaml"), str(output / "detections.json"), str(output / "voc")]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[-2].split()[0] == "mAP50"


def test_a_name_that_the_server_cannot_take_is_refused(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main([*arguments(weights, tmp_path), "--submission", "my method"])
    assert stop.value.code == 2
