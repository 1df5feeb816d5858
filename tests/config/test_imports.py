"""``imports`` of a config name modules that register kinds."""

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from dcn_det.config import BACKBONES, from_plain, load_config, to_plain
from dcn_det.errors import UserError
from tests.config.helpers import error

MODULE = """
from typing import Literal
from dcn_det.config import register_backbone
from dcn_det.config.model import BackboneConfig

class {0}Config(BackboneConfig):
    kind: Literal["{0}"] = "{0}"
    size: int = 1

register_backbone("{0}", {0}Config, "{0}_module:build")

def build(section):
    return section.size
"""


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules, folders and kinds of one test are not there in the next."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules), set(BACKBONES.sections)
    yield
    for name in set(sys.modules) - before[0]:
        if name.partition("_")[0] in ("first", "second", "broken", "inner"):
            del sys.modules[name]
    for name in set(BACKBONES.sections) - before[1]:
        BACKBONES.unregister(name)


def test_a_module_registers_what_the_file_names(write):
    write(MODULE.format("first"), "first_module.py")
    path = write("imports: [first_module]\nmodel: {backbone: {kind: first, size: 3}}\n")
    config = load_config(path)
    assert config.imports == ("first_module",)
    assert BACKBONES.builder("first")(config.model.backbone) == 3
    assert load_config(path) == config


def test_a_module_lies_beside_the_config(write):
    write(MODULE.format("first"), "folder/first_module.py")
    path = write("imports: [first_module]\nmodel: {backbone: {kind: first}}\n", "folder/a.yaml")
    assert load_config(path).model.backbone.kind == "first"


def test_a_module_may_be_part_of_a_package(write):
    write("", "inner_package/__init__.py")
    write(MODULE.format("first"), "inner_package/kinds.py")
    assert load_config(write("imports: [inner_package.kinds]\nmodel: {backbone: {kind: first}}\n")).imports


def test_imports_add_up_over_bases_overlays_and_overrides(write):
    for name in ("first", "second"):
        write(MODULE.format(name), f"{name}_module.py")
    write("imports: [first_module]\nmodel: {backbone: {kind: first, size: 2}}\n", "b.yaml")
    config = load_config(write("base: b.yaml\nimports: [second_module, first_module]\n"))
    assert config.imports == ("first_module", "second_module")
    backbone: Any = config.model.backbone
    assert backbone.size == 2
    plain = write("seed: 1\n", "c.yaml")
    config = load_config(plain, "overlay=b.yaml", "imports=[second_module]", "model.backbone.kind=second")
    assert config.imports == ("first_module", "second_module")
    assert config.model.backbone.kind == "second"


def test_the_module_comes_before_the_kinds_of_blocks_are_merged(write):
    write(MODULE.format("first"), "first_module.py")
    write("model: {backbone: {width: 3, preprocess: {mean: [1, 2, 3]}}}\n", "b.yaml")
    backbone = load_config(write("base: b.yaml\nimports: [first_module]\nmodel: {backbone: {kind: first}}\n"))
    assert backbone.model.backbone.preprocess.mean == (1, 2, 3)


def test_a_missing_module_names_its_place_and_the_nearest(write):
    write("", "first_module.py")
    message = error(write("seed: 1\nimports:\n- sys\n- first_modul\n"))
    assert message.startswith("a.yaml:4: imports: ") and "'first_modul'" in message
    assert message.endswith("did you mean 'first_module'?")
    assert "\n" not in message
    write("import no_such_module_at_all\n", "broken_module.py")
    message = error(write("imports: [broken_module]\n"))
    assert message.startswith("a.yaml:1: imports: ") and "'broken_module'" in message
    assert "no_such_module_at_all" in message and "did you mean" not in message


@pytest.mark.parametrize("text", ["1 / 0\n", "def f(:\n", "raise ValueError('two\\nlines')\n"])
def test_a_module_that_raises_is_one_line(write, text):
    write(text, "broken_module.py")
    write("imports: [broken_module]\n", "b.yaml")
    message = error(write("base: b.yaml\n"))
    assert message.startswith("b.yaml:1: imports: ") and "'broken_module'" in message
    assert "\n" not in message


def test_a_taken_name_is_told_with_its_module(write):
    write(MODULE.format("first"), "first_module.py")
    write(MODULE.format("first").replace("first_module", "second_module"), "second_module.py")
    message = error(write("imports: [first_module, second_module]\n"))
    assert message.startswith("a.yaml:1: imports: ") and "'second_module'" in message and "'first'" in message


@pytest.mark.parametrize("value", ["first_module", "[../first.py]", "[first-module]", "[3]", "{a: b}", "['a.']"])
def test_imports_is_a_list_of_module_names(write, value):
    message = error(write(f"imports: {value}\n"))
    assert message.startswith("a.yaml:1: imports") and "allowed: a" in message


def test_stored_settings_import_nothing(write):
    write(MODULE.format("first"), "first_module.py")
    plain = to_plain(load_config(write("imports: [first_module]\nmodel: {backbone: {kind: first}}\n")))
    assert from_plain(plain).model.backbone.kind == "first"
    BACKBONES.unregister("first")
    del sys.modules["first_module"]
    with pytest.raises(UserError, match=r"^w\.pth: model\.backbone\.kind: .*'first'.*allowed: resnet18.*first_module"):
        from_plain(plain, "w.pth")
    assert "first_module" not in sys.modules
    plain["imports"] = []
    with pytest.raises(UserError) as caught:
        from_plain(plain, "w.pth")
    assert "import" not in str(caught.value)
