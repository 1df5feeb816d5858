"""DeepLab: upsampling, loss, labels, multipliers, freezing and size, with values computed by hand and by torch."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dcn_det.config import load_any
from dcn_det.engine.prepare import be_deterministic
from dcn_det.models import deeplab
from dcn_det.models.build import build_model
from dcn_det.models.deeplab import DeepLab, pixel_loss, upsample, upsampling_weights
from dcn_det.models.info import model_info
from dcn_det.models.norm import FrozenBatchNorm2d
from dcn_det.structures import ImageInfo, MaskBatch

ROOT = Path(__file__).resolve().parents[2]
NARROW = ["model.backbone.width=8", "model.backbone.stem_width=8", "model.channels=16", "model.backbone.weights=none"]


def kernel(stride: int) -> Tensor:
    """The authors' transposed convolution: taps of their initialization, written out."""
    size = 2 * stride
    center = (2 * stride - 1 - stride % 2) / (2 * stride)
    taps = torch.tensor([1 - abs(i / stride - center) for i in range(size)])
    return taps[:, None] * taps


def transposed(scores: Tensor, stride: int, height: int, width: int) -> Tensor:
    """A transposed convolution by hand: each cell adds its kernel; then the crop at (stride / 2, stride / 2)."""
    classes, rows, columns = scores.shape
    full = torch.zeros(classes, stride * (rows + 1), stride * (columns + 1))
    for row in range(rows):
        for column in range(columns):
            y, x = stride * row, stride * column
            full[:, y : y + 2 * stride, x : x + 2 * stride] += scores[:, row, column, None, None] * kernel(stride)
    half = stride // 2
    return full[:, half : half + height, half : half + width]


@pytest.mark.parametrize("size", [(48, 64), (45, 50), (33, 64)])
def test_upsampling_is_the_authors_transposed_convolution(size: tuple[int, int]) -> None:
    scores = torch.randn(
        3, math.ceil(size[0] / 16), math.ceil(size[1] / 16), generator=torch.Generator().manual_seed(0)
    )
    found = upsample(scores, 16, *size)
    torch.testing.assert_close(found, transposed(scores, 16, *size), rtol=0, atol=1e-5)
    weight = kernel(16).expand(3, 1, 32, 32)
    by_torch = F.conv_transpose2d(scores[None], weight, stride=16, groups=3)[0, :, 8 : 8 + size[0], 8 : 8 + size[1]]
    torch.testing.assert_close(found, by_torch, rtol=0, atol=1e-5)


def test_weights_by_hand() -> None:
    weights = upsampling_weights(2, 16, 32)
    assert weights[0].tolist() == [17 / 32, 0]
    assert weights[7].tolist() == [31 / 32, 0] and weights[8].tolist() == [31 / 32, 1 / 32]
    assert weights[8:24].sum(dim=1).tolist() == [1.0] * 16, "bilinear between the centers of cells"
    assert torch.equal(upsampling_weights(2, 16, 5, first=9), weights[9:14])


def test_gradient_of_upsampling() -> None:
    scores = torch.randn(2, 2, 3, requires_grad=True)
    target = torch.randn(2, 20, 40)
    (upsample(scores, 16, 20, 40) * target).sum().backward()
    again = scores.detach().clone().requires_grad_()
    (transposed(again, 16, 20, 40) * target).sum().backward()
    torch.testing.assert_close(scores.grad, again.grad)


def test_the_loss_is_the_mean_over_labelled_pixels() -> None:
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(4, 3, 4, generator=generator)
    mask = torch.randint(4, (40, 60), generator=generator, dtype=torch.uint8)
    mask[10:25] = 255
    logits = transposed(scores, 16, 40, 60)
    expected = F.cross_entropy(logits[None], mask[None].long(), ignore_index=255)
    torch.testing.assert_close(pixel_loss(scores, mask, 16), expected)
    nothing = pixel_loss(scores.requires_grad_(), torch.full((40, 60), 255, dtype=torch.uint8), 16)
    nothing.backward()
    assert nothing.item() == 0 and scores.grad is not None and not scores.grad.any()


def batch(*sizes: tuple[int, int], classes: int = 5, labelled: bool = True) -> MaskBatch:
    generator = torch.Generator().manual_seed(len(sizes))
    height, width = (max(each[axis] for each in sizes) for axis in (0, 1))
    images = torch.randint(256, (len(sizes), 3, height, width), dtype=torch.uint8, generator=generator)
    labels = torch.full((len(sizes), height, width), 255, dtype=torch.uint8)
    for each, (h, w) in zip(labels, sizes):
        each[:h, :w] = torch.randint(classes, (h, w), generator=generator, dtype=torch.uint8)
    infos = [ImageInfo(i, "", h, w, h, w) for i, (h, w) in enumerate(sizes)]
    return MaskBatch(images, infos, labels if labelled else None)


def narrow(name: str = "voc/deeplab_r101_dconv", *overrides: str, classes: int = 5) -> DeepLab:
    torch.manual_seed(0)
    norms = ["model.backbone.norm=gn", "model.backbone.frozen_stages=0"]
    model = build_model(load_any(ROOT / "configs" / f"{name}.yaml", *NARROW, *norms, *overrides), classes)
    assert isinstance(model, DeepLab)
    return model


def test_the_loss_of_a_batch_is_the_mean_of_its_images() -> None:
    model, whole = narrow().train(), batch((70, 90), (70, 90))
    apart = [
        model(MaskBatch(whole.images[i : i + 1], whole.infos[i : i + 1], whole.labels[i : i + 1]))["pixel"]  # type: ignore[index]
        for i in range(2)
    ]
    torch.testing.assert_close(model(whole)["pixel"], torch.stack(apart).mean(), rtol=1e-4, atol=1e-5)


def test_labels_are_the_best_scores_strip_by_strip(monkeypatch: pytest.MonkeyPatch) -> None:
    model, shown = narrow().eval(), batch((70, 90), (61, 80), labelled=False)
    with torch.no_grad():
        model.head.score.weight.normal_()
        scores = model.scores(shown)
    whole = model(shown)
    monkeypatch.setattr(deeplab, "STRIP", 23)
    for (labels, probabilities), strips, each, (h, w) in zip(whole, model(shown), scores, [(70, 90), (61, 80)]):
        expected = transposed(each, 16, h, w).softmax(dim=0)
        best, where = expected.max(dim=0)
        second = expected.topk(2, dim=0).values[1]
        clear = best - second > 1e-4
        assert labels.dtype == torch.uint8 and labels.shape == (h, w) and clear.float().mean() > 0.9
        assert torch.equal(labels[clear].long(), where[clear])
        torch.testing.assert_close(probabilities, best, rtol=1e-4, atol=1e-5)
        assert (strips[0][clear] == labels[clear]).all()


def test_training_needs_labels() -> None:
    with pytest.raises(ValueError, match="labels"):
        narrow().train()(batch((40, 40), labelled=False))


@pytest.mark.parametrize(
    ("variant", "groups", "million"), [("atrous2", 1, 44.62), ("dconv", 1, 44.87), ("dconv", 4, 45.62)]
)
def test_parameters(variant: str, groups: int, million: float) -> None:
    override = f"model.backbone.deform.offset_groups={groups}"
    config = load_any(ROOT / f"configs/voc/deeplab_r101_{variant}.yaml", override)
    with torch.device("meta"):
        info = model_info(build_model(config, 21), 360, 480, 0)
    assert round(sum(info.parameters.values()) / 1e6, 2) == million
    assert info.strides == (16,) and len(info.deformable) == (0 if variant == "atrous2" else 3)
    assert info.multiply_adds["head"] == 23 * 30 * 1024 * (2048 + 21)


def test_multipliers_and_frozen_layers_are_those_of_the_released_code() -> None:
    config = load_any(ROOT / "configs/voc/deeplab_r101_dconv.yaml")
    with torch.device("meta"):
        model = build_model(config, 21)
    offsets = {f"backbone.layer4.{block}.conv2.offset.bias": 2.0 for block in range(3)}
    assert model.lr_multipliers() == {"head.reduce.bias": 2.0, "head.score.bias": 2.0, **offsets}
    frozen = {name.split(".")[1] for name, each in model.named_parameters() if not each.requires_grad}
    assert frozen == {"conv1", "layer1"}
    assert all(isinstance(module, FrozenBatchNorm2d) for name, module in model.named_modules() if ".bn" in name)
    modulated = load_any(ROOT / "configs/voc/deeplab_r101_dconv.yaml", "model.backbone.deform.kind=v2")
    with torch.device("meta"):
        multipliers = build_model(modulated, 21).lr_multipliers()
    assert multipliers["backbone.layer4.0.conv2.offset.weight"] == 0.1
    assert multipliers["backbone.layer4.0.conv2.offset.bias"] == 0.2


def test_initial_weights() -> None:
    model = build_model(load_any(ROOT / "configs/voc/deeplab_r101_dconv.yaml", *NARROW, "model.channels=1024"), 21)
    for layer in (model.head.reduce, model.head.score):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.05) and not layer.bias.any()
    assert not any(each.any() for name, each in model.named_parameters() if ".offset." in name)


@pytest.mark.parametrize(
    ("variant", "dilations"), [("atrous2", [2] * 3), ("atrous6", [6] * 3), ("dconv2", [2] * 3), ("dconv6", [2] * 3)]
)
def test_variants(variant: str, dilations: list[int]) -> None:
    model: Any = narrow(f"cityscapes/deeplab_r101_{variant}")
    assert [block.conv2.dilation[0] for block in model.backbone.layer4] == dilations
    count = sum(hasattr(module, "offset") for module in model.modules())
    assert count == {"atrous2": 0, "atrous6": 0, "dconv2": 2, "dconv6": 6}[variant]
    model.train()(batch((50, 70)))["pixel"].backward()
    assert all(each.grad is not None for each in model.parameters())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_it_trains_in_deterministic_mode() -> None:
    """Interpolation and the cross-entropy of maps have no deterministic gradients on GPUs; matrix products have."""
    be_deterministic()
    try:
        narrow("voc/deeplab_r101_atrous2").cuda().train()(batch((64, 64)).to("cuda"))["pixel"].backward()
    finally:
        torch.use_deterministic_algorithms(False)
