"""Writing and reading configs that are wrong."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dcn_det.config import load_config
from dcn_det.errors import UserError

Write = Callable[..., Path]


def error(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, *overrides)
    return str(caught.value)
