import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from dcn_det.data.sample import make_sample

ROOT = Path(__file__).resolve().parent.parent
TINY: dict[str, Any] = {
    "model": {
        "backbone": {
            "kind": "resnet18",
            "width": 8,
            "stem_width": 8,
            "norm": "gn",
            "frozen_stages": 0,
            "weights": "none",
            "deform": {"blocks": ["res5b"], "offset_groups": 2},
        },
        "rpn": {
            "channels": 16,
            "anchors": {"scales": [2, 4]},
            "batch_per_image": 16,
            "pre_nms": 100,
            "post_nms": 20,
        },
        "head": {"pooling": "deformable", "channels": 8, "hidden": 16, "batch_per_image": 16},
    },
    "data": {
        "kind": "sample",
        "train": {"images": "train", "annotations": "annotations/train.json"},
        "test": {"images": "val", "annotations": "annotations/val.json"},
        "resize": {"short_side": 96, "max_side": 96},
        "flip": "random",
        "workers": 0,
    },
    "train": {
        "iterations": 4,
        "batch_size": 2,
        "reference_batch": 2,
        "optimizer": {"lr": 0.0025},
        "warmup": {"iterations": 1},
        "log_every": 2,
        "checkpoint_every": 2,
    },
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects the tests marked ``overfit``, which take minutes, unless ``-m`` names that marker."""
    if "overfit" in config.getoption("-m"):
        return
    long = [item for item in items if item.get_closest_marker("overfit")]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if item not in long]


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the large fixtures that are not in the repository; skips the test if it does not exist."""
    folder = Path(os.environ.get("DCN_DET_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"shared data '{folder}' not found; set DCN_DET_SHARED")
    return folder


@pytest.fixture(scope="session")
def sample_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small version of the embedded data set: 12 training and 4 validation images."""
    return make_sample(tmp_path_factory.mktemp("data") / "sample", train_images=12, val_images=4)


@pytest.fixture(scope="session")
def tiny_settings(sample_root: Path) -> dict:
    """Settings of a config that trains in a second."""
    return TINY | {"data": TINY["data"] | {"root": str(sample_root)}}


@pytest.fixture
def tiny(tmp_path: Path, tiny_settings: dict) -> Path:
    """Config file that trains in a second."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_settings))
    return path
