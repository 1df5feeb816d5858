"""``dcn-det evaluate``: computes metrics of results files and compares them, also with a config's expected values."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dcn_det.cli.arguments import Parser
from dcn_det.config import Config, RunConfig, load_any
from dcn_det.config.testing import ExpectedConfig
from dcn_det.engine.task import Truth
from dcn_det.engine.tasks import task_of
from dcn_det.errors import UserError
from dcn_det.evaluation import truth as detection
from dcn_det.evaluation.expected import Comparison, applies, beside_expected
from dcn_det.evaluation.measure import CONFIG_SUFFIXES
from dcn_det.evaluation.metrics import Metrics, text
from dcn_det.files import write_json

MISSED = 1
"""Exit code if a metric misses its expected value."""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = Parser(
        prog="dcn-det evaluate",
        description="Compute the metrics of results files: COCO's 12, or those of the config's data format. Exits "
        "with 1 if a metric misses its expected value.",
        examples=[
            "dcn-det evaluate instances_val2017.json runs/a/test/detections.json",
            "dcn-det evaluate configs/sample/rfcn.yaml runs/rfcn/test/detections.json",
        ],
    )
    result.add_argument(
        "ground_truth", type=Path, help="annotations in COCO format (JSON), or a config (YAML) with a test split"
    )
    result.add_argument(
        "results",
        type=Path,
        nargs="+",
        help="detections in COCO format (JSON), or folders of result files of the data format or of masks",
    )
    result.add_argument("--config", type=Path, help="config with expected values and evaluation settings")
    result.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="setting that overrides the config"
    )
    result.add_argument("--iou-type", choices=("bbox", "segm"), help="of detections: boxes or masks (default: bbox)")
    result.add_argument(
        "--backend",
        choices=("auto", "hotcoco", "pycocotools"),
        help="evaluation backend of detections (default: that of the config)",
    )
    result.add_argument("--per-class", action="store_true", help="also print the AP of each class")
    result.add_argument("--json", type=Path, metavar="OUT", help="also write the metrics to this file")
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_args(argv)
    config, truth = read_ground_truth(args.ground_truth, args.config, args.set)
    task = task_of(config)
    options = {name: getattr(args, name) for name in ("backend", "iou_type") if getattr(args, name) is not None}
    names = short_names(args.results)
    found: dict[str, Metrics] = {}
    for name, path in zip(names, args.results):
        found[name] = task.measure(config, truth, path, **options)
    compared = {name: beside_expected(metrics, config.expected, truth.title) for name, metrics in found.items()}
    if len(found) == 1:
        print(found[names[0]].table(per_class=args.per_class))
        print(compared[names[0]].text, end="")
    else:
        print(side_by_side(found, config.expected, truth.title, args.per_class))
        print(missed_lines(compared), end="")
    if args.json:
        plain = {name: metrics.to_plain() for name, metrics in found.items()}
        write_json(args.json, plain if len(plain) > 1 else plain[names[0]])
    return MISSED if any(comparison.missed for comparison in compared.values()) else 0


def read_ground_truth(path: Path, config_path: Path | None, overrides: Sequence[str]) -> tuple[RunConfig, Truth]:
    """Reads the config (defaults if none is given) and the ground truth."""
    if path.suffix in CONFIG_SUFFIXES:
        if config_path is not None:
            raise UserError(
                "--config: the ground truth is already a config; omit --config, or give annotations as ground truth"
            )
        config = load_any(path, *overrides)
        return config, task_of(config).read_truth(config)
    if overrides and config_path is None:
        raise UserError("--set: requires a config, given as ground truth or with --config")
    return load_any(config_path, *overrides) if config_path else Config(), detection.Truth.of_file(path)


def short_names(paths: Sequence[Path]) -> list[str]:
    """Returns the shortest unique endings of the paths; numbers them if a path is repeated."""
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = [str(Path(*path.parts[-parts:])) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{path} ({number})" for number, path in enumerate(paths, start=1)]


def side_by_side(found: dict[str, Metrics], expected: Sequence[ExpectedConfig], split: str, per_class: bool) -> str:
    """Returns a table with one column per results file, and one for the expected values on each split."""
    every = list(found.values())
    columns = {name: [*map(str, m.totals.values()), *map(text, m.values.values())] for name, m in found.items()}
    rows = [*every[0].totals, *every[0].values]
    if per_class:
        rows += list(every[0].per_class)
        for name, metrics in found.items():
            columns[name] += map(text, metrics.per_class.values())
    for item in expected:
        name = "expected" if applies(item, split) else f"expected (other split: {item.split})"
        if item.metric in rows:
            columns.setdefault(name, [""] * len(rows))[rows.index(item.metric)] = f"{item.value:.3f}"
    first = max(map(len, rows))
    widths = {name: max(len(name), *map(len, column)) for name, column in columns.items()}
    lines = [f"{every[0].kind}: {every[0].compared} ({every[0].backend})"]
    lines += [f"{name}: {note}" for name, metrics in found.items() for note in metrics.notes]
    lines.append("  ".join([" " * first, *(f"{name:>{widths[name]}}" for name in columns)]))
    for index, row in enumerate(rows):
        lines.append("  ".join([f"{row:<{first}}", *(f"{columns[name][index]:>{widths[name]}}" for name in columns)]))
    return "\n".join(line.rstrip() for line in lines)


def missed_lines(compared: dict[str, Comparison]) -> str:
    return "".join(
        f"{name}: {line}\n" for name, each in compared.items() for line in each.text.splitlines() if "MISSED" in line
    )
