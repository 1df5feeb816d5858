"""Parts of the package import only from parts below them."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "dcn_det"
ORDER = (
    "errors",
    "console",
    "entry",
    "heap",
    "categories",
    "files",
    "exif",
    "config",
    "ops",
    "env",
    "images",
    "structures",
    "precision",
    "distributed",
    "progress",
    "download",
    "models",
    "data",
    "weights",
    "evaluation",
    "inference",
    "visualize",
    "engine",
    "reproduce",
    "mnist",
    "starting",
    "cli",
    "benchmark",
)
"""Lowest first. ``__init__`` and ``__main__`` are above all of them."""


def imported(source: str) -> Iterator[tuple[int, str]]:
    """Yields line and full name of every import from the package, including those inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.startswith("dcn_det."))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = str(node.module)
            if module == "dcn_det":
                yield from ((node.lineno, f"dcn_det.{alias.name}") for alias in node.names)
            elif module.startswith("dcn_det."):
                yield node.lineno, module


def part(name: str) -> str:
    return name.split(".")[1]


def upward(of: str, source: str) -> list[str]:
    """Returns the imports in a module of part ``of`` from parts above it."""
    return [
        f"line {line}: {of} imports {name}"
        for line, name in imported(source)
        if part(name) in ORDER and ORDER.index(part(name)) > ORDER.index(of)
    ]


@pytest.mark.parametrize("of", ORDER)
def test_a_part_imports_only_what_stands_below(of: str) -> None:
    files = [PACKAGE / f"{of}.py"] if (PACKAGE / f"{of}.py").exists() else sorted((PACKAGE / of).rglob("*.py"))
    assert files
    assert [f"{file.name} {each}" for file in files for each in upward(of, file.read_text())] == []


def test_every_part_has_its_place() -> None:
    parts = {path.stem for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert parts - {"__init__", "__main__"} == set(ORDER)


@pytest.mark.parametrize(
    "line",
    ["from dcn_det.engine.trainer import Trainer", "from dcn_det import engine", "import dcn_det.engine.trainer as t"],
)
def test_an_upward_import_is_found(line: str) -> None:
    assert upward("data", f"def f():\n    {line}\n") != []
    assert upward("cli", f"def f():\n    {line}\n") == []
