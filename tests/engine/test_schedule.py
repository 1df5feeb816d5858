import math

import pytest

from dcn_det.config.train import StepScheduleConfig, TrainConfig
from dcn_det.engine import schedule
from dcn_det.engine.build import build_schedule


def test_step_drops_at_shares_of_the_run() -> None:
    factor = schedule.step(240_000, (2 / 3,), 0.1)
    assert factor(0) == factor(159_999) == 1.0
    assert factor(160_000) == factor(239_999) == pytest.approx(0.1)


def test_step_multiplies_at_each_drop() -> None:
    factor = schedule.step(100, (0.9, 0.5), 0.1)
    assert [factor(i) for i in (49, 50, 89, 90)] == pytest.approx([1.0, 0.1, 0.1, 0.01])


def test_cosine_goes_from_one_to_final_and_stays() -> None:
    factor = schedule.cosine(10, 0.2)
    assert factor(0) == 1.0
    assert factor(5) == pytest.approx(0.6)
    assert factor(10) == factor(15) == pytest.approx(0.2)


def test_constant_warmup_is_flat_and_then_gone() -> None:
    factor = schedule.with_warmup(schedule.step(100, (0.5,), 0.1), "constant", 10, 0.1)
    assert [factor(i) for i in (0, 9, 10, 50)] == pytest.approx([0.1, 0.1, 1.0, 0.1])


def test_linear_warmup_rises_to_the_schedule() -> None:
    factor = schedule.with_warmup(schedule.cosine(100, 0.0), "linear", 10, 0.5)
    values = [factor(i) for i in range(11)]
    assert values[0] == pytest.approx(0.5)
    assert values == sorted(values)
    assert values[10] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.1)))


@pytest.mark.parametrize(("kind", "iterations"), [("none", 10), ("linear", 0)])
def test_no_warmup_leaves_the_schedule_alone(kind: str, iterations: int) -> None:
    main = schedule.cosine(10, 0.0)
    assert schedule.with_warmup(main, kind, iterations, 0.1) is main


@pytest.mark.parametrize(
    ("iterations", "length", "expected"),
    [(1000, 240_000, 1000), (410, 820, 410), (411, 820, 82), (1000, 820, 82), (50, 6, 1), (3, 1, 1), (0, 6, 0)],
)
def test_a_warmup_longer_than_half_of_the_run_is_shortened(iterations: int, length: int, expected: int) -> None:
    assert schedule.warmup_length(iterations, length) == expected


def test_most_of_a_short_run_has_the_full_rate() -> None:
    train = TrainConfig(iterations=820, schedule=StepScheduleConfig(drops=()))
    factor = build_schedule(train, 820, 82)
    assert [factor(i) for i in (0, 81, 82, 819)] == pytest.approx([0.1, 0.1, 1.0, 1.0])
