import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dcn_det.cli.convert_weights import main
from dcn_det.config import load_config, to_plain
from dcn_det.engine.testing import load
from dcn_det.entry import USER_ERROR, exit_code
from dcn_det.models.build import build_detector
from dcn_det.weights import checkpoint, released
from dcn_det.weights.coco_classes import COCO_CATEGORIES
from dcn_det.weights.settings import get
from tests.weights.mxnet_writer import write_params
from tests.weights.small_released import (
    CLASSES,
    CONFIGS,
    NETWORKS,
    arrays_of,
    overrides_of,
    path_of,
    present,
    pyramid_shapes,
    shapes_of,
)

BOX_STDS = (0.1, 0.1, 0.2, 0.2)


def convert(source: Path, target: Path, network: str, *more: str) -> int:
    return main([str(source), str(target), "--config", str(path_of(CONFIGS[network])), *overrides_of(network), *more])


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """Runs the command on arrays, expects exit code 2 and no output file, and returns what it says."""

    def attempt(arrays: dict[str, np.ndarray], network: str, *more: str) -> str:
        write_params(tmp_path / "in.params", arrays, "v3")
        target = tmp_path / "out" / "x.pth"
        assert exit_code(lambda: convert(tmp_path / "in.params", target, network, *more)) == USER_ERROR
        assert not target.exists() and not list(tmp_path.rglob("*.tmp"))
        return capsys.readouterr().err

    return attempt


ALL = {
    **{config: shapes_of(network) for network, config in CONFIGS.items()},
    "faster_rcnn_r101_fpn": pyramid_shapes(deformable=False),
    "faster_rcnn_r101_fpn_dcn": pyramid_shapes(deformable=True),
}


@pytest.mark.parametrize("name", [present(name, name) for name in ALL])
def test_every_name_and_shape_of_the_real_files_has_its_place(name: str) -> None:
    config, shapes = load_config(path_of(name)), ALL[name]
    with torch.device("meta"):
        model = build_detector(config, 80)
    network = released.recognise(shapes)
    assert network is not None
    ours = {str(released.our_name(each, network)): shape for each, shape in shapes.items()}
    assert ours == {each: tuple(value.shape) for each, value in model.state_dict().items()}
    plain = to_plain(config)
    for key, value in released.architecture_of(network, shapes).items():
        assert (get(plain, key) or None) == (value or None)


def test_a_pyramid_brings_its_settings() -> None:
    network = released.recognise(pyramid_shapes(deformable=True))
    assert network is not None
    tensors = {"rpn.cls_score.bias": torch.zeros(6), "backbone.bottom_up.layer4.0.conv2.offset.bias": torch.zeros(72)}
    settings = released.settings_of(network, tensors)
    assert (settings["model.backbone.res5_stride"], settings["model.backbone.res5_dilation"]) == (2, 1)
    assert settings["model.rpn.anchors.scales"] == (8,)
    assert settings["model.backbone.deform.offset_groups"] == 4
    assert settings["model.backbone.deform.border"] == "dcn_v1"


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("suffix, layout", [(".pth", "legacy"), (".safetensors", "v2")])
def test_a_whole_checkpoint(
    network: str, suffix: str, layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = arrays_of(network)
    write_params(tmp_path / "in.params", arrays, layout)
    target = tmp_path / "new" / f"out{suffix}"
    assert convert(tmp_path / "in.params", target, network) == 0
    assert [each.name for each in target.parent.iterdir()] == [target.name]
    state = checkpoint.load(target)
    kind = released.recognise(arrays)
    assert state["model"].keys() == {released.our_name(name, kind) for name in arrays}
    for name, value in arrays.items():
        np.testing.assert_array_equal(state["model"][released.our_name(name, kind)].numpy(), value)
    assert [category["name"] for category in state["categories"]] == list(CLASSES)
    backbone, head = state["config"]["model"]["backbone"], state["config"]["model"]["head"]
    assert (backbone["stride_on"], backbone["stem_pool"], backbone["norm_eps"]) == ("first_1x1", "ceil", 1e-5)
    assert backbone["preprocess"] == {"channel_order": "rgb", "mean": [123.15, 115.9, 103.06], "std": [1, 1, 1]}
    assert backbone["deform"]["border"] == "dcn_v1"
    assert state["config"]["model"]["box_corners"] == "inclusive" and load(target, "cpu").box_corners == "inclusive"
    assert head["box_stds"] == list(BOX_STDS)
    out = capsys.readouterr().out
    assert f"{len(arrays)} arrays" in out
    assert "model.backbone.stem_pool ceil (config: pad)" in out


def test_groups_and_dilation_of_the_offsets_travel(tmp_path: Path) -> None:
    arrays = arrays_of("rcnn_dcn")
    for name in [name for name in arrays if "branch2b_offset" in name]:
        arrays[name] = arrays[name][:18]
    write_params(tmp_path / "in.params", arrays)
    assert convert(tmp_path / "in.params", tmp_path / "out.pth", "rcnn_dcn") == 0
    deform = checkpoint.load(tmp_path / "out.pth")["config"]["model"]["backbone"]["deform"]
    assert (deform["offset_groups"], deform["offset_dilation"]) == (1, 1)


def with_test_copies(arrays: dict[str, np.ndarray], layer: str) -> dict[str, np.ndarray]:
    """What the authors' training saves besides: the box layer times the deviations."""
    bias, weight = arrays[f"arg:{layer}_bias"], arrays[f"arg:{layer}_weight"]
    bins = 49 if layer == "rfcn_bbox" else 1
    factors = np.array([BOX_STDS[channel // bins % 4] for channel in range(len(bias))], np.float32)
    copies = {f"arg:{layer}_weight_test": (weight.T * factors).T, f"arg:{layer}_bias_test": bias * factors}
    return {**arrays, **copies}


@pytest.mark.parametrize("network, layer", [("rcnn", "bbox_pred"), present("rfcn_r101_dcn", "rfcn_dcn", "rfcn_bbox")])
def test_copies_for_testing(network: str, layer: str, tmp_path: Path, refused: Any) -> None:
    arrays = arrays_of(network)
    both = with_test_copies(arrays, layer)
    alone = {name: value for name, value in both.items() if f"{name}_test" not in both}
    for given in (both, alone):
        write_params(tmp_path / "w.params", given)
        assert convert(tmp_path / "w.params", tmp_path / "out.pth", network) == 0
        state = checkpoint.load(tmp_path / "out.pth")["model"]
        for part in ("weight", "bias"):
            ours = state[f"head.bbox_pred.{part}"].numpy()
            np.testing.assert_allclose(ours, arrays[f"arg:{layer}_{part}"], rtol=1e-6)
    both[f"arg:{layer}_bias_test"] = arrays[f"arg:{layer}_bias"]
    message = refused(both, network)
    assert f"{layer}_bias_test is not arg:{layer}_bias times the deviations 0.1, 0.1, 0.2, 0.2" in message


def test_all_that_differs_is_listed(refused: Any) -> None:
    arrays = arrays_of("rcnn")
    arrays["arg:surplus_weight"] = np.zeros((2, 3), np.float32)
    del arrays["arg:fc_new_2_bias"]
    arrays["arg:rpn_conv_3x3_bias"] = np.zeros(9, np.float32)
    arrays["aux:bn3a_branch1_moving_var"][3] = math.nan
    lines = refused(arrays, "rcnn").splitlines()
    assert "in.params" in lines[0] and "4 differences" in lines[0]
    assert sorted(lines[1:]) == sorted(
        [
            "error: head.fc2.bias 8 is missing",
            "error: arg:surplus_weight 2x3 is not part of the network",
            "error: rpn.conv.bias (arg:rpn_conv_3x3_bias) is 9 instead of 8",
            "error: backbone.layer2.0.downsample.1.running_var (aux:bn3a_branch1_moving_var) "
            "contains non-finite numbers",
        ]
    )


@pytest.mark.parametrize("shape", [(), (0,), (5,), (1, 1, 1, 1, 1)])
def test_strange_shapes_are_only_differences(shape: tuple[int, ...], refused: Any) -> None:
    strange = np.ones(shape, np.float32)
    for network, name in [
        ("rcnn", "arg:rpn_cls_score_bias"),
        ("rcnn", "arg:conv1_weight"),
        ("rcnn_dcn", "arg:res5a_branch2b_offset_bias"),
        ("rcnn", "arg:bbox_pred_bias_test"),
    ]:
        said = refused({**arrays_of(network), name: strange}, network)
        assert name in said or "offset_groups" in said


def test_a_long_list_ends(refused: Any) -> None:
    lines = refused(arrays_of("rcnn"), "rcnn", "model.backbone.width=16").splitlines()
    assert len(lines) == 22 and lines[-1].startswith("error: and ")


@pytest.mark.parametrize(
    "network, given, message",
    [
        ("rcnn_dcn", "rcnn", "needs model.backbone.deform.blocks=[res5a,res5b,res5c] model.head.pooling=deformable"),
        ("rcnn", "rcnn_dcn", "needs model.backbone.deform.blocks=[] model.head.pooling=max"),
        present("rfcn_r101", "rfcn", "rfcn_dcn", "needs model.backbone.deform.blocks=[] model.head.pooling=average"),
        present(
            "rfcn_r101", "rfcn", "rcnn", "contains the authors' R-FCN: the config needs model.kind=rfcn model.head"
        ),
        present("rfcn_r101", "rcnn", "rfcn", "Faster R-CNN: the config needs model.kind=faster_rcnn model.head"),
    ],
)
def test_plain_and_deformable_are_told_apart(network: str, given: str, message: str, refused: Any) -> None:
    said = refused(arrays_of(network), given)
    assert message in said and said.count("\n") == 1


def test_another_model(refused: Any) -> None:
    said = refused({"arg:stage1_unit1_bn1_gamma": np.ones(3, np.float32)}, "rcnn")
    assert "it contains none of the known networks" in said and "arg:stage1_unit1_bn1_gamma" in said
    assert said.count("\n") == 1
    assert "its backbone is resnet101, the config has resnet50" in refused(
        arrays_of("rcnn"), "rcnn", "model.backbone.kind=resnet50"
    )
    twice = arrays_of("rcnn") | {"arg:conv1_gamma": np.ones(8, np.float32)}
    assert "arg:conv1_weight and arg:conv1_gamma are both backbone.conv1.weight" in refused(twice, "rcnn")
    quantised = {name: value.astype(np.int8) for name, value in arrays_of("rcnn").items()}
    assert "is int8; weights are floating-point numbers" in refused(quantised, "rcnn")


def test_damaged_files_and_wrong_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_params(tmp_path / "in.params", arrays_of("rcnn"))
    data = (tmp_path / "in.params").read_bytes()
    (tmp_path / "cut.params").write_bytes(data[:-1000])
    (tmp_path / "empty.params").touch()
    for source, target, message in [
        ("cut.params", "o.pth", "cannot read weights from"),
        ("empty.params", "o.pth", "cannot read weights from"),
        ("im.params", "o.pth", "no such weights file"),
        ("in.params", "o.onnx", "'.onnx'; allowed: .pth, .safetensors"),
    ]:
        code = exit_code(lambda: convert(tmp_path / source, tmp_path / target, "rcnn"))  # noqa: B023
        said = capsys.readouterr().err
        assert code == USER_ERROR and message in said and said.count("\n") == 1
        assert not (tmp_path / target).exists()
    (tmp_path / "w.pth").write_bytes(data)
    assert exit_code(lambda: convert(tmp_path / "w.pth", tmp_path / "w.pth", "rcnn")) == USER_ERROR
    assert (tmp_path / "w.pth").read_bytes() == data


@pytest.mark.shared
def test_coco_classes_are_those_of_its_annotations(shared: Path) -> None:
    annotations = json.loads((shared / "data/coco_subset/annotations/instances_val2017_subset.json").read_text())
    published = sorted((each["id"], each["name"]) for each in annotations["categories"])
    assert [(category.id, category.name) for category in COCO_CATEGORIES] == published


def test_coco_classes_without_a_list_in_the_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = arrays_of("rcnn")
    config = tmp_path / "coco.yaml"
    config.write_text(f"base: {path_of(CONFIGS['rcnn'])}\n")
    write_params(tmp_path / "in.params", arrays)
    narrow = [override for override in overrides_of("rcnn") if not override.startswith("data.classes")]
    arguments = [str(tmp_path / "in.params"), str(tmp_path / "out.pth"), "--config", str(config), *narrow]
    assert exit_code(lambda: main(arguments)) == USER_ERROR
    assert "head.cls_score.bias (arg:cls_score_bias) is 4 instead of 81" in capsys.readouterr().err
    for name in ("cls_score", "bbox_pred"):
        for part in ("weight", "bias"):
            key = f"arg:{name}_{part}"
            arrays[key] = np.resize(arrays[key], (len(arrays[key]) // 4 * 81, *arrays[key].shape[1:]))
    write_params(tmp_path / "in.params", arrays)
    assert main(arguments) == 0
    assert "80 classes, in this order: person, bicycle, car, ... toothbrush" in capsys.readouterr().out
    saved = checkpoint.categories_from_plain(checkpoint.load(tmp_path / "out.pth")["categories"])
    assert saved == COCO_CATEGORIES
