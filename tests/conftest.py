import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data, named by DCN_DET_SHARED; by default ``shared`` beside the checkout."""
    folder = Path(os.environ.get("DCN_DET_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"{folder} not found; set DCN_DET_SHARED")
    return folder
