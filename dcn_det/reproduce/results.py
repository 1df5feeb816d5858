"""Values that the results of steps hold."""

from __future__ import annotations

import json
import re
from pathlib import Path

from dcn_det.config import RunConfig
from dcn_det.config.data import COCO_METRICS
from dcn_det.reproduce.steps import Step
from dcn_det.reproduce.tables import Row

SERVER = "server.txt"
"""File in the folder of a tested row for what the test-dev server prints: COCO's summary of 12 lines."""


def submission(step: Step) -> Path | None:
    """Returns the file for the server that a test writes if its split has no annotations."""
    return step.output if step.output.suffix == ".zip" else None


def read_result(row: Row, step: Step) -> dict[str, float]:
    """Returns values by metric from the result of the last step of a row; empty if there are none."""
    kind = step.name.partition("/")[0]
    if kind == "time":
        return _read_benchmark(step.output)
    if kind == "peer":
        return _read_peer(step.output)
    if row.layer:
        return _read_dilation(step.output, row.layer)
    return _read_server(step.output.parent / SERVER) if submission(step) else _read_metrics(step.output)


def count_parameters(config: RunConfig) -> int:
    """Returns the number of parameters of a config's network."""
    import torch  # plans do without

    from dcn_det.models.build import build_model

    classes = config.data.num_classes
    assert classes is not None
    with torch.device("meta"):
        model = build_model(config, classes)
    return sum(parameter.numel() for parameter in model.parameters())


def _read_metrics(path: Path) -> dict[str, float]:
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))["metrics"]
        return {str(name): float(value) for name, value in plain.items() if value is not None}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _read_dilation(path: Path, layer: str) -> dict[str, float]:
    """Reads the effective dilation of a layer; places without filters are left out."""
    try:
        layers = json.loads(path.read_text(encoding="utf-8"))["layers"]
        (record,) = (each for each in layers if each["name"] == layer)
        places = {place: value for place, value in record.items() if isinstance(value, dict) and "filters" in value}
        found = {place: value["mean"] for place, value in places.items()}
        found |= {f"{place} std": value["std"] for place, value in places.items()}
        return {name: float(value) for name, value in found.items() if value is not None}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _read_server(path: Path) -> dict[str, float]:
    """Reads the summary that the server prints, whose 12 values are in a fixed order."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    values = re.findall(r"\(A[PR]\).*=\s*(-?[0-9.]+)\s*$", text, re.MULTILINE)
    return dict(zip(COCO_METRICS, map(float, values))) if len(values) == len(COCO_METRICS) else {}


def _read_benchmark(path: Path) -> dict[str, float]:
    """Reads the times of a detector in seconds, and its number of parameters as the paper counts it."""
    try:
        (run,) = json.loads(path.read_text(encoding="utf-8"))["runs"].values()
        parts = run["parameters"]
        counted = sum(parts.values()) - (parts.get("rpn", 0) if "head" in parts else 0)
        times = {name: run[name]["milliseconds"] / 1e3 for name in ("network", "testing")}
        return {"parameters": float(counted), **times}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _read_peer(path: Path) -> dict[str, float]:
    """Reads the metrics of torchvision's twin, its number of parameters, and the CPU time of its training."""
    try:
        (run,) = json.loads(path.read_text(encoding="utf-8"))["runs"]
        found = {name: float(value) for name, value in run["metrics"].items() if value is not None}
        return found | {"parameters": float(run["parameters"]), "cpu_seconds": float(run["train_cpu_seconds"])}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
