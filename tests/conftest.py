import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of data too large or too encumbered to commit."""
    root = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("DCN_DET_SHARED", root.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"{folder} not found; set DCN_DET_SHARED")
    return folder
