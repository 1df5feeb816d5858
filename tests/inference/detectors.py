"""Detectors for tests: a tiny real one, and one with obvious detections."""

import torch
from torch import Tensor, nn

from dcn_det.models.anchors import cell_anchors
from dcn_det.models.backbones.resnet import ResNet
from dcn_det.models.detector import TwoStageDetector
from dcn_det.models.heads.faster_rcnn import FasterRCNNHead
from dcn_det.models.preprocess import Preprocess
from dcn_det.models.rpn import RPN, ProposalSelection
from dcn_det.structures import Batch, Category, Detections

CATEGORIES = (Category(7, "bright"), Category(2, "dark"), Category(9, "gray"))


def tiny_detector(class_agnostic: bool = False, score_threshold: float = 0.2) -> TwoStageDetector:
    """Untrained, with widely spread outputs: about a third of all pairs of box and class pass the threshold."""
    torch.manual_seed(0)
    backbone = ResNet("resnet18", width=8, stem_width=8, norm="gn", frozen_stages=0, stem_pool="pad")
    selection = ProposalSelection(pre_nms=200, nms_iou=0.9, post_nms=60)
    rpn = RPN(32, cell_anchors(16, (0.5, 1, 2), (1, 2)), 16, channels=16, selection=selection)
    head = FasterRCNNHead(64, 3, 16, channels=8, pooling="bilinear", hidden=16, class_agnostic=class_agnostic)
    for layer, std in {"reduce": 0.3, "fc1": 0.2, "fc2": 0.5, "cls_score": 0.4, "bbox_pred": 0.3}.items():
        nn.init.normal_(head.get_parameter(f"{layer}.weight"), std=std)
    model = TwoStageDetector(Preprocess(), backbone, rpn, head, score_threshold=score_threshold)
    return model.eval()


class Brightest(nn.Module):
    """Detects the white rectangle of an image, in input pixels, and records its mode at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: list[bool] = []

    def candidates(self, batch: Batch) -> list[Detections]:
        self.modes.append(self.training)
        found = []
        for image, info in zip(batch.images, batch.infos):
            ys, xs = (image[0, : info.input_height, : info.input_width] > 127).nonzero(as_tuple=True)
            box: Tensor = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).float()
            found.append(Detections(box[None], torch.ones(1), torch.zeros(1, dtype=torch.int64)))
        return found
