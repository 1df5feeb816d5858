"""Damaged and hostile files of weights: a correct result, or one line of error."""

import io
import pickle
import random
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from dcn_det.cli import infer
from dcn_det.entry import USER_ERROR, exit_code
from dcn_det.errors import UserError
from dcn_det.weights import checkpoint
from dcn_det.weights.caffe import read_weights
from dcn_det.weights.files import read_state_dict
from dcn_det.weights.mxnet import read_params
from tests.messages import refused
from tests.weights.hostile import (
    ARRAYS,
    DEEP,
    TENSORS,
    MiB,
    attempt,
    equal,
    one_line,
)
from tests.weights.mxnet_writer import write_params

# Files that are not what was written


def damages(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Bytes with flipped bits, or overwritten, missing, repeated or foreign parts."""
    draw = random.Random(seed)
    for _ in range(count):
        kind, at, size = draw.randrange(6), draw.randrange(len(data)), draw.choice([1, 4, 50])
        if kind <= 1:
            flipped = bytearray(data)
            for _ in range(draw.choice([1, 1, 3])):
                flipped[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            yield bytes(flipped)
        elif kind == 2:
            yield data[:at]
        elif kind == 3:
            yield data[:at] + draw.randbytes(size) + data[at + size :]
        elif kind == 4:
            yield data[:at] + data[at + size :]
        else:
            yield data[: at + size] + data[at:]


def write_own(path: Path) -> None:
    checkpoint.save(path, {"part": checkpoint.BACKBONE, "settings": {"a": 1}, "model": TENSORS})


def write_legacy(path: Path) -> None:
    torch.save(TENSORS, path, _use_new_zipfile_serialization=False)


def write_pickle(path: Path, protocol: int = 2) -> None:
    path.write_bytes(pickle.dumps({"blobs": ARRAYS}, protocol=protocol))


FILES: dict[str, tuple[str, Callable[[Path], None], Callable[[Path], Any], bool]] = {
    "ours": (".pth", write_own, read_state_dict, True),
    "ours in safetensors": (".safetensors", write_own, read_state_dict, True),
    "state dict": (".pth", lambda path: torch.save({"state_dict": TENSORS}, path), read_state_dict, True),
    "state dict before 1.6": (".pth", write_legacy, read_state_dict, False),
    "safetensors": (".safetensors", lambda path: safetensors.torch.save_file(TENSORS, path), read_state_dict, False),
    "MXNet": (".params", lambda path: write_params(path, ARRAYS), read_params, False),
    "Caffe": (".pkl", write_pickle, read_weights, False),
    "Caffe, protocol 5": (".pkl", lambda path: write_pickle(path, 5), read_weights, False),
}
"""Suffix, writer, reader, and whether all values have a checksum."""
CHECKED = [name for name, file in FILES.items() if file[3]]


@pytest.mark.parametrize("name", FILES)
def test_files_come_back(name: str, tmp_path: Path) -> None:
    suffix, write, read, _ = FILES[name]
    write(tmp_path / f"w{suffix}")
    assert equal(read(tmp_path / f"w{suffix}"))


@pytest.mark.parametrize("name", FILES)
def test_damage_is_noticed_or_harmless(name: str, tmp_path: Path) -> None:
    suffix, write, read, checked = FILES[name]
    path = tmp_path / f"w{suffix}"
    write(path)
    refusals, data = 0, path.read_bytes()
    for damaged in damages(data, 40, seed=len(name)):
        path.write_bytes(damaged)
        found = attempt(lambda: read(path))
        refusals += found is None
        assert not checked or found is None or equal(found), "wrong values, in silence"
    assert refusals > 10


@pytest.mark.parametrize("name", CHECKED)
def test_a_flipped_bit_of_a_value_is_always_noticed(name: str, tmp_path: Path) -> None:
    suffix, write, read, _ = FILES[name]
    path, draw = tmp_path / f"w{suffix}", random.Random(0)
    write(path)
    data, values = path.read_bytes(), ARRAYS["conv1_w"].tobytes()
    for _ in range(20):
        flipped = bytearray(data)
        flipped[data.index(values) + draw.randrange(len(values))] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        with refused("w" + suffix, "checksum") as caught:
            read(path)
        one_line(caught.value)


# Small files that would cost much


def archive(pickled: bytes, compression: int = zipfile.ZIP_STORED, twice: bool = False) -> bytes:
    """An archive of torch.save with the given pickle."""
    torch.save(TENSORS, buffer := io.BytesIO())
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(new := io.BytesIO(), "w", compression) as changed:
        for entry in old.infolist():
            content = pickled if pickled and entry.filename.endswith("data.pkl") else old.read(entry)
            changed.writestr(entry.filename, content)
            if twice and "/data/" in entry.filename:
                with pytest.warns(UserWarning, match="Duplicate"):
                    changed.writestr(entry.filename, content)
    return new.getvalue()


def deeper(content: Any) -> bytes:
    """An archive in which the text DEEPER is a list 100,000 deep."""
    torch.save(content, buffer := io.BytesIO())
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(new := io.BytesIO(), "w") as changed:
        for entry in old.infolist():
            nested = b"]" * 100_000 + b"a" * 99_999
            changed.writestr(entry.filename, old.read(entry).replace(b"X\x06\x00\x00\x00DEEPER", nested))
    return new.getvalue()


def legacy(pickled: bytes) -> bytes:
    torch.save({}, buffer := io.BytesIO(), _use_new_zipfile_serialization=False)
    empty = pickle.dumps({}, 2)
    assert empty in buffer.getvalue() or b"}q\x00." in buffer.getvalue()
    return buffer.getvalue().replace(b"\x80\x02}q\x00.", pickled, 1)


MEMO = b"]r\x00\x00\x00\x20."  # position 2^29
BYTEARRAY = b"\x80\x05\x96" + struct.pack("<Q", 2**33) + b"."
HASHED = b"\x80\x02})" + b"2\x86" * 60 + b"Ns."  # a key with 2^60 empty tuples
STACKED = b"\x80\x02})" + b"\x85" * 200_000 + b"Ns."  # a key 200,000 deep
PICKLES = {"memo": MEMO, "byte array": BYTEARRAY, "hash": HASHED, "depth": STACKED}


@pytest.mark.parametrize(
    "suffix, data",
    [
        *(pytest.param(".pkl", data, id=f"{name}, Caffe") for name, data in PICKLES.items()),
        *(pytest.param(".pth", archive(data), id=f"{name}, archive") for name, data in PICKLES.items()),
        *(pytest.param(".pth", legacy(data), id=f"{name}, before 1.6") for name, data in PICKLES.items()),
        pytest.param(".pth", archive(bytes(300 * MiB), zipfile.ZIP_DEFLATED), id="compressed"),
        pytest.param(".pth", archive(b"", twice=True), id="entries twice"),
    ],
)
def test_what_would_cost_much_is_refused_before(suffix: str, data: bytes, tmp_path: Path) -> None:
    path, start = tmp_path / f"w{suffix}", time.perf_counter()
    path.write_bytes(data)
    tracemalloc.start()
    try:
        for read in (read_weights, read_state_dict, checkpoint.load):
            with pytest.raises(UserError) as caught:
                read(path)
            one_line(caught.value)
        assert tracemalloc.get_traced_memory()[1] < 60 * MiB
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - start < 20


def test_arrays_that_state_what_they_do_not_hold(tmp_path: Path) -> None:
    whole = pickle.dumps({"w": np.ones((5, 7), np.float32)}, 2)
    shape = b"K\x05K\x07\x86"
    assert shape in whole
    for stated in (
        b"J\x00\x00\x00\x70K\x07\x86",
        b"K\x05\x85",
        b"N",
        b"K\x05U\x01x\x86",
        b"\x8a\x09" + bytes(8) + b"\x01\x85",
    ):
        (tmp_path / "w.pkl").write_bytes(whole.replace(shape, stated))
        with refused("w.pkl") as caught:
            read_weights(tmp_path / "w.pkl")
        one_line(caught.value)


# Through a command


def test_commands_say_one_line(state: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def bad(path: Path, content: Any) -> Path:
        torch.save(content, path) if not isinstance(content, bytes) else path.write_bytes(content)
        return path

    checkpoint.save(tmp_path / "good.pth", state)
    good = (tmp_path / "good.pth").read_bytes()
    own = {"format": "dcn_det", **state}
    files = [
        bad(tmp_path / "cut.pth", good[:-100]),
        bad(tmp_path / "memo.pth", archive(MEMO)),
        bad(tmp_path / "code.pth", {**own, "x": print}),
        bad(tmp_path / "fields.pth", {**own, "categories": [{"id": "x"}]}),
        bad(tmp_path / "config.pth", {**own, "config": {"model": DEEP}}),
        bad(tmp_path / "deep.pth", deeper({**own, "config": {"model": "DEEPER"}})),
        bad(
            tmp_path / "nan.pth", {**own, "model": {name: value * torch.nan for name, value in state["model"].items()}}
        ),
        bad(tmp_path / "w.safetensors", good),
        tmp_path / "missing.pth",
    ]
    (tmp_path / "image.png").write_bytes(b"")
    for path in files:
        arguments = [str(tmp_path / "image.png"), "--weights", str(path), "--output", str(tmp_path / "out")]
        assert exit_code(lambda: infer.main(arguments)) == USER_ERROR  # noqa: B023
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1 and path.name in said, said
    assert not (tmp_path / "out").exists()
