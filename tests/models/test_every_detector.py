"""What holds for every detector: what it returns, and that all of it trains, whatever an image holds."""

from typing import Any

import cv2
import pytest
import torch

from dcn_det.config import from_plain
from dcn_det.engine.optim import parameter_groups
from dcn_det.models.build import Detector, build_detector
from dcn_det.models.detector import TwoStageDetector
from dcn_det.models.postprocess import PostProcess
from dcn_det.structures import Batch, Detections, ImageInfo, Target
from tests.models.helpers import CLASSES, TWO, batch, target

BACKBONE = {"kind": "resnet18", "width": 8, "stem_width": 8, "norm": "gn", "frozen_stages": 0, "weights": "none"}
RPN = {"channels": 16, "anchors": {"scales": [1, 2, 4]}, "pre_nms": 200, "post_nms": 30}
HEAD = {"channels": 8, "batch_per_image": 24, "hidden_init": "he"}
PLAIN: dict[str, dict[str, Any]] = {
    "faster_rcnn": {"rpn": RPN, "head": HEAD | {"hidden": 16}},
    "rfcn": {"rpn": RPN, "head": HEAD},
    "class_aware_rpn": {"rpn": {"channels": 16, "anchors": {"scales": [1, 2, 4]}, "hidden_init": "he"}},
    "fpn": {
        "kind": "faster_rcnn",
        "fpn": True,
        "backbone": {"res5_stride": 2, "res5_dilation": 1},
        "rpn": RPN | {"anchors": {"scales": [4]}},
        "head": HEAD | {"hidden": 16, "ohem": True},
    },
}
VARIANTS = [(kind, variant) for kind in PLAIN for variant in ("plain", "v1", "v2")]

COARSE = ("backbone.fpn.layer_blocks.3", "backbone.p6", "head.offset.1", "head.offset.2", "head.offset.3")


def detector(kind: str, variant: str = "plain", **backbone: object) -> Detector:
    settings = {"kind": kind, **PLAIN[kind]}
    settings["backbone"] = BACKBONE | settings.get("backbone", {}) | backbone
    if variant != "plain":
        blocks = ["res3b", "res5a", "res5b"] if kind == "fpn" else ["res5a", "res5b"]
        settings["backbone"] |= {"deform": {"blocks": blocks, "kind": variant, "offset_groups": 2}}
        if "head" in settings:
            modulated = variant == "v2" and kind != "rfcn"
            settings["head"] = settings["head"] | {"pooling": "modulated" if modulated else "deformable"}
    config = from_plain({"model": settings, "test": {"max_detections": 20}})
    torch.manual_seed(0)
    return build_detector(config, CLASSES)


@pytest.mark.parametrize(("kind", "variant"), VARIANTS)
def test_training_reaches_every_parameter(kind: str, variant: str) -> None:
    model = detector(kind, variant).train()
    for name, parameter in model.named_parameters():
        if name.startswith("head.offset"):  # a last layer of zeros passes nothing on to those before it
            torch.nn.init.normal_(parameter, std=0.01)
    losses = model(batch((96, 112), (80, 96), targets=TWO))
    expected = {"rpn_cls", "rpn_box"} | ({"head_cls", "head_box"} if kind != "class_aware_rpn" else set())
    assert losses.keys() == expected
    assert all(loss.shape == () and loss.dtype == torch.float32 and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        # No anchor of the coarsest levels of a pyramid fits into these images, and no RoI is large enough for them.
        unused = kind == "fpn" and name.startswith(COARSE)
        assert parameter.grad is not None and (unused or parameter.grad.abs().max() > 0), name


@pytest.mark.parametrize(("kind", "variant"), VARIANTS)
def test_images_without_ground_truth(kind: str, variant: str) -> None:
    model = detector(kind, variant).train()
    losses = model(batch((96, 112), (10, 40), targets=[target(), target()]))
    assert losses["rpn_cls"] > 0 and losses["rpn_box"] == 0 and losses.get("head_box", 0) == 0
    sum(losses.values()).backward()
    # Every parameter takes part even then, which distributed training relies on.
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(("kind", "variant"), VARIANTS)
def test_detections(kind: str, variant: str) -> None:
    model = detector(kind, variant).eval()
    data = batch((96, 112), (80, 90), (10, 40))
    select = PostProcess(max_detections=20)
    results = [select(candidates) for candidates in model(data)]
    assert len(results) == 3
    for result, info in zip(results, data.infos):
        assert isinstance(result, Detections) and 0 < len(result) <= 20
        assert result.boxes.dtype == result.scores.dtype == torch.float32 and result.labels.dtype == torch.int64
        assert not result.boxes.requires_grad
        assert (result.boxes >= 0).all() and (result.boxes[:, 2:] > result.boxes[:, :2]).all()
        assert (result.boxes[:, 2:] <= torch.tensor([info.input_width, info.input_height])).all()
        assert (result.scores.diff() <= 0).all() and (result.scores > 1e-3).all()


@pytest.mark.parametrize("kind", PLAIN)
def test_a_call_in_evaluation_mode_gives_candidates(kind: str) -> None:
    """Nothing is suppressed before post-processing, so that its settings alone decide."""
    model = detector(kind, "v1").eval()
    data = batch((96, 112), (80, 90))
    for called, candidates in zip(model(data), model.candidates(data)):
        assert torch.equal(called.boxes, candidates.boxes) and torch.equal(called.scores, candidates.scores)
        assert (candidates.scores > model.score_threshold).all()
        few, many = (PostProcess(nms_iou=iou, max_detections=10_000)(candidates) for iou in (0.3, 1.0))
        assert 0 < len(few) < len(many) == len(candidates)


@pytest.mark.parametrize("kind", PLAIN)
def test_losses_depend_on_images_and_seeds_alone(kind: str) -> None:
    model = detector(kind, "v1").train()
    data = batch((96, 112), (96, 112), targets=TWO)
    first = model(data)
    torch.rand(10)
    assert all(torch.equal(value, first[name]) for name, value in model(data).items())
    apart = [model(Batch(data.images[i : i + 1], [data.infos[i]], [data.targets[i]])) for i in range(2)]
    for name, value in first.items():
        torch.testing.assert_close(value, (apart[0][name] + apart[1][name]) / 2, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", PLAIN)
def test_autocast_keeps_losses_in_float32(kind: str) -> None:
    model = detector(kind, "v1").train()
    data = batch((96, 112), (80, 96), targets=TWO)
    exact = model(data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(data)
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    torch.testing.assert_close(losses["rpn_cls"], exact["rpn_cls"], rtol=0.02, atol=0)
    sum(losses.values()).backward()
    assert all(each.grad is not None and each.grad.dtype == torch.float32 for each in model.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        assert model.eval()(data)[0].boxes.dtype == torch.float32


@pytest.mark.parametrize(("kind", "variant"), [*((kind, "v1") for kind in PLAIN), ("rfcn", "plain")])
def test_autocast_leaves_the_best_scores_and_deltas_distinct(kind: str, variant: str) -> None:
    """Rounded to the 8 significant bits of bfloat16, most of the 300 best would be tied."""
    model = detector(kind, variant).eval()
    data = batch((256, 320))
    corners = torch.rand(300, 2, 2, generator=torch.Generator().manual_seed(1)).sort(dim=1).values
    boxes = corners.flatten(1) * torch.tensor([310.0, 246.0] * 2) + torch.tensor([0.0, 0.0, 10.0, 10.0])
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        features = model.extract(data)
        if isinstance(model, TwoStageDetector):
            first = [model.rpn(level) for level in features.rpn]
            assert isinstance(model.head, torch.nn.Module)
            logits, deltas = model.head(features.head, [boxes])
            raw = [logits[:, 1:], deltas[:, -1]]
        else:
            first, raw = [features], []
    raw += [torch.cat([getattr(output, name).flatten() for output in first]) for name in ("logits", "deltas")]
    for values in raw:
        best = values.flatten().sort(descending=True).values[:300]
        assert values.dtype == torch.float32 and len(best.unique()) == 300


@pytest.mark.parametrize(("kind", "size"), [("fpn", (96, 128)), ("faster_rcnn", (70, 100)), ("rfcn", (70, 100))])
def test_only_pyramids_are_padded(kind: str, size: tuple[int, int]) -> None:
    model = detector(kind).eval()
    seen: list[torch.Size] = []
    assert isinstance(model.backbone, torch.nn.Module)
    model.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    model(batch((70, 100)))
    model(batch((70, 90), (60, 100)))
    assert seen == [(1, 3, *size), (2, 3, *size)]


def test_candidates_of_a_pyramid_do_not_depend_on_padding_or_on_other_images() -> None:
    """As long as all images are padded to the same multiples of 32."""
    model = detector("fpn", "v1").eval()
    both = batch((70, 100), (96, 128))
    (alone,) = model(Batch(both.images[:1, :, :70, :100], both.infos[:1]))
    for other in (model(both)[0], model(Batch(both.images[:1], both.infos[:1]))[0]):
        assert len(alone) == len(other)
        torch.testing.assert_close(alone.scores, other.scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.boxes, other.boxes, rtol=0, atol=1e-2)


@pytest.mark.parametrize("kind", PLAIN)
def test_multipliers_name_parameters(kind: str) -> None:
    model = detector(kind, "v1")
    multipliers = model.lr_multipliers()
    assert multipliers.keys() <= dict(model.named_parameters()).keys()
    assert bool(multipliers) == (kind != "class_aware_rpn")


@pytest.mark.parametrize("kind", PLAIN)
def test_training_without_targets_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="a target for each of 1 images, got 0"):
        detector(kind).train()(batch((96, 112)))


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize("kind", PLAIN)
def test_losses_fall_on_real_photos(kind: str, shared: Any) -> None:
    """Two photos, with the large objects that anybody would mark in them, learnt by heart."""
    photos = {
        "000000000072.jpg": [(50.0, 30.0, 360.0, 590.0)],
        "000000000073.jpg": [(15.0, 20.0, 550.0, 620.0)],
    }
    images, infos, targets = [], [], []
    for index, (name, boxes) in enumerate(photos.items()):
        picture = cv2.imread(str(shared / "data" / "coco_subset" / "train2017" / name))
        assert picture is not None
        picture = picture[..., ::-1]
        height, width = picture.shape[:2]
        small = cv2.resize(picture, (128, 160))
        images.append(torch.from_numpy(small.transpose(2, 0, 1).copy()))
        scale = torch.tensor([128 / width, 160 / height] * 2)
        infos.append(ImageInfo(index, name, height, width, 160, 128, seed=index))
        targets.append(Target(torch.tensor(boxes) * scale, torch.tensor([index])))
    data = Batch(torch.stack(images), infos, targets)
    model = detector(kind, "v1", width=16).train()
    groups = parameter_groups(model, 2e-3, 0.0, False, model.lr_multipliers())
    optimizer = torch.optim.AdamW(groups)
    totals = []
    for _ in range(40):
        loss = sum(model(data).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(loss.item())
    assert sum(totals[-5:]) / 5 < 0.6 * totals[0]
