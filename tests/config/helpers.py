"""Writing and reading configs that are wrong."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from dcn_det.config import load_config
from dcn_det.errors import UserError

Write = Callable[..., Path]


def error(path: Path, *overrides: str | Mapping[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, *overrides)
    return str(caught.value)
