import math

import pytest

from dcn_det.config.train import StepScheduleConfig, TrainConfig, WarmupConfig
from dcn_det.engine import schedule
from dcn_det.engine.build import Length, build_schedule, drops, run_length
from tests.messages import refused

NO_WARMUP = WarmupConfig(kind="none")


def test_step_drops_at_shares_of_the_run() -> None:
    factor = build_schedule(TrainConfig(iterations=240_000, warmup=NO_WARMUP), Length(240_000, 1, 0, 1))
    assert factor(0) == factor(159_999) == 1.0
    assert factor(160_000) == factor(239_999) == pytest.approx(0.1)


def test_step_multiplies_at_each_drop() -> None:
    factor = schedule.step((90, 50), 0.1)
    assert [factor(i) for i in (49, 50, 89, 90)] == pytest.approx([1.0, 0.1, 0.1, 0.01])


def test_cosine_goes_from_one_to_final_and_stays() -> None:
    factor = schedule.cosine(10, 0.2)
    assert factor(0) == 1.0
    assert factor(5) == pytest.approx(0.6)
    assert factor(10) == factor(15) == pytest.approx(0.2)


def test_constant_warmup_is_flat_and_then_gone() -> None:
    factor = schedule.with_warmup(schedule.step((50,), 0.1), "constant", 10, 0.1)
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


DROPS = StepScheduleConfig(unit="iterations", drops=(160_000, 200_000.5))


@pytest.mark.parametrize("batch", [1, 2, 8, 16])
def test_a_schedule_holds_for_any_batch(batch: int) -> None:
    """1000 iterations of 8 images are the released code's 8000 with one GPU."""
    train = TrainConfig(iterations=240_000, schedule=DROPS, warmup=WarmupConfig(iterations=1000))
    length = run_length(train, 10, batch)
    assert (length.run * batch, length.warmup * batch) == (1_920_000, 8000)
    assert [each * batch for each in drops(DROPS, length)] == [1_280_000, pytest.approx(1_600_004, abs=batch)]
    factor = build_schedule(train, length)
    points = [0, 7_984, 8_000, 1_279_984, 1_280_000, 1_600_016]
    assert [factor(point // batch) for point in points] == pytest.approx([0.1, 0.1, 1, 1, 0.1, 0.01])


def test_epochs_are_not_scaled_but_their_warmup_is() -> None:
    train = TrainConfig(epochs=2, schedule=StepScheduleConfig(unit="epochs", drops=(1.5,)))
    for batch in (1, 8):
        length = run_length(train, 80_000 // batch, batch)
        assert (length.run * batch, length.warmup * batch) == (160_000, 8000)
        assert drops(StepScheduleConfig(unit="epochs", drops=(1.5,)), length) == [120_000 // batch]


def test_a_run_has_at_least_one_iteration() -> None:
    train = TrainConfig(iterations=1, warmup=WarmupConfig(iterations=1))
    assert run_length(train, 1, 64) == Length(1, 1, 0, 1 / 8)


@pytest.mark.parametrize(
    ("iterations", "batch", "warmup", "most"), [(999, 8, 1000, 99), (99, 1, 8000, 9), (3, 8, 1000, 1)]
)
def test_a_warmup_longer_than_the_run_is_refused(iterations: int, batch: int, warmup: int, most: int) -> None:
    train = TrainConfig(iterations=iterations)
    with refused("train.warmup.iterations", warmup, iterations * 8 // batch, most):
        run_length(train, 10, batch)
    for shorter in (WarmupConfig(iterations=most), NO_WARMUP, WarmupConfig(iterations=iterations)):
        length = run_length(train.model_copy(update={"warmup": shorter}), 10, batch)
        assert length.warmup <= length.run
