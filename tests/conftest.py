import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of large fixtures that are not part of the project."""
    folder = Path(os.environ.get("DCN_DET_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"shared data '{folder}' not found; set DCN_DET_SHARED")
    return folder
