"""``dcn-det infer`` with the photos and wishes of users."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

from dcn_det.cli import infer
from dcn_det.config import load_config, to_plain
from dcn_det.engine.testing import load
from dcn_det.images import read_image, write_image
from dcn_det.inference.predictor import Predictor
from dcn_det.models.build import build_detector
from dcn_det.weights import checkpoint
from tests.messages import refused

CLASSES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


@pytest.fixture
def weights(tiny: Path, tmp_path: Path) -> Path:
    """A detector of random weights, with scores around one half."""
    config = load_config(tiny)
    torch.manual_seed(0)
    model = build_detector(config, len(CLASSES))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("head.cls_score", "head.bbox_pred")):
                parameter.normal_(0, 0.5)
    path = tmp_path / "w.pth"
    checkpoint.save(path, {"config": to_plain(config), "categories": CLASSES, "model": model.state_dict()})
    return path


@pytest.fixture
def photo(sample_root: Path) -> Path:
    return next((sample_root / "val").iterdir())


def run(weights: Path, output: Path, *arguments: object) -> int:
    return infer.main([*map(str, arguments), "--weights", str(weights), "--output", str(output)])


def records(output: Path) -> list[dict[str, Any]]:
    return json.loads((output / "detections.json").read_text())


def test_a_rotated_photo_has_the_detections_of_its_upright_copy(weights: Path, photo: Path, tmp_path: Path) -> None:
    exif = PillowImage.Exif()
    exif[0x0112] = 6
    PillowImage.fromarray(read_image(photo)[:90]).save(tmp_path / "phone.jpg", exif=exif, quality=95)
    # As stored, the top of the photo is on its right side.
    write_image(tmp_path / "upright.png", np.rot90(read_image(tmp_path / "phone.jpg"), -1))
    assert run(weights, tmp_path / "out", tmp_path / "phone.jpg", tmp_path / "upright.png", "--score", "0") == 0
    phone, upright = records(tmp_path / "out")
    assert phone["detections"] == upright["detections"] and len(phone["detections"]) > 0
    shapes = {read_image(tmp_path / "out" / f"{name}.jpg").shape for name in ("phone", "upright")}
    assert len(shapes) == 1 and shapes.pop()[:2] != read_image(tmp_path / "phone.jpg").shape[:2]
    predictor = load(weights)
    assert predictor(tmp_path / "phone.jpg").to_plain() == phone["detections"]


def test_every_format_is_written_and_nothing_else(weights: Path, photo: Path, tmp_path: Path) -> None:
    kinds = "coco,csv,yolo,labelme,labelstudio"
    out = tmp_path / "out"
    assert run(weights, out, photo, "--write", kinds, "--score", "0.2") == 0
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == {
        "coco.json",
        "detections.csv",
        "labels/" + photo.stem + ".txt",
        "classes.txt",
        "labelme/" + photo.stem + ".json",
        "labelstudio.json",
    }
    assert (out / "classes.txt").read_text() == "cat\ndog\n"
    assert len((out / "detections.csv").read_text().splitlines()) > 1
    assert run(weights, tmp_path / "other", photo, "--write", "json") == 0
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["detections.json"]


def test_an_unknown_format_is_refused_before_work(weights: Path, photo: Path, tmp_path: Path) -> None:
    with refused("--write", "labelm", "labelme"):
        run(weights, tmp_path / "out", photo, "--write", "json,labelm")
    assert not (tmp_path / "out").exists()


def test_a_video_becomes_a_video(weights: Path, photo: Path, tmp_path: Path) -> None:
    image = cv2.resize(read_image(photo), (96, 64))
    writer = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (96, 64))
    for number in range(5):
        writer.write(np.roll(image, 4 * number, axis=1))
    writer.release()
    out = tmp_path / "out"
    assert run(weights, out, tmp_path / "clip.avi", photo, "--every", "2") == 0
    assert [row.get("frame") for row in records(out)] == [0, 2, 4, None]
    assert {path.name for path in out.iterdir()} == {"clip.mp4", f"{photo.stem}.jpg", "detections.json"}
    film = cv2.VideoCapture(str(out / "clip.mp4"))
    assert film.get(cv2.CAP_PROP_FPS) == pytest.approx(5)
    frames = 0
    while film.read()[0]:
        frames += 1
    assert frames == 3


def test_bad_files_are_skipped_and_counted(
    weights: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    (tmp_path / "list.txt").write_text(f"{photo}\nmissing.jpg\nbad.mp4\n")
    assert run(weights, tmp_path / "out", tmp_path / "list.txt", "--write", "json") == 1
    assert [row["image"] for row in records(tmp_path / "out")] == [str(photo)]
    said = capsys.readouterr().err
    assert "missing.jpg" in said and "bad.mp4" in said and "2 of 3" in said


def test_results_so_far_are_kept_when_stopped(
    weights: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detect, calls = Predictor.__call__, 0

    def stopped(self: Predictor, image: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return detect(self, image)

    monkeypatch.setattr(Predictor, "__call__", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(weights, tmp_path / "out", *[photo] * 4, "--write", "json,csv,coco")
    assert len(records(tmp_path / "out")) == 2
    assert len(json.loads((tmp_path / "out" / "coco.json").read_text())["images"]) == 2
