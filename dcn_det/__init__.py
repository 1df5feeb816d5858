"""Object detection with deformable convolutional networks.

Load a trained detector and detect::

    import dcn_det

    predictor = dcn_det.load("runs/dcn/last.pth")
    detections = predictor("photo.jpg")
    picture = detections.above(0.5).draw("photo.jpg")

Train and test the detector that a config describes::

    run = dcn_det.train("configs/sample/faster_rcnn_dcn.yaml", output="runs/dcn")
    result = dcn_det.test("configs/sample/faster_rcnn_dcn.yaml", run.weights)

Importing the package is fast: the names below, and torch, are imported on first use. Operators are in
:mod:`dcn_det.ops`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dcn_det.config import (
        Config,
        load_config,
        register_backbone,
        register_detector,
        register_format,
        register_masks,
        register_segmenter,
    )
    from dcn_det.engine.testing import TestResult, load, test
    from dcn_det.engine.training import TrainingResult, train
    from dcn_det.errors import UserError
    from dcn_det.evaluation.measure import evaluate
    from dcn_det.evaluation.metrics import Metrics
    from dcn_det.inference.predictor import Predictor
    from dcn_det.models.build import build_detector
    from dcn_det.structures import Detection, Detections

__version__ = "0.1.0"

_HOMES = {
    "Config": "config",
    "Detection": "structures",
    "Detections": "structures",
    "Metrics": "evaluation.metrics",
    "Predictor": "inference.predictor",
    "TestResult": "engine.testing",
    "TrainingResult": "engine.training",
    "UserError": "errors",
    "build_detector": "models.build",
    "evaluate": "evaluation.measure",
    "load": "engine.testing",
    "load_config": "config",
    "register_backbone": "config",
    "register_detector": "config",
    "register_format": "config",
    "register_masks": "config",
    "register_segmenter": "config",
    "test": "engine.testing",
    "train": "engine.training",
}

__all__ = [
    "Config",
    "Detection",
    "Detections",
    "Metrics",
    "Predictor",
    "TestResult",
    "TrainingResult",
    "UserError",
    "build_detector",
    "evaluate",
    "load",
    "load_config",
    "register_backbone",
    "register_detector",
    "register_format",
    "register_masks",
    "register_segmenter",
    "test",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dcn_det' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"dcn_det.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
