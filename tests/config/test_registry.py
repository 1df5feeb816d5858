"""Kinds that a module registers are kinds as the package's own are."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from dcn_det.config import (
    BACKBONES,
    DETECTORS,
    FORMATS,
    Config,
    from_plain,
    json_schema,
    load_config,
    print_config,
    register_backbone,
    register_detector,
    register_format,
    to_plain,
)
from dcn_det.config.data import CocoDataConfig, DataConfig, SampleDataConfig, SplitConfig, VocDataConfig
from dcn_det.config.model import BackboneConfig, DetectorConfig, FasterRCNNConfig, PreprocessConfig, ResNetConfig
from dcn_det.config.section import Section
from tests.config.helpers import error


class PyramidConfig(BackboneConfig):
    kind: Literal["pyramid", "pyramid_large"] = "pyramid"
    depth: Annotated[int, Field(gt=0)] = 4
    """Levels."""


class CenterHeadConfig(Section):
    hidden: int = 256


class CenterConfig(DetectorConfig):
    kind: Literal["center"] = "center"
    head: CenterHeadConfig = CenterHeadConfig()


class TableSplitConfig(SplitConfig):
    table: str


class TableConfig(DataConfig):
    metrics = ("precision", "mAP50")

    kind: Literal["table"] = "table"
    train: TableSplitConfig = TableSplitConfig(table="train.csv")
    test: TableSplitConfig | None = None


def build(*arguments: object) -> tuple[object, ...]:
    return arguments


@pytest.fixture(autouse=True)
def outside() -> Iterator[None]:
    register_backbone("pyramid", PyramidConfig, build)
    register_backbone("pyramid_large", PyramidConfig, build)
    register_detector("center", CenterConfig, "tests.config.test_registry:build")
    register_format("table", TableConfig, build)
    yield
    for registry, name in ((BACKBONES, "pyramid"), (BACKBONES, "pyramid_large"), (DETECTORS, "center")):
        registry.unregister(name)
    FORMATS.unregister("table")


OUTSIDE = (
    "model: {kind: center, backbone: {kind: pyramid, depth: 3}, head: {hidden: 8}}\n"
    "data: {kind: table, train: {table: a.csv}}\n"
)

# Registration


def test_a_kind_is_found_until_it_is_unregistered(write):
    path = write("model: {backbone: {kind: late}}\n")
    assert "kind: unknown choice (got the string 'late')" in error(path)

    class LateConfig(BackboneConfig):
        kind: Literal["late"] = "late"

    register_backbone("late", LateConfig, build)
    assert isinstance(load_config(path).model.backbone, LateConfig)
    BACKBONES.unregister("late")
    assert "kind: unknown choice (got the string 'late')" in error(path)
    with pytest.raises(KeyError, match="late"):
        BACKBONES.unregister("late")


def test_builders_are_callables_or_places():
    assert BACKBONES.builder("pyramid") is build
    assert DETECTORS.builder("center")(1, 2) == (1, 2)
    with pytest.raises(KeyError, match="nowhere"):
        FORMATS.builder("nowhere")


@pytest.mark.parametrize("place", ["no_such_module_at_all:build", "tests.config.test_registry:no_such_function"])
def test_a_place_is_looked_up_when_the_builder_is_needed(place):
    BACKBONES.unregister("pyramid_large")
    register_backbone("pyramid_large", PyramidConfig, place)
    with pytest.raises((ImportError, AttributeError), match="no_such_"):
        BACKBONES.builder("pyramid_large")


def test_the_same_kind_may_be_registered_twice():
    register_backbone("pyramid", PyramidConfig, build)
    assert list(BACKBONES.sections).count("pyramid") == 1


@pytest.mark.parametrize(
    ("name", "section", "builder", "expected"),
    [
        ("resnet18", ResNetConfig, build, "'resnet18' is already registered: .*ResNetConfig.*build_resnet"),
        ("pyramid", PyramidConfig, "a:b", "'pyramid' is already registered: .*PyramidConfig"),
        ("other", PyramidConfig, build, r"'other': PyramidConfig .*kind: Literal\[\"other\"\]"),
        ("center", CenterConfig, build, "'center': .* BackboneConfig"),
        ("pyramid", "PyramidConfig", build, "'pyramid': .* BackboneConfig"),
        ("pyramid", PyramidConfig, "package.module", r"'package\.module'"),
        ("plain", BackboneConfig, build, r"'plain': BackboneConfig .*kind: Literal\[\"plain\"\]"),
    ],
)
def test_what_is_no_kind_is_refused(name, section, builder, expected):
    before = BACKBONES.sections
    with pytest.raises(ValueError, match=expected):
        register_backbone(name, section, builder)
    assert BACKBONES.sections == before


def test_the_package_registers_its_own_kinds():
    assert [name for name in DETECTORS.sections if name != "center"] == ["faster_rcnn", "rfcn", "class_aware_rpn"]
    assert {"resnet18", "resnet152", "aligned_inception_resnet"} < set(BACKBONES.sections)
    assert {"coco", "voc", "sample"} < set(FORMATS.sections)
    for name in ("resnet50", "aligned_inception_resnet"):
        assert callable(BACKBONES.builder(name))
    for name in DETECTORS.sections:
        assert callable(DETECTORS.builder(name))


# In a config


def test_an_outside_kind_is_read_printed_and_stored(write):
    config = load_config(write(OUTSIDE), "train.best_metric=precision")
    assert config.model == CenterConfig(backbone=PyramidConfig(depth=3), head=CenterHeadConfig(hidden=8))
    assert config.data == TableConfig(train=TableSplitConfig(table="a.csv"))
    assert config.origins["model.backbone.depth"] == "a.yaml:1"
    assert from_plain(to_plain(config)) == config
    assert load_config(write(print_config(config), "b.yaml")) == config
    assert config.model.pooling == "none"


def test_two_kinds_may_share_a_section(write):
    assert load_config(write("model: {backbone: {kind: pyramid_large}}\n")).model.backbone.kind == "pyramid_large"


def test_sections_may_be_given_in_python():
    assert Config(model=CenterConfig(backbone=PyramidConfig())).model.backbone == PyramidConfig(depth=4)
    DETECTORS.unregister("center")
    try:
        with pytest.raises(ValueError, match="model"):
            Config(model=CenterConfig())
    finally:
        register_detector("center", CenterConfig, "tests.config.test_registry:build")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: {kind: centre}", "model.kind: unknown choice (got the string 'centre'); allowed: faster_rcnn, rfcn, "),
        ("model: {kind: centre}", "class_aware_rpn, center; did you mean 'center'?"),
        ("model: {backbone: {kind: pyramide}}", "did you mean 'pyramid'?"),
        ("data: {kind: tabel}", "allowed: coco, voc, yolo, sample, table; did you mean 'table'?"),
        ("model: {kind: center, head: {hiden: 3}}", "hiden: unknown key; allowed: hidden; did you mean 'hidden'?"),
        ("model: {backbone: {kind: pyramid, width: 3}}", "width: unknown key for kind pyramid; allowed: kind, "),
        ("model: {backbone: {kind: pyramid, depth: 0}}", "depth: out of range (got 0); allowed: an integer > 0"),
        ("model: {kind: center, backbone: {kind: pyramid, depth: x}}", "depth: wrong value (got the string 'x')"),
        ("data: {kind: table, train: {table: 3}}", "data.train.table: wrong value (got 3); allowed: a string"),
        ("data: {kind: table, train: {images: x}}", "data.train.table: missing; give a string"),
        ("table: a.csv", "table: unknown key; "),
        ("depth: 3", "; did you mean 'model.backbone.depth'?"),
        ("data: {kind: [table]}", "data.kind: unknown choice (got "),
        ("model: {backbone: pyramid}", "allowed: a block with kind: resnet18 or resnet34 or "),
    ],
)  # fmt: skip
def test_mistakes_know_the_outside_kinds(write, text, expected):
    message = error(write(f"{text}\n"))
    assert expected in message
    assert message.startswith("a.yaml:1: ")


def test_a_format_names_its_metrics(write):
    path = write("data: {kind: table, test: {table: b.csv}}\n")
    message = error(path)
    assert "train.best_metric: " in message and "precision, mAP50" in message
    assert load_config(path, "train.best_metric=precision").train.best_metric == "precision"
    assert "did you mean 'precision'?" in error(path, "train.best_metric=precison")
    assert "train.best_metric: " in error(path, "data.kind=coco", "train.best_metric=precision")
    promised = "expected=[{metric: precision, value: 0.5, source: here}]"
    assert load_config(path, "train.best_metric=precision", promised).expected[0].metric == "precision"
    message = error(path, "train.best_metric=precision", promised.replace("precision", "precison"))
    assert message.startswith("override: expected.0.metric: ") and message.endswith("did you mean 'precision'?")


def test_without_a_test_split_any_known_metric_will_do(write):
    assert load_config(write(OUTSIDE)).train.best_metric == "AP"
    assert "override: train.best_metric: " in error(write(OUTSIDE), "train.best_metric=precison")


# Another kind over an inherited block


def test_another_backbone_keeps_what_both_inherit_from_one_section(write):
    write("model: {backbone: {kind: resnet18, width: 32, norm: gn, weights: none, stem_pool: pad}}\n", "b.yaml")
    air: Any = load_config(write("base: b.yaml\nmodel: {backbone: {kind: aligned_inception_resnet}}\n")).model.backbone
    assert (air.width, air.norm, air.weights, air.stem_pool) == (32, "gn", "none", "pad")
    pyramid = load_config(
        write("base: b.yaml\nmodel: {backbone: {kind: pyramid}}\n"), "model.backbone.preprocess.channel_order=bgr"
    ).model.backbone
    assert pyramid == PyramidConfig(preprocess=PreprocessConfig(channel_order="bgr"))
    path = write(
        "base: b.yaml\nmodel: {backbone: {kind: pyramid, depth: 2, preprocess: {mean: [1, 2, 3]}}}\n", "c.yaml"
    )
    again = load_config(path, "model.backbone.kind=resnet50", "model.backbone.weights=none").model.backbone
    assert again.preprocess.mean == (1, 2, 3)


def test_another_detector_keeps_backbone_and_rpn(write):
    write("model: {backbone: {kind: pyramid, depth: 2}, rpn: {anchors: {scales: [8]}}, head: {hidden: 7}}\n", "b.yaml")
    for kind in ("rfcn", "class_aware_rpn"):
        model: Any = load_config(write(f"base: b.yaml\nmodel: {{kind: {kind}}}\n")).model
        assert (model.backbone.depth, model.rpn.anchors.scales) == (2, (8.0,))
    model = load_config(write("base: b.yaml\nmodel: {kind: center}\n")).model
    assert model == CenterConfig(backbone=PyramidConfig(depth=2))


def test_other_data_keep_the_common_keys(write):
    write("data: {root: r, resize: {short_side: 99}, train: {images: a, annotations: b}, test: null}\n", "b.yaml")
    path = write("base: b.yaml\ndata: {kind: voc, train: {sets: [x]}, test: null}\ntrain: {best_metric: mAP50}\n")
    data = load_config(path).data
    assert isinstance(data, VocDataConfig) and data.train is not None
    assert (data.root, data.resize.short_side, data.train.sets) == ("r", 99, ("x",))
    back = load_config(path, "data.kind=coco", "train.best_metric=AP").data
    assert (back.root, back.train, back.test) == ("r", CocoDataConfig().train, CocoDataConfig().test)
    sample = load_config(write("base: b.yaml\ndata: {kind: sample}\n")).data
    assert isinstance(sample, SampleDataConfig) and sample.train is not None
    assert (sample.train.images, sample.test) == ("a", None)


# JSON schema


def test_the_json_schema_knows_what_is_registered():
    schema = json_schema()
    kinds = schema["$defs"]
    assert kinds["PyramidConfig"]["properties"]["depth"]["description"] == "Levels."
    assert {"CenterConfig", "CenterHeadConfig", "TableConfig", "TableSplitConfig", "ResNetConfig"} < set(kinds)
    assert {"$ref": "#/$defs/TableConfig"} in schema["properties"]["data"]["anyOf"]
    assert {"$ref": "#/$defs/PyramidConfig"} in kinds["RFCNConfig"]["properties"]["backbone"]["anyOf"]
    assert list(references(schema)) and all(each.removeprefix("#/$defs/") in kinds for each in references(schema))
    FORMATS.unregister("table")
    try:
        assert "TableConfig" not in json_schema()["$defs"]
    finally:
        register_format("table", TableConfig, build)


def references(schema: dict | list) -> Iterator[str]:
    for key, value in schema.items() if isinstance(schema, dict) else enumerate(schema):
        if key == "$ref":
            yield value
        elif isinstance(value, dict | list):
            yield from references(value)


def test_defaults_stay_the_own_kinds():
    assert isinstance(Config().model, FasterRCNNConfig)
    assert isinstance(Config().data, CocoDataConfig)
