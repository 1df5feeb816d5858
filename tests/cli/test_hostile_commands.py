"""Hostile command lines give a result or a clear error."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from dcn_det.cli import dispatch
from tests.conftest import TINY
from tests.hostile import VALUES, assert_result_or_clear_error, mutated

CASES = 300
OPTIONS = {
    "train": ["--output", "--resume", "--auto-resume", "--stop-at", "--print-config", "--dry-run"],
    "test": ["--weights", "--output", "--submission"],
    "check-dataset": ["--split", "--workers", "--fix", "--browse", "--samples"],
    "convert-weights": ["--config", "--output", "--classes"],
    "evaluate": ["--config", "--set", "--iou-type", "--backend", "--per-class", "--json"],
    "analyze": ["--ground-truth", "--images", "--score", "--worst", "--output", "--set"],
    "effective-dilation": ["--weights", "--images", "--save", "--plot"],
    "receptive-field": ["--weights", "--against", "--images", "--save", "--plot"],
    "sampling": ["--weights", "--output", "--at", "--score", "--parts", "--config", "--device"],
    "infer": [
        "--weights",
        "--output",
        "--write",
        "--score",
        "--recursive",
        "--every",
        "--sheet",
        "--config",
        "--device",
    ],
    "model-info": ["--size", "--rois", "--classes", "--json", "--markdown"],
    "benchmark data": ["--images", "--json"],
    "benchmark train": ["--steps", "--warmup", "--json"],
    "config list": ["*", "coco/*", "--all"],
    "config show": ["--json-schema"],
    "config reference": ["--all"],
}
"""Commands with their options; some options do not exist."""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of files of all kinds in the working directory; no data set is complete, so that nothing takes long."""
    monkeypatch.chdir(tmp_path)
    absent = TINY | {"data": TINY["data"] | {"kind": "coco", "root": "absent"}}
    truth = {
        "images": [{"id": 1, "width": 9, "height": 9, "file_name": "a.jpg"}],
        "categories": [{"id": 1, "name": "x\x1b[2J"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "area": 25, "iscrowd": 0}],
    }
    results = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "score": 0.5}]
    written = {
        "absent.yaml": json.dumps(absent),
        "truth.json": json.dumps(truth),
        "results.json": json.dumps(results),
        "empty": "",
        "text.txt": "text\n",
        "weights.pth": "PK\x03\x04 no archive",
        "weights.params": "no parameters",
        "a.jpg": "no image",
    }
    for name, content in written.items():
        Path(name).write_text(content)
    draw = random.Random(0)
    for number in range(6):
        Path(f"mutated{number}.yaml").write_bytes(mutated(written["absent.yaml"].encode(), draw))
    Path("folder").mkdir()
    yield [*written, *(f"mutated{number}.yaml" for number in range(6)), "folder", "missing", ".", "/dev/null", "", "-"]


def command_line(draw: random.Random, files: list[str]) -> list[str]:
    def value() -> str:
        kind = draw.random()
        if kind < 0.6:
            return draw.choice(files)
        if kind < 0.8:
            return draw.choice(VALUES)
        return f"{draw.choice(('train.epochs', 'data.root', 'device', 'name', 'seed', 'x'))}={draw.choice(VALUES)}"

    command = draw.choice(sorted(OPTIONS))
    parts = command.split()
    if draw.random() < 0.8:
        parts.append(draw.choice([name for name in files if name.endswith((".yaml", ".json"))]))
    for _ in range(draw.randint(0, 4)):
        if draw.random() < 0.6:
            parts.append(draw.choice(OPTIONS[command]) if draw.random() < 0.9 else draw.choice(("--no", "-x", "--")))
        parts.append(value())
    if draw.random() < 0.05:
        parts[0] = draw.choice(VALUES)
    return [part for part in parts if "\0" not in part]  # the system refuses them as arguments


def test_command_lines(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    codes = set()
    for seed in range(CASES):
        arguments = command_line(random.Random(seed), files)
        codes.add(assert_result_or_clear_error(dispatch, arguments, capsys))
    assert codes == {0, 2}


@pytest.mark.parametrize("number", ["0", "-1", "1.5", "nan", "", "1" + "0" * 30, "x"])
@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("train", "--stop-at"),
        ("model-info", "--rois"),
        ("model-info", "--classes"),
        ("effective-dilation", "--images"),
        ("receptive-field", "--images"),
    ],
)
def test_counts(files: list[str], command: str, option: str, number: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert assert_result_or_clear_error(dispatch, [command, "absent.yaml", f"{option}={number}"], capsys) == 2
