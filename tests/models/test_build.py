import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dcn_det.config import Config, from_plain, testing
from dcn_det.config.model import (
    AnchorsConfig,
    ClassAwareRPNConfig,
    ClassAwareRPNHeadConfig,
    DeformConfig,
    DetectorConfig,
    FasterRCNNConfig,
    FasterRCNNHeadConfig,
    PreprocessConfig,
    ResNetConfig,
    RFCNConfig,
    RFCNHeadConfig,
    RPNConfig,
)
from dcn_det.errors import UserError
from dcn_det.models.anchor_head import AnchorSampling
from dcn_det.models.backbones.resnet import ResNet
from dcn_det.models.build import build_detector
from dcn_det.models.detector import TwoStageDetector
from dcn_det.models.heads.rfcn import RFCNHead
from dcn_det.models.norm import FrozenBatchNorm2d
from dcn_det.models.one_stage import OneStageDetector
from dcn_det.models.targets import RoISampler
from dcn_det.weights import torchvision as torchvision_weights
from dcn_det.weights.backbone import load_backbone_weights

SMALL: dict[str, Any] = {
    "kind": "resnet50",
    "width": 8,
    "stem_width": 8,
    "norm": "bn",
    "frozen_stages": 0,
    "weights": "none",
}


def build(model: DetectorConfig, num_classes: int, test: testing.TestConfig | None = None) -> Any:
    return build_detector(Config(model=model, test=test or testing.TestConfig()), num_classes)


def build_with_weights(backbone: dict[str, Any], **blocks: Any) -> Any:
    settings = FasterRCNNConfig(backbone=ResNetConfig(**backbone), **blocks)
    model = build(settings, 3)
    load_backbone_weights(model.backbone, settings.backbone)
    return model


def save_plain(path: Path, **options: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    network = ResNet("resnet50", **{"width": 8, "stem_width": 8, **options})
    state = network.state_dict() | {"fc.weight": torch.zeros(5, 256), "fc.bias": torch.zeros(5)}
    torch.save(state, path)
    return state


def test_settings_reach_the_parts() -> None:
    model = build(
        FasterRCNNConfig(
            backbone=ResNetConfig(
                **SMALL,
                deform=DeformConfig(
                    blocks=("res5b",),
                    kind="v2",
                    offset_groups=2,
                    offset_dilation=1,
                    mask_scale=1.5,
                    border="dcn_v1",
                    lr_mult=0.5,
                ),
                preprocess=PreprocessConfig(channel_order="bgr"),
            ),
            rpn=RPNConfig(channels=16, post_nms=50, min_size=2, loss_weight=3, sigma=2, batch_per_image=10),
            head=FasterRCNNHeadConfig(
                channels=8,
                pooling="deformable",
                hidden=16,
                class_agnostic=True,
                offset_std=0.2,
                batch_per_image=9,
            ),
        ),
        5,
        testing.TestConfig(score_threshold=0.2),
    )
    assert model.preprocess.reverse
    conv = model.get_submodule("backbone.layer4.1.conv2")
    assert conv.offset.weight.shape == (2 * 27, 64, 3, 3) and conv.offset.dilation == (1, 1)
    assert (conv.border, conv.mask_scale) == ("dcn_v1", 1.5)
    assert model.rpn.conv.weight.shape == (16, 128, 3, 3) and model.rpn.anchors.shape == (1, 12, 4)
    assert (model.rpn.selection.post_nms, model.rpn.selection.min_size) == (50, 2)
    assert (model.rpn.loss_weight, model.rpn.sigma, model.rpn.sampling.batch_per_image) == (3, 2, 10)
    assert model.head.cls_score.weight.shape == (6, 16) and model.head.bbox_pred.weight.shape == (4, 16)
    assert (model.head.offset_std, model.head.sampler.batch_per_image) == (0.2, 9)
    assert model.score_threshold == 0.2
    assert model.lr_multipliers() == {
        "backbone.layer4.1.conv2.offset.weight": 0.5,
        "backbone.layer4.1.conv2.offset.bias": 0.5,
        "head.offset.weight": 0.01,
        "head.offset.bias": 0.01,
    }


RFCN_SMALL: dict[str, Any] = {
    "channels": 16,
    "reduce_lr_mult": 2,
    "offset_lr_mult": 0.5,
    "batch_per_image": 9,
    "offset_std": 0.2,
}


def test_settings_reach_rfcn() -> None:
    head = RFCNHeadConfig(**RFCN_SMALL, pooling="deformable", pooled_size=3, samples_per_bin=2)
    model = build(
        RFCNConfig(kind="rfcn", backbone=ResNetConfig(**SMALL), head=head),
        5,
    )
    assert isinstance(model, TwoStageDetector) and isinstance(model.head, RFCNHead) and model.head.cls_offset
    assert model.head.cls_score.weight.shape == (9 * 6, 16, 1, 1)
    assert model.head.bbox_pred.weight.shape == (9 * 8, 16, 1, 1)
    assert model.head.cls_offset.weight.shape == (9 * 12, 16, 1, 1)
    assert model.head.sampler == RoISampler(batch_per_image=9, negative_iou=(0.0, 0.5), ohem=True)
    assert (model.head.samples_per_bin, model.head.offset_std, model.head.spatial_scale) == (2, 0.2, 1 / 16)
    assert set(model.lr_multipliers().values()) == {2, 0.5}
    drawn = RFCNHeadConfig(**RFCN_SMALL, ohem=False, positive_fraction=0.5, class_agnostic=False)
    detector = RFCNConfig(kind="rfcn", backbone=ResNetConfig(**SMALL), head=drawn)
    model = build(detector, 5)
    assert model.head.sampler == RoISampler(batch_per_image=9, positive_fraction=0.5, negative_iou=(0.0, 0.5))
    assert model.head.bbox_pred.weight.shape == (49 * 24, 16, 1, 1)


def test_rfcn_has_no_modulated_pooling() -> None:
    with pytest.raises(UserError, match=r"model\.head\.pooling: .*allowed: average, bilinear, deformable$"):
        from_plain({"model": {"kind": "rfcn", "head": {"pooling": "modulated"}}})


def test_settings_reach_the_class_aware_rpn() -> None:
    settings = ClassAwareRPNHeadConfig(
        channels=16, conv_channels=8, pre_nms=50, positive_iou=0.5, negative_iou=0.4, sigma=1, batch_per_image=20
    )
    model = build(
        ClassAwareRPNConfig(kind="class_aware_rpn", backbone=ResNetConfig(**SMALL), rpn=settings),
        5,
        testing.TestConfig(score_threshold=0.2),
    )
    assert isinstance(model, OneStageDetector) and model.rpn.conv
    assert model.rpn.conv.weight.shape == (8, 16, 3, 3) and model.rpn.cls_score.weight.shape == (6 * 12, 8, 1, 1)
    assert model.rpn.sampling == AnchorSampling(
        positive_iou=0.5, negative_iou=0.4, batch_per_image=20, cross_border=True
    )
    assert (model.rpn.pre_nms, model.rpn.sigma, model.rpn.strides) == (50, 1, (16,))
    assert model.score_threshold == 0.2


def test_settings_reach_the_pyramid() -> None:
    model = build(
        FasterRCNNConfig(
            fpn=True,
            backbone=ResNetConfig(**SMALL, res5_stride=2, res5_dilation=1),
            rpn=RPNConfig(channels=16, anchors=AnchorsConfig(scales=(8,))),
            head=FasterRCNNHeadConfig(channels=12, hidden=16, pooling="align", ohem=True),
        ),
        5,
    )
    assert model.rpn.strides == (4, 8, 16, 32, 64) and model.head.strides == (4, 8, 16, 32)
    assert model.rpn_features == ("p2", "p3", "p4", "p5", "p6") and model.head_features == ("p2", "p3", "p4", "p5")
    assert model.rpn.conv.weight.shape == (16, 12, 3, 3) and model.head.fc1.weight.shape == (16, 12 * 49)
    square = model.rpn.anchors[:, 1]  # of ratio 1
    assert (square[:, 2] - square[:, 0]).tolist() == [32, 64, 128, 256, 512]
    assert model.head.sampler.ohem and model.head.pooling == "align"


def millions(part: nn.Module) -> float:
    """The constant affine of batch norm counts."""
    affine = [each for each in part.modules() if isinstance(each, FrozenBatchNorm2d)]
    return (sum(each.numel() for each in part.parameters()) + sum(2 * len(each.weight) for each in affine)) / 1e6


@pytest.mark.parametrize(
    ("kind", "classes", "groups", "total", "without_rpn"),
    [
        ("faster_rcnn", 20, 0, 61.77, 57.03),
        ("faster_rcnn", 20, 1, 63.25, 58.51),
        ("faster_rcnn", 20, 4, 64.00, 59.25),
        ("rfcn", 20, 0, 50.80, 46.05),
        ("rfcn", 20, 1, 53.26, 48.51),
        ("rfcn", 20, 4, 54.01, 49.26),
        ("rfcn", 80, 0, None, 49.07),
        ("rfcn", 80, 1, None, 57.55),
        ("rfcn", 80, 4, None, 58.30),
    ],
)
def test_parameters_of_the_paper_models(
    kind: str, classes: int, groups: int, total: float | None, without_rpn: float
) -> None:
    """For the 9 anchors of PASCAL VOC, plain or with both deformable modules."""
    blocks = ("res5a", "res5b", "res5c") if groups else ()
    backbone = ResNetConfig(deform=DeformConfig(blocks=blocks, offset_groups=groups or 1))
    rpn = RPNConfig(anchors=AnchorsConfig(scales=(8, 16, 32)))
    if kind == "rfcn":
        head = RFCNHeadConfig(pooling="deformable" if groups else "average")
        settings: DetectorConfig = RFCNConfig(kind="rfcn", backbone=backbone, rpn=rpn, head=head)
    else:
        two_fc = FasterRCNNHeadConfig(pooling="deformable" if groups else "max")
        settings = FasterRCNNConfig(backbone=backbone, rpn=rpn, head=two_fc)
    with torch.device("meta"):
        model = build(settings, classes)
    assert round(millions(model.backbone), 2) == {0: 42.50, 1: 42.75, 4: 43.50}[groups]
    assert total is None or round(millions(model), 2) == total
    assert round(millions(model) - millions(model.rpn), 2) == without_rpn


def test_stem_and_res2_are_frozen_by_default() -> None:
    model = build(FasterRCNNConfig(), 3)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen and all(name.startswith(("backbone.conv1.", "backbone.layer1.")) for name in frozen)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"deform": DeformConfig(blocks=("res5a", "res4b22"))},
            r"model\.backbone\.deform\.blocks: resnet50 has no block 'res4b22'; did you mean 'res4b'\?",
        ),
        (
            {"deform": DeformConfig(blocks=("res2a",), offset_groups=16)},
            r"model\.backbone\.deform\.offset_groups: 16 does not divide res2a's 8 channels",
        ),
        (
            {"kind": "resnet18", "res5_dilation": (1, 2, 2)},
            r"model\.backbone\.res5_dilation: 3 numbers for 2 blocks of resnet18",
        ),
        ({"norm": "frozen_bn"}, r"model\.backbone\.weights: 'none' would leave frozen layers at random"),
        (
            {"frozen_stages": 1},
            r"set model\.backbone\.norm to gn or bn and model\.backbone\.frozen_stages to 0",
        ),
        ({"weights": "torchvision"}, r"torchvision's have width 64 and stem_width 64, not 8 and 8"),
        ({"weights": "/nowhere/w.pth"}, r"no such weights file: /nowhere/w\.pth"),
    ],
)
def test_mistakes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build_with_weights(SMALL | changes)
    assert "\n" not in str(caught.value)


def test_plain_weights_enter_a_deformable_backbone(tmp_path: Path) -> None:
    state = save_plain(tmp_path / "w.pth")
    deform = DeformConfig(blocks=("res5a", "res4f"))
    settings = {
        "kind": "resnet50",
        "width": 8,
        "stem_width": 8,
        "weights": str(tmp_path / "w.pth"),
        "deform": deform,
    }
    loaded = build_with_weights(settings).backbone.state_dict()
    offsets = {name for name in loaded if ".offset." in name}
    assert len(offsets) == 4 and all((loaded[name] == 0).all() for name in offsets)
    assert loaded.keys() - offsets == {name for name in state if not name.startswith("fc.")}
    assert all(torch.equal(value, state[name]) for name, value in loaded.items() if name not in offsets)


def test_weights_of_another_network(tmp_path: Path) -> None:
    save_plain(tmp_path / "w.pth", width=4)
    with pytest.raises(UserError, match=r"w\.pth(.|\n)*layer1\.0\.conv1\.weight is 4x8x1x1"):
        build_with_weights(SMALL | {"weights": str(tmp_path / "w.pth")})


def torchvision_like(monkeypatch: pytest.MonkeyPatch) -> None:
    def weights(kind: str) -> dict[str, torch.Tensor]:
        return ResNet(kind).state_dict() | {"fc.weight": torch.zeros(1000, 512)}

    monkeypatch.setattr(torchvision_weights, "imagenet_weights", weights)


def test_torchvision_weights_bring_their_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    torchvision_like(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_with_weights({"kind": "resnet18", "weights": "torchvision", "stride_on": "first_1x1"})
        build_with_weights({"kind": "resnet50", "weights": "torchvision"})
    settings = ResNetConfig(kind="resnet50")
    assert (settings.weights, settings.stride_on, settings.stem_pool) == ("torchvision", "3x3", "pad")
    assert settings.preprocess.mean == (123.675, 116.28, 103.53)
    other = ResNetConfig(kind="resnet50", weights="some.pth")
    assert (other.stride_on, other.stem_pool, other.preprocess.std) == ("first_1x1", "ceil", (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"stride_on": "first_1x1"}, r"stride_on: .*3x3"),
        ({"preprocess": {"std": [1, 1, 1]}}, r"preprocess\.std: .*58\.395"),
        ({"stem_pool": "ceil"}, r"stem_pool: .*pad"),
    ],
)
def test_a_layout_that_contradicts_torchvisions_weights_is_refused(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=r"model\.backbone\." + key):
        from_plain({"version": 2, "model": {"backbone": {"kind": "resnet50", **changes}}})


@pytest.mark.shared
def test_thin_resnet50(shared: Path) -> None:
    path = shared / "weights" / "resnet50_thin.pth"
    deform = DeformConfig(blocks=("res5a", "res5b", "res5c"))
    preprocess = PreprocessConfig(channel_order="bgr", mean=(123, 117, 104))
    settings = {
        "kind": "resnet50",
        "width": 32,
        "weights": str(path),
        "deform": deform,
        "preprocess": preprocess,
    }
    backbone: nn.Module = build_with_weights(settings).backbone
    stored = torch.load(path, weights_only=True)
    assert torch.equal(backbone.state_dict()["layer4.0.conv2.weight"], stored["layer4.0.conv2.weight"])
    assert backbone.channels == {"res2": 128, "res3": 256, "res4": 512, "res5": 1024}
