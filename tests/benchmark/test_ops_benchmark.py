import json
import re
from pathlib import Path

import pytest
import torch

from dcn_det.benchmark import op_cases, ops
from dcn_det.benchmark.memory import OUTPUT_MEGABYTES, extra_megabytes
from dcn_det.benchmark.ops import MEMORY_CASE, main, saved_table, verdicts_of
from dcn_det.benchmark.timing import (
    ON_GPU,
    Bar,
    Case,
    at_most,
    backward_only,
    faster,
    measure,
    measure_peaks,
    with_backward,
)
from dcn_det.errors import UserError

QUICK = ["--only", "batched_nms", "--rounds", "1", "--seconds", "0.001"]


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
    medians = measure(works, rounds=3, seconds=1e-9)
    assert turns == ["ours", "ours", "theirs", "theirs", *["ours", "theirs"] * 3]
    assert medians.keys() == {"ours", "theirs"}


def test_backward_alone_runs_forward_once() -> None:
    calls: list[str] = []
    leaf = torch.ones(3, requires_grad=True)

    def forward() -> torch.Tensor:
        calls.append("forward")
        leaf_square = leaf.square()
        leaf_square.register_hook(lambda _: calls.append("backward"))
        return leaf_square

    for make, expected in (
        (backward_only, ["forward", *["backward"] * 3]),
        (with_backward, ["forward", "backward"] * 3),
    ):
        calls.clear()
        work = make(forward, [leaf])
        for _ in range(3):
            work()
        assert calls == expected


def test_verdicts_name_bars_ratios_and_parts_of_the_peaks() -> None:
    bars = {2: (faster("torchvision", 4),), ON_GPU: (at_most("plain", 1.6),)}
    case = Case("job", {}, bars, flops=6e9, bytes=1e9)
    medians = {"ours": 2.0, "torchvision": 6.0, "plain": 1.0}
    peaks = {"float32": 6e12, "bfloat16": 1e13, "copy": 1e12}
    on_cpu = [str(verdict) for verdict in verdicts_of(case, 2, medians, {})]
    assert on_cpu == ["torchvision/ours 3.00 (>= 4) MISS", "plain/ours 0.50"]
    assert [verdict.good for verdict in verdicts_of(case, 1, medians, {})] == [True, True]
    on_gpu = [str(verdict) for verdict in verdicts_of(case, ON_GPU, medians, peaks)]
    assert on_gpu == [
        "ours/plain 2.00 (<= 1.6) MISS",
        "torchvision/ours 3.00",
        "fraction of the matrix peak 0.50",
        "fraction of the copy bandwidth 0.50",
    ]


def test_peaks_are_rates() -> None:
    peaks = measure_peaks("cpu", 1, 1e-9)
    assert peaks.keys() == {"float32", "bfloat16", "copy"}
    assert 1e7 < peaks["float32"] < 1e15 and 1e7 < peaks["copy"] < 1e14


BARS: dict[str, dict[int, list[float]]] = {
    "deform_conv2d 38x63, forward": {2: [3.4, 1.25]},
    "deform_conv2d 38x63, forward+backward": {1: [3.8], 2: [6, 1.35]},
    "deform_conv2d 38x63, bfloat16, forward": {2: [0.65]},
    "deform_conv2d 50x84, forward": {2: [3.4, 1.25]},
    "deform_psroi_pool 81x49 per class, forward": {2: [12]},
    "deform_psroi_pool 81x49 per class, forward+backward": {2: [10], ON_GPU: [5]},
    "deform_psroi_pool 81x49 shared, forward": {2: [60]},
    "deform_psroi_pool 256 channels, forward+backward": {2: [40]},
    "psroi_pool 81x49, backward": {2: [4]},
    "roi_pool 256 channels, forward": {2: [4]},
    "nms 6000": {2: [20]},
    "nms 12000": {2: [35]},
    "batched_nms 80 x 300": {2: [12]},
}


def test_every_case_is_there_with_its_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op_cases, "CHANNELS", 8)  # only the bars matter
    found = {case.name: case for cases in op_cases.GROUPS for case in cases("cpu")}
    assert "deform_conv2d 38x63, 1 offset group, forward+backward" in found
    for name, bars in BARS.items():
        limits = {threads: [bar.limit for bar in wanted] for threads, wanted in found[name].bars.items()}
        assert {threads: limits[threads] for threads in bars} == bars


def test_contestants_of_a_convolution_do_the_same_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op_cases, "CHANNELS", 8)
    for case in op_cases.conv_cases("cpu"):
        if "forward" in case.name.rpartition(",")[2] and "backward" not in case.name:
            results = {name: work() for name, work in case.works.items()}
            rival = "torchvision" if "torchvision" in results else "float32"
            tolerance = 1e-4 if rival == "torchvision" else 0.1
            torch.testing.assert_close(results["ours"].float(), results[rival], rtol=tolerance, atol=tolerance)


def test_memory_of_a_plain_convolution_holds_its_output() -> None:
    measured = extra_megabytes("plain", processes=1)
    if measured is None:
        pytest.skip("/proc/self/clear_refs cannot be written")
    assert OUTPUT_MEGABYTES <= measured < 200


def test_the_table_says_pass_or_miss_and_can_be_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    json_file, table = tmp_path / "numbers.json", tmp_path / "table.md"
    assert main([*QUICK, "--save", str(json_file), "--markdown", str(table)]) == 0
    text = capsys.readouterr().out
    assert text.count("batched_nms 80 x 300") == 2  # with one thread and with two
    assert "pass" in text or "MISS" in text
    saved = json.loads(json_file.read_text())
    assert [row["threads"] for row in saved["rows"]] == [1, 2]
    assert saved["rows"][1]["values"].keys() == {"ours", "torchvision"}
    assert saved["rows"][1]["bars"] == {"torchvision/ours": ">= 12"}
    assert {"date", "cpu", "cores", "instruction_set", "versions"} <= saved.keys()
    lines = table.read_text().splitlines()
    assert len(lines) == 4 and lines[3].startswith("| batched_nms 80 x 300 | 2 | ") and "(>= 12)" in lines[3]


@pytest.mark.parametrize(("relation", "code"), [(">=", 0), ("<=", 1)])
def test_check_exits_with_one_when_a_bar_is_missed(monkeypatch: pytest.MonkeyPatch, relation: str, code: int) -> None:
    bar = Bar("ours", "ours", relation, 0.5)
    case = Case("batched_nms", {"ours": lambda: None}, {2: (bar,)})
    monkeypatch.setattr(ops, "GROUPS", (lambda device: iter([case]),))
    assert main([*QUICK, "--check"]) == code


@pytest.mark.parametrize(("measured", "code"), [(20.0, 0), (20.1, 1), (None, 0)])
def test_memory_has_a_bar(monkeypatch: pytest.MonkeyPatch, measured: float | None, code: int) -> None:
    monkeypatch.setattr(ops, "GROUPS", ())
    monkeypatch.setattr(ops, "extra_megabytes", lambda name: measured)
    assert main(["--only", MEMORY_CASE, "--check"]) == code


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--seconds", "nan"]])
def test_counts_out_of_range(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert re.search(rf"argument {arguments[0]}: '{arguments[1]}', expected", capsys.readouterr().err)


SAVED = Path(__file__).parents[2] / "tools" / "benchmarks"


def test_the_documentation_shows_what_was_measured() -> None:
    readme = (SAVED.parents[1] / "dcn_det" / "ops" / "README.md").read_text()
    shown = re.search(r"--show (tools/benchmarks/\S+\.json) --only (\S+)", readme)
    assert shown is not None
    assert saved_table(SAVED.parents[1] / shown[1], shown[2]) in readme


def test_show_prints_a_saved_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--show", str(SAVED / "cpu_ops.json"), "--only", "nms 12000"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "Intel" in lines[0] and lines[-1].startswith("| nms 12000 | ")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(UserError, match="--show"):
        main(["--show", str(tmp_path / "other.json")])
