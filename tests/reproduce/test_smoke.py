"""Whole tables with small networks, from nothing to the written table."""

import csv
import os
import signal
import time
from pathlib import Path

import pytest

from dcn_det.reproduce.tables import TABLES
from tests.reproduce.helpers import start

pytestmark = pytest.mark.slow
ROWS = "rfcn_r101_dcn,rfcn_air_dcn"


def run(folder: Path, *arguments: str) -> str:
    process = start([*arguments, "--smoke", "--output", "out"], folder)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    return said


def cells(folder: Path, table: str) -> dict[str, list[str]]:
    """Measured cells of the written table, by config."""
    with (folder / "out" / f"{table}.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {row["config"]: [row[column.metric] for column in TABLES[table].columns] for row in rows if row["config"]}


@pytest.fixture(scope="module")
def table5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("table5")
    said = run(folder, "table5")
    assert "24 of 24 steps done" in said and "14 of 14 rows measured" in said
    return folder


def test_every_row_of_table_5(table5: Path) -> None:
    measured = cells(table5, "table5")
    assert len(measured) == 14 and all(all(row) for row in measured.values())
    assert len(list((table5 / "out" / "train" / "coco").iterdir())) == 10
    assert "23.2" in (table5 / "out" / "table5.html").read_text()


def test_every_row_of_table_3(tmp_path: Path) -> None:
    run(tmp_path, "table3")
    measured = cells(tmp_path, "table3")
    assert len(measured) == 29
    for config, (miou, *maps) in measured.items():
        assert (miou and not any(maps)) if "deeplab" in config else (not miou and all(maps)), config


def test_a_killed_run_ends_with_the_same_table(table5: Path, tmp_path: Path) -> None:
    process = start(["table5", "--smoke", "--output", "out", "--rows", ROWS], tmp_path)
    saved = tmp_path / "out/train/coco/rfcn_air_dcn/iteration_00000001.pth"
    deadline = time.monotonic() + 300
    while not saved.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert saved.exists() and not (tmp_path / "out/test/coco/rfcn_air_dcn").exists()
    assert "done before" in run(tmp_path, "table5", "--rows", ROWS)
    whole, again = cells(table5, "table5"), cells(tmp_path, "table5")
    filled = [config for config, row in again.items() if any(row)]
    assert len(filled) == 2
    for config in filled:
        assert whole[config] == again[config]
        first, second = (folder / "out/test" / config / "detections.json" for folder in (table5, tmp_path))
        assert first.read_bytes() == second.read_bytes() != b"[]"


def test_seeds_and_the_peer_and_that_a_second_run_changes_nothing(tmp_path: Path) -> None:
    arguments = ["fod", "--rows", "faster_rcnn,faster_rcnn_dcn", "--seeds", "2"]
    said = run(tmp_path, *arguments)
    assert "10 of 10 steps done" in said and "peer/fod/faster_rcnn.seed1: done in" in said
    out = tmp_path / "out"
    names = [f"fod.{suffix}" for suffix in ("csv", "json", "md", "svg")]
    first = [(out / name).read_bytes() for name in names]
    assert first[2].decode().count("\u00b1") >= 3 * 4 and first[3].count(b"<circle") >= 2 * 2
    again = run(tmp_path, *arguments)
    assert again.count("done before") == 10 and [(out / name).read_bytes() for name in names] == first
