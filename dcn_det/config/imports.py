"""Modules that a config imports so that they register their kinds."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

from dcn_det.config.run import MODULE_NAME
from dcn_det.config.source import Item, label
from dcn_det.errors import UserError, did_you_mean


def import_modules(item: Item | None, folder: Path) -> None:
    """Imports the modules that a config lists under ``imports``; other values are left to the schema to refuse.

    The folder of a module is added to ``sys.path``, for its later imports and for worker processes.

    Args:
        item: the value of ``imports``.
        folder: folder to search after Python's path and before the working directory.

    Raises:
        UserError: a module does not exist or cannot be imported.
    """
    for entry in item.value if item is not None and isinstance(item.value, list) else ():
        if isinstance(entry.value, str) and re.match(MODULE_NAME, entry.value):
            _import(entry.value, entry.origin, folder)


def _import(name: str, origin: str, folder: Path) -> None:
    top = name.partition(".")[0]
    folders = [each.resolve() for each in (folder, Path.cwd())]
    for each in folders:
        if str(each) not in sys.path and ((each / f"{top}.py").is_file() or (each / top).is_dir()):
            sys.path.append(str(each))
    importlib.invalidate_caches()
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _failed(name, origin, error) from error
        near = [file.stem for each in folders for file in each.glob("*.py")]
        raise UserError(
            f"{origin}: imports: no module '{name}' on Python's path, in '{label(folder)}' or in the working directory"
            f"{did_you_mean(name, near)}"
        ) from None
    except Exception as error:  # a module of the user may raise any error
        raise _failed(name, origin, error) from error


def _failed(name: str, origin: str, error: Exception) -> UserError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return UserError(f"{origin}: imports: module '{name}' cannot be imported: {reason}")
