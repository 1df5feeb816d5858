"""torchvision's twin of plain Faster R-CNN: the same layers and numbers, and both trained by one command."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dcn_det.benchmark.torchvision_twin import TorchvisionTwin
from dcn_det.cli import benchmark
from dcn_det.config import Config, load_config
from dcn_det.models.build import build_detector
from dcn_det.structures import Batch, ImageInfo, Target
from tests.conftest import ROOT
from tests.data.fod_like import make_fod
from tests.messages import refused, says

CONFIG = ROOT / "configs" / "fod" / "faster_rcnn.yaml"
SMALL = [
    "model.backbone.width=8", "model.backbone.stem_width=4", "model.rpn.channels=16", "model.head.channels=8",
    "model.head.hidden=12", "data.resize={short_side: 96, max_side: 96}", "device=cpu",
]  # fmt: skip


@pytest.fixture
def config() -> Config:
    return load_config(CONFIG, *SMALL)


def pair(config: Config) -> tuple[Any, Any]:
    torch.manual_seed(0)
    ours, theirs = build_detector(config, 5).eval(), TorchvisionTwin(config, 5).eval()
    for model in (ours, theirs):
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.uniform_(-0.2, 0.2)
                module.running_var.uniform_(0.5, 2)
    return ours, theirs


def give_weights(ours: Any, theirs: Any) -> None:
    """Copies the backbone and the 1x1 convolution after it from ours to theirs."""
    renamed = {}
    for name, value in ours.backbone.state_dict().items():
        for old, new in (("conv1.", "stem.0."), ("bn1.", "stem.1.")):
            name = new + name.removeprefix(old) if name.startswith(old) else name
        if name.startswith("layer"):
            name = f"stages.{int(name[5]) - 1}{name[6:]}"
        renamed[name] = value
    renamed |= {f"reduce.{name}": value for name, value in ours.head.reduce.state_dict().items()}
    theirs.network.backbone.load_state_dict(renamed)


def test_the_maps_are_those_of_our_network_with_the_same_weights(config: Config) -> None:
    ours, theirs = pair(config)
    give_weights(ours, theirs)
    image = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        expected, found = ours.backbone(image), theirs.network.backbone(image)
        torch.testing.assert_close(found["res4"], expected["res4"])
        torch.testing.assert_close(found["res5"], ours.head.reduce(expected["res5"]).relu())


def _elongation(sizes: torch.Tensor) -> torch.Tensor:
    flat = sizes.reshape(-1, 2).double()
    return (flat[:, 0] / flat[:, 1]).log2().round()


def test_anchors_layers_and_sampling_are_those_of_the_config(config: Config) -> None:
    ours, theirs = pair(config)
    rpn, head = theirs.network.rpn, theirs.network.roi_heads
    sizes = [each[..., 2:] - each[..., :2] for each in (ours.rpn.anchors, rpn.anchor_generator.cell_anchors[0])]
    assert [each.numel() for each in sizes] == [30, 30]
    shapes = [each.reshape(-1, 2).double().log2().sum(1).round() * 100 + _elongation(each) for each in sizes]
    ordered = [each.reshape(-1, 2).float()[torch.argsort(key)] for each, key in zip(sizes, shapes)]
    torch.testing.assert_close(ordered[0], ordered[1], atol=0, rtol=0.1)  # ours are rounded at scale 1
    counts = [sum(p.numel() for p in model.parameters()) for model in (ours, theirs)]
    # Two scores for each anchor in ours, one in theirs.
    assert counts[0] - counts[1] == 15 * (16 + 1)
    settings: Any = config.model
    assert head.fg_bg_sampler.batch_size_per_image == settings.head.batch_per_image
    assert rpn.fg_bg_sampler.batch_size_per_image == settings.rpn.batch_per_image
    assert head.box_coder.weights == pytest.approx((10, 10, 5, 5))
    assert (rpn.nms_thresh, head.nms_thresh) == (settings.rpn.nms_iou, config.test.nms_iou)


def test_pixels_are_normalized_as_ours(config: Config) -> None:
    _, theirs = pair(config)
    image = torch.randint(0, 256, (3, 96, 96), dtype=torch.uint8)
    seen, _ = theirs.network.transform([image.float() / 255])
    preprocess = config.model.backbone.preprocess
    mean, std = (torch.tensor(value)[:, None, None] for value in (preprocess.mean, preprocess.std))
    torch.testing.assert_close(seen.tensors[0], (image - mean) / std, atol=1e-3, rtol=0)


def test_losses_and_detections_of_a_batch(config: Config) -> None:
    theirs = pair(config)[1]
    boxes = torch.tensor([[10.0, 10.0, 50.0, 60.0]])
    infos = [ImageInfo(0, "a", 96, 96, 96, 96)]
    batch = Batch(torch.randint(0, 256, (1, 3, 96, 96), dtype=torch.uint8), infos, [Target(boxes, torch.tensor([4]))])
    losses = theirs.train()(batch)
    assert len(losses) == 4 and all(loss.isfinite() for loss in losses.values())
    with torch.no_grad():
        (found,) = theirs.eval().candidates(batch)
    assert len(found.labels) <= config.test.max_detections and set(found.labels.tolist()) <= set(range(5))


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("model.head.pooling=deformable", ("model.head.pooling", "deformable", "max")),
        ("model.backbone.deform.blocks=[res5b]", ("model.backbone.deform.blocks", "res5b")),
        ("model.backbone.norm=gn", ("model.backbone.norm", "gn", "bn")),
        ("model.kind=rfcn", ("model.kind", "rfcn")),
    ],
)
def test_what_torchvision_does_not_have_is_refused(override: str, parts: tuple[str, ...]) -> None:
    with refused(*parts):
        benchmark.main(["peer", str(CONFIG), override])


def test_both_are_trained_and_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_fod(tmp_path / "fod", side=96)
    settings = [*SMALL, f"data.root={root}", "train.iterations=3", "train.warmup.iterations=1", "train.batch_size=2"]
    saved = tmp_path / "peer.json"
    arguments = ["peer", str(CONFIG), *settings, "--seeds", "2", "--save", str(saved)]
    assert benchmark.main(arguments) == 0
    record = json.loads(saved.read_text())
    assert [(run["name"], run["seed"]) for run in record["runs"]] == [
        ("dcn_det", 0), ("torchvision", 0), ("dcn_det", 1), ("torchvision", 1),
    ]  # fmt: skip
    for run in record["runs"]:
        assert {"AP", "AP50", "AP75", "mAP50", "mAP70"} <= run["metrics"].keys()
        assert run["train_seconds"] > 0 and run["test_seconds"] > 0 and run["parameters"] > 0
    assert record["config"]["train"]["iterations"] == 3 and record["torchvision"]
    printed = capsys.readouterr().out
    assert says(printed, "AP", "mAP70", "train, s") and says(printed, "torchvision", "+-") and says(printed, "dcn_det")
