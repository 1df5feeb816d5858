from pathlib import Path

import pytest

from tests.config.helpers import Write


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a file of the working directory, so that messages show its bare name."""
    monkeypatch.chdir(tmp_path)

    def write(text: str | bytes, name: str = "a.yaml") -> Path:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write
