"""The shipped configs: what they promise is what was published, and each of them builds and trains."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dcn_det.config import Config, load_any, load_config
from dcn_det.config.model import AlignedInceptionResNetConfig, ResNetConfig
from dcn_det.engine.detection import DetectionTask
from dcn_det.engine.session import Session
from dcn_det.images import read_image
from dcn_det.inference.build import build_predictor
from dcn_det.models.build import build_detector
from dcn_det.models.detector import Detector
from dcn_det.ops import DeformConv2d

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    f"{folder}/{path.stem}": path
    for folder in ("coco", "voc")
    for path in sorted((ROOT / "configs" / folder).glob("*"))
    if not path.stem.startswith("deeplab")
}

TABLE_1 = {
    "class_aware_rpn": {1: (73.5, 54.4), 2: (74.3, 56.3), 3: (74.5, 57.2), 6: (74.6, 57.7)},
    "faster_rcnn": {1: (78.6, 63.8), 2: (78.5, 63.3), 3: (78.6, 63.3), 6: (78.7, 64.0)},
    "rfcn": {1: (80.6, 63.0), 2: (81.0, 63.8), 3: (81.4, 64.7), 6: (81.5, 65.4)},
}
"""mAP at IoU 0.5 and 0.7 on VOC07 test, by the number of deformable convolutions."""

TABLE_3 = {
    "class_aware_rpn": {
        "atrous2": (68.0, 44.9), "atrous4": (72.8, 53.1), "atrous6": (73.6, 55.2), "atrous8": (73.2, 55.1),
        "dconv": (74.5, 57.2),
    },
    "faster_rcnn": {
        "atrous2": (78.1, 62.1), "atrous4": (78.6, 63.1), "atrous6": (78.5, 62.3), "atrous8": (77.8, 61.8),
        "dconv": (78.6, 63.3), "dpool": (78.3, 66.6), "dcn": (79.3, 66.9),
    },
    "rfcn": {
        "atrous2": (80.0, 61.8), "atrous4": (80.5, 63.0), "atrous6": (80.2, 63.5), "atrous8": (80.3, 63.2),
        "dconv": (81.4, 64.7), "dpool": (81.2, 65.0), "dcn": (82.6, 68.5),
    },
}  # fmt: skip

TABLE_5 = {
    "class_aware_rpn_r101": (23.2, 42.6, 6.9, 27.1, 35.1),
    "class_aware_rpn_r101_dcn": (25.8, 45.9, 7.2, 28.3, 40.7),
    "faster_rcnn_r101": (29.4, 48.0, 9.0, 30.5, 47.1),
    "faster_rcnn_r101_dcn": (33.1, 50.3, 11.6, 34.9, 51.2),
    "rfcn_r101": (30.8, 52.6, 11.8, 33.9, 44.8),
    "rfcn_r101_dcn": (34.5, 55.0, 14.0, 37.7, 50.3),
    "faster_rcnn_air": (30.8, 49.6, 9.6, 32.5, 49.0),
    "faster_rcnn_air_dcn": (34.1, 51.1, 12.2, 36.5, 52.4),
    "rfcn_air": (32.9, 54.5, 12.5, 36.3, 48.3),
    "rfcn_air_dcn": (36.1, 56.7, 14.8, 39.8, 52.2),
    "rfcn_air_ms": (34.5, 55.0, 16.8, 37.3, 48.3),
    "rfcn_air_dcn_ms": (37.1, 57.3, 18.8, 39.7, 52.3),
    "rfcn_air_ms_boxavg": (35.5, 55.6, 17.8, 38.4, 49.3),
    "rfcn_air_dcn_ms_boxavg": (37.5, 58.0, 19.4, 40.1, 52.5),
}
"""AP, AP50, and AP of small, medium and large objects on COCO test-dev."""
COCO_COLUMNS = ("AP", "AP50", "APs", "APm", "APl")

RELEASED = {
    "voc/rfcn_r101_atrous2": {"mAP50": 79.6, "mAP70": 63.1},
    "voc/rfcn_r101_dcn": {"mAP50": 82.3, "mAP70": 67.8},
    "coco/rfcn_r101": {"AP": 32.1, "AP50": 54.3, "APs": 12.8, "APm": 34.9, "APl": 46.1},
    "coco/rfcn_r101_dcn": {"AP": 35.7, "AP50": 56.8, "APs": 15.2, "APm": 38.8, "APl": 51.5},
    "coco/faster_rcnn_r101": {"AP": 30.3, "AP50": 52.1, "APs": 9.9, "APm": 32.2, "APl": 47.4},
    "coco/faster_rcnn_r101_dcn": {"AP": 35.0, "AP50": 55.0, "APs": 14.3, "APm": 37.7, "APl": 52.0},
    "coco/faster_rcnn_r101_fpn": {"AP": 37.8, "AP50": 60.8},
    "coco/faster_rcnn_r101_fpn_dcn": {"AP": 41.2, "AP50": 63.5},
}
"""From the README of the authors' released code."""


UNPUBLISHED = {"coco/faster_rcnn_r101_dcnv2"}
"""Configs of a paper whose results are with something that this project does not have."""


def published() -> dict[str, dict[tuple[str, str], dict[str, float]]]:
    """Config -> source and split -> metric -> percent."""
    found: dict[str, dict[tuple[str, str], dict[str, float]]] = {}
    for name, row in TABLE_5.items():
        found[f"coco/{name}"] = {("paper, Table 5", "test-dev"): dict(zip(COCO_COLUMNS, row))}
    for table, rows in ((3, TABLE_3), (1, {d: {f"dconv{k}": v for k, v in r.items()} for d, r in TABLE_1.items()})):
        for kind, variants in rows.items():
            for variant, (low, high) in variants.items():
                source = (f"paper, Table {table}", "VOC2007 test")
                found[f"voc/{kind}_r101_{variant}"] = {source: {"mAP50": low, "mAP70": high}}
    for name, values in RELEASED.items():
        # COCO minival has the images of val2017.
        split = "VOC2007 test" if name.startswith("voc") else "val2017" if "fpn" in name else "test-dev"
        found.setdefault(name, {})["the authors' released code, README", split] = values
    return found


def test_every_published_number_has_its_config_and_no_config_is_without() -> None:
    assert FILES.keys() == published().keys() | UNPUBLISHED


@pytest.mark.parametrize("name", FILES)
def test_promises_are_the_published_numbers(name: str) -> None:
    found: dict[tuple[str, str], dict[str, float]] = {}
    for item in load_config(FILES[name]).expected:
        found.setdefault((item.source, str(item.split)), {})[item.metric] = round(100 * item.value, 4)
    assert found == published().get(name, {})


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("[cvs]*/*.yaml")), ids=lambda path: path.stem)
def test_numbers_are_expected_on_the_split_that_is_tested(path: Path) -> None:
    config = load_any(path)
    assert {item.split for item in config.expected} <= {config.data.test_title}


def test_the_papers_rows_train_on_trainval_and_test_on_test_dev() -> None:
    folder = ROOT / "configs" / "base"
    for name in TABLE_5:
        data: Any = load_config(FILES[f"coco/{name}"]).data
        assert data.train.sources == tuple((s, f"annotations/instances_{s}.json") for s in ("train2017", "val2017"))
        assert (data.test.images, data.test_title) == ("test2017", "test-dev")
        older: Any = load_config(FILES[f"coco/{name}"], f"overlay={folder / 'coco_trainval2014.yaml'}").data
        assert (older.train.title, older.test_title) == ("train2014+val2014", "test-dev")
        local: Any = load_config(FILES[f"coco/{name}"], f"overlay={folder / 'coco.yaml'}").data
        assert (local.train.title, local.test_title) == ("train2017", "val2017")
        assert local.resize == older.resize == data.resize
    for name in ("coco/faster_rcnn_r101_fpn_dcn", "coco/faster_rcnn_r101_dcnv2"):
        other = load_config(FILES[name]).data
        assert (other.train.title, other.test_title) == ("train2017", "val2017")


@pytest.mark.parametrize("name", FILES)
def test_a_config_holds_only_its_differences(name: str) -> None:
    lines = [line for line in FILES[name].read_text().splitlines() if line and not line.startswith("#")]
    assert len(lines) <= 15 and lines[0].startswith("base:")
    assert FILES[name].read_text().startswith("# ")


RES5 = ("res5a", "res5b", "res5c")
BLOCKS = {
    "dconv1": ("res5c",), "dconv2": ("res5b", "res5c"), "dconv3": RES5, "dconv": RES5, "dcn": RES5,
    "dconv6": ("res4b20", "res4b21", "res4b22", *RES5),
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("voc/")])
def test_voc_variants_differ_in_what_their_names_say(name: str) -> None:
    model: Any = load_config(FILES[name]).model
    kind, variant = name.removeprefix("voc/").split("_r101_")
    assert model.kind == kind
    assert model.backbone.deform.blocks == BLOCKS.get(variant, ())
    assert model.backbone.res5_dilation == (int(variant[-1]) if variant.startswith("atrous") else 2)
    plain = {"faster_rcnn": "max", "rfcn": "average", "class_aware_rpn": "none"}[kind]
    assert model.pooling == ("deformable" if variant in ("dpool", "dcn") else plain)
    assert model.rpn.anchors.scales == (8, 16, 32)


def on_meta(config: Config) -> torch.nn.Module:
    with torch.device("meta"):
        return build_detector(config, 20)


@pytest.mark.parametrize("name", FILES)
def test_every_config_builds_what_it_says(name: str) -> None:
    config = load_config(FILES[name])
    model, backbone = on_meta(config), config.model.backbone
    layers = [layer for layer in model.modules() if isinstance(layer, DeformConv2d)]
    assert isinstance(backbone, ResNetConfig | AlignedInceptionResNetConfig)
    assert len(layers) >= len(backbone.deform.blocks)
    assert all(layer.offset_groups == (1 if "dcnv2" in name else 4) for layer in layers)
    assert {layer.dilation[0] for layer in layers} <= ({1} if "fpn" in name else {1, 2})


def test_dcnv2_is_modulated_throughout() -> None:
    config = load_config(FILES["coco/faster_rcnn_r101_dcnv2"])
    model = on_meta(config)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, DeformConv2d)}
    assert [sum(f"layer{stage}." in name for name in layers) for stage in (1, 2, 3, 4)] == [0, 4, 23, 3]
    assert all(layer.modulated and layer.mask_scale == 2 for layer in layers.values())
    multipliers = {f"{name}.offset.{parameter}": 0.1 for name in layers for parameter in ("weight", "bias")}
    assert isinstance(model, Detector) and model.lr_multipliers() == multipliers
    assert model.get_parameter("head.offset.4.bias").shape == (3 * 49,)
    assert config.train.epochs == 16 and config.data.flip == "random"


def test_test_time_methods_take_the_weights_of_the_plain_config() -> None:
    for name in ("coco/rfcn_air", "coco/rfcn_air_dcn"):
        plain, scales, average = (load_config(FILES[name + suffix]) for suffix in ("", "_ms", "_ms_boxavg"))
        assert plain.model == scales.model == average.model and plain.train == scales.train == average.train
        assert plain.test.scales is None and scales.test.box_average is None
        assert average.test.scales is not None
        assert [each.short_side for each in average.test.scales] == [480, 576, 688, 864, 1200, 1400]
        assert average.test.box_average is not None and average.test.box_average.iterations == 2


def test_two_schedules_by_one_override() -> None:
    released = load_config(FILES["voc/rfcn_r101_dcn"]).train
    assert (released.epochs, released.reference_batch, released.optimizer.lr) == (7, 4, 0.002)
    overlay = f"overlay={ROOT / 'configs' / 'base' / 'schedule_paper_voc.yaml'}"
    config = load_config(FILES["voc/rfcn_r101_dcn"], overlay)
    assert (config.train.iterations, config.train.epochs, config.train.optimizer.lr) == (30000, None, 0.008)
    assert config.name == "rfcn_r101_dcn" and len(config.expected) == 4
    config = load_config(FILES["coco/rfcn_r101"], "train.optimizer.lr=1", overlay.replace("_voc", ""))
    assert config.train.iterations == 240000 and config.train.optimizer.lr == 1
    assert config.train.epochs is None


def test_faster_rcnn_was_released_for_four_gpus_and_rfcn_for_eight() -> None:
    """The rate for one image is the same; the decay, which summed gradients do not scale, is not."""
    four = load_config(FILES["coco/faster_rcnn_r101"]).train
    eight = load_config(FILES["coco/rfcn_r101"]).train
    assert four.optimizer.lr / four.reference_batch == eight.optimizer.lr / eight.reference_batch == 5e-4
    assert four.optimizer.weight_decay * four.reference_batch == eight.optimizer.weight_decay * 8 == 5e-4


@pytest.fixture(scope="module")
def photos(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings for four real photos at small size."""
    source = shared / "data" / "coco_subset"
    truth = json.loads((source / "annotations" / "instances_train2017_subset_by_bysa_pd.json").read_text())
    with_boxes = {each["image_id"] for each in truth["annotations"] if not each["iscrowd"]}
    truth["images"] = [each for each in truth["images"] if each["id"] in with_boxes][:4]
    kept = {each["id"] for each in truth["images"]}
    truth["annotations"] = [each for each in truth["annotations"] if each["image_id"] in kept]
    path = tmp_path_factory.mktemp("photos") / "four.json"
    path.write_text(json.dumps(truth))
    split = f"{{images: train2017, annotations: {path}}}"
    return [f"data.root={source}", f"data.train={split}", f"data.test={split}", "data.classes=null", "data.kind=coco"]


SMALL = [
    "model.backbone.width=8", "model.backbone.stem_width=8", "model.backbone.norm=gn", "model.backbone.frozen_stages=0",
    "model.backbone.weights=none", "model.rpn.channels=16", "model.rpn.pre_nms=200",
    "data.resize={short_side: 128, max_side: 192}", "data.workers=0", "train.batch_size=2", "device=cpu",
    "train.best_metric=AP", "train.warmup.kind=none",
]  # fmt: skip


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_two_training_steps_and_one_test_step(name: str, photos: list[str]) -> None:
    overrides = SMALL + photos
    if "class_aware_rpn" not in name:
        overrides += ["model.head.channels=16", "model.rpn.post_nms=50"]
    if "_ms" in name:
        overrides += ["test.scales=[{short_side: 96, max_side: 160}, {short_side: 128, max_side: 192}]"]
    if "faster_rcnn" in name:
        overrides += ["model.head.hidden=32"]
    task = DetectionTask(load_config(FILES[name], *overrides))
    session = Session(task)
    before = {key: value.clone() for key, value in session.model.state_dict().items()}
    batches = iter(session.train_batches(0, 2, 1))
    for _ in range(2):
        losses = session.model.train()(next(batches))
        total = sum(losses.values())
        assert total.isfinite()
        session.optimizer.zero_grad()
        total.backward()
        session.optimizer.step()
    after = session.model.state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in before)
    assert all(value.isfinite().all() for value in after.values() if value.is_floating_point())
    assert task.test_set is not None
    detector: Any = session.model
    photo = task.test_set.index.folder / task.test_set.index.file_name(0)
    found = build_predictor(detector, task.categories, task.config)(read_image(photo))
    assert found.boxes.isfinite().all() and found.scores.isfinite().all()


def test_only_feature_pyramids_train_anchors_that_leave_the_image() -> None:
    """As in the released code: few anchors of a pyramid's coarse levels lie inside, and all propose in testing."""
    for name, crosses in (("faster_rcnn_r101_fpn_dcn", True), ("faster_rcnn_r101_dcn", False), ("rfcn_r101", False)):
        model: Any = load_config(FILES[f"coco/{name}"]).model
        assert model.rpn.cross_border is crosses
