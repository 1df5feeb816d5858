import math
from typing import Any

import pytest
import torch

from dcn_det.models.anchors import cell_anchors, grid_anchors
from dcn_det.models.boxes import encode, iou_matrix
from dcn_det.models.rpn import RPN, AnchorSampling, ProposalSelection, RPNOutput
from dcn_det.structures import ImageInfo, Target

ANCHORS = cell_anchors(16, (1,), (1, 2))


def info(height: int, width: int, scale: float = 1.0) -> ImageInfo:
    return ImageInfo(0, "", int(height / scale), int(width / scale), height, width, seed=5)


def rpn(**options: Any) -> RPN:
    torch.manual_seed(0)
    return RPN(4, ANCHORS, 16, channels=8, **options)


def output_for(boxes: torch.Tensor, scores: torch.Tensor, height: int, width: int) -> RPNOutput:
    """Predictions that decode to ``boxes`` with these logits of an object, both in grid order."""
    deltas = encode(grid_anchors(ANCHORS, height, width, 16), boxes)
    logits = torch.stack([torch.zeros_like(scores), scores], dim=1).view(height, width, 2, 2)
    return RPNOutput(
        logits.permute(3, 2, 0, 1).reshape(1, 4, height, width),
        deltas.view(height, width, 2 * 4).permute(2, 0, 1)[None],
    )


def test_layers() -> None:
    module = rpn()
    output = module(torch.randn(2, 4, 5, 6))
    assert output.logits.shape == (2, 4, 5, 6) and output.deltas.shape == (2, 8, 5, 6)
    assert {name for name, _ in module.named_parameters()} == {
        f"{layer}.{kind}" for layer in ("conv", "cls_score", "bbox_pred") for kind in ("weight", "bias")
    }
    assert module.state_dict().keys() == dict(module.named_parameters()).keys()
    assert module.conv.weight.std().item() == pytest.approx(0.01, rel=0.1)


def test_proposals_by_hand() -> None:
    boxes = torch.tensor(
        [
            [0.0, 0.0, 20.0, 20.0],
            [1.0, 0.0, 21.0, 20.0],  # IoU 19/21 with the first, which has the better score
            [-10.0, 5.0, 12.0, 100.0],  # leaves the image
            [25.0, 25.0, 30.0, 30.0],
        ]
    )
    output = output_for(boxes, torch.tensor([2.0, 1.0, 3.0, 0.0]), height=1, width=2)
    (proposals,) = rpn().proposals([output], [info(31, 32)])
    expected = [[0, 5, 12, 31], [0, 0, 20, 20], [25, 25, 30, 30]]
    torch.testing.assert_close(proposals.boxes, torch.tensor(expected, dtype=torch.float32))
    torch.testing.assert_close(proposals.scores, torch.tensor([3.0, 2.0, 0.0]).sigmoid())
    assert not proposals.boxes.requires_grad


@pytest.mark.parametrize("scale, expected", [(1.0, 2), (2.0, 1)])
def test_min_size_is_in_original_pixels(scale: float, expected: int) -> None:
    boxes = torch.tensor([[0.0, 0.0, 20.0, 20.0], [20.0, 20.0, 27.0, 32.0]])
    output = output_for(boxes, torch.zeros(2), height=1, width=1)
    module = rpn(selection=ProposalSelection(min_size=6))
    assert len(module.proposals([output], [info(32, 32, scale)])[0].boxes) == expected


def test_limits_on_the_number_of_proposals() -> None:
    generator = torch.Generator().manual_seed(0)
    output = RPNOutput(torch.randn(1, 4, 10, 10, generator=generator), torch.zeros(1, 8, 10, 10))
    kept = {}
    for pre_nms, post_nms in ((6000, 300), (50, 300), (6000, 7)):
        module = rpn(selection=ProposalSelection(pre_nms=pre_nms, post_nms=post_nms))
        kept[pre_nms, post_nms] = module.proposals([output], [info(160, 160)])[0]
    assert len(kept[6000, 300].boxes) > 50 >= len(kept[50, 300].boxes)
    assert torch.equal(kept[6000, 7].boxes, kept[6000, 300].boxes[:7])


def test_surplus_cells_are_cut_off() -> None:
    logits = torch.zeros(1, 4, 4, 4)
    logits[:, 2:, 3:] = logits[:, 2:, :, 3:] = 50.0
    output = RPNOutput(logits, torch.zeros(1, 8, 4, 4))
    (proposals,) = rpn(selection=ProposalSelection(nms_iou=1.0)).proposals([output], [info(63, 50)])
    assert len(proposals.boxes) == 3 * 3 * 2 and (proposals.scores == 0.5).all()


def test_ties_keep_the_order_of_the_grid() -> None:
    output = RPNOutput(torch.zeros(1, 4, 3, 3), torch.zeros(1, 8, 3, 3))
    (proposals,) = rpn(selection=ProposalSelection(nms_iou=1.0, post_nms=4)).proposals([output], [info(48, 48)])
    assert proposals.boxes.tolist() == [[0, 0, 16, 16], [0, 0, 24, 24], [16, 0, 32, 16], [8, 0, 40, 24]]


def test_broken_predictions_propose_nothing() -> None:
    output = RPNOutput(torch.full((1, 4, 2, 2), math.nan), torch.full((1, 8, 2, 2), math.nan))
    assert len(rpn().proposals([output], [info(32, 32)])[0].boxes) == 0
    output = RPNOutput(torch.zeros(1, 4, 2, 2), torch.full((1, 8, 2, 2), math.inf))
    rpn().proposals([output], [info(32, 32)])


def test_losses_by_hand() -> None:
    """On a 3 x 3 grid, in an image that only the centre's larger anchor and all smaller ones fit."""
    module = rpn(sampling=AnchorSampling(batch_per_image=8, positive_fraction=0.25), sigma=3.0)
    generator = torch.Generator().manual_seed(1)
    output = RPNOutput(torch.randn(1, 4, 3, 3, generator=generator), torch.randn(1, 8, 3, 3, generator=generator))
    target = Target(torch.tensor([[8.0, 8.0, 40.0, 39.0]]), torch.tensor([0]))
    losses = module.losses([output], [info(48, 48)], [target])

    # The centre's larger anchor is the only positive one; the small centre one has IoU 0.26 and is negative
    # like all small ones. All nine plus it fit; two may be positive, so seven of the nine are drawn.
    anchor = torch.tensor([[8.0, 8.0, 40.0, 40.0]])
    assert iou_matrix(anchor, target.boxes).item() > 0.7
    deltas = output.deltas[0, 4:, 1, 1]
    distance = (deltas - encode(anchor, target.boxes)[0]).abs()
    box = torch.where(distance < 1 / 9, 4.5 * distance**2, distance - 1 / 18).sum() / 8
    torch.testing.assert_close(losses["rpn_box"], box)

    positive = torch.log_softmax(output.logits[0, [1, 3], 1, 1], dim=0)[1]
    negatives = torch.log_softmax(output.logits[0, [0, 2]], dim=0)[0].flatten()
    total = -(8 * losses["rpn_cls"] + positive)
    subsets = torch.combinations(negatives, 7).sum(dim=1)
    assert (subsets - total).abs().min() < 1e-4


def test_no_anchor_fits() -> None:
    module = rpn()
    features = torch.randn(1, 4, 1, 1)
    target = Target(torch.tensor([[0.0, 0.0, 8.0, 8.0]]), torch.tensor([0]))
    losses = module.losses([module(features)], [info(10, 10)], [target])
    assert losses["rpn_cls"] == 0 and losses["rpn_box"] == 0
    sum(losses.values(), torch.zeros(())).backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_loss_weight() -> None:
    output = RPNOutput(torch.randn(1, 4, 3, 3), torch.randn(1, 8, 3, 3))
    target = Target(torch.tensor([[8.0, 8.0, 40.0, 39.0]]), torch.tensor([0]))
    once, twice = (rpn(loss_weight=w).losses([output], [info(48, 48)], [target]) for w in (1.0, 2.0))
    assert all(torch.equal(2 * once[name], twice[name]) and once[name] > 0 for name in once)
