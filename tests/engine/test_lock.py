"""Two runs never share an output folder."""

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from dcn_det.cli import test, train
from dcn_det.distributed import Processes
from dcn_det.engine.lock import FILE, exclusive
from dcn_det.errors import UserError
from tests.engine.launching import start, together, until
from tests.messages import refused


def hold(folder: Path, child: Path) -> None:
    """Holds the lock until killed, with a child that lives on, as a worker of the data loader may."""
    with exclusive(folder, Processes()):
        pid = os.fork()
        if pid == 0:
            time.sleep(20)
            os._exit(0)
        child.write_text(str(pid))
        time.sleep(60)


@pytest.mark.parametrize("resume", [[], ["--resume"], ["--auto-resume"]])
def test_a_second_run_is_refused_until_the_first_is_killed(tiny: Path, tmp_path: Path, resume: list[str]) -> None:
    out, child = tmp_path / "run", tmp_path / "child"
    common = [str(tiny), "--output", str(out), "train.iterations=2"]
    if resume:
        assert train.main([*common, "--stop-at", "1"]) == 0
    files = {path.name for path in out.iterdir()} if resume else set()
    holder = start(hold, out, child)
    try:
        assert until(child.exists, 60)
        with refused(out, holder.pid, socket.gethostname()):
            train.main([*common, *resume])
        assert {path.name for path in out.iterdir()} == files | {FILE}
        os.kill(holder.pid, signal.SIGKILL)
        holder.join(10)
        os.kill(int(child.read_text()), 0)  # still there
        assert train.main([*common, *resume]) == 0
        assert not (out / FILE).exists()
    finally:
        holder.kill()
        os.kill(int(child.read_text()), signal.SIGKILL)


def test_a_second_test_is_refused(tiny: Path, tmp_path: Path) -> None:
    out, child = tmp_path / "results", tmp_path / "child"
    assert train.main([str(tiny), "--output", str(tmp_path / "run"), "train.iterations=1"]) == 0
    holder = start(hold, out, child)
    try:
        assert until(child.exists, 60)
        with refused(out, holder.pid):
            test.main([str(tiny), "--weights", str(tmp_path / "run" / "last.pth"), "--output", str(out)])
    finally:
        holder.kill()
        os.kill(int(child.read_text()), signal.SIGKILL)


def refusal(folder: Path) -> str:
    from dcn_det import distributed

    processes, _ = distributed.start(distributed.resolve_device("cpu"), "cpu")
    try:
        with exclusive(folder, processes):
            return ""
    except UserError as error:
        return str(error)
    finally:
        distributed.stop()


def test_every_process_of_a_run_learns_of_the_refusal(tmp_path: Path) -> None:
    assert together(2, refusal, tmp_path / "free") == ["", ""]
    out, child = tmp_path / "run", tmp_path / "child"
    holder = start(hold, out, child)
    try:
        assert until(child.exists, 60)
        found = together(2, refusal, out)
        assert found[0] == found[1] and str(holder.pid) in found[0]
    finally:
        holder.kill()
        os.kill(int(child.read_text()), signal.SIGKILL)


def test_folders_are_created_and_removed_if_nothing_was_written(tmp_path: Path) -> None:
    with exclusive(tmp_path / "a" / "b", Processes()):
        assert (tmp_path / "a" / "b").is_dir()
    assert not (tmp_path / "a").exists()
    with exclusive(tmp_path / "c", Processes()):
        (tmp_path / "c" / "kept").touch()
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["kept"]


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), exclusive(tmp_path / "file", Processes()):
        pass
