"""The commands in the Markdown files are those of the project, with configs and settings that exist."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from dcn_det.cli.completion import all_parsers
from dcn_det.config import load_any
from dcn_det.config.reference import blocks, words_by_key
from tests.commands import ROOT, check

FILES = sorted(
    path
    for path in (*ROOT.glob("*.md"), *ROOT.glob("*/**/*.md"), *ROOT.glob(".github/*.md"))
    if ".venv" not in path.parts
)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)[^)]*\)")


def commands(text: str) -> Iterator[str]:
    """The command lines that begin with ``dcn-det`` in the code blocks, fenced or indented."""
    for line in text.replace("\\\n", " ").splitlines():
        if re.match(r"(    |\$ )?dcn-det ", line):
            yield line.strip().removeprefix("$ ")


def lines() -> list[tuple[str, str]]:
    return [(str(path.relative_to(ROOT)), line) for path in FILES for line in commands(path.read_text())]


@pytest.fixture(scope="module")
def parsers() -> dict:
    return all_parsers()


@pytest.mark.parametrize(("file", "line"), lines())
def test_commands(file: str, line: str, parsers: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    check(parsers, shlex.split(line.partition(" > ")[0], comments=True)[1:])


def test_the_commands_of_all_files_are_found() -> None:
    assert {"README.md", "configs/README.md", "configs/MIGRATION.md", "datasets/README.md"} <= {
        file for file, _ in lines()
    }
    assert list(commands("text dcn-det x\n```bash\ndcn-det a \\\n  b\n```\n\n    dcn-det c\n`dcn-det d`\n")) == [
        "dcn-det a    b",
        "dcn-det c",
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(path: Path) -> None:
    for target in LINK.findall(path.read_text()):
        assert (path.parent / target).exists(), target


def test_keys_and_settings_in_the_migration_tables_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    known = {*words_by_key(), *blocks()}
    text = (ROOT / "configs" / "MIGRATION.md").read_text()
    found = re.findall(r"`((?:model|data|train|test|evaluation)(?:\.[a-z0-9_]+)+)(=[^`]*)?`", text)
    assert len(found) > 100 and {key for key, _ in found} <= known
    for key, value in found:
        if value:
            load_any("configs/coco/faster_rcnn_r101.yaml", "model.backbone.weights=none", f"{key}{value}")
