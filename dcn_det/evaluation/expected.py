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


def applies(item: ExpectedConfig, split: str) -> bool:
    """Returns whether results on a test split (``DataConfig.test_title``) can be compared with an expected value."""
    return item.split is None or item.split == split


def beside_expected(metrics: Metrics, expected: Sequence[ExpectedConfig], split: str) -> Comparison:
    """Compares measured metrics with those that a config expects on the same split; lists those on other splits.

    If several sources give a value for a metric, it has to match one of them. An undefined metric matches none.

    Args:
        metrics: the measured metrics.
        expected: the expected ones.
        split: the test split on which they were measured, see ``DataConfig.test_title``.

    Raises:
        UserError: a metric that is expected on this split is not among those measured.
    """
    lines: list[str] = []
    met: dict[str, bool] = {}
    for item in expected:
        value = metrics.values.get(item.metric)
        mark = ""
        if not applies(item, split):
            mark = f"  other split: {item.split}"
        elif value is None:
            hint = did_you_mean(item.metric, metrics.values)
            raise UserError(f"expected: '{item.metric}' is none of the metrics {', '.join(metrics.values)}{hint}")
        else:
            # Half a unit of the fourth decimal: bounds that are equal to the metric in four decimals are met.
            good = abs(value - item.value) <= item.tolerance + 5e-5
            met[item.metric] = met.get(item.metric, False) or good
            mark = "" if good else "  MISSED"
        measured = "not measured" if value is None else f"measured {text(value).strip()}"
        lines.append(
            f"{item.metric}: {measured}, expected {item.value:.3f} +- {item.tolerance:.3f} ({item.source}){mark}\n"
        )
    return Comparison("".join(lines), tuple(name for name, good in met.items() if not good))
