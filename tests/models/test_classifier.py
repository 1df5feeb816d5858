"""Classifiers: loss, metrics, and which layer they read."""

import pytest
import torch

from dcn_det.models.backbones.resnet import ResNet
from dcn_det.models.classifier import Classifier, positions
from dcn_det.models.preprocess import Preprocess
from dcn_det.structures import ImageInfo, LabelBatch


def batch(size: int = 64, count: int = 3) -> LabelBatch:
    images = torch.randint(
        0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    infos = [ImageInfo(i, f"{i}.png", size, size, size, size) for i in range(count)]
    return LabelBatch(images, infos, torch.arange(count))


def classifier(**options: object) -> Classifier:
    torch.manual_seed(0)
    backbone = ResNet("resnet18", width=8, stem_width=8, norm="bn", frozen_stages=0, res5_stride=2, res5_dilation=1)
    return Classifier(Preprocess(), backbone, 5, **options)  # type: ignore[arg-type]


def test_the_last_stage_is_averaged_and_classified() -> None:
    model = classifier().eval()
    maps = model.backbone(model.preprocess(batch().images, batch().infos))["res5"]
    assert maps.shape == (3, 64, 2, 2), "stride 32"
    expected = maps.mean((2, 3)) @ model.fc.weight.T + model.fc.bias
    torch.testing.assert_close(model(batch()), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_smoothed_cross_entropy(smoothing: float) -> None:
    model = classifier(label_smoothing=smoothing).train()
    scores = model.scores(batch()).detach().log_softmax(1)
    target = torch.full((3, 5), smoothing / 5)
    target[torch.arange(3), torch.arange(3)] += 1 - smoothing
    found = model.train()(batch())
    assert found.keys() == {"cls"}
    torch.testing.assert_close(found["cls"], -(target * scores).sum(1).mean())


def test_blocks_start_as_their_shortcuts() -> None:
    model = classifier(zero_init_residual=True)
    block = model.backbone.get_submodule("layer1.0")  # type: ignore[attr-defined]
    x = torch.rand(2, 8, 8, 8)
    torch.testing.assert_close(block(x.clone()), x)
    assert all(bool(block.bn1.weight.eq(1).all()) for block in [block])


def test_positions_by_hand() -> None:
    nan, inf = float("nan"), float("inf")
    scores = torch.tensor([[3.0, 1, 2], [1, 1, 1], [1, nan, 0], [nan, 0, 0], [0, inf, 0], [0, 1, 2]])
    labels = torch.tensor([0, 1, 0, 0, 1, 0])
    assert positions(scores, labels).tolist() == [0, 2, 1, 2, 0, 2]
