"""The reference describes every key of every task as the settings do."""

import re
from pathlib import Path

import pytest

from dcn_det.config.reference import blocks, reference, words_by_key
from dcn_det.config.section import Section
from dcn_det.config.tasks import SCHEMAS

FILE = Path(__file__).resolve().parents[2] / "configs" / "REFERENCE.md"


def rows(path: str, key: str) -> list[list[str]]:
    """The cells of a key's rows in the committed file."""
    heading = f"## `{path}`\n" if path else "## Top level\n"
    (table,) = (part for part in FILE.read_text().replace("\n## ", "\n\0## ").split("\0") if part.startswith(heading))
    lines = [line for line in table.splitlines() if line.startswith(f"| `{key}` |")]
    return [re.split(r" ?(?<!\\)\| ?", line)[1:-1] for line in lines]


def test_the_committed_reference_is_fresh() -> None:
    assert FILE.read_text() == reference(), "run dcn-det config reference --write"


def test_every_key_is_there_and_says_what_it_means() -> None:
    found = blocks()
    for path, block in found.items():
        for key in block.keys:
            assert key.meaning or "[block]" in key.allowed, f"{path}.{key.name} has no docstring"

    def check(section: type[Section], path: str) -> None:
        names = {key.name for key in found[path].keys} | ({"kind"} if found[path].has_kinds else set())
        assert set(section.model_fields) <= names
        for name in section.model_fields:
            for inner in section.variants(name).values():
                check(inner, f"{path}.{name}".lstrip("."))

    for schema in SCHEMAS:
        check(schema, "")


def test_a_row_has_allowed_values_default_and_meaning() -> None:
    ((_, allowed, default, meaning),) = rows("train", "batch_size")
    assert (allowed, default) == ("an integer > 0", "`1`") and "per process" in meaning
    ((_, allowed, default, _),) = rows("test", "nms")
    assert (allowed, default) == ("hard, linear, gaussian", "`hard`")
    assert rows("train.optimizer", "kind")[0][1] == "sgd, adamw"
    assert rows("train", "optimizer")[0][1:3] == ["a [block](#trainoptimizer)", "`{kind: sgd}`"]
    assert rows("data", "test")[0][1].endswith(", or null")
    assert "``" not in FILE.read_text()


def test_rows_that_hold_for_some_kinds_name_them() -> None:
    roots = {default: meaning.partition(":")[0] for _, _, default, meaning in rows("data", "root")}
    assert roots["`datasets/yolo`"] == "`yolo`" and "`coco`" in roots["`datasets/coco`"]
    best = {default: meaning.partition(":")[0] for _, _, default, meaning in rows("train", "best_metric")}
    assert best == {"`AP`": "`detection`", "`top1`": "`classification`", "`mIoU`": "`segmentation`"}
    ((*_, meaning),) = rows("model", "label_smoothing")
    assert meaning.startswith("`classifier`: ")
    assert rows("train", "log_every")[0][3] == "Iterations between log lines."


def test_links_lead_to_headings() -> None:
    text = FILE.read_text()
    headings = {re.sub(r"[^\w-]", "", each.lower()) for each in re.findall(r"^## (.*)$", text, re.MULTILINE)}
    assert set(re.findall(r"\(#([^)]*)\)", text)) <= headings


def test_a_part_is_its_block_and_those_below_or_its_row() -> None:
    assert re.findall(r"^## .*$", reference("model.rpn"), re.MULTILINE) == ["## `model.rpn`", "## `model.rpn.anchors`"]
    assert [line for line in reference("test.nms").splitlines() if line.startswith("| `")] == [
        line for line in FILE.read_text().splitlines() if line.startswith("| `nms` |")
    ]
    for unknown in ("nonsense", "test.nonsense", "a.b.c"):
        with pytest.raises(KeyError):
            reference(unknown)


def test_keys_and_their_words() -> None:
    words = words_by_key()
    assert {"seed", "train.optimizer.lr", "model.kind", "model.backbone.deform.blocks", "data.train.sets"} <= set(words)
    assert not {"train", "train.optimizer", "expected.metric"} & set(words)
    assert words["train.precision"] == ["float32", "bfloat16", "float16"]
    assert set(words["model.kind"]) >= {"faster_rcnn", "deeplab", "classifier"}
    assert words["test.flip"] == ["true", "false"]
    assert words["train.batch_size"] == words["name"] == []
