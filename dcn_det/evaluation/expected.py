"""Comparison of measured metrics with those that a config expects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dcn_det.config.testing import ExpectedConfig
from dcn_det.errors import UserError, did_you_mean
from dcn_det.evaluation.metrics import Metrics, text


@dataclass(frozen=True)
class Comparison:
    """Result of a comparison: a line per expected metric, and the names of the metrics outside their tolerance."""

    text: str
    missed: tuple[str, ...]


def beside_expected(metrics: Metrics, expected: Sequence[ExpectedConfig]) -> Comparison:
    """Compares measured metrics with those that a config expects.

    If several sources give a value for a metric, it has to match one of them. An undefined metric matches none.

    Raises:
        UserError: an expected metric is not among those measured.
    """
    lines: list[str] = []
    met: dict[str, bool] = {}
    for item in expected:
        if item.metric not in metrics.values:
            hint = did_you_mean(item.metric, metrics.values)
            raise UserError(f"expected: '{item.metric}' is none of the metrics {', '.join(metrics.values)}{hint}")
        value = metrics[item.metric]
        # Half a unit of the fourth decimal: bounds that are equal to the metric in four decimals are met.
        good = abs(value - item.value) <= item.tolerance + 5e-5
        met[item.metric] = met.get(item.metric, False) or good
        lines.append(
            f"{item.metric}: measured {text(value).strip()}, expected {item.value:.3f} +- {item.tolerance:.3f} "
            f"({item.source}){'' if good else '  MISSED'}\n"
        )
    return Comparison("".join(lines), tuple(name for name, good in met.items() if not good))
