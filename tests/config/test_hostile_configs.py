"""Damaged and hostile configs give settings or a clear error."""

import random
import shutil
from pathlib import Path

import pytest

from dcn_det.cli.config import main
from dcn_det.config import Config
from tests.conftest import ROOT
from tests.hostile import VALUES, assert_result_or_clear_error, mutated

CASES = 150
SOURCES = sorted((ROOT / "configs").rglob("*.yaml"))


def keys(section: type, prefix: str = "") -> list[str]:
    """Dotted keys of a section and its plain subsections."""
    found = []
    for name, field in section.model_fields.items():  # type: ignore[attr-defined]
        found.append(prefix + name)
        default = type(field.default)
        if hasattr(default, "model_fields"):
            found += keys(default, f"{prefix}{name}.")
    return found


KEYS = keys(Config)


def test_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in {source.parent for source in SOURCES}:  # bases are relative to a file
        shutil.copytree(folder, tmp_path / folder.name)
    codes = set()
    for seed in range(CASES):
        draw = random.Random(seed)
        source = draw.choice(SOURCES)
        path = tmp_path / source.parent.name / "mutated.yaml"
        path.write_bytes(mutated(source.read_bytes(), draw))
        codes.add(assert_result_or_clear_error(main, ["show", str(path)], capsys))
    assert codes == {0, 2}, "mutations must be neither harmless nor fatal throughout"


def test_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    codes = set()
    for seed in range(CASES):
        draw = random.Random(seed)
        overrides = []
        for _ in range(draw.randint(1, 3)):
            key = (
                draw.choice(KEYS) if draw.random() < 0.8 else draw.choice(("", ".", "a" * 2000, "train..lr", "overlay"))
            )
            overrides.append(f"{key}={draw.choice(VALUES)}")
        # The system refuses some of them as arguments.
        overrides = [text for text in overrides if "\0" not in text]
        codes.add(assert_result_or_clear_error(main, ["show", str(draw.choice(SOURCES)), *overrides], capsys))
    assert codes == {0, 2}


@pytest.mark.parametrize("name", ["/dev/null", "/", "/dev/zero", "/proc/self/mem", "x" * 5000, "a\nb\x1b[2J", ""])
def test_names_of_files(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert_result_or_clear_error(main, ["show", name], capsys)
