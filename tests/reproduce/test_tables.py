"""Rows, columns and steps of the paper's tables."""

from pathlib import Path

import pytest

from dcn_det.config import load_any, to_plain
from dcn_det.reproduce.steps import Options, Step, build_graph, configs_folder, trainings
from dcn_det.reproduce.tables import TABLES
from dcn_det.visualize.effective_dilation import PAPER
from tests.messages import refused


def options(table: str, tmp_path: Path, *overrides: str, **settings) -> Options:
    return Options(TABLES[table], tmp_path, overrides=overrides, **settings)


@pytest.mark.parametrize(("table", "rows", "trained"), [("table1", 25, 25), ("table3", 29, 29), ("table5", 14, 10)])
def test_rows_and_trainings(table: str, rows: int, trained: int, tmp_path: Path) -> None:
    graph = build_graph(options(table, tmp_path))
    assert sum(bool(each.steps) for each in graph.rows) == rows
    steps = list(graph.steps.values())
    assert len(list(trainings(steps))) == trained and len(steps) == rows + trained
    done: set[str] = set()
    for step in steps:  # an order in which they can run
        assert done.issuperset(step.after)
        done.add(step.name)
    outputs = {step.output for step in steps}
    made_before = [path for step in steps for path, how in step.inputs.items() if not how]
    assert outputs.issuperset(made_before) and len(made_before) == rows


def test_networks_of_table_4_are_timed(tmp_path: Path) -> None:
    graph = build_graph(options("table4", tmp_path))
    assert [len(each.steps) for each in graph.rows] == [1] * 10
    expected = [("19", "1024", "2048")] * 2 + [("21", "360", "600")] * 2 + [("20", "600", "1000")] * 6
    metrics = {column.metric for column in TABLES["table4"].columns}
    for each, (classes, *size) in zip(graph.rows, expected):
        assert metrics.issuperset(each.row.published)
        for step in each.steps:
            assert step.command[:2] == ("benchmark", "detector") and not step.inputs and not step.parallel
            assert step.command[step.command.index("--classes") + 1] == classes
            assert [*step.command[step.command.index("--size") + 1 :][:2]] == size


def test_rows_of_table_2_share_a_training_with_table_3_and_a_measurement(tmp_path: Path) -> None:
    graph = build_graph(options("table2", tmp_path))
    assert list(graph.steps) == ["train/voc/rfcn_r101_dconv", "dilation/voc/rfcn_r101_dconv3"]
    other = build_graph(options("table3", tmp_path)).steps["train/voc/rfcn_r101_dconv"]
    assert graph.steps["train/voc/rfcn_r101_dconv"].key == other.key
    assert [each.row.label for each in graph.rows] == ["R-FCN, res5c", "R-FCN, res5b", "R-FCN, res5a"]
    assert {each.row.layer for each in graph.rows} == set(PAPER)


@pytest.mark.parametrize("table", ["table1", "table3", "table5"])
def test_the_paper_has_a_number_for_every_cell_that_can_be_measured(table: str, tmp_path: Path) -> None:
    for each in build_graph(options(table, tmp_path)).rows:
        if each.config is not None:
            paper = {item.metric for item in each.config.expected if item.source.startswith("paper")}
            columns = {column.metric for column in TABLES[table].columns}
            masks = "deeplab" in each.row.config
            assert paper == {metric for metric in columns if (metric == "mIoU") == masks}, each.row.config


@pytest.mark.parametrize("table", TABLES)
def test_weights_fit_the_config_that_tests_them(table: str) -> None:
    for row in TABLES[table].rows:
        if row.config:
            trained, tested = (load_any(configs_folder() / f"{name}.yaml") for name in (row.training, row.config))
            assert trained.model == tested.model
            assert to_plain(trained)["data"]["train"] == to_plain(tested)["data"]["train"]


def test_tables_1_and_3_share_trainings(tmp_path: Path) -> None:
    graphs = [build_graph(options(table, tmp_path)) for table in ("table1", "table3")]
    first, third = ({step.name: step.key for step in trainings(list(graph.steps.values()))} for graph in graphs)
    shared = first.keys() & third.keys()
    assert len(shared) == 10 and all(first[name] == third[name] for name in shared)


def test_released_weights_are_converted_and_tested(tmp_path: Path) -> None:
    graph = build_graph(options("table5", tmp_path, weights="authors"))
    named = {each.row.config: [step.command for step in each.steps] for each in graph.rows if each.steps}
    assert {config: commands[0][1] for config, commands in named.items()} == {
        "coco/faster_rcnn_r101": "weights/rcnn_coco-0000.params",
        "coco/faster_rcnn_r101_dcn": "weights/rcnn_dcn_coco-0000.params",
        "coco/rfcn_r101": "weights/rfcn_coco-0000.params",
        "coco/rfcn_r101_dcn": "weights/rfcn_dcn_coco-0000.params",
    }
    assert all([command[0] for command in commands] == ["convert-weights", "test"] for commands in named.values())


def test_released_segmentation_networks_are_rows_of_table_3(tmp_path: Path) -> None:
    graph = build_graph(options("table3", tmp_path, weights="authors"))
    sources = {each.row.config: each.steps[0].command[1] for each in graph.rows if each.steps}
    assert sources == {
        "voc/deeplab_r101_atrous2": "weights/deeplab_voc-0000.params",
        "voc/deeplab_r101_dconv": "weights/deeplab_dcn_voc-0000.params",
        "cityscapes/deeplab_r101_atrous2": "weights/deeplab_cityscapes-0000.params",
        "cityscapes/deeplab_r101_dconv": "weights/deeplab_dcn_cityscapes-0000.params",
    }


def test_segmentation_has_schedules_of_its_own(tmp_path: Path) -> None:
    steps = build_graph(options("table3", tmp_path, schedule="paper")).steps
    lengths = {name: step.config.train.iterations for name, step in steps.items() if "deeplab" in name}
    assert lengths["train/voc/deeplab_r101_dconv"] == 30000
    assert lengths["train/cityscapes/deeplab_r101_dconv"] == 45000
    assert steps["train/voc/deeplab_r101_dconv"].config.train.warmup.kind == "none"
    assert steps["train/voc/rfcn_r101_dconv"].config.train.warmup.kind == "constant"
    cityscapes = [str(path) for path in steps["train/cityscapes/deeplab_r101_dconv"].missing]
    assert {f"datasets/cityscapes/{folder}/train" for folder in ("leftImg8bit", "gtFine")} <= set(cityscapes)


def test_rows_are_selected_by_pattern() -> None:
    table = TABLES["table5"]
    assert [row.config for row in table.select(["rfcn_r101*", "coco/rfcn_air"])] == [
        "coco/rfcn_r101",
        "coco/rfcn_r101_dcn",
        "coco/rfcn_air",
    ]
    assert len(table.select([])) == 14
    with refused("--rows", "rfcn_r110", "did you mean 'rfcn_r101'?"):
        table.select(["rfcn_r110"])


def test_a_split_without_annotations_gives_a_submission(tmp_path: Path) -> None:
    name = "test/coco/rfcn_air_dcn_ms"
    dev = build_graph(options("table5", tmp_path)).steps[name]
    assert dev.output.name == "detections_test-dev2017_rfcn-air-dcn-ms_results.zip"
    assert dev.command[-2:] == ("--submission", "rfcn-air-dcn-ms")
    local = build_graph(options("table5", tmp_path, f"overlay={configs_folder() / 'base/coco.yaml'}")).steps[name]
    assert local.output.name == "metrics.json" and "--submission" not in local.command


def keys(steps: dict[str, Step]) -> dict[str, str]:
    return {name: step.key for name, step in steps.items()}


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("data.root=/elsewhere", ""),
        ("data.workers=7", ""),
        ("train.log_every=7", ""),
        ("expected=[]", ""),
        ("test.nms_iou=0.4", "test"),
        ("train.optimizer.lr=0.1", "train test"),
        ("model.backbone.deform.offset_groups=2", "train test"),
        ("data.flip=none", "train test"),
        ("seed=1", "train test"),
    ],
)
def test_keys_follow_the_settings_that_change_results(override: str, changed: str, tmp_path: Path) -> None:
    before, after = (keys(build_graph(options("table5", tmp_path, *more)).steps) for more in ((), (override,)))
    assert before.keys() == after.keys()
    for name in before:
        assert (before[name] != after[name]) == (name.partition("/")[0] in changed.split()), name


def test_schedules(tmp_path: Path) -> None:
    for table, lengths in (("table5", {240_000}), ("table3", {30_000, 45_000})):
        paper = build_graph(options(table, tmp_path, schedule="paper"))
        assert {step.config.train.iterations for step in trainings(list(paper.steps.values()))} == lengths
