"""A backbone, a head and a detector from outside the package are registered, built from a config, and trained."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

import dcn_det
from dcn_det.config import registry, testing
from dcn_det.config.model import BackboneConfig, FasterRCNNConfig
from dcn_det.models.boxes import to_rois
from dcn_det.models.build import build_faster_rcnn
from dcn_det.models.detector import Backbone, TwoStageDetector
from dcn_det.models.heads.roi_head import RoIHead
from dcn_det.models.targets import RoISampler
from dcn_det.ops import roi_align


class TwoLayersConfig(BackboneConfig):
    kind: Literal["two_layers"] = "two_layers"
    width: int = 4
    """Channels of the first layer."""


class TwoLayers(nn.Module):
    """The smallest backbone: two convolutions to stride 16."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.res4 = nn.Conv2d(3, width, 16, stride=16)
        self.res5 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.channels = {"res4": width, "res5": 2 * width}
        self.strides = {"res4": 16, "res5": 16}

    def lr_multipliers(self) -> dict[str, float]:
        return {"res4.bias": 2.0}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        res4 = F.relu(self.res4(x))
        return {"res4": res4, "res5": F.relu(self.res5(res4))}


class AverageHead(RoIHead):
    """The smallest head: RoIAlign of one bin, and a linear layer each for scores and boxes."""

    def __init__(self, in_channels: int, num_classes: int, stride: int, **options: Any) -> None:
        super().__init__(num_classes, class_agnostic=True, offset_lr_mult=1.0, pooled_size=1, **options)
        self.scale = 1 / stride
        self.cls_score, self.bbox_pred = nn.Linear(in_channels, num_classes + 1), nn.Linear(in_channels, 4)

    def lr_multipliers(self) -> dict[str, float]:
        return {}

    def _prepare(self, *features: Tensor) -> Tensor:
        return features[0]

    def forward(self, maps: Tensor, boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        rois = to_rois(boxes) + maps.new_tensor([0, 0, 0, 1, 1])
        x = roi_align(maps, rois, spatial_scale=self.scale, pooled_size=1, sampling_ratio=2, aligned=True).flatten(1)
        return self.cls_score(x), self.bbox_pred(x)[:, None]


class AverageConfig(FasterRCNNConfig):
    kind: Literal["average_rcnn"] = "average_rcnn"  # type: ignore[assignment]


def build_average(
    settings: AverageConfig, backbone: Backbone, num_classes: int, test: testing.TestConfig
) -> TwoStageDetector:
    model = build_faster_rcnn(settings, backbone, num_classes, test)
    sampler = RoISampler(batch_per_image=settings.head.batch_per_image)
    model.head = AverageHead(backbone.channels["res5"], num_classes, backbone.strides["res5"], sampler=sampler)
    return model


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    dcn_det.register_backbone("two_layers", TwoLayersConfig, lambda settings: TwoLayers(settings.width))
    dcn_det.register_detector("average_rcnn", AverageConfig, build_average)
    yield
    registry.BACKBONES.unregister("two_layers")
    registry.DETECTORS.unregister("average_rcnn")


def config(folder: Path, tiny_settings: dict, model: dict) -> Path:
    lasting = {"rpn": tiny_settings["model"]["rpn"]}
    path = folder / "outside.yaml"
    path.write_text(yaml.safe_dump({**tiny_settings, "model": {**lasting, **model}}))
    return path


@pytest.mark.parametrize(
    "model",
    [
        {"backbone": {"kind": "two_layers", "width": 6, "weights": "none"}},
        {"kind": "average_rcnn", "backbone": {"kind": "two_layers", "weights": "none"}},
    ],
)
def test_parts_from_outside_train_and_detect(tmp_path: Path, tiny_settings: dict, model: dict) -> None:
    path = config(tmp_path, tiny_settings, model)
    run = dcn_det.train(path, tmp_path / "run", train={"iterations": 2}, data={"test": None})
    assert run.weights is not None
    predictor = dcn_det.load(run.weights, test={"score_threshold": 0.0})
    assert len(predictor(torch.zeros(3, 64, 64, dtype=torch.uint8))) > 0
    assert isinstance(predictor.model, nn.Module)
    assert isinstance(predictor.model.get_submodule("backbone"), TwoLayers)


def test_near_misses_name_kinds_from_outside(tmp_path: Path, tiny_settings: dict) -> None:
    for model, kind in (
        ({"backbone": {"kind": "two_layer", "weights": "none"}}, "two_layers"),
        ({"kind": "averag_rcnn"}, "average_rcnn"),
    ):
        with pytest.raises(dcn_det.UserError, match=f"'{kind}'"):
            dcn_det.load_config(config(tmp_path, tiny_settings, model))
