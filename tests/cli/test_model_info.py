"""``dcn-det model-info``: counts compared with counts by hand and the paper's table, and invalid arguments."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dcn_det.cli.model_info import PAPER_PARAMETERS, main
from dcn_det.config import load_config
from dcn_det.errors import UserError
from dcn_det.models.build import build_detector
from dcn_det.models.info import ModelInfo, model_info

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def count(name: str, *overrides: str, size: tuple[int, int] = (96, 128), rois: int = 10) -> ModelInfo:
    config = load_config(CONFIGS / f"{name}.yaml", *overrides)
    with torch.device("meta"):
        model = build_detector(config, 20)
    return model_info(model, *size, rois)


def row(text: str, name: str) -> dict[str, str]:
    """Returns the cells of a Markdown row by column."""
    lines = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line]
    return dict(zip(lines[0], next(line for line in lines if line[0].endswith(name))))


@pytest.mark.parametrize(
    ("pooling", "offsets"),
    [("max", 0), ("deformable", 12544 * 98), ("modulated", 12544 * 1024 + 1024 * 1024 + 1024 * 147)],
)
def test_multiply_adds_by_hand(pooling: str, offsets: int) -> None:
    info = count("voc/faster_rcnn_r101_atrous2", f"model.head.pooling={pooling}")
    cells = 6 * 8
    assert info.multiply_adds["rpn"] == cells * (1024 * 512 * 9 + 512 * 9 * 6)
    fully_connected = 12544 * 1024 + 1024 * 1024 + 1024 * 21 * 5 + offsets
    assert info.multiply_adds["head"] == cells * 2048 * 256 + 10 * fully_connected


def test_a_deformable_convolution_adds_the_work_of_its_offsets() -> None:
    plain, deformable = count("voc/rfcn_r101_atrous2"), count("voc/rfcn_r101_dconv1")
    assert deformable.multiply_adds["backbone"] - plain.multiply_adds["backbone"] == 6 * 8 * 512 * 72 * 9
    assert deformable.deformable == ("backbone.layer4.2.conv2",) and plain.deformable == ()
    modulated = count("voc/rfcn_r101_dconv1", "model.backbone.deform.kind=v2", "model.backbone.deform.offset_groups=1")
    assert modulated.parameters["backbone"] - plain.parameters["backbone"] == (512 * 9 + 1) * 27


def test_activations_grow_with_the_image_and_with_what_is_trained() -> None:
    small, large = count("voc/rfcn_r101_atrous2"), count("voc/rfcn_r101_atrous2", size=(192, 256))
    assert 3.5 < large.activation_bytes / small.activation_bytes < 4
    frozen = count("voc/rfcn_r101_atrous2", "model.backbone.frozen_stages=5")
    assert frozen.activation_bytes < 0.2 * small.activation_bytes and frozen.trainable < small.trainable


def test_activations_are_those_of_a_real_step() -> None:
    """The activations of a small network equal those that hooks count in a real forward pass."""
    config = load_config(
        CONFIGS / "voc" / "rfcn_r101_dcn.yaml", "model.backbone.width=8", "model.backbone.kind=resnet50"
    )
    model: Any = build_detector(config, 20)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    boxes = torch.tensor([[0.0, 0.0, 60.0, 50.0]]).repeat(10, 1)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        features = model.backbone(torch.randn(1, 3, 96, 128))
        first = model.rpn(features["res4"])
        second = model.head(model.head.prepare(features["res5"]), [boxes])
    real = sum(storage.nbytes() for storage in kept.values())
    assert first is not None and second is not None
    with torch.device("meta"):
        model = build_detector(config, 20)
    assert model_info(model, 96, 128, 10).activation_bytes == pytest.approx(real, rel=0.01)


def test_pyramid_and_one_stage() -> None:
    pyramid = count("coco/faster_rcnn_r101_fpn_dcn")
    assert pyramid.strides == (4, 8, 16, 32) and len(pyramid.deformable) == 5
    levels = 24 * 32 + 12 * 16 + 6 * 8 + 3 * 4 + 2 * 2
    assert pyramid.multiply_adds["rpn"] == levels * (256 * 512 * 9 + 512 * 3 * 6)
    assert pyramid.multiply_adds["head"] == 10 * (12544 * (98 + 1024) + 1024 * 1024 + 1024 * 21 * 5)
    one_stage = count("voc/class_aware_rpn_r101_atrous2")
    assert one_stage.parameters.keys() == {"backbone", "rpn"} == one_stage.multiply_adds.keys()


def test_counts_stand_beside_table_4(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("rfcn_r101_atrous2", "rfcn_r101_dcn", "faster_rcnn_r101_dconv", "class_aware_rpn_r101_dconv3")
    assert main([*(str(CONFIGS / "voc" / f"{name}.yaml") for name in names), "--markdown"]) == 0
    text = capsys.readouterr().out
    plain, both, alone, one_stage = (row(text, name) for name in names)
    assert (plain["parameters (M)"], plain["without RPN"], plain["Table 4"]) == ("50.80", "46.05", "47.1")
    assert (both["parameters (M)"], both["without RPN"], both["Table 4"]) == ("54.01", "49.26", "49.5")
    assert both["deformable"] == "res5a res5b res5c, pooling" and both["stride"] == "16"
    assert alone["Table 4"] == "-" and one_stage["Table 4"] == "46.1" and one_stage["head"] == "-"
    assert "600x1000 pixels and 300 RoIs" in text
    assert set(PAPER_PARAMETERS.values()) == {46.0, 46.1, 58.3, 59.9, 47.1, 49.5}


def test_published_results(capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(CONFIGS / name) for name in ("coco/rfcn_r101_dcn.yaml", "voc/rfcn_r101_dcn.yaml")]
    assert main([*files, "--results", "--markdown", "--size", "96x128", "--rois", "5"]) == 0
    text = capsys.readouterr().out
    coco, voc = row(text, "coco/rfcn_r101_dcn"), row(text, "voc/rfcn_r101_dcn")
    assert (coco["paper"], coco["authors' code"]) == ("34.5", "35.7")
    assert "here" not in coco, "a column without any entry is left out"
    assert (voc["paper"], voc["authors' code"]) == ("82.6 / 68.5", "82.3 / 67.8")
    assert coco["parameters (M)"] == "63.06"  # equals the authors' network, counted from its list of shapes
    assert "96x128 pixels and 5 RoIs" in text


def test_results_measured_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text(
        f"base: {CONFIGS}/coco/rfcn_r101.yaml\n"
        "expected:\n"
        "  - {metric: AP, value: 0.301, source: 'measured here, seed 0'}\n"
        "  - {metric: AP50, value: 0.5, source: 'measured here, seed 0'}\n"
    )
    assert main([str(config), "--results", "--markdown", "--size", "96x128", "--rois", "5"]) == 0
    found = row(capsys.readouterr().out, "mine")
    assert found["here"] == "30.1 / 50.0" and "paper" not in found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "600"], "--size: '600'"),
        (["--size", "0x10"], "--size: '0x10'"),
        (["model.kind=rfnc"], "did you mean 'rfcn'?"),
        (["model.backbone.deform.blocks=[res5d]"], "resnet101 has no block 'res5d'; did you mean "),
    ],
)
def test_mistakes(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        main([str(CONFIGS / "coco" / "rfcn_r101.yaml"), *arguments])
    assert message in str(caught.value)


def test_settings_alone_are_no_config() -> None:
    with pytest.raises(UserError, match="no config given, only settings"):
        main(["model.kind=rfcn"])


@pytest.mark.parametrize(
    ("file", "part", "rows"),
    [
        ("configs/REPRODUCE.md", "coco", 14),
        ("configs/README.md", "coco", 2),
        ("configs/README.md", "voc", 10),
        ("configs/README.md", "sample", 13),
    ],
)
def test_tables_in_the_documentation_are_what_the_command_prints(
    file: str, part: str, rows: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    lines = [line for line in Path(file).read_text().splitlines() if line.startswith(f"| `{part}/")]
    lines = [line for line in lines if "*" not in line]
    assert len(lines) == rows
    assert main([*(f"configs/{line.split('`')[1]}.yaml" for line in lines), "--results", "--markdown"]) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| `")]
    assert printed == lines
