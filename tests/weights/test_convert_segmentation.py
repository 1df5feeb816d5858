"""The authors' DeepLab networks: names and shapes from the symbols in their released code."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dcn_det.cli.convert_weights import main
from dcn_det.config import load_any
from dcn_det.engine.testing import load
from dcn_det.entry import USER_ERROR, exit_code
from dcn_det.models.build import build_model
from dcn_det.weights import checkpoint, released
from tests.weights.mxnet_writer import write_params
from tests.weights.small_released import shapes_of

ROOT = Path(__file__).resolve().parents[2]
NETWORKS = {file.removesuffix("-0000.params"): config for file, config in released.FILES.items() if "deeplab" in file}
NARROW = ["model.backbone.width=8", "model.backbone.stem_width=8", "model.channels=8"]


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Shapes of all arrays: those of the plain detector's residual network, and the layers of DeepLab."""
    classes = 21 if "voc" in name else 19
    others = ("rpn_", "conv_new", "fc_new", "cls_score", "bbox_pred", "offset")
    found = {each: shape for each, shape in shapes_of("rcnn").items() if not each[4:].startswith(others)}
    layers = {"fc6": (1024, 2048, 1, 1), "score": (classes, 1024, 1, 1)}
    if "dcn" in name:
        layers |= {f"res5{block}_branch2b_offset": (18, 512, 3, 3) for block in "abc"}
    for layer, shape in layers.items():
        found |= {f"arg:{layer}_weight": shape, f"arg:{layer}_bias": shape[:1]}
    return found | {"arg:upsampling_weight": (classes, 1, 32, 32)}


def bilinear(classes: int) -> np.ndarray:
    """MXNet's initialization of a transposed convolution."""
    taps = np.array([1 - abs(i / 16 - 31 / 32) for i in range(32)], np.float32)
    return np.broadcast_to(taps[:, None] * taps, (classes, 1, 32, 32)).copy()


def arrays_of(name: str) -> dict[str, np.ndarray]:
    """Random weights of a narrow network under the authors' names."""
    generator = np.random.default_rng(0)
    with torch.device("meta"):
        config = load_any(ROOT / "configs" / f"{NETWORKS[name]}.yaml", *NARROW)
        ours = build_model(config, config.data.num_classes or 0).state_dict()
    network, arrays = released.recognise(shapes(name)), {}
    for each, shape in shapes(name).items():
        if each == "arg:upsampling_weight":
            arrays[each] = bilinear(shape[0])
            continue
        shape = tuple(ours[str(released.our_name(each, network))].shape)
        value = generator.uniform(0.5, 1.5, shape) if "var" in each else generator.normal(0, 0.1, shape)
        arrays[each] = value.astype(np.float32)
    return arrays


def convert(arrays: dict[str, np.ndarray], name: str, folder: Path, config: str = "") -> int:
    write_params(folder / "in.params", arrays)
    path = ROOT / "configs" / f"{config or NETWORKS[name]}.yaml"
    return exit_code(lambda: main([str(folder / "in.params"), str(folder / "out.pth"), "--config", str(path), *NARROW]))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_name_and_shape_has_its_place(name: str) -> None:
    config, given = load_any(ROOT / "configs" / f"{NETWORKS[name]}.yaml"), shapes(name)
    with torch.device("meta"):
        model = build_model(config, config.data.num_classes or 0)
    network = released.recognise(given)
    assert network is not None and network.title == "DeepLab"
    given.pop("arg:upsampling_weight")
    ours = {str(released.our_name(each, network)): shape for each, shape in given.items()}
    assert ours == {each: tuple(value.shape) for each, value in model.state_dict().items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_whole_checkpoint(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = arrays_of(name)
    assert convert(arrays, name, tmp_path) == 0
    assert "arg:upsampling_weight" in capsys.readouterr().out
    state, network = checkpoint.load(tmp_path / "out.pth"), released.recognise(arrays)
    del arrays["arg:upsampling_weight"]
    assert state["model"].keys() == {released.our_name(each, network) for each in arrays}
    for each, value in arrays.items():
        np.testing.assert_array_equal(state["model"][released.our_name(each, network)].numpy(), value)
    names = [category["name"] for category in state["categories"]]
    assert (names[0], len(names)) == (("background", 21) if "voc" in name else ("road", 19))
    backbone = state["config"]["model"]["backbone"]
    assert (backbone["stride_on"], backbone["stem_pool"]) == ("first_1x1", "ceil")
    assert backbone["preprocess"]["mean"] == [123.15, 115.9, 103.06]
    if "dcn" in name:
        deform = backbone["deform"]
        assert (deform["border"], deform["offset_groups"], deform["offset_dilation"]) == ("dcn_v1", 1, 1)
    found = load(tmp_path / "out.pth", "cpu")(np.zeros((40, 60, 3), np.uint8))
    assert found.labels.shape == (40, 60) and found.labels.max() < len(names)


def test_what_does_not_fit_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = arrays_of("deeplab_voc")
    cases = [
        (arrays | {"arg:upsampling_weight": np.zeros((21, 1, 32, 32), np.float32)}, "", "not bilinear upsampling"),
        (
            {each: value for each, value in arrays.items() if each != "arg:fc6_bias"},
            "",
            "head.reduce.bias 8 is missing",
        ),
        (arrays, "cityscapes/deeplab_r101_atrous2", "instead of 19x8x1x1"),
        (arrays, "voc/deeplab_r101_dconv", "needs model.backbone.deform.blocks=[]"),
        (arrays_of("deeplab_dcn_voc"), "", "needs model.backbone.deform.blocks=[res5a,res5b,res5c]"),
    ]
    for given, config, message in cases:
        assert convert(given, "deeplab_voc", tmp_path, config) == USER_ERROR
        assert message in capsys.readouterr().err and not (tmp_path / "out.pth").exists()


def test_upsampling_weights_may_be_left_out(tmp_path: Path) -> None:
    arrays = arrays_of("deeplab_voc")
    del arrays["arg:upsampling_weight"]
    assert convert(arrays, "deeplab_voc", tmp_path) == 0
