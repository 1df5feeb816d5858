"""Files, inheritance and overrides become a config, and every mistake one line that says where."""

from pathlib import Path

import pytest

from dcn_det.config import Config, from_plain, load_config, load_with_origins, to_plain
from dcn_det.config.load import leaves
from dcn_det.config.train import AdamWConfig, CosineScheduleConfig
from dcn_det.errors import UserError


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a file of the working directory, so that messages show its bare name."""
    monkeypatch.chdir(tmp_path)

    def write(text: str | bytes, name: str = "a.yaml") -> Path:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def error(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    return str(caught.value)


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
    assert config.model.backbone.deform.blocks == ("res5c",)


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
    assert (optimizer.kind, optimizer.lr, optimizer.momentum) == ("sgd", 0.1, 0.8)


def test_a_kind_without_keys_of_its_own_keeps_the_block(write):
    write("model: {backbone: {kind: resnet101, frozen_stages: 4}}\n", "b.yaml")
    backbone = load_config(write("base: b.yaml\nmodel: {backbone: {kind: resnet50}}\n")).model.backbone
    assert (backbone.kind, backbone.frozen_stages) == ("resnet50", 4)


def test_the_order_of_overrides_does_not_matter_when_the_kind_changes(write):
    path = write("train: {optimizer: {lr: 0.5}}\n")
    overrides = ["train.optimizer.lr=0.25", "train.optimizer.kind=adamw"]
    for order in (overrides, overrides[::-1]):
        optimizer = load_config(path, order).train.optimizer
        assert (optimizer.kind, optimizer.lr) == ("adamw", 0.25)


@pytest.mark.parametrize(("inherited", "given"), [("iterations", "epochs"), ("epochs", "iterations")])
def test_one_length_of_the_run_replaces_the_other(write, inherited, given):
    write(f"train: {{{inherited}: 5}}\n", "b.yaml")
    for config in (
        load_config(write(f"base: b.yaml\ntrain: {{{given}: 6}}\n")),
        load_config(write("base: b.yaml\n"), [f"train.{given}=6"]),
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
    assert load_config(path, [f"train.optimizer.lr={text}"]).train.optimizer.lr == 0.001


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


# Origins


def test_origins_name_file_and_line_override_or_default(write):
    write("seed: 1\n# a comment\ntrain:\n  epochs: 3\n  optimizer:\n    lr: 0.1\n", "b.yaml")
    path = write("base: b.yaml\nmodel:\n  backbone: {deform: {blocks:\n    [res5a,\n     res5b]}}\n")
    origins = load_with_origins(path, ["train.batch_size=2"])[1]
    assert origins["seed"] == "b.yaml:1"
    assert origins["train.epochs"] == "b.yaml:4"
    assert origins["train.optimizer.lr"] == "b.yaml:6"
    assert origins["model.backbone.deform.blocks"] == "a.yaml:3"
    assert origins["train.batch_size"] == "override"
    assert origins["train.optimizer.momentum"] == "default"
    assert origins["name"] == "default"


def test_what_a_replaced_block_said_is_not_an_origin(write):
    write("train: {iterations: 3, optimizer: {kind: sgd, lr: 0.1}}\n", "b.yaml")
    path = write("base: b.yaml\ntrain: {epochs: 1, optimizer: {kind: adamw}}\n")
    origins = load_with_origins(path)[1]
    assert origins["train.optimizer.kind"] == "a.yaml:2"
    assert origins["train.optimizer.lr"] == "default"
    assert origins["train.iterations"] == "default"


# Mistakes in files


def test_a_missing_file_names_the_nearest(write):
    write("seed: 1\n", "faster_rcnn.yaml")
    assert error(Path("faster_rcn.yaml")) == "faster_rcn.yaml: no such file; did you mean 'faster_rcnn.yaml'?"
    assert error(Path("nowhere/x.yaml")) == "nowhere/x.yaml: no such file"


def test_a_folder_is_not_a_config(tmp_path):
    assert error(tmp_path) == f"{tmp_path}: cannot be read: Is a directory"


def test_a_missing_base_is_reported_where_it_is_named(write):
    write("base: elsewhere/gone.yaml\n", "b.yaml")
    assert error(write("seed: 1\nbase: b.yaml\n")) == "b.yaml:1: base: elsewhere/gone.yaml: no such file"


def test_a_cycle_of_bases_is_shown(write):
    write("base: a.yaml\n", "b.yaml")
    assert error(write("base: b.yaml\n")) == "b.yaml:1: base: a cycle: a.yaml -> b.yaml -> a.yaml"
    assert error(write("base: ./a.yaml\n")) == "a.yaml:1: base: a cycle: a.yaml -> a.yaml"


@pytest.mark.parametrize("value", ["3", "[b.yaml, 3]", "{x: y}", "''", ""])
def test_base_is_a_path_or_a_list_of_them(write, value):
    write("seed: 1\n", "b.yaml")
    expected = "a.yaml:1: base: wrong value; allowed: a path relative to this file, or a list of them"
    assert error(write(f"base: {value}\n")) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "a.yaml:1: the file holds nothing; settings are written as 'key: value'"),
        ("# nothing\n", "a.yaml:1: the file holds nothing; settings are written as 'key: value'"),
        ("- 1\n", "a.yaml:1: the file holds a list; settings are written as 'key: value'"),
        ("text\n", "a.yaml:1: the file holds a value; settings are written as 'key: value'"),
        ("seed: 1\ntrain:\n  epochs: [1\nx: 2\n", "a.yaml:4: not valid YAML: "),
        ("seed: 1\n\tx: 2\n", "a.yaml:2: not valid YAML: found character '\\t'"),
        ("seed: 1\n---\nseed: 2\n", "a.yaml:2: not valid YAML: "),
        ("seed: 1\nname: \x07\n", "a.yaml:2: not valid YAML: the character 0x7"),
        ("seed: 1\nseed: 2\n", "a.yaml:2: the key 'seed' is given twice (first: a.yaml:1)"),
        ("train: {epochs: 1,\n  epochs: 2}\n", "a.yaml:2: the key 'epochs' is given twice (first: a.yaml:1)"),
        ("seed: 1\n3: 2\n", "a.yaml:2: a key must be a word; put it in quotes if it is meant as one"),
        ("[a]: 2\n", "a.yaml:1: a key must be a word; put it in quotes if it is meant as one"),
        ("seed: &x 1\ntrain: {epochs: *x}\n", "a.yaml:2: not valid YAML: aliases are not supported"),
        ("seed: !!python/name:os.system\n", "a.yaml:1: the tag 'tag:yaml.org,2002:python/name:os.system'"),
        ("data: !!set {a, b}\n", "a.yaml:1: the tag 'tag:yaml.org,2002:set' is not supported"),
        ("seed: !!int x\n", "a.yaml:1: 'x' cannot be read as int"),
        ("data: " + "[" * 5000, "a.yaml: nested too deeply"),
        (b"seed: 1\nname: \xff\n", "a.yaml: not UTF-8 text: "),
    ],
)
def test_what_is_no_settings_file_is_one_line_with_its_place(write, text, expected):
    message = error(write(text))
    assert message.startswith(expected)
    assert "\n" not in message


def test_yaml_errors_in_a_base_name_the_base(write):
    write("seed: [\n", "b.yaml")
    assert error(write("base: b.yaml\n")).startswith("b.yaml:2: not valid YAML: ")


# Models of another kind, and overlays


def test_another_kind_of_model_keeps_backbone_and_rpn_alone(write):
    write("model: {backbone: {width: 32}, rpn: {anchors: {scales: [8]}}, head: {hidden: 7}}\n", "b.yaml")
    path = write("base: b.yaml\nmodel: {kind: rfcn, head: {channels: 64}}\n")
    model = load_config(path).model
    assert (model.kind, model.backbone.width, model.rpn.anchors.scales) == ("rfcn", 32, (8.0,))
    assert (model.head.channels, model.head.pooling) == (64, "average")
    assert load_config(path, ["model.kind=faster_rcnn"]).model.head.hidden == 1024
    message = error(write("model: {kind: rfcn, head: {hidden: 7}}\n"))
    assert message.startswith("a.yaml:1: model.head.hidden: unknown key; allowed: ")
    message = error(write("model: {kind: class_aware_rpn, head: {hidden: 7}}\n"))
    assert message == "a.yaml:1: model.head: unknown key for kind class_aware_rpn; allowed: backbone, kind, rpn"
    message = error(write("model: {kind: rfnc}\n"))
    assert "model.kind: unknown choice (got the string 'rfnc'); allowed: faster_rcnn, rfcn, " in message
    assert message.endswith("did you mean 'rfcn'?")


def test_an_overlay_lies_over_the_file_and_below_other_overrides(write):
    path = write("name: mine\ntrain: {epochs: 3, batch_size: 2, log_every: 5}\n")
    over = write("name: other\ntrain: {iterations: 40, log_every: 6, batch_size: 4}\n", "over.yaml")
    config, origins = load_with_origins(path, ["train.batch_size=8", f"overlay={over}"])
    train = config.train
    assert (train.iterations, train.epochs, train.batch_size, train.log_every) == (40, None, 8, 6)
    assert config.name == "mine" and origins["train.log_every"].endswith("over.yaml:2")
    assert error(path, "overlay=ovre.yaml").endswith("no such file; did you mean 'over.yaml'?")
    assert error(path, "overlay=") == "override 'overlay=': expected overlay=FILE, a YAML file of settings"


# Mistakes in values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "model:\n  backbone:\n    frozen_stage: 2\n",
            "a.yaml:3: model.backbone.frozen_stage: unknown key; allowed: ",
        ),
        ("model:\n  backbone:\n    frozen_stage: 2\n", "; did you mean 'frozen_stages'?"),
        ("lr: 2\n", "; did you mean 'train.optimizer.lr'?"),
        ("train.epochs: 2\n", "a.yaml:1: train.epochs: unknown key; "),
        ("train.epochs: 2\n", "; dotted keys are for the command line, in a file blocks are nested"),
        (
            "train: {optimizer: {kind: adamw, momentum: 0.9}}\n",
            "a.yaml:1: train.optimizer.momentum: unknown key for kind adamw; "
            "allowed: kind, lr, betas, weight_decay, decay_bias",
        ),
        (
            "train: {optimizer: {kind: adam}}\n",
            "a.yaml:1: train.optimizer.kind: unknown choice (got the string 'adam'); "
            "allowed: sgd, adamw; did you mean 'adamw'?",
        ),
        (
            "data: {flip: doubel}\n",
            "a.yaml:1: data.flip: unknown choice (got the string 'doubel'); "
            "allowed: double, random, none; did you mean 'double'?",
        ),
        (
            "model: {backbone: {res5_stride: 3}}\n",
            "a.yaml:1: model.backbone.res5_stride: unknown choice (got 3); allowed: 1, 2",
        ),
        ("version: 2\n", "a.yaml:1: version: unknown choice (got 2); allowed: 1"),
        ("train: {batch_size: 0}\n", "train.batch_size: out of range (got 0); allowed: an integer > 0"),
        ("test: {nms_iou: 1.5}\n", "test.nms_iou: out of range (got 1.5); allowed: a number from 0 to 1"),
        (
            "train: {optimizer: {momentum: 1}}\n",
            "train.optimizer.momentum: out of range (got 1); allowed: a number >= 0 and < 1",
        ),
        ("train: {clip_norm: .inf}\n", "train.clip_norm: out of range (got inf); allowed: a number >= 0"),
        ("train: {clip_norm: .nan}\n", "train.clip_norm: out of range (got nan); allowed: a number >= 0"),
        ('seed: "3"\n', "a.yaml:1: seed: wrong value (got the string '3'); allowed: an integer >= 0 and < "),
        ("train: {batch_size: 2.0}\n", "train.batch_size: wrong value (got 2.0); allowed: an integer > 0"),
        ("train: {batch_size: true}\n", "train.batch_size: wrong value (got true); allowed: an integer > 0"),
        ("train: {clip_norm: true}\n", "train.clip_norm: wrong value (got true); allowed: a number >= 0"),
        (
            'train: {clip_norm: "1"}\n',
            "train.clip_norm: wrong value (got the string '1'); allowed: a number >= 0",
        ),
        ("train: {scale_lr: 1}\n", "train.scale_lr: wrong value (got 1); allowed: true or false"),
        (
            "train: {scale_lr: yes}\n",
            "wrong value (got the string 'yes'); allowed: true or false; did you mean 'true'?",
        ),
        ("train: {scale_lr: off}\n", "allowed: true or false; did you mean 'false'?"),
        ("data: {root: 3}\n", "data.root: wrong value (got 3); allowed: a non-empty string"),
        ("data: {root: ''}\n", "data.root: wrong length (got the string ''); allowed: a non-empty string"),
        ("data: {root:}\n", "data.root: wrong value (got null); allowed: a non-empty string"),
        ("train:\n", "a.yaml:1: train: wrong value (got null); allowed: a block of keys"),
        (
            "train: {optimizer: sgd}\n",
            "train.optimizer: wrong value (got the string 'sgd'); allowed: a block with kind: sgd or adamw",
        ),
        ("seed: {x: 1}\n", "seed: wrong value (got a block); allowed: an integer"),
        (
            "model: {backbone: {preprocess: {mean: [1, 2]}}}\n",
            "model.backbone.preprocess.mean: wrong length (got [1, 2]); allowed: a list of 3 numbers",
        ),
        (
            "model: {backbone: {preprocess: {std: [1, 2, 3, 4]}}}\n",
            "preprocess.std: wrong length (got [1, 2, 3, 4]); allowed: a list of 3 numbers > 0",
        ),
        (
            "model: {rpn: {anchors: {scales: []}}}\n",
            "model.rpn.anchors.scales: wrong length (got []); allowed: a non-empty list of numbers > 0",
        ),
        (
            "model:\n  rpn:\n    anchors:\n      scales:\n      - 4\n      - '8'\n",
            "a.yaml:6: model.rpn.anchors.scales.1: wrong value (got the string '8'); allowed: a number > 0",
        ),
        (
            "data: {classes: cat}\n",
            "wrong value (got the string 'cat'); allowed: a non-empty list of non-empty strings, or null",
        ),
        (
            "model: {backbone: {res5_dilation: [2, 2]}}\n",
            "model.backbone.res5_dilation: wrong value (got [2, 2]); "
            "allowed: an integer > 0, or a list of 3 integers > 0",
        ),
        (
            "model: {backbone: {deform: {offset_dilation: hots}}}\n",
            "allowed: host, or an integer > 0; did you mean 'host'?",
        ),
        (
            "device: gpu\n",
            "device: wrong value (got the string 'gpu'); allowed: auto, cpu, cuda, or a string matching",
        ),
        ("expected: [{metric: AP, value: 0.3}]\n", "expected.0.source: missing; give a non-empty string"),
        ("expected: [3]\n", "expected.0: wrong value (got 3); allowed: a block of keys"),
        (
            "expected: {metric: AP}\n",
            "expected: wrong value (got a block); allowed: a list of blocks with the keys metric",
        ),
        ("train: {best_metric: AP95}\n", "did you mean 'AP"),
    ],
)
def test_a_wrong_value_says_what_is_allowed(write, text, expected):
    message = error(write(text))
    assert expected in message
    assert message.startswith("a.yaml:")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "train: {epochs: 1, iterations: 2}\n",
            "a.yaml:1: train: give exactly one of iterations and epochs; remove the other or set it to null",
        ),
        ("train: {epochs: null}\n", "train: give exactly one of iterations and epochs"),
        (
            "data: {resize: {short_side: 1200}}\n",
            "data.resize: max_side 1000 is below short_side 1200; raise it",
        ),
        (
            "model: {rpn: {negative_iou: 0.8}}\n",
            "model.rpn: negative_iou 0.8 is above positive_iou 0.7; lower it",
        ),
        ("model: {rpn: {pre_nms: 100}}\n", "model.rpn: post_nms 300 is above pre_nms 100; lower it"),
        ("model: {head: {negative_iou: [0.5, 0.1]}}\n", "model.head: negative_iou [0.5, 0.1) is empty; "),
        ("model: {fpn: true}\n", "a.yaml:1: model: fpn goes with backbone.res5_stride 2 (and res5_dilation 1)"),
        (
            "model: {fpn: true, backbone: {res5_stride: 2, res5_dilation: 1}, rpn: {anchors: {base_size: 16}}}\n",
            "model: fpn goes with rpn.anchors.base_size 'stride', since every level has another",
        ),
        (
            "model: {kind: rfcn, head: {positive_fraction: 0.5}}\n",
            "model.head: positive_fraction has no use with ohem; set it to null, or ohem to false",
        ),
        (
            "model: {kind: class_aware_rpn, rpn: {negative_iou: 0.8}}\n",
            "model.rpn: negative_iou 0.8 is above positive_iou 0.7; lower it",
        ),
        (
            "model: {head: {positive_iou: 0.4}}\n",
            "model.head: negative_iou ends at 0.5, above positive_iou 0.4; ",
        ),
        ("train: {schedule: {drops: [0.9, 0.6]}}\n", "train.schedule: drops [0.9, 0.6] must increase"),
        ("data: {classes: [cat, dog, cat]}\n", "data: classes has 'cat' twice; name each category once"),
        (
            "model: {backbone: {res5_stride: 2}}\n",
            "model.backbone: res5_stride 2 goes with a stated res5_dilation (1 ",
        ),
    ],
)
def test_rules_between_keys_say_what_to_change(write, text, expected):
    message = error(write(text))
    assert expected in message
    assert message.startswith("a.yaml:1: ")


def test_a_stated_dilation_goes_with_any_stride(write):
    text = "model: {backbone: {res5_stride: 2, res5_dilation: 2}}\n"
    assert load_config(write(text)).model.backbone.res5_stride == 2


def test_all_problems_are_listed_each_with_its_place(write):
    write("train:\n  optimizer: {lr: -1}\n", "b.yaml")
    message = error(write("base: b.yaml\nseeds: 1\ntrain:\n  batch_size: x\n"), "test.nms_iou=2")
    assert sorted(line.partition(" (")[0].partition("; ")[0] for line in message.splitlines()) == [
        "a.yaml:2: seeds: unknown key",
        "a.yaml:4: train.batch_size: wrong value",
        "b.yaml:2: train.optimizer.lr: out of range",
        "override: test.nms_iou: out of range",
    ]


# Mistakes in overrides


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epochs", "override 'train.epochs': expected key=value, such as train.batch_size=2"),
        ("=3", "override '=3': expected key=value"),
        ("train..epochs=3", "override 'train..epochs=3': expected key=value"),
        ("train.epochs=[1", "override 'train.epochs=[1': not valid YAML: "),
        ("train={epochs: 1, epochs: 2}", "the key 'epochs' is given twice"),
        ("train.epoch=3", "override: train.epoch: unknown key; allowed: iterations, epochs, "),
        ("train.epoch=3", "; did you mean 'epochs'?"),
        ("epochs=3", "; did you mean 'train.epochs'?"),
        ("train.batch_size=two", "override: train.batch_size: wrong value (got the string 'two')"),
        ("train.batch_size=", "override: train.batch_size: wrong value (got null); allowed: an integer > 0"),
        ("seed.x=1", "override: seed: wrong value (got a block); allowed: an integer"),
        ("base=b.yaml", "override: base: unknown key"),
    ],
)
def test_a_wrong_override_says_so(write, override, expected):
    message = error(write("seed: 1\n"), override)
    assert expected in message
    assert "\n" not in message


def test_overrides_take_lists_blocks_and_text_with_equals_signs(write):
    config = load_config(
        write("seed: 1\n"),
        [
            "model.rpn.anchors.scales=[2, 4]",
            "data.resize={short_side: 100}",
            "data.root=/data/a=b",
            "data.resize.max_side=300",
            "seed=2",
            "seed=3",
        ],
    )
    assert config.model.rpn.anchors.scales == (2.0, 4.0)
    assert (config.data.resize.short_side, config.data.resize.max_side) == (100, 300)
    assert config.data.root == "/data/a=b"
    assert config.seed == 3
