"""Files, inheritance, overlays and overrides become a config in which every value knows where it was set."""

import pickle
from typing import Any

import pytest

from dcn_det.config import Config, from_plain, load_config, to_plain, with_values
from dcn_det.config.load import leaves
from dcn_det.config.model import FasterRCNNConfig, ResNetConfig, RFCNConfig
from dcn_det.config.train import AdamWConfig, CosineScheduleConfig, SGDConfig
from dcn_det.errors import UserError
from tests.config.helpers import error

# Inheritance


def test_a_file_states_differences_from_the_defaults(write):
    config = load_config(write("train: {batch_size: 4}\n"))
    assert config.train.batch_size == 4
    assert config.train.epochs == 8
    assert config.model == Config().model
    assert config.name == "a"


def test_later_bases_and_the_file_itself_win(write):
    write("seed: 1\ntrain: {batch_size: 1, log_every: 1, epochs: 1}\n", "base/x.yaml")
    write("train: {log_every: 2, epochs: 2}\n", "base/y.yaml")
    config = load_config(write("base: [base/x.yaml, base/y.yaml]\ntrain: {epochs: 3}\n"))
    assert (config.seed, config.train.batch_size, config.train.log_every, config.train.epochs) == (1, 1, 2, 3)


def test_a_base_is_relative_to_the_file_that_names_it(write):
    write("base: ../b/c.yaml\n", "x/b.yaml")
    write("seed: 7\n", "b/c.yaml")
    assert load_config(write("base: x/b.yaml\n")).seed == 7


def test_lists_replace(write):
    write("model: {backbone: {deform: {blocks: [res5a, res5b]}}}\n", "b.yaml")
    config = load_config(write("base: b.yaml\nmodel: {backbone: {deform: {blocks: [res5c]}}}\n"))
    backbone = config.model.backbone
    assert isinstance(backbone, ResNetConfig) and backbone.deform.blocks == ("res5c",)


def test_one_base_may_be_reached_twice(write):
    write("seed: 7\n", "c.yaml")
    write("base: c.yaml\n", "b1.yaml")
    write("base: c.yaml\n", "b2.yaml")
    assert load_config(write("base: [b1.yaml, b2.yaml]\n")).seed == 7


def test_name_and_expected_are_not_inherited(write):
    numbers = "name: mine\nexpected: [{metric: AP, value: 0.3, source: Table 5}]\n"
    base = load_config(write(numbers, "b.yaml"))
    assert base.name == "mine" and base.expected[0].value == 0.3
    config = load_config(write("base: b.yaml\n"))
    assert config.name == "a" and config.expected == ()


def test_another_kind_starts_its_block_afresh(write):
    write("train: {optimizer: {lr: 0.5, momentum: 0.8}, schedule: {drops: [0.5]}}\n", "b.yaml")
    config = load_config(write("base: b.yaml\ntrain: {optimizer: {kind: adamw}, schedule: {kind: cosine}}\n"))
    assert config.train.optimizer == AdamWConfig(kind="adamw")
    assert config.train.schedule == CosineScheduleConfig(kind="cosine")


def test_the_same_kind_goes_on_with_its_block(write):
    write("train: {optimizer: {lr: 0.5, momentum: 0.8}}\n", "b.yaml")
    optimizer = load_config(write("base: b.yaml\ntrain: {optimizer: {kind: sgd, lr: 0.1}}\n")).train.optimizer
    assert optimizer == SGDConfig(kind="sgd", lr=0.1, momentum=0.8)


def test_a_kind_without_keys_of_its_own_keeps_the_block(write):
    write("model: {backbone: {kind: resnet101, frozen_stages: 4}}\n", "b.yaml")
    backbone = load_config(write("base: b.yaml\nmodel: {backbone: {kind: resnet50}}\n")).model.backbone
    assert isinstance(backbone, ResNetConfig)
    assert (backbone.kind, backbone.frozen_stages) == ("resnet50", 4)


def test_the_order_of_overrides_does_not_matter_when_the_kind_changes(write):
    path = write("train: {optimizer: {lr: 0.5}}\n")
    overrides = ["train.optimizer.lr=0.25", "train.optimizer.kind=adamw"]
    for order in (overrides, overrides[::-1]):
        optimizer = load_config(path, *order).train.optimizer
        assert (optimizer.kind, optimizer.lr) == ("adamw", 0.25)


@pytest.mark.parametrize(("inherited", "given"), [("iterations", "epochs"), ("epochs", "iterations")])
def test_one_length_of_the_run_replaces_the_other(write, inherited, given):
    write(f"train: {{{inherited}: 5}}\n", "b.yaml")
    for config in (
        load_config(write(f"base: b.yaml\ntrain: {{{given}: 6}}\n")),
        load_config(write("base: b.yaml\n"), f"train.{given}=6"),
    ):
        assert getattr(config.train, given) == 6 and getattr(config.train, inherited) is None


def test_null_does_not_replace_the_other_length(write):
    write("train: {iterations: 5}\n", "b.yaml")
    assert load_config(write("base: b.yaml\ntrain: {epochs: null}\n")).train.iterations == 5


# Values


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.e-3", "0.001", "+1e-3", ".001", "100e-5"])
def test_numbers_with_an_exponent_are_numbers(write, text):
    path = write(f"train: {{optimizer: {{lr: {text}}}}}\n")
    assert load_config(path).train.optimizer.lr == 0.001
    assert load_config(path, f"train.optimizer.lr={text}").train.optimizer.lr == 0.001


def test_an_integer_serves_for_a_float(write):
    assert load_config(write("train: {clip_norm: 35}\n")).train.clip_norm == 35.0


@pytest.mark.parametrize("text", ["2017-01-01", "1:30", "on", "0x10", "1_000", "~x"])
def test_what_only_yaml_1_1_takes_for_something_else_is_a_string(write, text):
    assert load_config(write(f"data: {{root: {text}}}\n")).data.root == text


def test_a_byte_order_mark_is_skipped(write):
    assert load_config(write(b"\xef\xbb\xbfseed: 3\n")).seed == 3


def test_plain_containers_give_the_same_config(write):
    config = load_config(write("train: {optimizer: {kind: adamw}}\nmodel: {backbone: {res5_dilation: [2, 4, 8]}}\n"))
    plain = to_plain(config)
    assert from_plain(plain) == config
    assert all(type(value) in (str, int, float, bool, list, type(None)) for _, value in leaves(plain))


def test_plain_containers_are_checked_too():
    plain = to_plain(Config(name="x"))
    plain["model"]["rpn"]["pre_nms"] = "many"
    with pytest.raises(UserError, match=r"^last.pth: model.rpn.pre_nms: wrong value \(got the string 'many'\)"):
        from_plain(plain, "last.pth")
    with pytest.raises(UserError, match=r"^last.pth: no settings"):
        from_plain(None, "last.pth")


# Overrides


def test_overrides_take_lists_blocks_and_text_with_equals_signs(write):
    config = load_config(
        write("seed: 1\n"),
        "model.rpn.anchors.scales=[2, 4]",
        "data.resize={short_side: 100}",
        "data.root=/data/a=b",
        "data.resize.max_side=300",
        "seed=2",
        "seed=3",
    )
    assert isinstance(config.model, FasterRCNNConfig) and config.model.rpn.anchors.scales == (2.0, 4.0)
    assert (config.data.resize.short_side, config.data.resize.max_side) == (100, 300)
    assert config.data.root == "/data/a=b"
    assert config.seed == 3


def test_a_stated_dilation_goes_with_any_stride(write):
    text = "model: {backbone: {res5_stride: 2, res5_dilation: 2}}\n"
    backbone = load_config(write(text)).model.backbone
    assert isinstance(backbone, ResNetConfig) and backbone.res5_stride == 2


def test_overrides_may_be_mappings_of_plain_values(write):
    path = write("model: {kind: rfcn, head: {channels: 9}}\n")
    over = write("train: {log_every: 6, batch_size: 4}\n", "over.yaml")
    config = load_config(
        path,
        {"train.batch_size": 8, "model": {"head.channels": 32, "backbone": {"norm": "gn"}}, "overlay": over},
        "seed=4",
        {"seed": 5, "model.rpn.anchors.scales": (2, 4), "data": {"root": over, "classes": None}},
    )
    assert (config.seed, config.train.batch_size, config.train.log_every) == (5, 8, 6)
    model: Any = config.model
    assert (model.kind, model.head.channels, model.backbone.norm) == ("rfcn", 32, "gn")
    assert model.rpn.anchors.scales == (2.0, 4.0)
    assert (config.data.root, config.data.classes) == ("over.yaml", None)
    assert {config.origins[key] for key in ("seed", "model.head.channels", "data.root")} == {"override"}
    assert config.origins["train.log_every"] == "over.yaml:1"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ({"train": {"batch_size": "x"}}, "override: train.batch_size: wrong value (got the string 'x')"),
        ({"train.batch_sise": 3}, "did you mean 'batch_size'?"),
        ({3: 1}, "override: wrong key '3'; allowed: "),
        ({"train..epochs": 1}, "override: wrong key 'train..epochs'; allowed: "),
        ({"seed": object()}, "override: seed: wrong value (got <object "),
        ({"overlay": 3}, "override 'overlay=3': expected overlay=FILE"),
    ],
)
def test_a_wrong_mapping_says_so(write, override, expected):
    message = error(write("seed: 1\n"), override)
    assert expected in message and "\n" not in message


@pytest.mark.parametrize("override", [["seed=2"], 3, None])
def test_an_override_is_no_list(write, override):
    with pytest.raises(TypeError, match=type(override).__name__):
        load_config(write("seed: 1\n"), override)


# Origins


def test_origins_name_file_and_line_override_or_default(write):
    write("seed: 1\n# a comment\ntrain:\n  epochs: 3\n  optimizer:\n    lr: 0.1\n", "b.yaml")
    path = write("base: b.yaml\nmodel:\n  backbone: {deform: {blocks:\n    [res5a,\n     res5b]}}\n")
    origins = load_config(path, "train.batch_size=2").origins
    assert origins["seed"] == "b.yaml:1"
    assert origins["train.epochs"] == "b.yaml:4"
    assert origins["train.optimizer.lr"] == "b.yaml:6"
    assert origins["model.backbone.deform.blocks"] == "a.yaml:3"
    assert origins["train.batch_size"] == "override"
    assert origins["train.optimizer.momentum"] == "default"
    assert origins["name"] == "default"
    assert Config().origins == {}
    assert set(from_plain({"seed": 3}, "w.pth").origins.values()) == {"w.pth", "default"}


def test_origins_stay_with_other_values_and_do_not_count_in_comparisons(write):
    config = load_config(write("seed: 1\ntrain:\n  iterations: 3\nmodel: {kind: rfcn}\n"))
    changed = with_values(config, {"train.epochs": 2.0, "model.head.box_stds": (1, 1, 1, 1)}, "'w.pth'")
    assert isinstance(changed.model, RFCNConfig)
    assert (changed.train.epochs, changed.train.iterations, changed.model.head.box_stds) == (2.0, None, (1, 1, 1, 1))
    assert changed.origins["seed"] == "a.yaml:1" and changed.origins["model.kind"] == "a.yaml:4"
    assert changed.origins["train.epochs"] == changed.origins["model.head.box_stds"] == "'w.pth'"
    with pytest.raises(UserError, match=r"^'w\.pth': model\.head\.box_stds: "):
        with_values(config, {"model.head.box_stds": 3}, "'w.pth'")
    assert with_values(config, {}, "") == config == config.with_origins({}) == pickle.loads(pickle.dumps(config))
    assert pickle.loads(pickle.dumps(config)).origins == config.origins
    assert changed != config and config != to_plain(config)


def test_what_a_replaced_block_said_is_not_an_origin(write):
    write("train: {iterations: 3, optimizer: {kind: sgd, lr: 0.1}}\n", "b.yaml")
    path = write("base: b.yaml\ntrain: {epochs: 1, optimizer: {kind: adamw}}\n")
    origins = load_config(path).origins
    assert origins["train.optimizer.kind"] == "a.yaml:2"
    assert origins["train.optimizer.lr"] == "default"
    assert origins["train.iterations"] == "default"


# Models of another kind, and overlays


def test_another_kind_of_model_keeps_backbone_and_rpn_alone(write):
    write("model: {backbone: {width: 32}, rpn: {anchors: {scales: [8]}}, head: {hidden: 7}}\n", "b.yaml")
    path = write("base: b.yaml\nmodel: {kind: rfcn, head: {channels: 64}}\n")
    model: Any = load_config(path).model
    assert (model.kind, model.backbone.width, model.rpn.anchors.scales) == ("rfcn", 32, (8.0,))
    assert (model.head.channels, model.head.pooling) == (64, "average")
    model = load_config(path, "model.kind=faster_rcnn").model
    assert model.head.hidden == 1024
    message = error(write("model: {kind: rfcn, head: {hidden: 7}}\n"))
    assert message.startswith("a.yaml:1: model.head.hidden: unknown key; allowed: ")
    message = error(write("model: {kind: class_aware_rpn, head: {hidden: 7}}\n"))
    assert (
        message == "a.yaml:1: model.head: unknown key for kind class_aware_rpn; "
        "allowed: kind, weights, backbone, box_corners, rpn"
    )
    message = error(write("model: {kind: rfnc}\n"))
    assert "model.kind: unknown choice (got the string 'rfnc'); allowed: faster_rcnn, rfcn, " in message
    assert message.endswith("did you mean 'rfcn'?")


def test_an_overlay_lies_over_the_file_and_below_other_overrides(write):
    path = write("name: mine\ntrain: {epochs: 3, batch_size: 2, log_every: 5}\n")
    over = write("name: other\ntrain: {iterations: 40, log_every: 6, batch_size: 4}\n", "over.yaml")
    config = load_config(path, "train.batch_size=8", f"overlay={over}")
    train = config.train
    assert (train.iterations, train.epochs, train.batch_size, train.log_every) == (40, None, 8, 6)
    assert config.name == "mine" and config.origins["train.log_every"].endswith("over.yaml:2")
    assert error(path, "overlay=ovre.yaml").endswith("no such file; did you mean 'over.yaml'?")
    assert error(path, "overlay=") == "override 'overlay=': expected overlay=FILE, a YAML file of settings"
