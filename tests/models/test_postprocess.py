import torch

from dcn_det.models.postprocess import select_detections


def test_by_hand() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [1.0, 0.0, 11.0, 10.0], [20.0, 20.0, 30.0, 30.0]])
    boxes = torch.stack([boxes, boxes + 100], dim=1)
    scores = torch.tensor([[0.5, 0.9], [0.6, 0.1], [0.7, 0.05]])
    result = select_detections(scores, boxes, score_threshold=0.05, nms_iou=0.3, max_detections=100)
    assert result.labels.tolist() == [1, 0, 0]
    assert torch.equal(result.scores, torch.tensor([0.9, 0.7, 0.6]))
    assert torch.equal(result.boxes, torch.stack([boxes[0, 1], boxes[2, 0], boxes[1, 0]]))


def test_limit_counts_all_classes() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).expand(3, 4, 4) + 50 * torch.arange(3.0).view(3, 1, 1)
    scores = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    result = select_detections(scores, boxes, score_threshold=0, nms_iou=0.3, max_detections=5)
    assert torch.equal(result.scores, scores.flatten().sort(descending=True).values[:5])


def test_nothing_confident() -> None:
    result = select_detections(
        torch.zeros(4, 3), torch.zeros(4, 3, 4), score_threshold=0, nms_iou=0.3, max_detections=5
    )
    assert len(result) == 0 and result.boxes.shape == (0, 4) and result.labels.dtype == torch.int64
