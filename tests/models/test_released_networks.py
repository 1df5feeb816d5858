"""The authors' released networks, computed with Apache MXNet: same weights, same numbers."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from dcn_det.models.anchors import cell_anchors
from dcn_det.models.backbones.convolution import DeformableBlocks
from dcn_det.models.backbones.resnet import ResNet, block_names
from dcn_det.models.boxes import to_rois
from dcn_det.models.detector import TwoStageDetector
from dcn_det.models.heads.faster_rcnn import FasterRCNNHead
from dcn_det.models.heads.rfcn import RFCNHead
from dcn_det.models.heads.roi_head import RoIHead
from dcn_det.models.preprocess import Preprocess
from dcn_det.models.rpn import RPN, RPNOutput
from dcn_det.structures import Batch, ImageInfo
from dcn_det.weights.files import load_into

pytestmark = pytest.mark.shared

HEADS = {
    "rpn_conv_3x3": "rpn.conv", "rpn_cls_score": "rpn.cls_score", "rpn_bbox_pred": "rpn.bbox_pred",
    "conv_new_1": "head.reduce", "offset": "head.offset", "fc_new_1": "head.fc1", "fc_new_2": "head.fc2",
    "cls_score": "head.cls_score", "bbox_pred": "head.bbox_pred",
    "rfcn_cls": "head.cls_score", "rfcn_bbox": "head.bbox_pred",
    "rfcn_cls_offset_t": "head.cls_offset", "rfcn_bbox_offset_t": "head.bbox_offset",
}  # fmt: skip
NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_var": "running_var"}


def our_name(name: str) -> str:
    """Parameter name of the released networks -> ours."""
    name = name.partition(":")[2]
    if match := re.fullmatch(r"(conv1|bn_conv1)_(\w+)", name):
        return f"backbone.conv1.{match[2]}" if match[1] == "conv1" else f"backbone.bn1.{NORM[match[2]]}"
    if match := re.fullmatch(r"(res|bn)(\d\w*?)_branch(1|2[abc])_(offset_)?(\w+)", name):
        layer, block, branch, offset, parameter = match.groups()
        stage = int(block[0])
        names = [each for each in block_names("resnet101") if each.startswith(f"res{stage}")]
        prefix = f"backbone.layer{stage - 1}.{names.index('res' + block)}"
        number = {"2a": "1", "2b": "2", "2c": "3"}.get(branch)
        if layer == "bn":
            return f"{prefix}.{'bn' + number if number else 'downsample.1'}.{NORM[parameter]}"
        conv = f"conv{number}" if number else "downsample.0"
        return f"{prefix}.{conv}.{'offset.' if offset else ''}{parameter}"
    layer, _, parameter = name.rpartition("_")
    return f"{HEADS[layer]}.{parameter}"


def released(folder: Path, name: str) -> TwoStageDetector:
    deformable = name.endswith("_dcn")
    head: RoIHead
    if name.startswith("rcnn"):
        head = FasterRCNNHead(2048, 80, 16, pooling="deformable" if deformable else "max")
    else:
        head = RFCNHead(2048, 80, 16, pooling="deformable" if deformable else "average")
    blocks = DeformableBlocks(("res5a", "res5b", "res5c"), offset_groups=4, border="dcn_v1")
    backbone = ResNet("resnet101", deform=blocks if deformable else None)
    model = TwoStageDetector(
        Preprocess(),
        backbone,
        RPN(1024, cell_anchors(16, (0.5, 1, 2), (4, 8, 16, 32)), 16),
        head,
    )
    spec = importlib.util.spec_from_file_location("released_weights", folder / "weights.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    arrays = module.weights(folder / f"{name}.json")
    load_into(model, {our_name(key): torch.from_numpy(value) for key, value in arrays.items()}, source=name)
    return model.eval()


@pytest.mark.parametrize("name", ["rcnn", "rcnn_dcn", "rfcn", "rfcn_dcn"])
def test_same_numbers(shared: Path, name: str) -> None:
    folder = shared / "networks"
    model = released(folder, name)
    expected = {key: torch.from_numpy(value) for key, value in np.load(folder / f"{name}.npz").items()}
    pixels = expected["image"].permute(2, 0, 1).flip(0)[None].contiguous()
    height, width = pixels.shape[2:]
    infos = [ImageInfo(0, "", height, width, height, width)]
    with torch.inference_mode():
        torch.testing.assert_close(model.preprocess(pixels, infos), expected["blob"], atol=1e-5, rtol=0)
        features = model.extract(Batch(pixels, infos))
        output = model.rpn(*features.rpn)
        rois = expected["rois"][:, 1:]
        assert isinstance(model.head, RoIHead)
        logits, deltas = model.head(features.head, [rois + rois.new_tensor([0, 0, 1, 1])])

    anchors = output.logits.shape[1] // 2
    probabilities = output.logits.unflatten(1, (2, anchors)).softmax(dim=1).flatten(1, 2)
    torch.testing.assert_close(probabilities, expected["rpn_prob"], atol=1e-4, rtol=0)
    torch.testing.assert_close(output.deltas, expected["rpn_bbox"], atol=1e-4, rtol=0)
    # From their own numbers, because rounding errors of the network exchange proposals of nearly equal score.
    theirs = RPNOutput(expected["rpn_prob"].log(), expected["rpn_bbox"])
    (proposals,) = model.rpn.proposals([theirs], infos)
    # When fewer than 300 survive, theirs go on with repetitions.
    count = len(proposals.boxes)
    torch.testing.assert_close(to_rois([proposals.boxes])[:, 1:], rois[:count], atol=1e-4, rtol=0)
    assert len(rois.unique(dim=0)) == count
    torch.testing.assert_close(logits.softmax(dim=1), expected["cls_prob"][0], atol=1e-4, rtol=0)
    torch.testing.assert_close(deltas.flatten(1), expected["bbox_pred"][0], atol=1e-4, rtol=0)
