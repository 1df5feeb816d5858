"""Every mistake in a config is one line that says where it is."""

from pathlib import Path

import pytest

from tests.config.helpers import error

# Files


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


# Values


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
        ("version: 3\n", "a.yaml:1: version: unknown choice (got 3); allowed: 2"),
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
        ("model: {fpn: true}\n", "a.yaml:1: model: fpn requires backbone.res5_stride 2 (and res5_dilation 1)"),
        (
            "model: {fpn: true, backbone: {res5_stride: 2, res5_dilation: 1}, rpn: {anchors: {base_size: 16}}}\n",
            "rpn.anchors.base_size 'stride'",
        ),
        (
            "model: {kind: rfcn, head: {positive_fraction: 0.5}}\n",
            "set it to null, or ohem to false",
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
            "explicit res5_dilation (1 ",
        ),
    ],
)
def test_rules_between_keys_say_what_to_change(write, text, expected):
    message = error(write(text))
    assert expected in message
    assert message.startswith("a.yaml:1: ")


def test_all_problems_are_listed_each_with_its_place(write):
    write("train:\n  optimizer: {lr: -1}\n", "b.yaml")
    message = error(write("base: b.yaml\nseeds: 1\ntrain:\n  batch_size: x\n"), "test.nms_iou=2")
    assert sorted(line.partition(" (")[0].partition("; ")[0] for line in message.splitlines()) == [
        "a.yaml:2: seeds: unknown key",
        "a.yaml:4: train.batch_size: wrong value",
        "b.yaml:2: train.optimizer.lr: out of range",
        "override: test.nms_iou: out of range",
    ]


# Overrides


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
