import math
from typing import Any

import pytest
import torch

from dcn_det.models.anchor_head import AnchorSampling, RPNOutput
from dcn_det.models.anchors import cell_anchors, grid_anchors
from dcn_det.models.boxes import encode, iou_matrix
from dcn_det.models.class_aware_rpn import ClassAwareRPN
from dcn_det.structures import ImageInfo, Target

ANCHORS = cell_anchors(16, (1,), (1, 2))
CLASSES = 3


def info(height: int, width: int) -> ImageInfo:
    return ImageInfo(0, "", height, width, height, width, seed=5)


def rpn(**options: Any) -> ClassAwareRPN:
    torch.manual_seed(0)
    return ClassAwareRPN(4, CLASSES, ANCHORS, 16, **{"channels": 8, **options})


def test_layers() -> None:
    module = rpn()
    output = module(torch.randn(2, 4, 5, 6))
    assert output.logits.shape == (2, 2 * (CLASSES + 1), 5, 6) and output.deltas.shape == (2, 8, 5, 6)
    assert {name.split(".")[0] for name, _ in module.named_parameters()} == {"reduce", "cls_score", "bbox_pred"}
    with_conv = rpn(conv_channels=6)
    assert with_conv.conv is not None and with_conv.conv.weight.shape == (6, 8, 3, 3)
    assert with_conv.cls_score.weight.shape[1] == 6
    assert with_conv(torch.randn(1, 4, 5, 6)).logits.shape == (1, 8, 5, 6)
    assert rpn(channels=512).reduce.weight.std().item() == pytest.approx(0.01, rel=0.1)


def test_predictions_by_hand() -> None:
    boxes = torch.tensor([[0.0, 0.0, 20.0, 20.0], [1.0, 0.0, 21.0, 20.0], [-10.0, 5.0, 12.0, 100.0], [25, 25, 30, 30]])
    deltas = encode(grid_anchors(ANCHORS, 1, 2, 16), boxes).view(1, 2, 8).permute(2, 0, 1)[None]
    logits = torch.tensor([[0.0, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 3], [5, 0, 0, 0]])  # anchor by class
    maps = logits.view(1, 2, 2, CLASSES + 1).permute(3, 2, 0, 1).reshape(1, -1, 1, 2)
    ((scores, found),) = rpn(pre_nms=3).predict(RPNOutput(maps, deltas), [info(31, 32)])
    # By the best class but background, and the fourth, which is all background, is left out.
    torch.testing.assert_close(scores, logits[[2, 0, 1]].softmax(dim=1)[:, 1:])
    assert found.shape == (3, CLASSES, 4) and (found == found[:, :1]).all()
    torch.testing.assert_close(found[:, 0], torch.tensor([[0.0, 5, 12, 31], [0, 0, 20, 20], [1, 0, 21, 20]]))


def test_broken_predictions_give_nothing() -> None:
    output = RPNOutput(torch.full((1, 8, 2, 2), math.nan), torch.full((1, 8, 2, 2), math.nan))
    ((scores, boxes),) = rpn().predict(output, [info(32, 32)])
    assert scores.shape == (0, CLASSES) and boxes.shape == (0, CLASSES, 4)


def test_losses_by_hand() -> None:
    """The centre's larger anchor is the only positive one, and learns the class of its object."""
    module = rpn(sampling=AnchorSampling(batch_per_image=10), sigma=3.0)  # without the anchors that leave the image
    generator = torch.Generator().manual_seed(1)
    output = RPNOutput(torch.randn(1, 8, 3, 3, generator=generator), torch.randn(1, 8, 3, 3, generator=generator))
    target = Target(torch.tensor([[8.0, 8.0, 40.0, 39.0]]), torch.tensor([1]))
    losses = module.losses([output], [info(48, 48)], [target])

    anchor = torch.tensor([[8.0, 8.0, 40.0, 40.0]])
    assert iou_matrix(anchor, target.boxes).item() > 0.7
    distance = (output.deltas[0, 4:, 1, 1] - encode(anchor, target.boxes)[0]).abs()
    box = torch.where(distance < 1 / 9, 4.5 * distance**2, distance - 1 / 18).sum() / 10
    torch.testing.assert_close(losses["rpn_box"], box)
    by_class = output.logits[0].view(CLASSES + 1, 2, 3, 3).log_softmax(dim=0)
    # Label 1 is the third channel, after background and label 0. All nine small anchors are negative.
    cls = -(by_class[2, 1, 1, 1] + by_class[0, 0].sum()) / 10
    torch.testing.assert_close(losses["rpn_cls"], cls)


@pytest.mark.parametrize(("cross_border", "trained"), [(True, 18), (False, 10)])
def test_anchors_that_leave_the_image(cross_border: bool, trained: int) -> None:
    """All nine small anchors fit into a 3 x 3 grid, of the nine larger ones only the centre's."""
    module = rpn(sampling=AnchorSampling(cross_border=cross_border))
    logits = torch.zeros(1, 8, 3, 3, requires_grad=True)
    empty = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    output = RPNOutput(logits, torch.zeros(1, 8, 3, 3))
    module.losses([output], [info(48, 48)], [empty])["rpn_cls"].backward()
    assert logits.grad is not None and (logits.grad[0, :2] != 0).sum() == trained  # the scores of background
    assert rpn().sampling.cross_border


def test_no_ground_truth_and_no_anchor_that_fits() -> None:
    module = rpn()
    empty = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    losses = module.losses([module(torch.randn(1, 4, 3, 3))], [info(48, 48)], [empty])
    assert losses["rpn_cls"] > 0 and losses["rpn_box"] == 0
    module = rpn(sampling=AnchorSampling())
    losses = module.losses([module(torch.randn(1, 4, 1, 1))], [info(10, 10)], [empty])
    assert losses["rpn_cls"] == 0 and losses["rpn_box"] == 0
    sum(losses.values(), torch.zeros(())).backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
