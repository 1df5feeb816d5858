"""``dcn-det config`` lists, shows and compares configs, and writes what is made from the settings."""

import json
from pathlib import Path

import pytest
import yaml

from dcn_det.cli.config import main
from dcn_det.config import differences, json_schema, load_any
from dcn_det.config.reference import reference
from dcn_det.config.shipped import summary
from tests.messages import refused

ROOT = Path(__file__).resolve().parents[2]
VOC = ROOT / "configs" / "voc"


def printed(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    assert main([str(each) for each in arguments]) == code
    return capsys.readouterr().out


def test_all_configs_are_listed_with_their_first_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    text = printed(capsys, "list")
    assert max(map(len, text.splitlines())) <= 80
    folders = [block.splitlines()[0] for block in text.split("\n\n")]
    assert {"configs/coco:", "configs/sample/classifier:"} < set(folders) and folders[-1] == "configs/base:"
    names = [line.strip() for line in text.splitlines() if line.startswith("  ") and line.endswith(".yaml")]
    assert sorted(names) == sorted(path.name for path in (ROOT / "configs").rglob("*.yaml"))
    some = printed(capsys, "list", "sample/rfcn*")
    assert some.splitlines()[:3] == [
        "configs/sample:",
        "  rfcn.yaml",
        "      R-FCN with online hard example mining, plain.",
    ]
    with refused("nonsense"):
        main(["list", "nonsense"])


def test_the_summary_is_the_first_sentence() -> None:
    assert summary("# yaml-language-server: $schema=x.json\n# One\n# two. Three.\na: 1\n# four\n") == "One two."
    assert summary("a: 1\n") == ""


def test_a_config_is_shown_with_the_origin_of_its_values(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("seed: 4\n")
    text = printed(capsys, "show", "a.yaml", "train.epochs=2")
    assert yaml.safe_load(text)["seed"] == 4
    origins = {line.split(":")[0].strip(): line.partition("#")[2].strip() for line in text.splitlines()}
    assert (origins["seed"], origins["epochs"], origins["device"]) == ("a.yaml:1", "override", "default")


def test_two_configs_are_compared_key_by_key(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    lines = printed(capsys, "diff", "configs/voc/rfcn_r101_dconv.yaml", "configs/voc/rfcn_r101_dcn.yaml", code=1)
    assert [line.partition("  # ")[0] for line in lines.splitlines()] == [
        "model.head.pooling",
        "  - average",
        "  + deformable",
    ]
    assert "configs/voc/rfcn_r101_dcn.yaml:" in lines and "# default" in lines
    same = ("configs/voc/rfcn_r101_dconv.yaml", "configs/voc/rfcn_r101_dcn.yaml", "model.head.pooling=deformable")
    assert printed(capsys, "diff", *same) == "no difference\n"


def test_keys_that_one_of_two_configs_has_are_differences() -> None:
    first, second = (load_any(VOC / f"{name}.yaml") for name in ("rfcn_r101_atrous2", "class_aware_rpn_r101_atrous2"))
    found = {key: (before, after) for key, before, after in differences(first, second)}
    assert found["model.kind"][0].startswith("rfcn ") and found["model.kind"][1].startswith("class_aware_rpn ")
    assert found["model.head.ohem"][1] == "" and found["model.rpn.conv_channels"][0] == ""
    assert not {"name", "expected"} & {key.partition(".")[0] for key in found}


def test_the_reference_and_the_schema_are_printed_or_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert printed(capsys, "reference") == reference()
    assert printed(capsys, "reference", "train.optimizer") == reference("train.optimizer")
    assert json.loads(printed(capsys, "schema")) == json_schema()
    monkeypatch.setattr("dcn_det.cli.config.configs_folder", lambda: tmp_path)
    for command in ("reference", "schema"):
        printed(capsys, command, "--write")
    for name in ("REFERENCE.md", "schema.json"):
        assert (tmp_path / name).read_bytes() == (ROOT / "configs" / name).read_bytes()
    with refused("train.optimiser", "train.optimizer.lr"):
        main(["reference", "train.optimiser"])


@pytest.mark.parametrize("wrong", [[], ["nonsense"], ["show"], ["diff", "a.yaml"], ["reference", "seed", "--write"]])
def test_wrong_arguments_are_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(wrong)
    assert stop.value.code == 2
