"""The script of ``dcn-det completion bash`` completes in bash what the parsers know."""

import subprocess
from pathlib import Path

import pytest

from dcn_det.cli import COMMANDS
from dcn_det.cli.benchmark import BENCHMARKS
from dcn_det.cli.completion import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as text:
        assert main(["bash"]) == 0
    path = tmp_path_factory.mktemp("completion") / "dcn-det"
    path.write_text(text.getvalue())
    return path


def completed(script: Path, *words: str, folder: Path = ROOT) -> list[str]:
    """What bash offers for the last of the words after ``dcn-det``, which are split at ``=`` as bash does."""
    code = (
        'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
        'complete -p dcn-det >/dev/null; _dcn_det; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    command = ["bash", "--norc", "-u", "-c", code, "bash", str(script), "dcn-det", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.stderr == ""
    return done.stdout.split("\n")[:-1] if done.stdout.strip() else []


def test_commands(script: Path) -> None:
    assert set(completed(script, "")) == {*COMMANDS, "--help", "--version"}
    assert completed(script, "tra") == ["train", "train-classifier"]
    assert set(completed(script, "benchmark", "")) == {*BENCHMARKS, "--help"}
    assert completed(script, "config", "d") == ["diff"]


def test_options(script: Path) -> None:
    assert completed(script, "train", "--re") == ["--resume"]
    assert completed(script, "benchmark", "train", "--st") == ["--steps"]
    assert completed(script, "config", "schema", "--w") == ["--write"]
    assert set(completed(script, "train", "x.yaml", "--")) >= {"--output", "--resume", "--dry-run", "--help"}


def test_choices(script: Path) -> None:
    assert completed(script, "check-dataset", "--split", "") == ["train", "test"]
    assert completed(script, "check-dataset", "--split", "=", "te") == ["test"]
    assert completed(script, "evaluate", "--backend", "h") == ["hotcoco"]
    assert completed(script, "download", "co") == ["coco"]
    assert completed(script, "train", "--stop-at", "") == []


def test_files_and_folders(script: Path, tmp_path: Path) -> None:
    for name in ("a.yaml", "b.json", "my photo.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    assert sorted(completed(script, "train", "", folder=tmp_path)) == ["a.yaml", "folder"]
    assert sorted(completed(script, "infer", "", folder=tmp_path)) == ["a.yaml", "b.json", "folder", "my photo.jpg"]
    assert completed(script, "train", "a.yaml", "--output", "", folder=tmp_path) == ["folder"]
    assert completed(script, "evaluate", "b.json", "--config", "", folder=tmp_path) == ["a.yaml", "folder"]


def test_configs(script: Path) -> None:
    names = {f"configs/sample/{path.name}" for path in (ROOT / "configs/sample").iterdir()}
    assert set(completed(script, "train", "configs/sample/")) == names
    assert completed(script, "config", "diff", "a.yaml", "configs/voc/rfcn_r101_dp") == [
        "configs/voc/rfcn_r101_dpool.yaml"
    ]


def test_settings_after_a_config(script: Path) -> None:
    assert completed(script, "train", "a.yaml", "train.optimizer.l") == ["train.optimizer.lr="]
    assert completed(script, "train", "a.yaml", "train.precision", "=") == ["float32", "bfloat16", "float16"]
    assert completed(script, "train", "a.yaml", "train.precision", "=", "bf") == ["bfloat16"]
    assert completed(script, "train", "a.yaml", "overl") == ["overlay="]
    assert completed(script, "train", "a.yaml", "overlay", "=", "configs/base/schedule_f") == [
        "configs/base/schedule_fpn.yaml"
    ]
    assert completed(script, "train", "train.optimizer.l") == []
