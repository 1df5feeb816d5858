from typing import Any

import pytest
import torch

from dcn_det.models.boxes import decode, encode, to_rois
from dcn_det.models.heads.rfcn import RFCNHead, RFCNMaps
from dcn_det.models.targets import RoISampler
from dcn_det.structures import ImageInfo, Target

CLASSES = 4
INFO = ImageInfo(0, "", 80, 96, 80, 96, seed=3)
BOXES = torch.tensor([[0.0, 0.0, 32.0, 40.0], [10.0, 20.0, 80.0, 70.0], [64.0, 8.0, 90.0, 79.5]])
STDS = torch.tensor([0.1, 0.1, 0.2, 0.2])


def head(pooling: Any = "deformable", **options: Any) -> RFCNHead:
    torch.manual_seed(0)
    return RFCNHead(6, CLASSES, 16, channels=5, pooling=pooling, **options)


def features() -> torch.Tensor:
    return torch.randn(1, 6, 5, 6, generator=torch.Generator().manual_seed(1))


def test_start() -> None:
    module = RFCNHead(2048, 80, 16, pooling="deformable")
    for name, parameter in module.named_parameters():
        if name.endswith("bias") or "offset" in name:
            assert (parameter == 0).all(), name
        else:
            assert parameter.std().item() == pytest.approx(0.01, rel=0.05), name
    assert module.cls_score.weight.shape == (49 * 81, 1024, 1, 1)
    assert module.bbox_pred.weight.shape == (49 * 8, 1024, 1, 1)
    assert module.cls_offset is not None and module.bbox_offset is not None
    assert module.cls_offset.weight.shape == (49 * 2 * 81, 1024, 1, 1)
    assert module.bbox_offset.weight.shape == (49 * 2, 1024, 1, 1)
    assert module.sampler == RoISampler(batch_per_image=128, negative_iou=(0.0, 0.5), ohem=True)


def test_lr_multipliers() -> None:
    assert head("average").lr_multipliers() == {"reduce.weight": 3.0, "reduce.bias": 3.0}
    module = head("deformable", reduce_lr_mult=1.0, offset_lr_mult=0.5)
    assert module.lr_multipliers() == {
        f"{layer}.{kind}": 0.5 for layer in ("cls_offset", "bbox_offset") for kind in ("weight", "bias")
    }
    assert module.lr_multipliers().keys() <= dict(module.named_parameters()).keys()


def test_deformable_starts_as_bilinear() -> None:
    deformable, bilinear = head("deformable"), head("bilinear")
    bilinear.load_state_dict(deformable.state_dict(), strict=False)
    with torch.no_grad():
        results = [each(each.prepare(features()), [BOXES]) for each in (deformable, bilinear)]
    for one, other in zip(*results):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("pooling", ["average", "bilinear", "deformable"])
def test_every_bin_votes_with_maps_of_its_own(pooling: str) -> None:
    """Constant maps make a bin the value of its map, so the score is the mean of the class's 49 values."""
    module = head(pooling)
    values = torch.randn(49 * (CLASSES + 1), generator=torch.Generator().manual_seed(2))
    scores = values.view(1, -1, 1, 1).expand(1, -1, 5, 6).contiguous()
    deltas = torch.zeros(1, 49 * 8, 5, 6)
    offsets = (torch.zeros(1, 49 * 2 * (CLASSES + 1), 5, 6), torch.zeros(1, 49 * 2, 5, 6))
    maps = RFCNMaps(scores, deltas, *(offsets if pooling == "deformable" else (None, None)))
    logits, boxes = module(maps, [torch.tensor([[16.0, 16.0, 61.0, 61.0]])])
    torch.testing.assert_close(logits[0], values.view(CLASSES + 1, 49).mean(dim=1))
    assert boxes.shape == (1, 2, 4) and (boxes == 0).all()


def test_offsets_belong_to_a_class_and_boxes_have_one_set() -> None:
    module = head("deformable")
    with torch.no_grad():
        maps = module.prepare(features())
        before = module(maps, [BOXES])
        bias = module.get_parameter("cls_offset.bias").view(CLASSES + 1, 2, 49)
        bias[2] = 1.0
        scores = module(module.prepare(features()), [BOXES])
        moved = (scores[0] - before[0]).abs().amax(dim=0) > 1e-9
        assert moved.tolist() == [False, False, True, False, False]
        assert torch.equal(scores[1], before[1])
        module.get_parameter("bbox_offset.bias").fill_(1.0)
        boxes = module(module.prepare(features()), [BOXES])
    assert torch.equal(boxes[0], scores[0])
    assert ((boxes[1] - before[1]).abs().amax(dim=0) > 1e-9).all()


def test_the_second_set_of_deltas_serves_all_classes() -> None:
    module = head("average")
    deltas = torch.linspace(-1, 1, 8).view(2, 4)
    with torch.no_grad():
        module.bbox_pred.weight.zero_()
        module.get_parameter("bbox_pred.bias").copy_(deltas.view(8, 1).expand(8, 49).flatten())
    ((scores, boxes),) = module.predict(module.prepare(features()), [BOXES], [INFO])
    assert scores.shape == (3, CLASSES) and boxes.shape == (3, CLASSES, 4)
    assert (boxes == boxes[:, :1]).all()
    expected = decode(BOXES, deltas[1] * STDS)
    limit = torch.tensor([96.0, 80.0, 96.0, 80.0])
    torch.testing.assert_close(boxes[:, 0], torch.minimum(expected.clamp(min=0), limit))


def test_class_specific_deltas() -> None:
    module = head("average", class_agnostic=False)
    assert module.bbox_pred.weight.shape[0] == 49 * 4 * (CLASSES + 1)
    ((_, boxes),) = module.predict(module.prepare(features()), [BOXES], [INFO])
    assert not (boxes == boxes[:, :1]).all()


PROPOSALS = torch.tensor([[10.0, 10.0, 50.0, 42.0], [10.0, 10.0, 30.0, 30.0], [30.0, 30.0, 50.0, 50.0]])
TARGET = Target(torch.tensor([[10.0, 10.0, 50.0, 50.0]]), torch.tensor([2]))


@pytest.mark.parametrize("batch", [2, 3, 100])
def test_hard_example_mining_by_hand(batch: int) -> None:
    """The first proposal overlaps the object by 0.8, so it and the object are foreground; the others are not."""
    module = head("average", sampler=RoISampler(batch_per_image=batch, negative_iou=(0.0, 0.5), ohem=True))
    with torch.no_grad():
        module.get_parameter("cls_score.bias").normal_(generator=torch.Generator().manual_seed(4))
        bias = module.get_parameter("bbox_pred.bias")
        bias.copy_(torch.linspace(-1, 1, len(bias)))
    maps = module.prepare(features())
    losses = module.losses(maps, [PROPOSALS], [INFO], [TARGET])

    rois = torch.cat([PROPOSALS[:1], TARGET.boxes, PROPOSALS[1:]])
    logits, deltas = module(maps, [rois])
    cls = -torch.cat([logits[:2].log_softmax(1)[:, 3], logits[2:].log_softmax(1)[:, 0]])
    distance = (deltas[:2, 1] - encode(rois[:2], TARGET.boxes.expand(2, 4)) / STDS).abs()
    box = torch.zeros(4)
    box[:2] = torch.where(distance < 1, 0.5 * distance**2, distance - 0.5).sum(dim=1)
    kept = sorted(range(4), key=lambda index: -(cls + box)[index].item())[:batch]
    torch.testing.assert_close(losses["head_cls"], cls[kept].sum() / len(kept))
    torch.testing.assert_close(losses["head_box"], box[kept].sum() / batch)


def test_only_the_hardest_rois_get_gradients() -> None:
    module = head("average", sampler=RoISampler(batch_per_image=1, negative_iou=(0.0, 0.5), ohem=True))
    maps = module.prepare(features())
    leaf = RFCNMaps(maps.scores.detach().requires_grad_(), maps.deltas.detach(), None, None)
    target = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    far_apart = torch.tensor([[0.0, 0.0, 30.0, 30.0], [60.0, 48.0, 95.0, 79.0]])
    module.losses(leaf, [far_apart], [INFO], [target])["head_cls"].backward()
    assert leaf.scores.grad is not None
    touched = leaf.scores.grad.abs().sum(dim=(0, 1)) > 0
    left, right = touched[:2, :2].any(), touched[3:, 4:].any()
    assert bool(left) != bool(right)


def test_hard_sampling_returns_every_candidate_in_its_band() -> None:
    iou = torch.tensor([[0.6], [0.05], [0.3], [0.49], [0.5]])
    boxes = torch.arange(20.0).view(5, 4)
    sampler = RoISampler(batch_per_image=1, positive_iou=0.5, negative_iou=(0.1, 0.5), ohem=True)
    drawn = sampler(boxes, iou, torch.zeros(1, 4), torch.tensor([7]), torch.Generator())
    assert drawn.boxes[:, 0].tolist() == [0, 16, 8, 12]
    assert drawn.classes.tolist() == [8, 8, 0, 0] and len(drawn.matched) == 2


@pytest.mark.parametrize("pooling", ["average", "bilinear", "deformable"])
def test_no_rois_at_all(pooling: str) -> None:
    module = head(pooling)
    target = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    losses = module.losses(module.prepare(features()), [torch.zeros(0, 4)], [INFO], [target])
    sum(losses.values(), torch.zeros(())).backward()
    assert losses == {"head_cls": 0, "head_box": 0}
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_rois_of_two_images_are_told_apart() -> None:
    module = head()
    maps = module.prepare(torch.cat([features(), -features()]))
    both = module.predict(maps, [BOXES[:1], BOXES], [INFO, INFO])
    alone = module.predict(module.prepare(-features()), [BOXES], [INFO])
    assert [len(scores) for scores, _ in both] == [1, 3]
    for one, other in zip(both[1], alone[0]):
        torch.testing.assert_close(one, other)
    assert to_rois([BOXES[:1], BOXES])[:, 0].tolist() == [0, 1, 1, 1]
