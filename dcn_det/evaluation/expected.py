"""The numbers a config promises beside those measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dcn_det.config.testing import ExpectedConfig
from dcn_det.errors import UserError, did_you_mean
from dcn_det.evaluation.metrics import Metrics, text


@dataclass(frozen=True)
class Comparison:
    """Lines for people, empty when nothing is promised, and the metrics that miss their tolerance."""

    text: str
    missed: tuple[str, ...]


def beside_expected(metrics: Metrics, expected: Sequence[ExpectedConfig]) -> Comparison:
    """Compares what was measured with what a config promises.

    A metric that is promised by several sources has to meet one of them; an undefined metric meets none.

    Raises:
        UserError: a metric is promised that this evaluation does not give.
    """
    lines: list[str] = []
    met: dict[str, bool] = {}
    for item in expected:
        if item.metric not in metrics.values:
            hint = did_you_mean(item.metric, metrics.values)
            raise UserError(f"expected: '{item.metric}' is none of the metrics {', '.join(metrics.values)}{hint}")
        value = metrics[item.metric]
        # Half a unit of the fourth decimal, so that a bound that is met to the printed digits is met.
        good = abs(value - item.value) <= item.tolerance + 5e-5
        met[item.metric] = met.get(item.metric, False) or good
        lines.append(
            f"{item.metric}: measured {text(value).strip()}, expected {item.value:.3f} +- {item.tolerance:.3f} "
            f"({item.source}){'' if good else '  MISSED'}\n"
        )
    return Comparison("".join(lines), tuple(name for name, good in met.items() if not good))
