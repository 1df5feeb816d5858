"""The public functions of ``dcn_det``, used as in a notebook."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

import dcn_det
from dcn_det.data.sample import make_sample
from dcn_det.images import read_image
from dcn_det.models.heads.rfcn import RFCNHead

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_settings: dict) -> dcn_det.TrainingResult:
    """A detector trained for two iterations, without evaluation."""
    import yaml

    folder = tmp_path_factory.mktemp("run")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny_settings))
    return dcn_det.train(
        folder / "tiny.yaml",
        output=folder / "out",
        train={"iterations": 2},
        data={"test": None},
        test={"score_threshold": 0.0},
    )


@pytest.fixture
def photo(sample_root: Path) -> Path:
    return sorted((sample_root / "val").glob("*.jpg"))[0]


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import dcn_det, sys; print(sorted({'torch', 'numpy', 'cv2', 'pydantic', 'yaml'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"


def test_every_name_is_there_documented_and_typed() -> None:
    assert set(dcn_det.__all__) <= set(dir(dcn_det))
    for name in dcn_det.__all__:
        value = getattr(dcn_det, name)
        assert value.__doc__, name
        if not isinstance(value, type):
            assert "return" in value.__annotations__, name
    with pytest.raises(AttributeError, match="nothing"):
        getattr(dcn_det, "no" + "thing")


def test_a_run_is_trained_from_python(run: dcn_det.TrainingResult) -> None:
    assert run.iteration == 2 and run.metrics == {}
    assert run.weights == run.output / "last.pth" and run.weights.exists()
    assert {"config.yaml", "log.txt", "metrics.jsonl"} <= {path.name for path in run.output.iterdir()}
    with pytest.raises(dcn_det.UserError, match="--resume"):
        dcn_det.train(run.output / "config.yaml", output=run.output)


def test_images_in_any_form_give_the_same_detections(run: dcn_det.TrainingResult, photo: Path) -> None:
    assert run.weights is not None
    predictor = dcn_det.load(str(run.weights), device="cpu")
    expected = predictor(photo)
    assert len(expected) > 0 and set(expected.names) <= set("0123456789")
    array = read_image(photo)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    for form in (str(photo), array, PIL.Image.fromarray(array), tensor):
        found = predictor(form)
        assert torch.equal(found.boxes, expected.boxes) and found.names == expected.names
    both = predictor([photo, np.zeros((32, 64, 3), np.uint8)])
    assert len(both) == 2 and torch.equal(both[0].scores, expected.scores)


def test_settings_are_laid_over_those_of_the_weights(run: dcn_det.TrainingResult, photo: Path) -> None:
    assert run.weights is not None
    dotted: dict[str, Any] = {"test.max_detections": 3}
    assert len(dcn_det.load(run.weights, test={"max_detections": 3})(photo)) == 3
    assert len(dcn_det.load(run.weights, **dotted)(photo)) == 3
    given = dcn_det.load(run.weights, config=run.output / "config.yaml", test={"max_detections": 2})
    assert len(given(photo)) == 2
    with pytest.raises(dcn_det.UserError, match="max_detections"):
        dcn_det.load(run.weights, test={"max_detection": 3})
    with pytest.raises(dcn_det.UserError, match="absent"):
        dcn_det.load("absent.pth")


def test_test_and_evaluate_agree(run: dcn_det.TrainingResult, sample_root: Path, tmp_path: Path) -> None:
    assert run.weights is not None
    split = {"images": "val", "annotations": "annotations/val.json"}
    config = dcn_det.load_config(run.output / "config.yaml", {"data": {"test": split}})
    result = dcn_det.test(config, run.weights, tmp_path / "test")
    assert result is not None and result.metrics is not None
    assert {"detections.json", "metrics.json", "config.yaml"} <= {path.name for path in result.output.iterdir()}
    truth = sample_root / "annotations" / "val.json"
    for given, results in (
        (truth, result.files["detections"]),
        (config, result.detections),
        (str(truth), result.detections),
    ):
        assert dcn_det.evaluate(given, results).values == pytest.approx(result.metrics.values, nan_ok=True)


def test_a_detector_is_built_from_a_config() -> None:
    config = dcn_det.load_config(ROOT / "configs/sample/rfcn_dcn.yaml", "model.backbone.width=8")
    model = dcn_det.build_detector(config, num_classes=3)
    assert isinstance(model.head, RFCNHead) and model.head.num_classes == 3 and model.training


def test_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0]
    brief = '"iterations": 2, "warmup": {"kind": "none"}'
    shorter = code.replace('"iterations": 300', brief).replace(".above(0.3)", ".above(0.001)")
    assert shorter.count(brief) == shorter.count("0.001") == 1
    assert len(code.strip().splitlines()) <= 12
    make_sample(tmp_path / "datasets" / "sample", train_images=8, val_images=2)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(shorter, names)
    assert names["picture"].shape == (256, 256, 3)
    assert "AP50" in capsys.readouterr().out
