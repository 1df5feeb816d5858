from typing import Any

import pytest

from tests.weights.hostile import small_state


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Content of the checkpoint of a small detector."""
    return small_state(tmp_path_factory.mktemp("config"))
