"""Runs that are stopped, killed or lose a checkpoint equal uninterrupted runs after resuming."""

import errno
import json
import os
import random
import re
import signal
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from dcn_det.cli import train
from dcn_det.engine import randomness
from dcn_det.engine.logging import RunLog
from dcn_det.engine.store import CheckpointStore
from dcn_det.errors import UserError
from dcn_det.weights import checkpoint
from tests.engine.launching import finish, popen, start, together, until


def run(arguments: list[str]) -> int:
    return train.main(arguments)


def same(a: Any, b: Any) -> bool:
    """Returns whether nested containers hold the same tensors and values, bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def newest(folder: Path) -> dict[str, Any]:
    found = CheckpointStore(folder, 1).latest()
    assert found is not None
    return found[1]


EVERYTHING = ["train.ema_decay=0.9", "train.eval_every=4", "train.accumulate=2", "train.batch_size=1"]


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_is_not_killed(tiny: Path, tmp_path: Path) -> None:
    """SIGKILL at five moments, two of them during a save; with workers, evaluations and averaging."""
    common = [str(tiny), *EVERYTHING, "train.iterations=24", "data.workers=1", "train.keep_checkpoints=3"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run([*common, "--output", str(whole)]) == 0

    moments = random.Random(1)
    for attempt in range(5):
        lines = (broken / "metrics.jsonl").read_text().count("\n") if broken.exists() else 0
        wanted = lines + moments.randint(2, 5)
        process = start(run, [*common, "--output", str(broken), "--auto-resume"])

        due = partial(_moment, process, broken, wanted, attempt in (2, 4))
        assert until(due, 60, every=0.001)
        assert process.is_alive(), "the run ended before it could be killed"
        process.kill()
        process.join()
        latest = broken / "latest.pth"
        assert not latest.is_symlink() or checkpoint.load(latest), "the link points to a complete file"
    assert not (broken / "last.pth").exists()
    assert run([*common, "--output", str(broken), "--auto-resume"]) == 0

    assert same(newest(whole), newest(broken)), "model, optimizer, average, history, best score, generators"
    assert same(checkpoint.load(whole / "last.pth"), checkpoint.load(broken / "last.pth"))
    assert same(checkpoint.load(whole / "best.pth"), checkpoint.load(broken / "best.pth"))
    assert not list(broken.glob(".*.tmp"))
    assert numbers(whole) == numbers(broken)


def numbers(folder: Path) -> list[tuple[int, float]]:
    """Returns iteration and loss of every record of a run."""
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(record["iteration"], record["loss"]) for record in records if record["kind"] == "train"]


def _moment(process: Any, folder: Path, lines: int, saving: bool) -> bool:
    if not process.is_alive():
        return True
    if saving:
        return any(folder.glob(".iteration_*.tmp"))
    path = folder / "metrics.jsonl"
    return path.exists() and path.read_text().count("\n") >= lines


@pytest.mark.parametrize("iteration", [1, 7])
def test_two_processes_resume_to_the_bit(tiny: Path, tmp_path: Path, iteration: int) -> None:
    common = [str(tiny), "train.iterations=9", "train.batch_size=1"]
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert together(2, run, [*common, "--output", str(whole)]) == [0, 0]
    assert together(2, run, [*common, "--output", str(part), "--stop-at", str(iteration)]) == [0, 0]
    assert together(2, run, [*common, "--output", str(part), "--resume"]) == [0, 0]
    assert same(newest(whole), newest(part))


def test_a_signal_to_one_of_two_processes_stops_both_after_saving(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    codes = together(2, _signalled, [str(tiny), "train.iterations=100000", "train.batch_size=1", "--output", str(out)])
    assert codes == [128 + signal.SIGUSR1] * 2
    assert "stopped by SIGUSR1; saved" in (out / "log.txt").read_text()
    assert newest(out)["iteration"] >= 3


def _signalled(arguments: list[str]) -> int:
    if os.environ["RANK"] == "1":
        out = Path(arguments[-1])

        def raise_it(signum: int, frame: object) -> None:
            os.kill(os.getpid(), signal.SIGUSR1 if list(out.glob("iteration_*.pth")) else signal.SIGALRM)

        signal.signal(signal.SIGALRM, lambda signum, frame: _again(out))
        signal.setitimer(signal.ITIMER_REAL, 0.2)
    return train.main(arguments)


def _again(out: Path) -> None:
    if list(out.glob("iteration_*.pth")):
        os.kill(os.getpid(), signal.SIGUSR1)
    else:
        signal.setitimer(signal.ITIMER_REAL, 0.2)


def test_any_damage_to_the_newest_checkpoint_is_noticed(tmp_path: Path) -> None:
    """With any bytes changed, the newest checkpoint is loaded unchanged, or the previous one with a warning."""
    generator = random.Random(0)
    states = {i: {"iteration": i, "model": {"w": torch.arange(5000.0) + i, "v": torch.ones(7)}} for i in (10, 20)}
    (tmp_path / "run").mkdir()
    store = CheckpointStore(tmp_path / "run", keep=2)
    for iteration, state in states.items():
        store.save(iteration, state)
    good = store.path(20).read_bytes()
    fell_back = 0
    for _ in range(60):
        size = generator.choice([1, 8, 500])
        at = generator.randrange(len(good) - size)
        damaged = good[:at] + bytes(255 - byte for byte in good[at : at + size]) + good[at + size :]
        store.path(20).write_bytes(damaged)
        with pytest.warns(UserWarning) as said:
            found = store.latest()
            if found is not None and found[1]["iteration"] == 20:
                import warnings

                warnings.warn("kept", stacklevel=1)
        assert found is not None
        assert same({k: found[1][k] for k in ("iteration", "model")}, states[found[1]["iteration"]])
        if found[1]["iteration"] == 10:
            fell_back += 1
            assert ".damaged" in str(said[0].message)
            assert store.latest_path.resolve() == store.path(10).resolve()
            assert store.path(20).with_suffix(".damaged").exists()
    assert fell_back > 50, "nearly every byte of a checkpoint matters"


def test_resuming_goes_on_from_the_checkpoint_before_a_damaged_one(tiny: Path, tmp_path: Path) -> None:
    common, whole, broken = [str(tiny), "train.iterations=8"], tmp_path / "whole", tmp_path / "broken"
    assert run([*common, "--output", str(whole)]) == 0
    assert run([*common, "--output", str(broken), "--stop-at", "6"]) == 0
    path = broken / "iteration_00000006.pth"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.warns(UserWarning, match=r"iteration_00000006\.pth'.*checksum.*\.damaged"):
        assert run([*common, "--output", str(broken), "--resume"]) == 0
    assert "resumed from" in (broken / "log.txt").read_text()
    assert same(newest(whole), newest(broken))


def test_a_full_disk_neither_ends_the_run_nor_harms_a_checkpoint(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every save but the first fails halfway, as on a full disk."""
    out = tmp_path / "run"
    save, calls = torch.save, []

    def half(state: Any, file: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            return save(state, file)
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="No space left"):  # the final weights must be saved
        run([str(tiny), "train.iterations=8", "train.eval_every=4", "--output", str(out)])
    log = (out / "log.txt").read_text()
    assert re.search(r"warning: .*iteration 6.*No space left on device.*iteration_00000003\.pth", log)
    assert "iter 8/8" in log
    monkeypatch.undo()
    assert newest(out)["iteration"] == 3
    assert not list(out.glob(".*.tmp"))
    assert run([str(tiny), "train.iterations=8", "--output", str(out), "--resume"]) == 0


def test_a_file_size_limit_is_met_like_a_full_disk(tiny: Path, tmp_path: Path) -> None:
    """The operating system refuses to write, in the middle of torch's writer."""
    process, output = popen(["-c", LIMITED, str(tiny), "train.iterations=6", "--output", str(tmp_path / "run")])
    code, text = finish(process, output, 120)
    assert code == 2, text
    assert re.search(r"warning: .*iteration 3.*File too large", text)
    assert "iter 6/6" in text
    assert "Traceback" not in text
    assert not list((tmp_path / "run").glob("*.pth")) and not list((tmp_path / "run").glob(".*.tmp"))


LIMITED = """
import resource, signal, sys
from dcn_det.entry import run
from dcn_det.cli.train import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
run(main)
"""


def test_a_small_file_system_that_fills_up(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5m", "none", str(folder)], capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        common = [str(tiny), "train.iterations=12", "train.keep_checkpoints=9", "--output", str(folder / "run")]
        with pytest.raises(OSError, match="No space left"):
            run(common)
        assert "No space left on device" in (folder / "run" / "log.txt").read_text()
        assert newest(folder / "run")["iteration"] >= 3
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_what_came_after_the_checkpoint_is_taken_out_of_the_numbers(tmp_path: Path) -> None:
    log = RunLog(tmp_path, quiet=True)
    for iteration in (1, 2, 3, 4):
        log.scalars(iteration, {"loss": float(iteration)}, "train")
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "iterat')  # killed while writing
    log = RunLog(tmp_path, quiet=True, iteration=2)
    log.scalars(3, {"loss": 9.0}, "train")
    log.close()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(record["iteration"], record["loss"]) for record in records] == [(1, 1.0), (2, 2.0), (3, 9.0)]


def test_a_run_whose_optimizer_was_not_fused_continues_fused(tiny: Path, tmp_path: Path) -> None:
    common = [
        str(tiny),
        "train.optimizer={kind: adamw, lr: 1e-3}",
        "train.iterations=4",
        "--output",
        str(tmp_path / "run"),
    ]
    assert run([*common, "--stop-at", "2"]) == 0
    path = (tmp_path / "run" / "latest.pth").resolve()
    state = torch.load(path, weights_only=True)
    for group in state["optimizer"]["param_groups"]:
        assert group["fused"] is True
        group["fused"] = None  # as saved by earlier versions
    torch.save(state, path)
    assert run([*common, "--resume"]) == 0
    optimizer = newest(tmp_path / "run")["optimizer"]
    assert all(group["fused"] is True for group in optimizer["param_groups"])
    assert {float(each["step"]) for each in optimizer["state"].values()} == {4.0}


def test_random_states_come_back() -> None:
    import random as python_random

    import numpy as np

    def draw() -> tuple:
        return python_random.random(), float(np.random.rand()), torch.rand(1).item()  # noqa: NPY002

    randomness.seed(3)
    state = randomness.state(torch.device("cpu"))
    first = draw()
    assert draw() != first
    randomness.load(state, torch.device("cpu"))
    assert draw() == first


def test_a_changed_data_set_is_warned_of_and_other_classes_refused(
    tiny: Path, tmp_path: Path, sample_root: Path
) -> None:
    document = json.loads((sample_root / "annotations" / "train.json").read_text())
    file = tmp_path / "train.json"
    file.write_text(json.dumps(document))
    out = tmp_path / "run"
    common = [str(tiny), "data.kind=coco", f"data.train.annotations={file}", "--output", str(out)]
    assert run([*common, "train.iterations=3"]) == 0
    document["annotations"][0]["bbox"][2] -= 1
    file.write_text(json.dumps(document))
    assert run([*common, "train.iterations=4", "--resume"]) == 0
    assert re.search(r"warning: .*training data", (out / "log.txt").read_text())
    document["categories"][3]["name"] = "drei"
    file.write_text(json.dumps(document))
    truth = json.loads((sample_root / "annotations" / "val.json").read_text()) | {"categories": document["categories"]}
    (tmp_path / "val.json").write_text(json.dumps(truth))
    with pytest.raises(UserError, match=r"10 classes.*removed: 3; added: drei"):
        run([*common, f"data.test.annotations={tmp_path / 'val.json'}", "train.iterations=5", "--resume"])


def test_auto_resume_starts_or_continues(tiny: Path, tmp_path: Path) -> None:
    common = [str(tiny), "train.iterations=4", "--output", str(tmp_path / "run"), "--auto-resume"]
    assert run([*common, "--stop-at", "2"]) == 0
    assert run(common) == 0
    assert newest(tmp_path / "run")["iteration"] == 4
