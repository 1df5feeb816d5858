"""Running steps: order, failures, missing inputs, changed settings, signals, two runs at once."""

import fcntl
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from dcn_det.cli import reproduce
from dcn_det.reproduce.run import Runner
from dcn_det.reproduce.state import Record, State
from dcn_det.reproduce.steps import Step
from tests.messages import refused, says
from tests.reproduce.helpers import ROOT, step


def make(argv: list[str]) -> int:
    """A command that writes the files it names; ``fail`` fails, ``wait`` waits for SIGTERM."""
    print("making", *argv)
    if argv[0] == "fail":
        print("error: no luck")
        return 2
    if argv[0] == "wait":
        signal.signal(signal.SIGTERM, lambda number, frame: Path(argv[1]).touch())
        signal.pause()
        return 143
    if argv[0] == "raise":
        raise RuntimeError("a defect")
    for name in argv:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        with Path(name).open("a") as file:
            file.write("made\n")
    return 0


def run(tmp_path: Path, *steps: Step, launch: str = "") -> tuple[bool, dict[str, str], str, Runner]:
    """Runs steps; returns whether all are done, the condition of each, what was said, and the runner."""
    said: list[str] = []
    state, known = State(tmp_path), {each.name: each for each in steps}
    runner = Runner(state, known, launch, make, said.append)
    done = runner.run(steps, lambda: None)
    return done, {name: state.condition(each, known)[0] for name, each in known.items()}, "\n".join(said), runner


def test_steps_run_once(tmp_path: Path) -> None:
    first, second = step(tmp_path, "first"), step(tmp_path, "second", after=("first",))
    for _ in range(2):
        done, conditions, _, _ = run(tmp_path, first, second)
        assert done and conditions == {"first": "done", "second": "done"}
    assert first.output.read_text() == second.output.read_text() == "made\n"
    record = State(tmp_path).read(first)
    assert record is not None and record.commit and record.hash == "hash of key" and record.seconds > 0
    assert f"making {first.output}" in State(tmp_path).log(first).read_text()


def test_a_failed_step_stops_only_those_that_need_it(tmp_path: Path) -> None:
    steps = [
        step(tmp_path, "bad", "fail"),
        step(tmp_path, "needs-bad", after=("bad",)),
        step(tmp_path, "defect", "raise"),
        step(tmp_path, "writes-nothing", str(tmp_path / "elsewhere")),
        step(tmp_path, "good"),
    ]
    done, conditions, said, _ = run(tmp_path, *steps)
    assert not done
    assert conditions == {
        "bad": "failed", "needs-bad": "waiting", "defect": "failed", "writes-nothing": "failed", "good": "done"
    }  # fmt: skip
    assert says(said, "bad", "exit code 2", "no luck") and says(said, "defect", "a defect")
    assert says(said, "needs-bad", "not run")
    assert run(tmp_path, step(tmp_path, "bad"), *steps[1:2])[0], "what failed is tried again"


def test_a_missing_input_is_named_with_the_command_that_gets_it(tmp_path: Path) -> None:
    needs = step(tmp_path, "needs", inputs={tmp_path / "data": "dcn-det download coco"})
    done, conditions, said, _ = run(tmp_path, needs, step(tmp_path, "good"))
    assert not done and conditions == {"needs": "missing", "good": "done"}
    assert says(said, tmp_path / "data", "dcn-det download coco")
    (tmp_path / "data").mkdir()
    assert run(tmp_path, needs)[0]


def test_changed_settings_redo_a_step_and_keep_the_former_files(tmp_path: Path) -> None:
    assert run(tmp_path, step(tmp_path, "a", key="old"))[0]
    changed = step(tmp_path, "a", key="new")
    assert State(tmp_path).condition(changed, {})[0] == "changed"
    assert run(tmp_path, changed)[0]
    assert changed.output.read_text() == "made\n" and (tmp_path / "a.old" / "out").read_text() == "made\n"
    changed.output.unlink()
    assert run(tmp_path, changed)[0] and changed.output.exists(), "done needs the output"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_ends_the_run(tmp_path: Path, number: signal.Signals) -> None:
    saved = tmp_path / "saved"
    steps = step(tmp_path, "long", "wait", str(saved)), step(tmp_path, "next")

    def interrupt() -> None:
        deadline = time.monotonic() + 60
        while "making" not in State(tmp_path).last_line(steps[0]) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    handler = signal.getsignal(number)
    thread.start()
    done, conditions, _, runner = run(tmp_path, *steps)
    thread.join()
    assert not done and conditions == {"long": "stopped", "next": "waiting"}
    assert saved.exists() and runner.signum == number and signal.getsignal(number) == handler


def test_a_killed_run_is_told_from_a_running_one(tmp_path: Path) -> None:
    state, one = State(tmp_path), step(tmp_path, "one")
    host = os.uname().nodename
    state.write(one, Record("running", "key", host=host, pid=os.getpid()))
    assert state.condition(one, {})[0] == "running"
    state.write(one, Record("running", "key", host=host, pid=2**22 - 1))
    assert state.condition(one, {})[0] == "interrupted"
    state.write(one, Record("running", "key", host="another", pid=1))
    assert state.condition(one, {})[0] == "running"
    for damaged in ("", "[]", "{", '{"state": "done"}'):
        state.record_path(one).write_text(damaged)
        assert state.condition(one, {})[0] == "waiting"


def test_a_launcher_starts_parallel_steps_only(tmp_path: Path) -> None:
    script = tmp_path / "bin" / "launch"
    script.parent.mkdir()
    script.write_text(
        f"#!{sys.executable}\nimport sys, pathlib\nprint(sys.argv[1:])\n"
        "path = pathlib.Path(sys.argv[-1])\npath.parent.mkdir(exist_ok=True)\npath.touch()\n"
    )
    script.chmod(0o755)
    steps = step(tmp_path, "many", parallel=True), step(tmp_path, "single")
    assert run(tmp_path, *steps, launch=f"{script} --nproc_per_node 8")[0]
    log = State(tmp_path).log(steps[0]).read_text()
    assert "['--nproc_per_node', '8', '-m', 'dcn_det'," in log
    assert "nproc" not in State(tmp_path).log(steps[1]).read_text()


def test_two_runs_into_one_folder_are_refused(tmp_path: Path) -> None:
    child = os.fork()  # locks belong to a process
    if child == 0:
        handle = os.open(tmp_path / ".lock", os.O_RDWR | os.O_CREAT)
        fcntl.lockf(handle, fcntl.LOCK_EX)
        (tmp_path / "locked").touch()
        signal.pause()
        os._exit(0)
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "locked").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        with refused(tmp_path, "in use"):
            reproduce.main(["table5", "--run", "--output", str(tmp_path), f"data.root={ROOT / 'absent'}"])
        assert reproduce.main(["table5", "--status", "--output", str(tmp_path)]) == 0
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
