"""Settings that belong to the weights are taken from the checkpoint."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dcn_det.cli.test import main
from dcn_det.config import Config, load_config, to_plain
from dcn_det.config.data import SampleDataConfig
from dcn_det.engine.testing import load
from dcn_det.errors import UserError
from dcn_det.models.build import build_detector
from dcn_det.ops import DeformConv2d
from dcn_det.structures import Category
from dcn_det.weights import checkpoint
from dcn_det.weights.settings import differences, laid_over, of_checkpoint

MADE_WITH = (
    "model.backbone.deform.border=dcn_v1",
    "model.backbone.preprocess.mean=[1,2,3]",
    "model.head.offset_std=0.5",
)


@pytest.fixture
def weights(tiny: Path, tmp_path: Path) -> Path:
    """A checkpoint of random weights with settings that differ from the config."""
    checkpoint.save(tmp_path / "w.safetensors", random_weights(load_config(tiny, *MADE_WITH)))
    return tmp_path / "w.safetensors"


def modulated_layer(model: object) -> DeformConv2d:
    assert isinstance(model, torch.nn.Module)
    layer = model.get_submodule("backbone.layer4.1.conv2")
    assert isinstance(layer, DeformConv2d)
    return layer


def random_weights(config: Config) -> dict[str, Any]:
    """What a checkpoint holds."""
    assert isinstance(config.data, SampleDataConfig) and config.data.test is not None
    annotations = json.loads((Path(config.data.root) / str(config.data.test.annotations)).read_text())
    classes = tuple(
        sorted((Category(each["id"], each["name"]) for each in annotations["categories"]), key=lambda c: c.id)
    )
    torch.manual_seed(0)
    model = build_detector(config, len(classes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".offset." in name or name.startswith("head."):
                parameter.normal_(0, 0.3)  # so that border and offset_std matter
    return {
        "config": to_plain(config),
        "categories": checkpoint.categories_to_plain(classes),
        "model": model.state_dict(),
    }


def detections(config: Path, weights: Path, folder: Path, *overrides: str) -> list[dict]:
    assert main([str(config), f"--weights={weights}", f"--output={folder}", *overrides]) == 0
    return json.loads((folder / "detections.json").read_text())


def test_testing_takes_them_from_the_checkpoint(tiny: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"border dcn_v1 \(config: zeros\)") as caught:
        found = detections(tiny, weights, tmp_path / "a")
    message = str(caught[0].message)
    assert "model.backbone.preprocess.mean [1.0,2.0,3.0] (config: [123.15,115.9,103.06])" in message
    assert "model.head.offset_std 0.5 (config: 0.1)" in message
    assert len(found) > 0
    assert found == detections(tiny, weights, tmp_path / "b", *MADE_WITH)
    # The settings make a difference.
    state = checkpoint.load(weights)
    state["config"] = to_plain(load_config(tiny))
    checkpoint.save(tmp_path / "other.pth", state)
    assert found != detections(tiny, tmp_path / "other.pth", tmp_path / "c")


def test_other_architectures_are_refused(tiny: Path, weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "d"
    with pytest.raises(UserError, match=r"w\.safetensors' has model\.backbone\.kind resnet18, the config resnet34"):
        detections(tiny, weights, folder, "model.backbone.kind=resnet34")
    with pytest.raises(UserError, match=r"w\.safetensors(.|\n)*head\.offset\.bias"):
        detections(tiny, weights, folder, *MADE_WITH, "model.head.pooling=max")
    assert not folder.exists()


def test_prediction_takes_all_from_the_checkpoint(weights: Path) -> None:
    model: Any = load(weights, device="cpu").model
    assert model.get_submodule("backbone.layer4.1.conv2").border == "dcn_v1"
    assert model.preprocess.mean.flatten().tolist() == [1, 2, 3]
    assert model.head.offset_std == 0.5


@pytest.mark.parametrize("recorded", [True, False])
def test_masks_keep_the_factor_they_were_trained_with(tiny: Path, tmp_path: Path, recorded: bool) -> None:
    """Checkpoints from before there was a factor do not record it, and mean 1."""
    modulated = ("model.backbone.deform.kind=v2", "model.head.pooling=modulated")
    state = random_weights(load_config(tiny, *modulated, "model.backbone.deform.mask_scale=1"))
    if not recorded:
        del state["config"]["model"]["backbone"]["deform"]["mask_scale"]
    checkpoint.save(tmp_path / "w.pth", state)
    alone = load(tmp_path / "w.pth", device="cpu").model
    with pytest.warns(UserWarning, match=r"deform\.mask_scale 1.* \(config: 2.*\)"):
        under = load(tmp_path / "w.pth", device="cpu", config=load_config(tiny, *modulated)).model
    before, after = modulated_layer(alone), modulated_layer(under)
    assert before.mask_scale == after.mask_scale == 1
    x = torch.randn(1, 64, 5, 6)
    mask = before.sampling(x)[1]
    assert mask is not None and mask.min() > 0 and 0.9 < mask.max() <= 1
    torch.testing.assert_close(after(x), before(x))


def test_settings_laid_over_a_config(tiny: Path) -> None:
    config = load_config(tiny, "test.nms_iou=0.4")
    belonging = {**of_checkpoint(to_plain(load_config(tiny, *MADE_WITH))), "model.no.such.key": 3}
    assert differences(config, belonging).keys() == {made.partition("=")[0] for made in MADE_WITH}
    changed = laid_over(config, belonging, "x")
    assert changed == load_config(tiny, *MADE_WITH, "test.nms_iou=0.4")
    assert differences(changed, belonging) == {}
