"""Tables of what was measured: values, differences, empty cells, and their three forms."""

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dcn_det.reproduce.outcome import Outcome, read_outcomes
from dcn_det.reproduce.page import page
from dcn_det.reproduce.results import SERVER
from dcn_det.reproduce.state import Record, State
from dcn_det.reproduce.status import status
from dcn_det.reproduce.steps import Graph, Options, build_graph, configs_folder
from dcn_det.reproduce.tables import TABLES
from dcn_det.reproduce.write import comma_separated, markdown, write_table
from tests.messages import refused

SUMMARY = """\
 Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = 0.340
 Average Precision  (AP) @[ IoU=0.50      | area=   all | maxDets=100 ] = 0.560
 Average Precision  (AP) @[ IoU=0.75      | area=   all | maxDets=100 ] = 0.360
 Average Precision  (AP) @[ IoU=0.50:0.95 | area= small | maxDets=100 ] = 0.150
 Average Precision  (AP) @[ IoU=0.50:0.95 | area=medium | maxDets=100 ] = 0.380
 Average Precision  (AP) @[ IoU=0.50:0.95 | area= large | maxDets=100 ] = 0.500
 Average Recall     (AR) @[ IoU=0.50:0.95 | area=   all | maxDets=  1 ] = 0.1
 Average Recall     (AR) @[ IoU=0.50:0.95 | area=   all | maxDets= 10 ] = 0.2
 Average Recall     (AR) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = 0.3
 Average Recall     (AR) @[ IoU=0.50:0.95 | area= small | maxDets=100 ] = 0.4
 Average Recall     (AR) @[ IoU=0.50:0.95 | area=medium | maxDets=100 ] = 0.5
 Average Recall     (AR) @[ IoU=0.50:0.95 | area= large | maxDets=100 ] = -1.000
"""


def measured(options: Options, config: str, content: str) -> Graph:
    """The graph of a table, with the steps of a row done."""
    graph = build_graph(options)
    state = State(options.output)
    for each in graph.rows:
        if each.row.config == config:
            for step in each.steps:
                step.output.parent.mkdir(parents=True, exist_ok=True)
                step.output.write_text(content)
                state.write(step, Record("done", step.key, step.hash, commit="abc1234", seconds=1800))
    return graph


def outcome_of(options: Options, graph: Graph, config: str) -> Outcome:
    return next(each for each in read_outcomes(graph, State(options.output)) if each.row.config == config)


@pytest.fixture
def voc(tmp_path: Path) -> tuple[Options, Graph]:
    """Table 3 with one row measured: mAP 82.0 and, undefined, no second value."""
    options = Options(TABLES["table3"], tmp_path / "out")
    return options, measured(options, "voc/rfcn_r101_dcn", json.dumps({"metrics": {"mAP50": 0.82, "mAP70": None}}))


def test_measured_and_published_values(voc: tuple[Options, Graph]) -> None:
    _, graph = voc
    outcome = outcome_of(*voc, "voc/rfcn_r101_dcn")
    assert outcome.measured == {"mAP50": 0.82} and outcome.split == "VOC2007 test" and outcome.seconds == 3600
    assert outcome.paper == {"mAP50": 0.826, "mAP70": 0.685} and outcome.readme == {"mAP50": 0.823, "mAP70": 0.678}
    assert outcome.difference("mAP50") == pytest.approx(-0.006) and outcome.difference("mAP70") is None
    assert outcome.commit == "abc1234" and outcome.hash == graph.steps["test/voc/rfcn_r101_dcn"].hash
    other = outcome_of(*voc, "voc/rfcn_r101_dconv")
    assert not other.measured and other.paper and other.difference("mAP50") is None and not other.seconds


def test_results_of_other_settings_are_not_shown(voc: tuple[Options, Graph]) -> None:
    options, _ = voc
    other = ("test.nms_iou=0.5",)
    changed = Options(options.table, options.output, overrides=other, rows=options.table.select(["rfcn*"]))
    outcomes = {each.row.config: each for each in read_outcomes(build_graph(changed), State(options.output))}
    outcome = outcomes["voc/rfcn_r101_dcn"]
    assert not outcome.measured and "changed" in outcome.condition
    masks = outcomes["voc/deeplab_r101_dconv"]
    assert "nms_iou" in masks.condition, "a setting that other rows do not have"
    with refused("test.nms_iou"):
        build_graph(Options(options.table, options.output, overrides=other))


def test_other_splits_are_not_compared(tmp_path: Path) -> None:
    options = Options(TABLES["table5"], tmp_path, overrides=(f"overlay={configs_folder() / 'base/coco.yaml'}",))
    graph = measured(options, "coco/rfcn_r101", json.dumps({"metrics": {"AP": 0.3}}))
    outcome = outcome_of(options, graph, "coco/rfcn_r101")
    assert outcome.measured["AP"] == 0.3 and outcome.split == "val2017" and outcome.difference("AP") is None
    assert re.search(
        r"other split .*val2017", markdown(options.table, [outcome]) + status(options, graph, [outcome.row])
    )


def test_results_of_the_server(tmp_path: Path) -> None:
    options = Options(TABLES["table5"], tmp_path)
    graph = measured(options, "coco/rfcn_r101_dcn", "a zip file")
    before = outcome_of(options, graph, "coco/rfcn_r101_dcn")
    assert not before.measured and before.condition == "to be submitted" and before.submission is not None
    text = status(options, graph, [before.row])
    assert f"upload '{before.submission}'" in text and str(before.submission.with_name(SERVER)) in text
    before.submission.with_name(SERVER).write_text(SUMMARY)
    after = outcome_of(options, graph, "coco/rfcn_r101_dcn")
    assert [after.measured[name] for name in ("AP", "AP50", "APs", "APm", "APl")] == [0.34, 0.56, 0.15, 0.38, 0.5]
    assert after.difference("AP") == pytest.approx(-0.005) and after.condition == "done"
    before.submission.with_name(SERVER).write_text(SUMMARY[:200])
    assert not outcome_of(options, graph, "coco/rfcn_r101_dcn").measured


def test_times_and_parameters(tmp_path: Path) -> None:
    options = Options(TABLES["table4"], tmp_path)
    stages = {"network": {"milliseconds": 12.0}, "testing": {"milliseconds": 15.0}}
    run = {"parameters": {"backbone": 40_000_000, "rpn": 5_000_000, "head": 2_000_000}} | stages
    graph = measured(options, "voc/rfcn_r101_dcn", json.dumps({"runs": {"rfcn_r101_dcn": run}}))
    outcome = outcome_of(options, graph, "voc/rfcn_r101_dcn")
    assert outcome.measured == {"parameters": 42_000_000, "network": 0.012, "testing": 0.015} and not outcome.split
    assert outcome.paper == {"parameters": 49.5e6, "network": 0.169, "testing": 0.193} and not outcome.readme
    rows = [line for line in markdown(options.table, [outcome]).splitlines() if line.startswith("|")]
    assert [[cell.strip() for cell in line.split("|")[2:6]] for line in rows[2:]] == [
        ["measured", "42.0", "0.012", "0.015"],
        ["paper", "49.5", "0.169", "0.193"],
        ["difference", "-7.5", "-0.157", "-0.178"],
    ]
    assert "measured 42.0, paper 49.5" in page("", options.table, [outcome], "")
    one_stage = measured(
        options, "voc/class_aware_rpn_r101_dconv", json.dumps({"runs": {"x": {"parameters": {"rpn": 1}} | stages}})
    )
    assert outcome_of(options, one_stage, "voc/class_aware_rpn_r101_dconv").measured["parameters"] == 1


def test_effective_dilation_by_layer(tmp_path: Path) -> None:
    options = Options(TABLES["table2"], tmp_path)
    places = {"small": {"filters": 9, "mean": 5.0, "std": 1.0}, "large": {"filters": 0, "mean": None, "std": None}}
    layers = [{"name": f"backbone.layer4.{index}.conv2", "dilation": 2.0} | places for index in range(3)]
    layers[2]["small"] = {"filters": 9, "mean": 6.0, "std": 2.0}
    graph = measured(options, "voc/rfcn_r101_dconv3", json.dumps({"layers": layers}))
    outcomes = {each.row.label: each for each in read_outcomes(graph, State(tmp_path))}
    assert outcomes["R-FCN, res5a"].measured == {"small": 5.0, "small std": 1.0}
    assert outcomes["R-FCN, res5c"].measured == {"small": 6.0, "small std": 2.0}
    assert outcomes["R-FCN, res5c"].paper["small"] == 5.3 and outcomes["R-FCN, res5a"].paper["background std"] == 1.1
    line = next(
        each for each in markdown(options.table, list(outcomes.values())).splitlines() if "R-FCN, res5c" in each
    )
    assert [cell.strip() for cell in line.split("|")[3:6]] == ["6.0", "2.0", ""]


def test_markdown_and_csv(voc: tuple[Options, Graph]) -> None:
    options, graph = voc
    outcomes = read_outcomes(graph, State(options.output))
    text = markdown(options.table, outcomes)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count(" | ") for line in rows}) == 1
    at = next(number for number, line in enumerate(rows) if line.startswith("| R-FCN, both "))
    cells = [[cell.strip() for cell in line.split("|")[2:6]] for line in rows[at : at + 4]]
    assert cells == [
        ["measured", "", "82.0", ""],
        ["paper", "", "82.6", "68.5"],
        ["authors' README", "", "82.3", "67.8"],
        ["difference", "", "-0.6", ""],
    ]
    table = list(csv.DictReader(io.StringIO(comma_separated(options.table, outcomes))))
    row = next(each for each in table if each["config"] == "voc/rfcn_r101_dcn")
    assert (row["mAP50"], row["mAP50 paper"], row["mAP50 difference"], row["mAP70"]) == (
        "0.8200",
        "0.8260",
        "-0.0060",
        "",
    )
    deeplab = [each for each in table if each["row"].startswith("DeepLab")]
    assert len(deeplab) == 10 and not any(each["mAP50"] or each["mAP50 paper"] for each in deeplab)
    assert [each["mIoU paper"] for each in deeplab[:5]] == ["0.6970", "0.7310", "0.7360", "0.7320", "0.7530"]
    assert [each["mIoU paper"] for each in deeplab[5:]] == ["0.7040", "0.7190", "0.7270", "0.7240", "0.7520"]


class Elements(HTMLParser):
    """Collects elements and requires that they are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.all: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.all.append((tag, dict(attributes)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.all.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_self_contained_and_has_a_bar_per_row(voc: tuple[Options, Graph]) -> None:
    options, graph = voc
    content = page("A <title>", options.table, read_outcomes(graph, State(options.output)), "")
    elements = Elements()
    elements.feed(content)
    assert not elements.open and "A &lt;title&gt;" in content
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in elements.all}
    assert "http" not in content and "url(" not in content and "@import" not in content
    bars = [attributes["aria-label"] for tag, attributes in elements.all if tag == "svg"]
    assert len(bars) == len(options.table.rows) == 29
    assert "measured 82.0, paper 82.6, readme 82.3" in bars and "paper 69.7, readme 70.7" in bars
    widths = [
        float(attributes["width"] or 0) for tag, attributes in elements.all if "measured" in str(attributes.get("fill"))
    ]
    assert widths == [pytest.approx(100 * 0.82 / 0.9, abs=0.01)], "what was not measured has no bar"


def test_a_table_is_written_with_nothing_measured(tmp_path: Path) -> None:
    options = Options(TABLES["table1"], tmp_path)
    paths = write_table(options, read_outcomes(build_graph(options), State(tmp_path)))
    assert [path.name for path in paths] == ["table1.md", "table1.csv", "table1.html"]
    assert "0 of 25 rows measured" in paths[0].read_text()
