"""The project's own configs: their folder, and what their first comments say."""

from __future__ import annotations

import re
from pathlib import Path

import dcn_det
from dcn_det.errors import UserError

SCHEMA = "schema.json"
"""File of the JSON schema in the folder of configs."""
REFERENCE = "REFERENCE.md"
"""File of the reference of all keys in the folder of configs."""
MODELINE = "# yaml-language-server: $schema="
"""Beginning of the first line of each config, which names the schema to editors."""


def configs_folder() -> Path:
    """Returns the project's folder of configs, relative to the working directory where possible.

    Raises:
        UserError: the package is installed without them.
    """
    folder = Path(dcn_det.__file__).resolve().parents[1] / "configs"
    if not (folder / "base").is_dir():
        raise UserError(f"'{folder}' not found; run dcn-det from a checkout of the project, which has the configs")
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def shipped(folder: Path) -> dict[str, list[Path]]:
    """Returns the config files below a folder by their subfolder, both sorted; ``base``, the blocks, comes last."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.yaml")):
        found.setdefault(path.parent.relative_to(folder).as_posix(), []).append(path)
    return dict(sorted(found.items(), key=lambda item: (item[0] == "base", item[0])))


def summary(text: str) -> str:
    """Returns the first sentence of the comment at the beginning of a config, without that for editors."""
    words = []
    for line in text.splitlines():
        if line.startswith(MODELINE):
            continue
        if not line.startswith("#"):
            break
        words.append(line.lstrip("# ").rstrip())
    return re.split(r"(?<=\.)\s", " ".join(words), maxsplit=1)[0]
