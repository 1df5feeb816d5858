import pytest
import torch

from dcn_det.models.targets import RoISampler, match_anchors, sample_anchors, sampling_generator


def test_matching_by_hand() -> None:
    iou = torch.tensor(
        [
            [0.80, 0.10],  # good enough
            [0.20, 0.10],  # bad
            [0.50, 0.25],  # neither
            [0.10, 0.28],  # bad, but the best there is for the second box
            [0.00, 0.28],  # equally good for it
            [0.70, 0.00],  # exactly good enough
            [0.30, 0.00],  # not below the threshold
        ]
    )
    labels, matches = match_anchors(iou, positive_iou=0.7, negative_iou=0.3)
    assert labels.tolist() == [1, 0, -1, 1, 1, 1, -1]
    assert matches.tolist() == [0, 0, 0, 1, 1, 0, 0]


def test_box_that_no_anchor_touches_makes_nothing_positive() -> None:
    labels, _ = match_anchors(torch.tensor([[0.0, 0.9], [0.0, 0.1]]), 0.7, 0.3)
    assert labels.tolist() == [1, 0]


@pytest.mark.parametrize("shape", [(4, 0), (0, 3), (0, 0)])
def test_matching_with_nothing(shape: tuple[int, int]) -> None:
    labels, matches = match_anchors(torch.zeros(shape), 0.7, 0.3)
    assert labels.tolist() == matches.tolist() == [0] * shape[0]


def test_sampled_counts() -> None:
    labels = torch.tensor([1] * 10 + [0] * 50 + [-1] * 40)
    positive, negative = sample_anchors(labels, 16, 0.5, sampling_generator(0, 0))
    assert len(positive) == 8 and len(negative) == 8
    assert (labels[positive] == 1).all() and (labels[negative] == 0).all()
    assert len(set(positive.tolist())) == 8 and len(set(negative.tolist())) == 8


def test_negatives_fill_up() -> None:
    labels = torch.tensor([1] * 3 + [0] * 50)
    positive, negative = sample_anchors(labels, 16, 0.5, sampling_generator(0, 0))
    assert positive.tolist() == [0, 1, 2] and len(negative) == 13


def test_sampling_depends_on_seed_and_stream_alone() -> None:
    labels = torch.zeros(1000, dtype=torch.int64)

    def draw(seed: int, stream: int) -> list[int]:
        torch.rand(3)  # the global generator has no part in it
        return sample_anchors(labels, 32, 0.5, sampling_generator(seed, stream))[1].tolist()

    assert draw(7, 0) == draw(7, 0)
    assert len({tuple(draw(seed, stream)) for seed in (7, 8, 7 + 2**32) for stream in (0, 1)}) == 6


def boxes(count: int) -> torch.Tensor:
    corner = torch.arange(count, dtype=torch.float32)[:, None].expand(-1, 2)
    return torch.cat([corner, corner + 10], dim=1)


def test_roi_sampling_by_hand() -> None:
    best = torch.tensor([0.9, 0.5, 0.49, 0.1, 0.09, 0.6])
    iou = torch.stack([torch.zeros(6), best], dim=1)
    gt_boxes, gt_labels = boxes(2) + 100, torch.tensor([3, 5])
    sampler = RoISampler(batch_per_image=4, positive_fraction=0.5, positive_iou=0.5, negative_iou=(0.1, 0.5))
    drawn = sampler(boxes(6), iou, gt_boxes, gt_labels, sampling_generator(0, 1))
    chosen = drawn.boxes[:, 0].tolist()
    assert len(set(chosen[:2])) == 2 and set(chosen[:2]) <= {0, 1, 5}
    assert sorted(chosen[2:]) == [2, 3]
    assert drawn.classes.tolist() == [6, 6, 0, 0]
    assert torch.equal(drawn.matched, gt_boxes[[1, 1]])


def test_short_batches_are_topped_up_with_background() -> None:
    iou = torch.tensor([[0.8], [0.2], [0.0]])
    sampler = RoISampler(batch_per_image=16, positive_fraction=0.25)
    drawn = sampler(boxes(3), iou, boxes(1), torch.tensor([0]), sampling_generator(0, 1))
    assert len(drawn.boxes) == 16
    assert drawn.classes.tolist() == [1] + [0] * 15
    assert drawn.boxes[:2, 0].tolist() == [0, 1]
    assert set(drawn.boxes[2:, 0].tolist()) == {0, 1, 2}


def test_image_without_ground_truth_is_all_background() -> None:
    none = torch.zeros(0, 4)
    drawn = RoISampler(batch_per_image=8)(
        boxes(5), torch.zeros(5, 0), none, torch.zeros(0).long(), sampling_generator(0, 1)
    )
    assert drawn.classes.tolist() == [0] * 8 and drawn.matched.shape == (0, 4)


def test_no_candidates_at_all() -> None:
    none = torch.zeros(0, 4)
    drawn = RoISampler()(none, torch.zeros(0, 0), none, torch.zeros(0).long(), sampling_generator(0, 1))
    assert drawn.boxes.shape == (0, 4) and drawn.classes.shape == (0,)
