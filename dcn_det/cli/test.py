"""``tools/test.py``: what a trained detector finds in the test split, and how good that is."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcn_det.config import Config, load_config, to_plain
from dcn_det.data.build import build_dataset, build_eval_loader
from dcn_det.engine.build import PRECISIONS
from dcn_det.engine.testing import detect_all, say_on_stderr, say_sample_progress
from dcn_det.errors import UserError
from dcn_det.evaluation.coco import CocoMetrics, evaluate, load_ground_truth, write_json
from dcn_det.inference.predictor import Predictor, resolve_device
from dcn_det.models.build import build_detector
from dcn_det.structures import Category
from dcn_det.weights import checkpoint
from dcn_det.weights.settings import describe, differences, get, laid_over, of_checkpoint


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = argparse.ArgumentParser(
        prog="test", description="Writes detections.json and metrics.json for the test split of a config."
    )
    result.add_argument("config", type=Path, help="YAML file")
    result.add_argument("overrides", nargs="*", metavar="key=value", help="settings laid over the config")
    result.add_argument(
        "--weights", type=Path, required=True, help="checkpoint, from training or tools/convert_weights.py"
    )
    result.add_argument("--output", type=Path, help="folder of the results (default: test/ beside the weights)")
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_intermixed_args(argv)
    config = load_config(args.config, args.overrides)
    state = checkpoint.load(args.weights)
    config = with_settings_of_weights(config, state, args.weights)
    device = resolve_device(config.device)
    dataset = build_dataset(config.data, "test", config.test.resize, progress=say_sample_progress)
    trained = checkpoint.categories_from_plain(state["categories"])
    check_categories(trained, dataset.categories, args.weights, dataset.index.source)
    model = build_detector(config.model, len(trained), config.test, load_backbone_weights=False)
    checkpoint.load_weights(model, state["model"], args.weights)
    output: Path = args.output or args.weights.parent / "test"
    output.mkdir(parents=True, exist_ok=True)

    say_on_stderr(f"test on {dataset.index.report}")
    predictor = Predictor(
        model.to(device).eval(),
        trained,
        dataset.short_side,
        dataset.max_side,
        device,
        PRECISIONS[config.train.precision],
    )
    batches = build_eval_loader(dataset, config.data, config.test.batch_size, pin_memory=device.type == "cuda")
    results = detect_all(predictor, batches, len(dataset), say_on_stderr)
    write_json(output / "detections.json", results)
    print(f"detections: '{output / 'detections.json'}'")
    metrics = evaluate(load_ground_truth(dataset.index.source), results)
    write_json(output / "metrics.json", metrics.to_plain())
    print(metrics.table(per_class=True))
    print(beside_expected(metrics, config), end="")
    return 0


def with_settings_of_weights(config: Config, state: Mapping[str, Any], weights: Path) -> Config:
    """The config with the settings that belong to the weights, telling which of them it had otherwise.

    Raises:
        UserError: the weights are of another kind of detector or backbone.
    """
    plain = to_plain(config)
    for key in ("model.kind", "model.backbone.kind"):
        ours, theirs = get(plain, key), get(state["config"], key)
        if ours != theirs:
            raise UserError(f"checkpoint '{weights}' has {key} {theirs}, the config {ours}")
    belonging = of_checkpoint(state["config"])
    changed = differences(config, belonging)
    if changed:
        warnings.warn(f"'{weights}' was made with other settings, which count: {describe(changed)}", stacklevel=2)
    return laid_over(config, belonging, f"settings of '{weights}'")


def check_categories(trained: tuple[Category, ...], given: tuple[Category, ...], weights: Path, source: Path) -> None:
    """Raises a UserError unless the detector and the annotations have the same classes."""
    if trained == given:
        return
    ours, theirs = {c.name for c in trained}, {c.name for c in given}
    parts = [
        f"only in the checkpoint: {', '.join(sorted(ours - theirs)[:5])}" if ours - theirs else "",
        f"only in the annotations: {', '.join(sorted(theirs - ours)[:5])}" if theirs - ours else "",
    ]
    difference = "; ".join(part for part in parts if part) or "the same names under other ids"
    raise UserError(f"'{weights}' was trained for other classes than those of '{source}': {difference}")


def beside_expected(metrics: CocoMetrics, config: Config) -> str:
    """Lines with the numbers the config promises beside those measured; empty when it promises none."""
    lines = [
        f"{item.metric}: measured {metrics[item.metric]:.3f}, expected {item.value:.3f} "
        f"+- {item.tolerance:.3f} ({item.source})\n"
        for item in config.expected
    ]
    return "".join(lines)
