"""ImageNet weights of ResNet: whatever they come as, the network computes what the original does."""

import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dcn_det.cli.convert_weights import main
from dcn_det.config import load_config
from dcn_det.entry import USER_ERROR, exit_code
from dcn_det.errors import UserError
from dcn_det.models.backbones.resnet import ResNet, stage_block_names
from dcn_det.models.build import build_backbone
from dcn_det.weights import checkpoint
from dcn_det.weights.backbone import load_backbone_weights
from dcn_det.weights.caffe import read_weights
from dcn_det.weights.files import read_backbone
from tests.weights.mxnet_writer import write_params

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIG = str(ROOT / "configs/coco/faster_rcnn_r101.yaml")
CAFFE_CONFIG = str(ROOT / "configs/base/resnet101_caffe.yaml")
NARROW = ("model.backbone.width=4", "model.backbone.stem_width=4")
EPS = 1e-5
BRANCHES = {"downsample.0": "1", "conv1": "2a", "conv2": "2b", "conv3": "2c"}
NORMS = {"downsample.1": "1", "bn1": "2a", "bn2": "2b", "bn3": "2c"}


def original(merged: bool = False) -> ResNet:
    """A network in Caffe's layout with random weights, which sees blue, green, red."""
    torch.manual_seed(0)
    network = ResNet("resnet101", width=4, stem_width=4).eval()
    generator = torch.Generator().manual_seed(1)
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5 if not merged else torch.tensor(1 - EPS))
        elif value.ndim == 1 and name.endswith("weight"):
            value.copy_(torch.rand(value.shape, generator=generator) * 0.5 + 0.5)
        elif name.endswith("bias") or (name.endswith("running_mean") and not merged):
            value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
    return network


def parts(name: str) -> tuple[str, str, str, str]:
    """``layer3.22.conv2.weight`` -> stage ``4``, block suffix ``b22``, position ``22``, module ``conv2``."""
    match = re.fullmatch(r"layer(\d)\.(\d+)\.(.+)\.\w+", name)
    assert match is not None
    stage, position = int(match[1]) + 1, int(match[2])
    block = stage_block_names("resnet101")[f"res{stage}"][position].removeprefix(f"res{stage}")
    return str(stage), block, str(position), match[3]


def detectron(state: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Under the names of Detectron's pickles."""
    named = {}
    for name, value in state.items():
        parameter = name.rpartition(".")[2]
        if parameter.startswith("running"):
            continue
        if name == "conv1.weight":
            named["conv1_w"] = value.numpy()
        elif name.startswith("bn1."):
            named[f"res_conv1_bn_{'s' if parameter == 'weight' else 'b'}"] = value.numpy()
        else:
            stage, _, position, module = parts(name)
            if module in BRANCHES:
                named[f"res{stage}_{position}_branch{BRANCHES[module]}_w"] = value.numpy()
            else:
                suffix = "s" if parameter == "weight" else "b"
                named[f"res{stage}_{position}_branch{NORMS[module]}_bn_{suffix}"] = value.numpy()
    named |= {"fc1000_w": np.zeros((10, 64), np.float32), "fc1000_b": np.zeros(10, np.float32)}
    return named | {"conv1_b": np.zeros(4, np.float32), "conv1_w_momentum": np.ones((4, 3, 7, 7), np.float32)}


def caffe_layers(state: dict[str, Tensor], separate: bool) -> dict[str, Tensor]:
    """Under Caffe's names; batch norm and scale in layers of their own, or one."""
    named = {"fc1000.weight": torch.zeros(10, 64), "fc1000.bias": torch.zeros(10)}
    for name, value in state.items():
        parameter = name.rpartition(".")[2]
        affine = separate and not parameter.startswith("running")
        if name.startswith("conv1."):
            named[name] = value
        elif name.startswith("bn1."):
            named[f"{'scale' if affine else 'bn'}_conv1.{parameter}"] = value
        else:
            stage, block, _, module = parts(name)
            if module in BRANCHES:
                named[f"res{stage}{block}_branch{BRANCHES[module]}.{parameter}"] = value
            else:
                named[f"{'scale' if affine else 'bn'}{stage}{block}_branch{NORMS[module]}.{parameter}"] = value
    return named


def put_detectron(state: dict[str, Tensor], folder: Path) -> Path:
    with (folder / "R-101.pkl").open("wb") as file:
        pickle.dump({"blobs": detectron(state), "cfg": "{}"}, file, protocol=2)
    return folder / "R-101.pkl"


def put_detectron2(state: dict[str, Tensor], folder: Path) -> Path:
    with (folder / "R-101.pkl").open("wb") as file:
        pickle.dump({"model": OrderedDict(detectron(state)), "__author__": "someone"}, file, protocol=5)
    return folder / "R-101.pkl"


def put_caffe(state: dict[str, Tensor], folder: Path) -> Path:
    torch.save(caffe_layers(state, separate=True), folder / "resnet101.pth")
    return folder / "resnet101.pth"


def put_caffe_joined(state: dict[str, Tensor], folder: Path) -> Path:
    torch.save({"state_dict": caffe_layers(state, separate=False)}, folder / "resnet101.pth")
    return folder / "resnet101.pth"


def put_torchvision_names(state: dict[str, Tensor], folder: Path) -> Path:
    counters = {name.replace("running_var", "num_batches_tracked"): torch.tensor(7) for name in state if "var" in name}
    torch.save({**state, **counters, "fc.weight": torch.zeros(10, 64), "fc.bias": torch.zeros(10)}, folder / "r.pth")
    return folder / "r.pth"


def build(target: Path, *overrides: str, config: str = CONFIG) -> nn.Module:
    """The backbone as training builds it, plain."""
    settings = load_config(config, *NARROW, f"model.backbone.weights={target}", *overrides).model.backbone
    backbone = build_backbone(settings)
    load_backbone_weights(backbone, settings)
    assert isinstance(backbone, nn.Module)
    return backbone.eval()


def same(network: nn.Module, reference: nn.Module, reverse: bool) -> None:
    """Both give the same features; the reference sees the channels the other way round if ``reverse``."""
    x = torch.randn(1, 3, 65, 97, generator=torch.Generator().manual_seed(2)) * 50
    with torch.no_grad():
        expected, actual = reference(x.flip(1) if reverse else x), network(x)
    for stage, value in expected.items():
        torch.testing.assert_close(actual[stage] / value.max(), value / value.max(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "put, merged, format",
    [
        (put_detectron, True, "auto"),
        (put_detectron2, True, "auto"),
        (put_caffe, False, "auto"),
        (put_caffe_joined, False, "auto"),
        (put_torchvision_names, False, "caffe"),
        (put_torchvision_names, True, "caffe"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_caffe(
    put: Callable[[dict[str, Tensor], Path], Path],
    merged: bool,
    format: str,
    suffix: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reference = original(merged)
    source, target = put(reference.state_dict(), tmp_path), tmp_path / f"out{suffix}"
    assert main([str(source), str(target), "--config", CONFIG, *NARROW, "--format", format]) == 0
    said = capsys.readouterr().out
    assert re.search(r"left out.*: fc\.", said)
    advice = said.splitlines()[-1].partition("train from it with ")[2].split()
    assert "model.backbone.preprocess.mean=[123.15,115.9,103.06]" in advice
    same(build(target, *advice), reference, reverse=True)
    with pytest.raises(
        UserError, match=r"made for other settings; add model\.backbone\.stride_on=first_1x1 "
    ) as caught:
        build(target)
    assert "model.backbone.preprocess.std=[1.0,1.0,1.0]" in str(caught.value)
    with pytest.raises(UserError, match=r"other settings; add model.backbone.preprocess.channel_order=rgb$"):
        build(target, *NARROW, config=CAFFE_CONFIG)


def test_offsets_start_afresh_from_a_converted_backbone(tmp_path: Path) -> None:
    source = put_caffe(original().state_dict(), tmp_path)
    deformable = str(ROOT / "configs/coco/faster_rcnn_r101_dcn.yaml")
    assert main([str(source), str(tmp_path / "o.pth"), "--config", deformable, *NARROW]) == 0
    network = build(
        tmp_path / "o.pth", "model.backbone.preprocess.channel_order=rgb",
        "model.backbone.deform.blocks=[res5c]", config=CAFFE_CONFIG,
    )  # fmt: skip
    assert not network.get_parameter("layer4.2.conv2.offset.weight").any()
    same(network, original(), reverse=True)


def test_torchvision(tmp_path: Path) -> None:
    torch.manual_seed(0)
    reference = ResNet("resnet101", width=4, stem_width=4, stride_on="3x3", stem_pool="pad").eval()
    source = put_torchvision_names(reference.state_dict(), tmp_path)
    arguments = [str(source), str(tmp_path / "o.safetensors"), "--config", CONFIG, *NARROW]
    assert main([*arguments, "--format", "torchvision"]) == 0
    same(build(tmp_path / "o.safetensors"), reference, reverse=False)
    with pytest.raises(UserError, match=r"add model\.backbone\.preprocess\.mean="):
        build(tmp_path / "o.safetensors", "model.backbone.preprocess.mean=[1,2,3]")


def test_mxnet_classifier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference = original()
    group = {"weight": "arg", "bias": "arg", "running_mean": "aux", "running_var": "aux"}
    norm = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_var"}
    arrays = {"arg:fc1000_weight": np.zeros((10, 64), np.float32), "arg:fc1000_bias": np.zeros(10, np.float32)}
    for name, value in caffe_layers(reference.state_dict(), separate=False).items():
        layer, _, parameter = name.rpartition(".")
        if not layer.startswith("fc"):
            arrays[f"{group[parameter]}:{layer}_{norm[parameter] if layer.startswith('bn') else parameter}"] = (
                value.numpy()
            )
    source = tmp_path / "resnet_v1_101-0000.params"
    write_params(source, arrays)
    assert main([str(source), str(tmp_path / "o.pth"), "--config", CONFIG, *NARROW]) == 0
    assert re.search(r"left out.*: fc\.weight, fc\.bias", capsys.readouterr().out)
    same(
        build(tmp_path / "o.pth", "model.backbone.preprocess.channel_order=rgb", config=CAFFE_CONFIG), reference, False
    )


def test_torchvision_names_are_not_guessed_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = put_torchvision_names(original().state_dict(), tmp_path)
    arguments = [str(source), str(tmp_path / "o.pth"), "--config", CONFIG, *NARROW]
    assert exit_code(lambda: main(arguments)) == USER_ERROR
    assert "give --format torchvision or --format caffe" in capsys.readouterr().err
    assert not (tmp_path / "o.pth").exists()


def refusal(source: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    target = source.with_name("refused.pth")
    assert exit_code(lambda: main([str(source), str(target), "--config", CONFIG, *NARROW, *more])) == USER_ERROR
    assert not target.exists()
    return capsys.readouterr().err


class Trap:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch trapped",)


def test_bad_pickles(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole = put_detectron(original(True).state_dict(), tmp_path).read_bytes()
    path = tmp_path / "bad.pkl"
    size = b"\x8a\x06" + (2**46).to_bytes(6, "little") + b"\x85"  # a tuple of one number
    array = b"cnumpy\nndarray\n"
    unbelieved = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(" + array + size + b"U\x01btR."
    called = b"\x80\x02" + array + size + b"\x85R."
    for content, message in [
        (pickle.dumps({"blobs": {"conv1_w": Trap()}}), "which is no array"),
        (whole[: len(whole) // 2], "cannot read weights from"),
        (b"", "cannot read weights from"),
        (b"no pickle", "cannot read weights from"),
        (pickle.dumps([1, 2]), "does not hold arrays by name"),
        (
            pickle.dumps({"blobs": {"w": np.ones(3)}}),
            "is in no known format (mxnet, caffe, torchvision): it contains w",
        ),
        (unbelieved, "does not hold arrays by name"),
        (called, "does not hold arrays by name"),
    ]:
        path.write_bytes(content)
        said = refusal(path, capsys)
        assert message in said and said.count("\n") == 1, said
    assert not (tmp_path / "trapped").exists()


def test_what_differs_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = caffe_layers(original().state_dict(), separate=True)
    del state["res4b22_branch2b.weight"]
    state["res4b23_branch2b.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "w.pth")
    lines = refusal(tmp_path / "w.pth", capsys).splitlines()
    assert "w.pth" in lines[0] and "2 differences" in lines[0]
    assert lines[1:] == [
        "error: layer3.22.conv2.weight 16x16x3x3 is missing",
        "error: res4b23_branch2b.weight 1 is not part of the network",
    ]
    assert "for a ResNet, the config has aligned_inception_resnet" in refusal(
        put_caffe(original().state_dict(), tmp_path), capsys, "model.backbone.kind=aligned_inception_resnet"
    )


def test_a_backbone_is_no_detector(tmp_path: Path) -> None:
    source = put_caffe(original().state_dict(), tmp_path)
    for suffix in (".pth", ".safetensors"):
        target = tmp_path / f"o{suffix}"
        assert main([str(source), str(target), "--config", CONFIG, *NARROW]) == 0
        with pytest.raises(
            UserError, match=r"holds only a backbone, to train from; give it as model\.backbone\.weights"
        ):
            checkpoint.load(target)
        data = target.read_bytes()
        for size in (0, 4, 100, len(data) // 2, len(data) - 1):
            target.write_bytes(data[:size])
            with pytest.raises(UserError, match="cannot read weights from") as caught:
                read_backbone(target)
            assert "\n" not in str(caught.value)
            with pytest.raises(UserError, match="truncated or damaged"):
                checkpoint.load(target)


def test_safetensors_of_other_programs(tmp_path: Path) -> None:
    import safetensors.torch

    safetensors.torch.save_file({"conv1.weight": torch.ones(2)}, tmp_path / "w.safetensors")
    state, settings = read_backbone(tmp_path / "w.safetensors")
    assert list(state) == ["conv1.weight"] and settings == {}
    assert read_weights(tmp_path / "w.safetensors").keys() == state.keys()
    with pytest.raises(UserError, match="is not a dcn_det checkpoint"):
        checkpoint.load(tmp_path / "w.safetensors")
