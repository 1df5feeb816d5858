from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dcn_det.models.anchor_head import AnchorSampling
from dcn_det.models.anchors import cell_anchors
from dcn_det.models.backbones.aligned_inception_resnet import AlignedInceptionResNet
from dcn_det.models.backbones.fpn import LEVELS, FeaturePyramid
from dcn_det.models.backbones.resnet import ResNet
from dcn_det.models.boxes import to_rois
from dcn_det.models.heads.faster_rcnn import FasterRCNNHead, pyramid_levels
from dcn_det.models.rpn import RPN, RPNOutput
from dcn_det.structures import ImageInfo, Target
from tests.models.helpers import info

SMALL: dict[str, Any] = {
    "width": 8,
    "stem_width": 8,
    "norm": "gn",
    "frozen_stages": 0,
    "res5_stride": 2,
    "res5_dilation": 1,
}


def pyramid(**options: Any) -> FeaturePyramid:
    torch.manual_seed(0)
    return FeaturePyramid(ResNet("resnet18", **SMALL), 6, **options)


def test_levels_by_hand() -> None:
    module = pyramid()
    assert module.strides == {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}
    x = torch.randn(1, 3, 70, 100)
    with torch.no_grad():
        levels, stages = module(x), module.bottom_up(x)
    assert tuple(levels) == LEVELS and all(level.shape[1] == 6 for level in levels.values())
    inner, outer = module.fpn.inner_blocks, module.fpn.layer_blocks
    top = None
    for index, (stage, level) in reversed(list(enumerate(zip(stages, LEVELS)))):
        lateral = inner[index](stages[stage])
        if top is not None:
            top = F.interpolate(top, size=lateral.shape[2:], mode="nearest")
            # Nearest neighbours double every cell, even where the finer map is odd.
            assert torch.equal(top[..., 0, 0], top[..., 1, 1])
        top = lateral if top is None else lateral + top
        torch.testing.assert_close(outer[index](top), levels[level])
    torch.testing.assert_close(levels["p6"], module.p6(stages["res5"]))
    assert levels["p6"].shape[2:] == tuple((size + 1) // 2 for size in levels["p5"].shape[2:])


def test_start() -> None:
    module = FeaturePyramid(ResNet("resnet18", **SMALL | {"width": 64}), 64)
    for layer in (module.p6, module.fpn.inner_blocks[3][0], module.fpn.layer_blocks[0][0]):
        assert layer.get_parameter("weight").std().item() == pytest.approx(0.01, rel=0.1)
        assert not layer.get_parameter("bias").any()
    assert pyramid(hidden_init="he").p6.weight.std() > 0.03
    assert module.lr_multipliers() == {}


def test_a_dilated_backbone_is_refused() -> None:
    with pytest.raises(ValueError, match="strides 4, 8, 16 and 32, got \\(4, 8, 16, 16\\)"):
        FeaturePyramid(ResNet("resnet18", **SMALL | {"res5_stride": 1}), 6)


@pytest.mark.parametrize("side, level", [(1, 0), (111, 0), (112, 1), (223, 1), (224, 2), (447, 2), (448, 3), (5000, 3)])
def test_level_of_a_square(side: int, level: int) -> None:
    rois = to_rois([torch.tensor([[3.0, 5.0, 3.0 + side, 5.0 + side]])])
    assert pyramid_levels(rois, 4).tolist() == [level]


@pytest.mark.parametrize("pooling", ["max", "align", "bilinear", "deformable", "modulated"])
def test_each_roi_is_pooled_from_its_level(pooling: Any) -> None:
    torch.manual_seed(1)
    head = FasterRCNNHead(6, 3, (4, 8, 16, 32), channels=None, pooling=pooling, hidden=8)
    maps = [torch.randn(2, 6, 256 // stride, 320 // stride) for stride in head.strides]
    for name, parameter in head.named_parameters():
        if name.startswith("offset.") and name.endswith("bias"):
            parameter.data.normal_()
    boxes = [torch.tensor([[0.0, 0, 300, 250], [5, 5, 35, 45], [10, 10, 150, 140]]), torch.tensor([[0.0, 0, 20, 20]])]
    rois = to_rois(boxes)
    assert pyramid_levels(rois, 4).tolist() == [2, 0, 1, 0]
    with torch.no_grad():
        pooled = head._pool(maps, rois)
        for row, level in enumerate((2, 0, 1, 0)):
            torch.testing.assert_close(pooled[row], head._pool_level(level, maps[level], rois[row : row + 1])[0])


@pytest.mark.parametrize(("pooling", "parameters"), [("deformable", 2), ("modulated", 6)])
def test_every_offset_branch_takes_part_even_without_rois(pooling: Any, parameters: int) -> None:
    head = FasterRCNNHead(6, 3, (4, 8, 16, 32), channels=None, pooling=pooling, hidden=8, offset_lr_mult=0.5)
    assert (
        isinstance(head.offset, torch.nn.ModuleList)
        and len(head.offset) == 4
        and len(head.lr_multipliers()) == 4 * parameters
    )
    assert head.lr_multipliers().keys() <= dict(head.named_parameters()).keys()
    maps = [torch.randn(1, 6, 64 // stride, 64 // stride) for stride in head.strides]
    info, target = ImageInfo(0, "", 64, 64, 64, 64), Target(torch.tensor([[1.0, 1, 40, 40]]), torch.tensor([1]))
    losses = head.losses(maps, [torch.zeros(0, 4)], [info], [target])
    sum(losses.values(), torch.zeros(())).backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


def pyramid_rpn() -> RPN:
    torch.manual_seed(0)
    return RPN(4, [cell_anchors(stride, (1,), (2,)) for stride in (4, 8)], (4, 8), channels=8)


def test_proposals_of_all_levels_compete() -> None:
    module = pyramid_rpn()
    fine = RPNOutput(torch.zeros(1, 2, 8, 8), torch.zeros(1, 4, 8, 8))
    coarse = RPNOutput(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4, 4))
    fine.logits[0, 1, 2, 2], coarse.logits[0, 1, 1, 1] = 3.0, 4.0
    (proposals,) = module.proposals([fine, coarse], [ImageInfo(0, "", 32, 32, 32, 32)])
    # An anchor is twice its stride wide and centred on its cell.
    assert proposals.boxes[:2].tolist() == [[4, 4, 20, 20], [6, 6, 14, 14]]
    assert proposals.scores[0] > proposals.scores[1] > proposals.scores[2]


def test_anchors_of_all_levels_are_matched_together() -> None:
    module = pyramid_rpn()
    outputs = [module(torch.randn(1, 4, size, size)) for size in (8, 4)]
    target = Target(torch.tensor([[8.0, 8.0, 24.0, 24.0]]), torch.tensor([0]))
    losses = module.losses(outputs, [ImageInfo(0, "", 32, 32, 32, 32)], [target])
    # The object lies between four coarse anchors, the best there are. The fine ones overlap it less.
    deltas = outputs[1].deltas[0, :, 1:3, 1:3].flatten(1).T
    shifts = torch.tensor([[0.25, 0.25, 0, 0], [-0.25, 0.25, 0, 0], [0.25, -0.25, 0, 0], [-0.25, -0.25, 0, 0]])
    distance = (deltas - shifts).abs()
    box = torch.where(distance < 1 / 9, 4.5 * distance**2, distance - 1 / 18).sum() / 256
    torch.testing.assert_close(losses["rpn_box"], box)


def test_levels_and_strides_must_agree() -> None:
    with pytest.raises(ValueError, match="anchors for each of 1 strides, got 2"):
        RPN(4, [cell_anchors(4, (1,), (2,))] * 2, 4)


# Padding to whole cells


@pytest.mark.parametrize("network", [ResNet, AlignedInceptionResNet])
@pytest.mark.parametrize("stem_pool", ["ceil", "pad"])
def test_padded_images_have_whole_cells_on_every_level(network: type, stem_pool: str) -> None:
    kind = "resnet18" if network is ResNet else "aligned_inception_resnet"
    module = FeaturePyramid(network(kind, stem_pool=stem_pool, **SMALL), 6)
    assert module.size_multiple == 32
    with torch.no_grad():
        levels = module(torch.zeros(1, 3, 96, 160))
    sizes = {name: tuple(level.shape[2:]) for name, level in levels.items()}
    assert sizes == {"p2": (24, 40), "p3": (12, 20), "p4": (6, 10), "p5": (3, 5), "p6": (2, 3)}


STRIDES = (4, 8, 16, 32, 64)
CELLS = {(800, 1067): [(200, 272), (100, 136), (50, 68), (25, 34), (12, 17)]}
"""Of 800x1088 pixels, to which 800x1067 are padded."""
CELLS[(750, 1200)] = [(192, 304), (96, 152), (48, 76), (24, 38), (12, 19)]
"""Of 768x1216 pixels."""


def released_rpn(cross_border: bool = True) -> RPN:
    """Anchors as in the authors' Deformable FPN."""
    anchors = [cell_anchors(stride, (0.5, 1, 2), (8,)) for stride in STRIDES]
    return RPN(4, anchors, STRIDES, channels=4, sampling=AnchorSampling(cross_border=cross_border), size_multiple=32)


def outputs_of(*sizes: tuple[int, int]) -> list[RPNOutput]:
    """Zeros on the maps of images of these sizes in one batch."""
    height, width = (max(-(-size[axis] // 32) * 32 for size in sizes) for axis in (0, 1))
    shapes = [(len(sizes), -(-height // stride), -(-width // stride)) for stride in STRIDES]
    return [RPNOutput(torch.zeros(n, 6, h, w), torch.zeros(n, 12, h, w)) for n, h, w in shapes]


@pytest.mark.parametrize("sizes", [[(800, 1067)], [(800, 1067), (750, 1200)]])
def test_anchors_cover_the_padded_image(sizes: list[tuple[int, int]]) -> None:
    module, outputs = released_rpn(), outputs_of(*sizes)
    for index, size in enumerate(sizes):
        anchors, logits, deltas = module._of_image(outputs, index, info(*size))
        counts = [3 * height * width for height, width in CELLS[size]]
        assert len(anchors) == len(logits) == len(deltas) == sum(counts)
        assert len(module._eligible(anchors, info(*size))) == sum(counts)
        for (height, width), stride, level in zip(CELLS[size], STRIDES, anchors.split(counts)):
            # The middle anchor of the last cell is a square of eight strides around its centre.
            x, y, half = (width - 0.5) * stride, (height - 0.5) * stride, 4 * stride
            assert level[-2].tolist() == [x - half, y - half, x + half, y + half]


def test_few_coarse_anchors_lie_inside_the_image() -> None:
    """Centres are at 32 + 64 i, anchors 728x368, 512x512 and 360x720: 5 x 7, 9 x 5 and 11 x 1 of them fit."""
    module = released_rpn(cross_border=False)
    anchors, _, _ = module._of_image(outputs_of((800, 1067)), 0, info(800, 1067))
    eligible = module._eligible(anchors, info(800, 1067))
    assert (eligible >= len(anchors) - 3 * 12 * 17).sum() == 35 + 45 + 11


@pytest.mark.parametrize("sizes", [[(800, 1067)], [(800, 1067), (750, 1200)]])
def test_border_cells_propose_and_proposals_end_with_the_image(sizes: list[tuple[int, int]]) -> None:
    module, outputs = released_rpn(), outputs_of(*sizes)
    for index, size in enumerate(sizes):
        for score, level in ((8.0, 3), (6.0, 2)):  # strides 32 and 16: the last cell's square anchor is the best
            height, width = CELLS[size][level]
            outputs[level].logits[index, 4, height - 1, width - 1] = score
            if len(sizes) > 1 and index == 0:  # beyond the padded image lies another image's
                outputs[level].logits[index, 4, :, width:] = 20.0
    proposals = module.proposals(outputs, [info(*size) for size in sizes])
    # Stride 32: centre (1072, 784), half 128. Stride 16: centre (1080, 792), half 64.
    assert proposals[0].boxes[:2].tolist() == [[944, 656, 1067, 800], [1016, 728, 1067, 800]]
    if len(sizes) > 1:  # centres (1200, 752) and (1208, 760)
        assert proposals[1].boxes[:2].tolist() == [[1072, 624, 1200, 750], [1144, 696, 1200, 750]]
    for each, (height, width) in zip(proposals, sizes):
        assert each.boxes.amax(dim=0).tolist()[2:] == [width, height]
