"""A printed config shows where each value was set and is read back as the same config."""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from dcn_det.config import (
    Config,
    from_plain,
    load_config,
    print_config,
    to_plain,
)
from dcn_det.config.data import CocoDataConfig
from dcn_det.config.load import leaves

text = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=30)
awkward = st.sampled_from(
    ["null", "~", "1e-3", "-1.", "yes", "no # comment", "a: b", " x ", "[", "a,b", "é", "\x85\n", "'\""]
)
share = st.floats(0, 1)
VALUES = {
    "name": (text | awkward).filter(lambda name: not set(name) & set("./")),
    "data.root": text | awkward,
    "data.classes": st.lists(text | awkward, min_size=1, max_size=4, unique=True),
    "data.workers": st.integers(0, 512),
    "data.aspect_grouping": st.booleans(),
    "data.resize": st.just({"short_side": 5, "max_side": 6}),
    "train.clip_norm": st.floats(0, 1e30),
    "train.optimizer": st.just({"kind": "adamw", "betas": [0.5, 0.25]}),
    "train.iterations": st.integers(1, 10**9),
    "test.resize": st.none() | st.just({"short_side": 7}),
    "test.score_threshold": share,
    "model.rpn.anchors.ratios": st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=5),
    "model.backbone.deform.blocks": st.lists(awkward, max_size=4),
    "model.backbone.res5_dilation": st.integers(1, 9) | st.just([2, 4, 8]),
    "model.backbone.deform.offset_dilation": st.just("host") | st.integers(1, 4),
    "expected": st.lists(
        st.fixed_dictionaries({"metric": st.just("AP"), "value": share, "source": text | awkward}), max_size=3
    ),
}

PLACED = {
    "name": "mine",
    "seed": 3,
    "data.classes": ["cat", "dog"],
    "data.resize.short_side": 5,
    "train.clip_norm": 1.5,
    "train.optimizer.lr": 0.5,
    "train.optimizer.momentum": 0.5,
    "train.iterations": 7,
    "test.nms_iou": 0.5,
    "model.rpn.anchors.ratios": [1, 2],
    "model.backbone.res5_dilation": [2, 4, 8],
}


@st.composite
def chosen(draw: st.DrawFn) -> dict[str, object]:
    """Some settings by dotted key, with values."""
    keys = draw(st.lists(st.sampled_from(sorted(VALUES)), unique=True))
    return {key: draw(VALUES[key]) for key in keys}


def nested(flat: dict[str, object]) -> dict:
    root: dict = {}
    for key, value in flat.items():
        block = root
        *parents, last = key.split(".")
        for parent in parents:
            block = block.setdefault(parent, {})
        block[last] = value
    return root


@hypothesis(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flat=chosen())
def test_printing_and_reading_gives_the_same_config(tmp_path: Path, flat: dict[str, object]) -> None:
    config = from_plain({"name": "x"} | nested(flat))
    path = tmp_path / "a.yaml"
    for shown in (print_config(config), print_config(config, comments=False)):
        path.write_bytes(shown.encode())
        assert load_config(path) == config
    assert from_plain(json.loads(json.dumps(to_plain(config)))) == config


@given(st.sets(st.sampled_from(sorted(PLACED))), st.sets(st.sampled_from(sorted(PLACED))))
@hypothesis(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_value_has_its_origin(tmp_path: Path, in_file: set[str], overridden: set[str]) -> None:
    path = tmp_path / "a.yaml"
    settings = json.dumps(nested({key: PLACED[key] for key in sorted(in_file)}))
    path.write_text('{"version": 2,\n' + settings[1:])
    overrides = [f"{key}={json.dumps(PLACED[key])}" for key in sorted(overridden)]
    config = load_config(path, *overrides)
    assert set(config.origins) == {".".join(map(str, key)) for key, _ in leaves(to_plain(config))}
    for leaf, origin in config.origins.items():
        if leaf in overridden:
            assert origin == "override"
        elif leaf in in_file:
            assert origin == f"{path}:2"
        else:
            assert origin == (f"{path}:1" if leaf == "version" else "default")


def test_every_line_with_a_value_ends_with_its_origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("seed: 4\nexpected:\n- {metric: AP, value: 0.3, source: here}\n")
    config = load_config("a.yaml", "train.batch_size=2")
    lines = print_config(config).splitlines()
    by_start = {line.partition("  #")[0].rstrip(): line for line in lines}
    assert by_start["seed: 4"].endswith("  # a.yaml:1")
    assert by_start["  - metric: AP"].endswith("  # a.yaml:3")
    assert by_start["    source: here"].endswith("  # a.yaml:3")
    assert by_start["  batch_size: 2"].endswith("  # override")
    assert by_start["  precision: float32"].endswith("  # default")
    for line in lines:
        assert line.endswith(":") != ("  # " in line)
    assert len({line.index("  # ") for line in lines if "  # " in line}) == 1
    assert "#" not in print_config(config, comments=False)
    assert "#" not in print_config(config.with_origins({}))


def test_a_line_that_is_too_long_does_not_push_the_comments_away(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(json.dumps({"data": {"classes": [f"class{i}" for i in range(80)]}}))
    lines = print_config(load_config(path)).splitlines()
    long = next(line for line in lines if line.lstrip().startswith("classes:"))
    assert long.endswith(f"]  # {path}:1")
    assert max(line.index("  # ") for line in lines if "  # " in line and line != long) <= 64


def test_a_yaml_1_1_reader_sees_the_same_values() -> None:
    config = Config(name="no", data=CocoDataConfig(root="1e-3", classes=("yes", "on", "null", "012")))
    assert yaml.safe_load(print_config(config)) == to_plain(config)
