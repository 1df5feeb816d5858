"""What a run survives: a lost console, a removed folder, an impatient user, foreign lines in its files."""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dcn_det.cli import train
from dcn_det.engine.logging import RunLog
from tests.engine.launching import ENVIRONMENT, ROOT, children, finish, popen, until
from tests.messages import says


def command(tiny: Path, out: Path) -> str:
    settings = "train.iterations=2 train.checkpoint_every=1 data.test=null"
    return f"'{sys.executable}' -m dcn_det train '{tiny}' {settings} --output '{out}'"


@pytest.mark.parametrize("redirection", ["> /dev/full", "| head -c 1", ">&- 2>&-"])
def test_a_run_goes_on_without_its_console(tiny: Path, tmp_path: Path, redirection: str) -> None:
    out = tmp_path / "run"
    script = f"{{ {command(tiny, out)}; echo $? > '{tmp_path / 'code'}'; }} {redirection}"
    done = subprocess.run(
        ["sh", "-c", script], cwd=ROOT, env=os.environ | ENVIRONMENT, stderr=subprocess.PIPE, text=True, timeout=120
    )
    if redirection != "> /dev/full":  # there, echo has its own file
        assert "Traceback" not in done.stderr
    assert (tmp_path / "code").read_text() == "0\n", done.stderr
    assert (out / "last.pth").exists()
    assert "iter 2/2" in (out / "log.txt").read_text()
    assert redirection == ">&- 2>&-" or says((out / "log.txt").read_text(), "warning", "console")


TWICE = """
import signal, sys, threading, time
import torch
from dcn_det.cli import train
from dcn_det.entry import run

save = torch.save

def slow(state, file):
    class Slow:
        interrupted = False

        def write(self, data):
            if not self.interrupted:
                self.interrupted = True
                for _ in range(2):
                    # To this thread: another one might receive it too late on a busy machine.
                    signal.pthread_kill(threading.get_ident(), signal.SIGINT)
                    time.sleep(0.05)
            return file.write(data)

        def flush(self):
            file.flush()

    save(state, Slow())

torch.save = slow
run(lambda: train.main(sys.argv[1:]))
"""


def test_ctrl_c_twice_while_saving_is_one_line(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", TWICE, str(tiny), "--output", str(out)],
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (130, "interrupted\n"), done.stdout
    assert "SIGINT" in done.stdout
    assert not list(out.glob("*.pth")) and not list(out.glob(".*"))


def test_sigterm_ends_a_run_whose_workers_are_stopped(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = [str(tiny), "--output", str(out), "train.iterations=100000", "data.workers=1", "data.test=null"]
    process, output = popen(["-m", "dcn_det", "train", *arguments])
    assert until(lambda: (out / "latest.pth").exists())
    workers = children(process.pid)
    assert workers
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    code, text = finish(process, output, 30)
    assert code == 128 + signal.SIGTERM, text
    assert "Traceback" not in text and says(text, "stopped by SIGTERM", "--resume")
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


def test_a_folder_that_is_removed_while_running_is_created_again(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    say = RunLog.say

    def removing(self: RunLog, text: str) -> None:
        say(self, text)
        if "iter 2/" in text:
            shutil.rmtree(out)

    monkeypatch.setattr(RunLog, "say", removing)
    assert train.main([str(tiny), "train.iterations=4", "--output", str(out)]) == 0
    text = (out / "log.txt").read_text()
    assert says(text, "warning", out) and "iter 4/4" in text and "iter 2/4" not in text
    assert (out / "last.pth").exists() and (out / "latest.pth").exists()
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [record["iteration"] for record in records if record["kind"] == "train"] == [2, 3, 4]
    assert list((out / "tensorboard").iterdir())


def test_files_obey_the_umask(tiny: Path, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        assert train.main([str(tiny), "train.iterations=2", "--output", str(tmp_path / "run")]) == 0
    finally:
        os.umask(before)
    found = [path for path in (tmp_path / "run").rglob("*") if not path.is_symlink()]
    assert len(found) > 5
    assert not [path for path in found if stat.S_IMODE(path.stat().st_mode) & 0o077]


def test_resuming_leaves_out_foreign_lines_and_says_so(tmp_path: Path) -> None:
    log = RunLog(tmp_path, quiet=True)
    for iteration in (1, 2, 3):
        log.scalars(iteration, {"loss": float(iteration)}, "train")
    log.close()
    path = tmp_path / "metrics.jsonl"
    foreign = [b"foreign", b"[1]", b'{"iteration": "x"}', b"{}", b"null", b"\xff\xfe", b"[" * 100_000]
    first, rest = path.read_bytes().split(b"\n", 1)
    path.write_bytes(b"\n".join([first, *foreign, rest]) + b'{"iteration": 3, "los')
    RunLog(tmp_path, quiet=True, iteration=2).close()
    assert [json.loads(line)["iteration"] for line in path.read_text().splitlines()] == [1, 2]
    assert says((tmp_path / "log.txt").read_text(), "warning", len(foreign), path)


def test_names_in_the_log_cannot_change_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(tmp_path)
    log.say("class \x1b]0;title\x07 \ud800")
    log.close()
    for text in ((tmp_path / "log.txt").read_text(), capsys.readouterr().out):
        assert re.search(r"class \\x1b\]0;title\\x07 \\ud800\n", text)
