"""The commands from config to pictures, with a tiny detector and a few images of the embedded data set."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
import yaml

from dcn_det.cli import infer, test, train
from dcn_det.config import load_config
from dcn_det.engine.session import set_up_process
from dcn_det.engine.store import CheckpointStore
from dcn_det.errors import UserError
from dcn_det.weights import checkpoint
from tests.messages import refused, says

ROOT = Path(__file__).resolve().parents[2]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder / "last.pth")["model"]


@pytest.fixture
def trained(tiny: Path, tmp_path: Path) -> Path:
    assert train.main([str(tiny), "--output", str(tmp_path / "run")]) == 0
    return tmp_path / "run"


def test_training_leaves_everything_a_user_expects(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {path.name for path in trained.iterdir()}
    assert {"last.pth", "best.pth", "log.txt", "metrics.jsonl", "config.yaml", "tensorboard"} <= names
    assert {"iteration_00000002.pth", "iteration_00000004.pth"} <= names
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert {"rpn_cls", "rpn_box", "head_cls", "head_box", "loss", "lr", "data_seconds"} <= records[0].keys()
    assert "AP50" in records[-1]
    log = (trained / "log.txt").read_text()
    assert "effective learning rate" in log
    assert re.search(r"iter 4/4  loss [\d.]+ .*lr .*img/s.*eta 0:00:00", log)


def test_a_run_can_be_repeated_from_its_own_config(trained: Path, tmp_path: Path) -> None:
    assert train.main([str(trained / "config.yaml"), "--output", str(tmp_path / "again")]) == 0
    first, second = weights(trained), weights(tmp_path / "again")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("workers", "optimizer"), [(0, "sgd"), (2, "sgd"), (0, "adamw")])
def test_ten_and_ten_more_equal_twenty_to_the_bit(tiny: Path, tmp_path: Path, workers: int, optimizer: str) -> None:
    common = [str(tiny), "train.iterations=20", "train.log_every=10", f"data.workers={workers}"]
    common.append(f"train.optimizer={{kind: {optimizer}, lr: 1e-3}}")
    assert train.main([*common, "--output", str(tmp_path / "whole")]) == 0
    part = tmp_path / "part"
    assert train.main([*common, "--output", str(part), "--stop-at", "10"]) == 0
    assert not (part / "last.pth").exists()
    assert train.main([*common, "--output", str(part), "--resume"]) == 0
    assert "resumed from" in (part / "log.txt").read_text()
    whole, resumed = weights(tmp_path / "whole"), weights(part)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_plain_detector_and_adamw_train_too(tiny: Path, tmp_path: Path) -> None:
    arguments = [
        "model.backbone.deform.blocks=[]",
        "model.head.pooling=max",
        "model.backbone.norm=bn",
        "train.optimizer={kind: adamw, lr: 1e-3}",
        "train.schedule={kind: cosine}",
        "train.precision=bfloat16",
        "train.clip_norm=1",
    ]
    assert train.main([str(tiny), "--output", str(tmp_path / "run"), *arguments]) == 0
    state = checkpoint.load(tmp_path / "run" / "last.pth")
    assert state["config"]["train"]["optimizer"]["kind"] == "adamw"
    assert not [name for name in state["model"] if "offset" in name]


def test_testing_writes_results_and_metrics(tiny: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = trained / "test"
    promise = "expected=[{metric: AP50, value: 0.5, tolerance: 0.1, source: a paper}]"
    assert test.main([str(tiny), promise, "--weights", str(trained / "last.pth"), "--output", str(out)]) == 0
    results = json.loads((out / "detections.json").read_text())
    assert {"image_id", "category_id", "bbox", "score"} <= results[0].keys()
    metrics = json.loads((out / "metrics.json").read_text())
    assert {"AP", "AP50", "AR100"} <= metrics["metrics"].keys()
    text = capsys.readouterr().out
    assert "AP50" in text
    assert all(re.search(rf"^{digit} +[\dn]", text, re.MULTILINE) for digit in range(10)), "one line per class"
    assert re.search(r"AP50: measured \d\.\d{3}, expected 0\.500 \+- 0\.100 \(a paper\)", text)


def test_inference_needs_only_the_checkpoint(trained: Path, sample_root: Path) -> None:
    out = trained / "pictures"
    photo = next((sample_root / "val").iterdir())
    arguments = ["--weights", str(trained / "last.pth"), "--output", str(out), "--score", "0", "--sheet", "2"]
    assert infer.main([str(photo), str(sample_root / "train"), *arguments]) == 0
    assert len(list(out.glob("*.jpg"))) == 1 + 12 + 1
    record = json.loads((out / "detections.json").read_text())[0]
    assert record["image"] == str(photo)
    assert record["detections"][0].keys() == {"box", "score", "class"}


def test_print_config_can_be_read_back(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([str(tiny), "--print-config", "train.batch_size=3"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"batch_size: 3\s+# override", text)
    assert re.search(r"width: 8\s+# .*tiny\.yaml:\d+", text)
    assert re.search(r"momentum: 0\.9\s+# default", text)
    assert yaml.safe_load(text)["train"]["batch_size"] == 3


def test_dry_run_prints_sizes_and_writes_nothing(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([str(tiny), "--dry-run", "--output", str(tmp_path / "run")]) == 0
    text = capsys.readouterr().out
    for part in (
        "parameters",
        "trainable",
        "12 images",
        "effective learning rate",
        "global batch 2",
        "4 iterations",
    ):
        assert part in text
    assert not (tmp_path / "run").exists()


def test_a_long_warmup_is_said_and_one_longer_than_the_run_is_refused(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([str(tiny), "--dry-run", "train.warmup.iterations=3"]) == 0
    assert says(capsys.readouterr().out, "warning", "train.warmup.iterations", "half")
    assert train.main([str(tiny), "--dry-run"]) == 0
    assert "warning" not in capsys.readouterr().out
    with refused("train.warmup.iterations", 5, 4):
        train.main([str(tiny), "--dry-run", "train.warmup.iterations=5"])


@pytest.mark.parametrize("name", ["schedule_paper.yaml", "schedule_released_voc.yaml"])
def test_a_schedule_sees_the_same_images_with_any_batch(
    tiny: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Eight passes of one image, one or two images in a pass: what is printed for one GPU and for eight."""
    found = []
    for batch, passes in ((1, 1), (2, 1), (1, 8), (2, 8)):
        overrides = [f"overlay={ROOT / 'configs' / 'base' / name}", f"train.batch_size={batch}"]
        overrides += [f"train.accumulate={passes}", "train.iterations=24000", "data.flip=none", "--dry-run"]
        assert train.main([str(tiny), *overrides]) == 0
        text = capsys.readouterr().out
        total = batch * passes
        rate = float(re.findall(r"effective learning rate ([\d.e-]+)", text)[0])
        drop = int(re.findall(r"rate x 0.1 at (\d+)", text)[0])
        share = re.findall(r"\(([\d.]+%) of the run\)", text)
        images = re.findall(r"^schedule +(\d+) images", text, re.MULTILINE)
        found.append((images, share, pytest.approx(rate / total), pytest.approx(drop * total, abs=16)))
        assert ("iterations of the config x" in text) == (
            total != load_config(tiny, *overrides[:1]).train.reference_batch
        )
    assert found.count(found[0]) == 4 and len(found[0][0]) == len(found[0][1]) == 1


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.batchsize=2"], r"train\.batchsize.*did you mean 'batch_size'"),
        (["train.batch_size=two"], r"train\.batch_size.*two.*integer"),
        (["data.root=/nowhere"], r"/nowhere"),
        (["model.backbone.deform.blocks=[res6a]"], r"model\.backbone\.deform\.blocks.*res6a.*did you mean"),
        (["data.classes=[zero, one]"], r"data\.classes"),
        (["model.backbone.weights=/nowhere.pth"], r"/nowhere\.pth"),
        (
            ["model.backbone.norm=frozen_bn"],
            r"model\.backbone\.weights: 'none' would leave frozen layers at random.*gn or bn",
        ),
        (["device=gpu"], r"device: .*gpu.*cuda"),
        (["--resume"], r"no readable checkpoint"),
        (["--output", "/proc/run"], r"/proc/run"),
    ],
)
def test_mistakes_are_named(tiny: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    output = [] if "--output" in arguments else ["--output", str(tmp_path / "run")]
    if any(item.startswith("data.root") for item in arguments):
        arguments = [*arguments, "data.kind=coco"]
    with pytest.raises((UserError, OSError)) as caught:
        train.main([str(tiny), *arguments, *output])
    assert re.search(message, str(caught.value)), str(caught.value)
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").glob("*.pth"))


def test_float16_on_a_cpu_is_warned_of(tiny: Path) -> None:
    cpu = torch.device("cpu")
    with pytest.warns(UserWarning, match=r"train\.precision.*bfloat16"):
        set_up_process(load_config(tiny, "train.precision=float16"), cpu)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        set_up_process(load_config(tiny, "train.precision=bfloat16"), cpu)


def test_a_missing_image_is_named(tiny: Path, tmp_path: Path, sample_root: Path) -> None:
    broken = tmp_path / "broken"
    subprocess.run(["cp", "-r", str(sample_root), str(broken)], check=True)
    victim = sorted((broken / "train").iterdir())[3]
    victim.unlink()
    with pytest.raises(UserError, match=victim.name):
        train.main([str(tiny), "data.kind=coco", f"data.root={broken}", "--output", str(tmp_path / "run")])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_image_is_named(tiny: Path, tmp_path: Path, sample_root: Path, workers: int) -> None:
    broken = tmp_path / "broken"
    subprocess.run(["cp", "-r", str(sample_root), str(broken)], check=True)
    for victim in (broken / "train").iterdir():
        victim.write_bytes(victim.read_bytes()[:200])
    arguments = ["data.kind=coco", f"data.root={broken}", f"data.workers={workers}"]
    with pytest.raises(UserError, match=r"\.jpg") as caught:
        train.main([str(tiny), *arguments, "--output", str(tmp_path / "run")])
    assert "\n" not in str(caught.value)


def test_a_run_is_not_overwritten(tiny: Path, trained: Path) -> None:
    with pytest.raises(UserError, match=r"--resume"):
        train.main([str(tiny), "--output", str(trained)])


def test_weights_of_another_architecture_are_refused(tiny: Path, trained: Path) -> None:
    with pytest.raises(UserError, match=r"last\.pth(.|\n)*downsample"):
        test.main([str(tiny), "--weights", str(trained / "last.pth"), "model.backbone.width=16"])


def test_a_truncated_checkpoint_is_refused(tiny: Path, trained: Path) -> None:
    spoil(trained / "last.pth")
    with pytest.raises(UserError, match="truncated or damaged"):
        test.main([str(tiny), "--weights", str(trained / "last.pth")])
    with pytest.raises(UserError, match="truncated or damaged"):
        infer.main([str(tiny), "--weights", str(trained / "last.pth"), "--output", str(trained / "x")])
    assert not (trained / "x").exists()


def test_other_classes_than_the_checkpoint_are_refused(tiny: Path, trained: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load(tiny.read_text())
    root = Path(settings["data"]["root"])
    truth = json.loads((root / "annotations" / "val.json").read_text())
    truth["categories"][0]["name"] = "nought"
    renamed = tmp_path / "renamed.json"
    renamed.write_text(json.dumps(truth))
    with pytest.raises(UserError, match="nought"):
        test.main(
            [
                str(tiny),
                "--weights",
                str(trained / "last.pth"),
                "data.kind=coco",
                f"data.test.annotations={renamed}",
            ]
        )


def test_the_tool_ends_mistakes_with_code_two_and_one_line(tiny: Path) -> None:
    done = subprocess.run(
        [sys.executable, "tools/train.py", str(tiny), "train.iteration=3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert re.fullmatch(r"error: .*train\.iteration.*did you mean 'iterations'.*\n", done.stderr)


@pytest.mark.parametrize(("signum", "workers"), [(signal.SIGTERM, 0), (signal.SIGINT, 2)])
def test_a_signal_to_the_process_group_saves_and_exits(
    tiny: Path, tmp_path: Path, signum: signal.Signals, workers: int
) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(
        [
            sys.executable,
            "tools/train.py",
            str(tiny),
            "--output",
            str(out),
            "train.iterations=100000",
            f"data.workers={workers}",
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not list(out.glob("iteration_*.pth")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signum)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signum, text
    assert text.count(f"stopped by {signum.name}") == 1
    assert "Traceback" not in text
    found = CheckpointStore(out, keep=2).latest()
    assert found is not None
    assert str(found[0]) in text
