"""``tools/benchmark.py ops``: compares our operators with torchvision's and the plain convolution in one process."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dcn_det.benchmark.memory import CONTESTANTS, OUTPUT_MEGABYTES, extra_megabytes
from dcn_det.benchmark.op_cases import GROUPS
from dcn_det.benchmark.timing import COMPARE, ON_GPU, Case, measure, measure_peaks
from dcn_det.cli.arguments import Parser, positive, seconds
from dcn_det.env import machine
from dcn_det.errors import UserError
from dcn_det.files import write_json, write_text

MEMORY_CASE = "deform_conv2d 38x63, forward, extra memory"
MEMORY_LIMIT = 20.0


@dataclass(frozen=True)
class Verdict:
    """A measured number and the bar it must reach, if any."""

    label: str
    value: float
    relation: str = ""
    limit: float = 0.0

    @property
    def good(self) -> bool:
        return not self.relation or bool(COMPARE[self.relation](self.value, self.limit))

    def __str__(self) -> str:
        text = f"{self.label} {self.value:.2f}"
        return f"{text} ({self.relation} {self.limit:g}) {'pass' if self.good else 'MISS'}" if self.relation else text


@dataclass(frozen=True)
class Row:
    """A row of the table; ``values`` are medians of the contestants, in ``unit``."""

    case: str
    threads: int
    unit: str
    values: dict[str, float]
    verdicts: list[Verdict]

    def cells(self) -> list[str]:
        numbers = {name: f"{value:.0f}" if value >= 100 else f"{value:.3g}" for name, value in self.values.items()}
        others = [f"{name} {number}" for name, number in numbers.items() if name != "ours"]
        threads = str(self.threads) if self.threads != ON_GPU else "-"
        return [
            self.case,
            threads,
            f"{numbers['ours']} {self.unit}",
            ", ".join(others),
            "; ".join(map(str, self.verdicts)),
        ]


HEAD = ["case", "threads", "ours", "others", "ratio of medians (bar)"]


def verdicts_of(case: Case, threads: int, medians: dict[str, float], peaks: dict[str, float]) -> list[Verdict]:
    """Returns ratios with bars, then ratios to the other contestants, then fractions of the machine's peaks."""
    bars = case.bars.get(threads, ())
    verdicts = [Verdict(f"{bar.of}/{bar.over}", bar.ratio(medians), bar.relation, bar.limit) for bar in bars]
    compared = {name for bar in bars for name in (bar.of, bar.over)}
    for name in medians:
        if name not in compared and name != "ours":
            verdicts.append(Verdict(f"{name}/ours", medians[name] / medians["ours"]))
    seconds = medians["ours"] / 1e3
    if peaks and case.flops:
        peak = peaks["bfloat16" if "bfloat16" in case.name else "float32"]
        verdicts.append(Verdict("fraction of the matrix peak", case.flops / seconds / peak))
    if peaks and case.bytes:
        verdicts.append(Verdict("fraction of the copy bandwidth", case.bytes / seconds / peaks["copy"]))
    return verdicts


def timed_rows(args: argparse.Namespace, peaks: dict[str, float]) -> Iterator[Row]:
    """Measures every selected case with every number of threads."""
    before = torch.get_num_threads()
    try:
        for cases in GROUPS:
            for case in cases(args.device):
                if args.only not in case.name:
                    continue
                for threads in args.threads if args.device == "cpu" else (ON_GPU,):
                    torch.set_num_threads(threads or before)
                    medians = measure(case.works, args.rounds, args.seconds, args.device)
                    verdicts = verdicts_of(case, threads, medians, peaks)
                    yield Row(case.name, threads, "ms", medians, verdicts)
    finally:
        torch.set_num_threads(before)


def memory_rows(args: argparse.Namespace) -> Iterator[Row]:
    """Measures the memory that a forward pass adds to a process; yields nothing where it cannot be measured."""
    if args.device != "cpu" or args.only not in MEMORY_CASE:
        return
    measured = {name: extra_megabytes(name) for name in CONTESTANTS}
    values = {name: value for name, value in measured.items() if value is not None}
    if len(values) < len(measured):
        print(f"{MEMORY_CASE}: not measured; it needs Linux's /proc/self/clear_refs")
        return
    verdicts = [Verdict("ours in MB", values["ours"], "<=", MEMORY_LIMIT)]
    verdicts.append(Verdict("without the output", values["ours"] - OUTPUT_MEGABYTES))
    yield Row(MEMORY_CASE, 2, "MB", values, verdicts)


def markdown(rows: list[Row]) -> str:
    """Returns the table in Markdown."""
    return _markdown_table(HEAD, [row.cells() for row in rows])


def _markdown_table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def parser() -> argparse.ArgumentParser:
    """Returns the command's parser."""
    result = Parser(
        prog="dcn-det benchmark ops",
        description="Time the operators next to torchvision's and to the plain convolution, in turns in one process.",
        examples=[
            "dcn-det benchmark ops --only forward+backward --markdown ops.md",
            "dcn-det benchmark ops --show tools/benchmarks/h200_ops.json",
        ],
    )
    result.add_argument(
        "--device", choices=["cpu", "cuda"], default="cpu", help="where to measure (default: %(default)s)"
    )
    result.add_argument("--threads", type=positive, nargs="+", default=[1, 2], help="CPU threads (default: 1 2)")
    result.add_argument("--tf32", action="store_true", help="allow TF32 products for all contestants on a GPU")
    result.add_argument("--only", default="", help="measure only cases whose name contains this")
    result.add_argument("--rounds", type=positive, default=7, help="turns per contestant (default: %(default)s)")
    result.add_argument("--seconds", type=seconds, default=0.2, help="length of a turn (default: %(default)s)")
    result.add_argument("--markdown", type=Path, help="write the table as Markdown")
    result.add_argument("--save", type=Path, help="write the numbers as JSON")
    result.add_argument("--show", type=Path, help="print a table of a file written by --save, and measure nothing")
    result.add_argument("--check", action="store_true", help="exit with 1 if a bar is missed")
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_args(argv)
    if args.show:
        print(saved_table(args.show, args.only))
        return 0
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device is cuda; expected cpu, as no CUDA device is available")
    if min(*args.threads, args.rounds, 1) < 1 or not 0 < args.seconds < 3600:
        raise UserError("--threads and --rounds must be at least 1, --seconds positive")
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.tf32
    facts = machine(args.device)
    print(", ".join(f"{name} {value}" for name, value in facts.items() if not isinstance(value, dict)))
    peaks = measure_peaks(args.device, args.rounds, args.seconds) if args.device == "cuda" else {}
    rows: list[Row] = []
    try:
        for source in (timed_rows(args, peaks), memory_rows(args)):
            for row in source:
                rows.append(row)
                case, threads, ours, others, verdicts = row.cells()
                print(f"{case:<58} {threads:>2} {ours:>9}  {others}\n{'':>10}{verdicts}", flush=True)
    finally:  # an interrupted run keeps what it measured
        if args.markdown:
            write_text(args.markdown, markdown(rows) + "\n")
        if args.save:
            write_json(args.save, facts | {"peaks": peaks, "rows": [_record(row) for row in rows]})
    missed = sum(not verdict.good for row in rows for verdict in row.verdicts)
    print(f"{len(rows)} rows, {missed} bars missed")
    return 1 if args.check and missed else 0


def saved_table(path: Path, only: str = "") -> str:
    """Returns a comparison with torchvision, in Markdown, of a file written by ``--save``.

    Args:
        path: the file.
        only: part of the names of the cases to show.

    Raises:
        UserError: the file is missing or is none of these.
    """
    try:
        saved = json.loads(path.read_text())
        versions = saved["versions"]
        lines = []
        for row in saved["rows"]:
            values = row["values"]
            if only in row["case"] and "torchvision" in values:
                times = [f"{values[name]:.3g} {row['unit']}" for name in ("ours", "torchvision")]
                lines.append([row["case"], *times, f"{values['torchvision'] / values['ours']:.2f}"])
        facts = (
            f"{saved.get('gpu', saved['cpu'])}, {saved['date'][:10]}, torch {versions['torch']}, "
            f"torchvision {versions['torchvision']}:"
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--show: cannot read '{path}': {error}; expected a file written by --save") from error
    return f"{facts}\n\n" + _markdown_table(["case", "ours", "torchvision", "torchvision / ours"], lines)


def _record(row: Row) -> dict[str, Any]:
    return {
        "case": row.case,
        "threads": row.threads,
        "unit": row.unit,
        "values": row.values,
        "ratios": {verdict.label: verdict.value for verdict in row.verdicts},
        "bars": {v.label: f"{v.relation} {v.limit:g}" for v in row.verdicts if v.relation},
        "missed": [verdict.label for verdict in row.verdicts if not verdict.good],
    }
