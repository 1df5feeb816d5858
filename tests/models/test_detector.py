from typing import Any

import pytest
import torch

from dcn_det.models.anchors import cell_anchors
from dcn_det.models.backbones.convolution import DeformableBlocks
from dcn_det.models.backbones.resnet import ResNet
from dcn_det.models.detector import TwoStageDetector
from dcn_det.models.heads.faster_rcnn import FasterRCNNHead
from dcn_det.models.postprocess import PostProcess
from dcn_det.models.preprocess import Preprocess
from dcn_det.models.rpn import RPN, ProposalSelection
from dcn_det.models.targets import RoISampler
from dcn_det.structures import Batch, Detections, Target
from tests.models.helpers import CLASSES, TWO, batch, target

LOSSES = {"rpn_cls", "rpn_box", "head_cls", "head_box"}


def detector(pooling: Any = "deformable", deform: bool = True, **head: Any) -> TwoStageDetector:
    torch.manual_seed(0)
    blocks = DeformableBlocks(("res5a", "res5b"), offset_groups=2) if deform else None
    backbone = ResNet("resnet18", width=8, stem_width=8, norm="gn", frozen_stages=0, stem_pool="pad", deform=blocks)
    anchors = cell_anchors(16, (0.5, 1, 2), (1, 2))
    rpn = RPN(32, anchors, 16, channels=16, selection=ProposalSelection(pre_nms=200, post_nms=30))
    second = FasterRCNNHead(
        64, CLASSES, 16, channels=8, pooling=pooling, hidden=16, sampler=RoISampler(batch_per_image=16), **head
    )
    return TwoStageDetector(Preprocess(), backbone, rpn, second)


@pytest.mark.parametrize("pooling", ["max", "bilinear", "deformable"])
@pytest.mark.parametrize("class_agnostic", [False, True])
def test_training_reaches_every_parameter(pooling: str, class_agnostic: bool) -> None:
    model = detector(pooling, class_agnostic=class_agnostic).train()
    losses = model(batch((96, 112), (80, 96), targets=TWO))
    assert losses.keys() == LOSSES
    assert all(loss.shape == () and loss.dtype == torch.float32 and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("targets", [[target(), target()], [TWO[0], target()]], ids=["all empty", "half empty"])
def test_images_without_ground_truth(targets: list[Target]) -> None:
    model = detector().train()
    losses = model(batch((96, 112), (80, 96), targets=targets))
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["rpn_cls"] > 0 and losses["head_cls"] > 0
    if not any(len(each.boxes) for each in targets):
        assert losses["rpn_box"] == 0 and losses["head_box"] == 0
    # Every parameter takes part even then, which distributed training relies on.
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_image_smaller_than_every_anchor_and_cell() -> None:
    model = detector()
    tiny = batch((10, 40), targets=[target()])
    sum(model.train()(tiny).values()).backward()
    assert len(model.eval()(tiny)) == 1


@pytest.mark.parametrize("pooling", ["max", "deformable"])
def test_detections(pooling: str) -> None:
    model = detector(pooling).eval()
    data = batch((96, 112), (80, 90))
    select = PostProcess(max_detections=20)
    results = [select(candidates) for candidates in model(data)]
    assert len(results) == 2
    for result, each in zip(results, data.infos):
        assert isinstance(result, Detections) and 0 < len(result) <= 20
        assert result.boxes.dtype == result.scores.dtype == torch.float32 and result.labels.dtype == torch.int64
        assert not result.boxes.requires_grad
        assert (result.boxes >= 0).all() and (result.boxes[:, 2:] > result.boxes[:, :2]).all()
        assert (result.boxes[:, 2:] <= torch.tensor([each.input_width, each.input_height])).all()
        assert (result.scores.diff() <= 0).all() and (result.scores > 1e-3).all()
        assert set(result.labels.tolist()) <= set(range(CLASSES))


def test_training_twice_is_the_same_and_ignores_the_global_generator() -> None:
    model = detector().train()
    data = batch((96, 112), (80, 96), targets=TWO)
    first = model(data)
    torch.rand(10)
    second = model(data)
    assert all(torch.equal(first[name], second[name]) for name in LOSSES)


def test_losses_are_means_over_images() -> None:
    model = detector().train()
    both = batch((96, 112), (96, 112), targets=TWO)
    alone = [Batch(both.images[i : i + 1], both.infos[i : i + 1], both.targets[i : i + 1]) for i in range(2)]
    together, apart = model(both), [model(each) for each in alone]
    for name in LOSSES:
        torch.testing.assert_close(together[name], (apart[0][name] + apart[1][name]) / 2, rtol=1e-4, atol=1e-6)


def test_padding_is_overwritten_and_proposals_stay_inside() -> None:
    model = detector().eval()
    data = batch((96, 112), (50, 70))
    noisy = Batch(data.images.clone(), data.infos)
    noisy.images[1, :, 50:] = 255
    noisy.images[1, :, :, 70:] = 255
    with torch.no_grad():
        first, second = model.extract(data), model.extract(noisy)
        assert torch.equal(first.rpn[0], second.rpn[0])
        boxes = model.propose(first, data.infos)[1].boxes
    assert boxes[:, 2].max() <= 70 and boxes[:, 3].max() <= 50


def test_steps_one_by_one_give_what_the_call_gives() -> None:
    model = detector().eval()
    data = batch((96, 112))
    with torch.no_grad():
        features = model.extract(data)
        proposals = model.propose(features, data.infos)
        ((scores, boxes),) = model.head.predict(features.head, [each.boxes for each in proposals], data.infos)
    count = len(proposals[0].boxes)
    assert scores.shape == (count, CLASSES) and boxes.shape == (count, CLASSES, 4)
    best = PostProcess()(model(data)[0])
    row, label = divmod(int(scores.argmax()), CLASSES)
    assert best.labels[0] == label
    torch.testing.assert_close(best.boxes[0], boxes[row, label])
    torch.testing.assert_close(best.scores[0], scores.max())


def test_autocast_keeps_losses_in_float32() -> None:
    model = detector().train()
    data = batch((96, 112), (80, 96), targets=TWO)
    exact = model(data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(data)
        assert model.extract(data).rpn[0].dtype == torch.bfloat16
    sum(losses.values()).backward()
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    for name in ("rpn_cls", "head_cls"):
        torch.testing.assert_close(losses[name], exact[name], rtol=0.02, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        assert model.eval()(data)[0].boxes.dtype == torch.float32


def test_lr_multipliers() -> None:
    model = detector()
    multipliers = model.lr_multipliers()
    assert multipliers == {"head.offset.weight": 0.01, "head.offset.bias": 0.01}
    assert multipliers.keys() <= dict(model.named_parameters()).keys()
    assert detector("bilinear").lr_multipliers() == {}


def test_training_without_targets_is_refused() -> None:
    with pytest.raises(ValueError, match="a target for each of 1 images, got 0"):
        detector().train()(batch((96, 112)))
