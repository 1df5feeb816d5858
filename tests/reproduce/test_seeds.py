"""Tables measured with several seeds: steps, means, deviations, differences, their file and their picture."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dcn_det.cli import reproduce
from dcn_det.reproduce.outcome import Outcome, Run, read_outcomes
from dcn_det.reproduce.picture import picture
from dcn_det.reproduce.record import read_record, write_record
from dcn_det.reproduce.state import Record, State
from dcn_det.reproduce.status import status
from dcn_det.reproduce.steps import Graph, Options, Step, build_graph
from dcn_det.reproduce.tables import FOD, TABLES
from dcn_det.reproduce.write import markdown, write_table
from tests.messages import refused, says

RESULTS = {
    "fod/faster_rcnn": (0.30, 0.32, 0.34),
    "fod/faster_rcnn_dcn": (0.40, 0.43, 0.43),
    "peer": (0.31, 0.31),
    "fod/rfcn_dcn": (0.5,),
}
"""AP by seed."""


def done(step: Step, state: State, content: object, cpu: float = 0.0) -> None:
    step.output.parent.mkdir(parents=True, exist_ok=True)
    step.output.write_text(json.dumps(content))
    state.write(step, Record("done", step.key, step.hash, commit="abc1234", seconds=100, cpu_seconds=cpu))


@pytest.fixture
def measured(tmp_path: Path) -> tuple[Options, Graph]:
    options = Options(FOD, tmp_path / "out", seeds=3)
    graph, state = build_graph(options), State(options.output)
    for each in graph.rows:
        for chain, ap in zip(each.chains, RESULTS.get("peer" if each.row.peer else each.row.config, ())):
            metrics = {"AP": ap, "AP50": 2 * ap, "APs": None}
            for step in chain[:-1]:
                done(step, state, "weights", cpu=600)
            run = {"metrics": metrics, "parameters": 1_690_000, "train_cpu_seconds": 900.0}
            done(chain[-1], state, {"runs": [run]} if each.row.peer else {"metrics": metrics})
    return options, graph


def outcomes(options: Options, graph: Graph) -> dict[str, Outcome]:
    return {each.row.label: each for each in read_outcomes(graph, State(options.output))}


def test_each_seed_has_its_steps(tmp_path: Path) -> None:
    once, thrice = (build_graph(Options(FOD, tmp_path, seeds=seeds)) for seeds in (1, 3))
    names = list(thrice.steps)
    assert names[: len(once.steps)] == list(once.steps), "the first seed of all rows comes first"
    assert len(names) == 3 * len(once.steps) == 3 * (2 * 12 + 1) and not any("seed" in name for name in once.steps)
    assert all(thrice.steps[name].key == step.key for name, step in once.steps.items())
    assert [thrice.steps[f"train/fod/rfcn{end}"].config.seed for end in ("", ".seed1", ".seed2")] == [0, 1, 2]
    assert thrice.steps["test/fod/rfcn.seed2"].after == ("train/fod/rfcn.seed2",)
    assert len({step.output.parent for step in thrice.steps.values()}) == len(
        {step.key for step in thrice.steps.values()}
    )
    assert not any(Path(a).is_relative_to(b) for a in names for b in names if a != b), "no step is in another's folder"
    peer = thrice.steps["peer/fod/faster_rcnn.seed1"]
    assert peer.command[:2] == ("benchmark", "peer") and "seed=1" in peer.command
    assert peer.command[peer.command.index("--only") + 1] == "torchvision"
    other = build_graph(Options(FOD, tmp_path, seeds=2, overrides=("seed=5",)))
    assert other.steps["train/fod/rfcn.seed1"].config.seed == 6


def test_tables_of_the_paper_take_seeds(tmp_path: Path) -> None:
    graph = build_graph(Options(TABLES["table5"], tmp_path, seeds=2))
    assert len(graph.steps) == 2 * 24 and [len(each.chains) for each in graph.rows] == [2] * 14
    assert graph.steps["test/coco/rfcn_air_ms.seed1"].after == ("train/coco/rfcn_air.seed1",)


def test_means_deviations_and_differences(measured: tuple[Options, Graph]) -> None:
    found = outcomes(*measured)
    plain, both = found["Faster R-CNN"], found["Faster R-CNN, both"]
    assert plain.measured["AP"] == pytest.approx(0.32) and plain.spread["AP"] == pytest.approx(0.02)
    assert both.measured["AP"] == pytest.approx(0.42) and both.spread["AP"] == pytest.approx(0.0003**0.5)
    gain, error = both.gain["AP"]
    assert gain == pytest.approx(0.1) and error == pytest.approx(((0.0004 + 0.0003) / 3) ** 0.5)
    assert not plain.gain and "APs" not in plain.measured and plain.condition == "done"
    assert plain.measured["cpu_seconds"] == 600 and plain.seconds == 3 * 2 * 100
    assert both.measured["parameters"] > plain.measured["parameters"] > 1e6
    peer = found["Faster R-CNN of torchvision"]
    assert (
        len(peer.runs) == 2 and peer.measured["AP"] == pytest.approx(0.31) and peer.condition.startswith("2 of 3 seeds")
    )
    assert peer.measured["cpu_seconds"] == 900 and peer.measured["parameters"] == 1_690_000
    alone = found["R-FCN, both"]
    assert alone.measured["AP"] == 0.5 and not alone.spread and not alone.gain
    assert not found["R-FCN"].measured and found["R-FCN"].condition.startswith("0 of 3 seeds; train missing")


def test_the_table_shows_deviations(measured: tuple[Options, Graph]) -> None:
    options, graph = measured
    rows = [
        [cell.strip() for cell in line.split("|")[1:9]]
        for line in (markdown(FOD, list(outcomes(*measured).values()), facts=False).splitlines())
        if line.startswith("|")
    ]
    at = rows.index(next(row for row in rows if row[0] == "Faster R-CNN, both"))
    assert rows[at][1:5] == ["measured", "42.0 \u00b1 1.7", "84.0 \u00b1 3.5", ""]
    assert rows[at + 1][:4] == ["", "difference", "+10.0 \u00b1 1.5", "+20.0 \u00b1 3.1"]
    text = status(options, graph, FOD.rows)
    assert says(text, "Faster R-CNN, both", "42.0 \u00b1 1.7") and says(text, "4 of 13 rows")


def test_results_are_kept_in_a_file_that_prints_the_same_table(
    measured: tuple[Options, Graph], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, graph = measured
    found = read_outcomes(graph, State(options.output))
    paths = {path.suffix: path for path in write_table(options, found)}
    assert set(paths) == {".md", ".csv", ".html", ".svg", ".json"}
    again = read_record(paths[".json"], FOD)
    assert markdown(FOD, again, facts=False) == markdown(FOD, found, facts=False)
    assert reproduce.main(["fod", "--show", str(paths[".json"])]) == 0
    assert capsys.readouterr().out == markdown(FOD, found, facts=False)
    with refused("fod.json", "results of fod", "table5"):
        reproduce.main(["table5", "--show", str(paths[".json"])])
    (tmp_path / "other.json").write_text('{"table": "fod", "rows": [{"row": "unknown"}]}')
    with refused("other.json", "dcn-det reproduce fod"):
        read_record(tmp_path / "other.json", FOD)


def test_the_picture_has_bars_deviations_and_seeds(measured: tuple[Options, Graph]) -> None:
    text = picture(FOD, list(outcomes(*measured).values()))
    root = ElementTree.fromstring(text)
    name = "{http://www.w3.org/2000/svg}"
    bars = [float(each.attrib["width"]) for each in root.iter(f"{name}rect") if each.attrib.get("x") == "270"]
    unit = bars[0] / 32
    assert bars == pytest.approx([32 * unit, 42 * unit, 31 * unit, 50 * unit], abs=0.1)
    assert len(list(root.iter(f"{name}circle"))) == 3 + 3 + 2
    reach = re.findall(r"M([\d.]+) [\d.]+v10M[\d.]+ [\d.]+H([\d.]+)", text)
    assert float(reach[0][1]) - float(reach[0][0]) == pytest.approx(2 * 2.0 * unit, abs=0.2)
    words = [each.text or "" for each in root.iter(f"{name}text")]
    assert words.count("not measured") == 9 and "42.0 \u00b1 1.7" in words


def test_a_file_of_one_run_has_no_deviation(tmp_path: Path) -> None:
    row = FOD.rows[0]
    write_record(tmp_path / "fod.json", FOD, [Outcome(row, (Run(0, {"AP": 0.25}, 5.0, "abc", "def"),))], {"cpu": "x"})
    (first, *others) = read_record(tmp_path / "fod.json", FOD)
    assert first.measured == {"AP": 0.25} and not first.spread and not any(each.runs for each in others)
    assert json.loads((tmp_path / "fod.json").read_text())["cpu"] == "x"


def test_options_that_do_not_fit_are_refused() -> None:
    for arguments in (["--schedule", "paper"], ["--weights", "authors"]):
        with refused("fod is no table of the paper"):
            reproduce.main(["fod", *arguments])
    with refused("--seeds 3", "nothing is trained"):
        reproduce.main(["table4", "--seeds", "3"])
    with refused("data.fraction", "2"):
        reproduce.main(["fod", "--fraction", "2"])
