import math
from typing import Any

import pytest
import torch
from torch import nn

from dcn_det.models.boxes import decode, encode, to_rois
from dcn_det.models.heads.faster_rcnn import FasterRCNNHead
from dcn_det.models.targets import RoISampler
from dcn_det.structures import ImageInfo, Target

CLASSES = 4
INFO = ImageInfo(0, "", 80, 96, 80, 96, seed=3)
BOXES = torch.tensor([[0.0, 0.0, 32.0, 40.0], [10.0, 20.0, 80.0, 70.0], [64.0, 8.0, 90.0, 79.5]])


def head(pooling: Any = "deformable", **options: Any) -> FasterRCNNHead:
    torch.manual_seed(0)
    return FasterRCNNHead(6, CLASSES, 16, channels=5, pooling=pooling, hidden=12, **options)


def features() -> torch.Tensor:
    return torch.randn(1, 6, 5, 6, generator=torch.Generator().manual_seed(1))


def test_start() -> None:
    module = FasterRCNNHead(2048, 80, 16, pooling="deformable")
    for name, parameter in module.named_parameters():
        if name.endswith("bias") or name.startswith("offset"):
            assert (parameter == 0).all(), name
        else:
            assert parameter.std().item() == pytest.approx(0.01, rel=0.05), name
    assert isinstance(module.offset, nn.Linear) and module.offset.weight.shape == (98, 12544)
    assert module.fc1.weight.shape == (1024, 12544)
    assert module.cls_score.weight.shape == (81, 1024) and module.bbox_pred.weight.shape == (324, 1024)


def test_deformable_starts_as_bilinear() -> None:
    deformable, bilinear = head("deformable"), head("bilinear")
    bilinear.load_state_dict(deformable.state_dict(), strict=False)
    with torch.no_grad():
        results = [each(each.prepare(features()), [BOXES]) for each in (deformable, bilinear)]
    for one, other in zip(*results):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("pooling", ["max", "align", "bilinear", "deformable"])
def test_constant_map_pools_to_the_constant(pooling: str) -> None:
    module = head(pooling)
    pooled = module._pool([torch.full((1, 5, 5, 6), 2.5)], torch.tensor([[0.0, 16.0, 16.0, 60.0, 60.0]]))
    torch.testing.assert_close(pooled, torch.full((1, 5, 7, 7), 2.5))


def test_offsets_move_what_is_pooled() -> None:
    module = head()
    maps = module.prepare(features())
    assert isinstance(module.offset, nn.Linear)
    with torch.no_grad():
        before = module(maps, [BOXES])[0]
        module.offset.bias.fill_(1.0)
        after = module(maps, [BOXES])[0]
    assert (before - after).abs().max() > 1e-7


def offset_branch(module: FasterRCNNHead) -> nn.Module:
    assert module.offset is not None
    return module.offset


def test_start_of_the_modulated_branch() -> None:
    module = FasterRCNNHead(2048, 80, 16, pooling="modulated")
    layers = dict(offset_branch(module).named_parameters())
    assert {name: tuple(value.shape) for name, value in layers.items() if name.endswith("weight")} == {
        "0.weight": (1024, 12544), "2.weight": (1024, 1024), "4.weight": (147, 1024)
    }  # fmt: skip
    assert all(layers[name].std().item() == pytest.approx(0.01, rel=0.05) for name in ("0.weight", "2.weight"))
    assert not any(value.any() for name, value in layers.items() if name.endswith("bias") or name == "4.weight")


def test_modulated_pooling_starts_as_half_of_bilinear_and_is_bounded_by_deformable() -> None:
    """The authors' code doubles the sigmoid of the mask in convolutions alone."""
    modulated, bilinear = head("modulated"), head("bilinear")
    maps = modulated.prepare(features())
    rois = to_rois([BOXES])
    with torch.no_grad():
        torch.testing.assert_close(modulated._pool(maps, rois), bilinear._pool(maps, rois) / 2)
        deformable = head("deformable")
        moved = torch.linspace(-1, 1, 98)
        offset_branch(deformable).get_parameter("bias").copy_(moved)
        offset_branch(modulated).get_parameter("4.bias").copy_(
            torch.cat([moved, torch.full((49,), 40.0)])
        )  # all bins at full strength
        torch.testing.assert_close(modulated._pool(maps, rois), deformable._pool(maps, rois))


def pooled_by_hand(level: torch.Tensor, roi: list[float], offset: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Equation 2 of DCNv2 for a map of stride 16, sample by sample, with four samples and gamma 0.1."""
    channels, height, width = level.shape
    left, top, right, bottom = (math.floor(each + 0.5) for each in roi)
    x1, y1 = left / 16 - 0.5, top / 16 - 0.5
    w, h = (right + 1) / 16 - 0.5 - x1, (bottom + 1) / 16 - 0.5 - y1
    pooled = level.new_zeros(channels, 7, 7)
    for row in range(7):
        for column in range(7):
            dx, dy = offset[:, row, column].tolist()
            values = []
            for i in range(2):
                for j in range(2):
                    x = x1 + (column + j / 2) * w / 7 + 0.1 * dx * w
                    y = y1 + (row + i / 2) * h / 7 + 0.1 * dy * h
                    if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):
                        continue
                    x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
                    cells = [
                        (1 - abs(x - u)) * (1 - abs(y - v)) * level[:, v, u]
                        for u in {math.floor(x), math.ceil(x)}
                        for v in {math.floor(y), math.ceil(y)}
                    ]
                    values.append(sum(cells) * mask[row, column])
            if values:
                pooled[:, row, column] = sum(values) / len(values)
    return pooled


def trained(pooling: str = "modulated") -> FasterRCNNHead:
    """A head in float64 whose offsets and masks are not those of the start."""
    module = head(pooling, samples_per_bin=2).double()
    generator = torch.Generator().manual_seed(2)
    for parameter in offset_branch(module).parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.2
    return module


def test_modulated_pooling_by_hand() -> None:
    module = trained()
    level = torch.randn(1, 5, 5, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    rois = to_rois([BOXES.double()])
    with torch.no_grad():
        found = module._pool([level], rois)
        for row, pooled in zip(rois.tolist(), found):
            zero, one = level.new_zeros(2, 7, 7), level.new_ones(7, 7)
            predicted = offset_branch(module)(pooled_by_hand(level[0], row[1:], zero, one).flatten()[None])[0].view(
                3, 7, 7
            )
            mask = 1 / (1 + torch.exp(-predicted[2]))
            assert predicted[:2].abs().max() > 0.3 and mask.max() - mask.min() > 0.2
            torch.testing.assert_close(pooled, pooled_by_hand(level[0], row[1:], predicted[:2], mask))


def test_gradients_of_modulated_pooling() -> None:
    module = trained()
    generator = torch.Generator().manual_seed(4)
    level = torch.randn(1, 5, 5, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    branch = offset_branch(module)
    rois = to_rois([BOXES.double() + 0.3])

    def pooled(level: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return module._pool([level], rois)

    assert torch.autograd.gradcheck(
        pooled, (level, branch.get_parameter("4.weight"), branch.get_parameter("4.bias")), fast_mode=True
    )


def test_offset_branch_has_the_learning_rate_of_its_paper() -> None:
    assert set(head("deformable").lr_multipliers().values()) == {0.01}
    assert head("modulated").lr_multipliers() == {}
    given = head("modulated", offset_lr_mult=0.5)
    assert given.lr_multipliers() == {f"offset.{name}": 0.5 for name, _ in offset_branch(given).named_parameters()}


def test_predictions_by_hand() -> None:
    module = head("max", box_stds=(0.1, 0.1, 0.2, 0.2))
    deltas = torch.linspace(-2, 2, 4 * (CLASSES + 1)).view(CLASSES + 1, 4)
    with torch.no_grad():
        for layer in (module.cls_score, module.bbox_pred):
            layer.weight.zero_()
        module.cls_score.bias.copy_(torch.tensor([1.0, 2, 3, 4, 5]))
        module.bbox_pred.bias.copy_(deltas.flatten())
    ((scores, boxes),) = module.predict(module.prepare(features()), [BOXES], [INFO])
    odds = [math.exp(each) for each in (2, 3, 4, 5)]
    expected = torch.tensor(odds) / (sum(odds) + math.e)
    torch.testing.assert_close(scores, expected.expand(3, CLASSES))
    for row in range(3):
        for label in range(CLASSES):
            box = decode(BOXES[row], deltas[label + 1] * torch.tensor([0.1, 0.1, 0.2, 0.2]))
            box = torch.minimum(box.clamp(min=0), torch.tensor([96.0, 80.0, 96.0, 80.0]))
            torch.testing.assert_close(boxes[row, label], box)


def test_class_agnostic_boxes_are_shared() -> None:
    module = head("max", class_agnostic=True)
    assert module.bbox_pred.weight.shape == (4, 12)
    ((scores, boxes),) = module.predict(module.prepare(features()), [BOXES], [INFO])
    assert scores.shape == (3, CLASSES) and boxes.shape == (3, CLASSES, 4)
    assert (boxes == boxes[:, :1]).all()


def test_predictions_are_split_by_image() -> None:
    module = head()
    maps = module.prepare(torch.cat([features(), -features()]))
    both = module.predict(maps, [BOXES[:1], BOXES], [INFO, INFO])
    alone = module.predict(module.prepare(-features()), [BOXES], [INFO])
    assert [len(scores) for scores, _ in both] == [1, 3]
    for one, other in zip(both[1], alone[0]):
        torch.testing.assert_close(one, other)
    none = module.predict(maps, [BOXES[:0], BOXES[:0]], [INFO, INFO])
    assert [tuple(boxes.shape) for _, boxes in none] == [(0, CLASSES, 4)] * 2


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_losses_by_hand(class_agnostic: bool) -> None:
    # The first proposal overlaps the only object by 0.8, so it and the object are foreground; the other
    # two are background. All four candidates are drawn.
    proposals = torch.tensor([[10.0, 10.0, 50.0, 42.0], [10.0, 10.0, 30.0, 30.0], [30.0, 30.0, 50.0, 50.0]])
    target = Target(torch.tensor([[10.0, 10.0, 50.0, 50.0]]), torch.tensor([2]))
    sampler = RoISampler(batch_per_image=4, positive_fraction=0.5, negative_iou=(0.1, 0.5))
    module = head("max", sampler=sampler, class_agnostic=class_agnostic)
    with torch.no_grad():
        module.bbox_pred.bias.copy_(torch.linspace(-1, 1, len(module.bbox_pred.bias)))
    maps = module.prepare(features())
    losses = module.losses(maps, [proposals], [INFO], [target])

    drawn = torch.cat([proposals[:1], target.boxes, proposals[1:]])
    logits, deltas = module(maps, [drawn])
    cls = -(logits[:2].log_softmax(1)[:, 3].sum() + logits[2:].log_softmax(1)[:, 0].sum()) / 4
    torch.testing.assert_close(losses["head_cls"], cls)
    goal = encode(drawn[:2], target.boxes.expand(2, 4)) / torch.tensor([0.1, 0.1, 0.2, 0.2])
    distance = (deltas[:2, 0 if class_agnostic else 3] - goal).abs()
    box = torch.where(distance < 1, 0.5 * distance**2, distance - 0.5).sum() / 4
    torch.testing.assert_close(losses["head_box"], box)


def test_gradients_reach_the_offsets_and_the_map() -> None:
    module = head(sampler=RoISampler(batch_per_image=8))
    x = features().requires_grad_()
    target = Target(torch.tensor([[12.0, 22.0, 78.0, 70.0]]), torch.tensor([1]))
    losses = module.losses(module.prepare(x), [BOXES], [INFO], [target])
    sum(losses.values(), torch.zeros(())).backward()
    for leaf in (x, module.get_parameter("offset.weight")):
        assert leaf.grad is not None and leaf.grad.abs().max() > 0


def test_no_rois_at_all() -> None:
    module = head()
    target = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    losses = module.losses(module.prepare(features()), [torch.zeros(0, 4)], [INFO], [target])
    sum(losses.values(), torch.zeros(())).backward()
    assert losses == {"head_cls": 0, "head_box": 0}
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_he_start_keeps_the_signal_through_a_narrow_head() -> None:
    torch.manual_seed(0)
    spread = {}
    for start in ("normal", "he"):
        head = FasterRCNNHead(64, 3, 16, channels=32, hidden=64, hidden_init=start)
        with torch.no_grad():
            pooled = torch.randn(200, 32 * 49).relu()
            hidden = head.fc2(head.fc1(pooled).relu()).relu()
        spread[start] = hidden.std().item() / pooled.std().item()
    assert spread["normal"] < 0.05
    assert 0.5 < spread["he"] < 2
