import json
from pathlib import Path

import pytest

from dcn_det.cli import benchmark
from dcn_det.cli.benchmark import Bar, Case, at_most, faster, main, measure

QUICK = ["ops", "--only", "batched_nms", "--rounds", "1", "--seconds", "0.001"]


def test_bars_compare_ratios_of_medians() -> None:
    medians = {"ours": 2.0, "torchvision": 9.0, "plain": 1.0}
    assert faster("torchvision", 4.5).holds(medians)
    assert not faster("torchvision", 4.6).holds(medians)
    assert at_most("plain", 2.0).holds(medians)
    assert not at_most("plain", 1.9).holds(medians)
    assert Bar("torchvision", "plain", ">=", 1).ratio(medians) == 9.0


def test_contestants_take_turns() -> None:
    turns: list[str] = []
    works = {name: (lambda name=name: turns.append(name)) for name in ("ours", "theirs")}
    medians = measure(Case("job", 1, works, ()), rounds=3, seconds=1e-9)
    assert turns == ["ours", "ours", "theirs", "theirs", *["ours", "theirs"] * 3]
    assert medians.keys() == {"ours", "theirs"}


def test_the_table_says_pass_or_miss_and_can_be_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--save", str(tmp_path / "numbers.json")]) == 0
    text = capsys.readouterr().out
    assert "batched_nms 80 x 300" in text
    assert "pass" in text or "MISS" in text
    saved = json.loads((tmp_path / "numbers.json").read_text())
    assert saved["cases"][0]["median_ms"].keys() == {"ours", "torchvision"}


@pytest.mark.parametrize(("relation", "code"), [(">=", 0), ("<=", 1)])
def test_check_exits_with_one_when_a_bar_is_missed(monkeypatch: pytest.MonkeyPatch, relation: str, code: int) -> None:
    bar = Bar("ours", "ours", relation, 0.5)
    monkeypatch.setattr(benchmark, "nms_cases", lambda: [Case("batched_nms", 1, {"ours": lambda: None}, (bar,))])
    assert main([*QUICK, "--check"]) == code
