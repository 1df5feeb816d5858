"""Damaged, wrong and hostile files of weights: a correct result, or one line of error."""

import io
import json
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
import yaml

from dcn_det.cli import infer
from dcn_det.config import load_config, to_plain
from dcn_det.entry import USER_ERROR, exit_code
from dcn_det.errors import UserError
from dcn_det.inference.build import load
from dcn_det.models.build import build_detector
from dcn_det.structures import Category
from dcn_det.weights import checkpoint
from dcn_det.weights.caffe import read_weights
from dcn_det.weights.files import read_backbone, read_state_dict
from dcn_det.weights.mxnet import read_params
from tests.conftest import TINY
from tests.engine.helpers import trainer
from tests.messages import refused
from tests.weights.mxnet_writer import write_params

ARRAYS = {"conv1_w": np.arange(48, dtype=np.float32).reshape(4, 3, 2, 2), "res_conv1_bn_s": np.ones(4, np.float32)}
TENSORS = {name: torch.from_numpy(value) for name, value in ARRAYS.items()}
CATEGORIES = (Category(1, "cat"), Category(7, "dog"))
MiB = 2**20


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    """Content of the checkpoint of a small detector."""
    model = TINY["model"] | {"backbone": TINY["model"]["backbone"] | {"width": 4, "stem_width": 4}}
    config = load_config(_written(TINY | {"model": model}))
    torch.manual_seed(0)
    return {
        "config": to_plain(config),
        "categories": checkpoint.categories_to_plain(CATEGORIES),
        "model": build_detector(config, len(CATEGORIES)).state_dict(),
        "iteration": 4,
    }


def _written(settings: dict[str, Any]) -> Path:
    import tempfile

    path = Path(tempfile.mkdtemp()) / "small.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def one_line(error: UserError) -> None:
    """The message is one short line for a terminal, without torch's advice to load unsafely."""
    said = str(error)
    assert said.isprintable() and len(said) < 1000, said
    assert "weights_only" not in said and "trust" not in said


def attempt(act: Callable[[], Any]) -> Any:
    """Returns the result, or None if a UserError says on one line what is wrong."""
    try:
        return act()
    except UserError as error:
        # What does not fit the network is a list.
        for line in str(error).splitlines():
            one_line(UserError(line))
        assert len(str(error).splitlines()) < 8
        return None


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


def equal(found: Any) -> bool:
    return found.keys() == ARRAYS.keys() and all(np.array_equal(found[name], ARRAYS[name]) for name in ARRAYS)


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


# Whole files with wrong content

DEEP: Any = []
for _ in range(200):
    DEEP = [DEEP]
CONTROL = "a\nb\x1b[31m"
NAMES = (0, "", "x" * 5000, CONTROL, ("t",))
VALUES = (
    *(None, True, -1, 2**70, float("nan"), "x", CONTROL, [], {}, [None], {"a": 1}, {3: "b"}, DEEP),
    *(torch.zeros(3), torch.full((2,), float("nan")), torch.zeros(2, dtype=torch.int8), torch.zeros(()), [[], {}]),
    *(torch.zeros(1).expand(2**40), torch.zeros(3, device="meta"), torch.zeros(2, 2).to_sparse(), 1 + 2j),
)

TAME = tuple(value for value in VALUES if not (isinstance(value, int | str) and value in (2**70, CONTROL)))


def mutate(content: Any, draw: random.Random, values: tuple[Any, ...]) -> Any:
    """Replaces, removes, renames or swaps a part of nested containers, at any depth; returns a copy."""
    if not isinstance(content, dict | list) or not content or draw.random() < 0.15:
        return draw.choice(values)
    copy = dict(content) if isinstance(content, dict) else list(content)
    keys = list(copy) if isinstance(copy, dict) else list(range(len(copy)))
    key, other = draw.choice(keys), draw.choice(keys)
    action = draw.random()
    if action < 0.2:
        del copy[key]
    elif action < 0.3:
        copy[key], copy[other] = copy[other], copy[key]
    elif action < 0.45 and isinstance(copy, dict):
        copy[draw.choice(NAMES)] = copy.pop(key)
    else:
        copy[key] = mutate(copy[key], draw, values)
    return copy


def test_wrong_fields_of_a_checkpoint(state: dict[str, Any], tmp_path: Path) -> None:
    draw, refusals = random.Random(1), 0
    for _ in range(110):
        path = tmp_path / f"w{draw.choice(['.pth', '.pth', '.safetensors'])}"
        part = draw.choice(["config", "categories", "model", None])
        # Settings with control characters are shown as they are, and huge ones build huge networks.
        values = VALUES if part in ("categories", "model") else TAME
        content = {**state, part: mutate(state[part], draw, values)} if part else mutate(state, draw, values)
        if not write_if_possible(path, content):
            continue
        refusals += attempt(lambda: load(path, device="cpu")) is None  # noqa: B023
    assert refusals > 60


def write_if_possible(path: Path, content: Any) -> bool:
    """Writes any content like a checkpoint; False if the format cannot hold it."""
    try:
        if isinstance(content, dict) and isinstance(content.get("model", {}), dict):
            checkpoint.save(path, content)
        else:
            torch.save(content, path)
    except Exception:
        return False
    return True


def test_wrong_fields_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    first = trainer(tmp_path / "run", length=2)
    first.run()
    state, draw, refusals = first.state(), random.Random(2), 0
    for _ in range(60):
        part = draw.choice([key for key in checkpoint.RESUMING if key in state])
        checkpoint.save(tmp_path / "w.pth", {**state, part: mutate(state[part], draw, VALUES)})
        second = trainer(tmp_path / "run", length=2)
        refusals += attempt(lambda: resume(second, tmp_path / "w.pth")) is None  # noqa: B023
    assert refusals > 20


def resume(second: Any, path: Path) -> bool:
    state = checkpoint.load(path)
    checkpoint.require(state, path, set(checkpoint.RESUMING) - {"categories"})
    second.load_state(state, path)
    return True


@pytest.mark.parametrize("missing", checkpoint.TESTING)
def test_a_missing_field_is_named(state: dict[str, Any], missing: str, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "w.pth", {key: value for key, value in state.items() if key != missing})
    with refused("w.pth", missing):
        load(tmp_path / "w.pth", device="cpu")


HEADERS = ["", "no json", "[1]", "null", "3", '"x"', "{", "1" * 5000, "[" * 100_000, '{"format": "dcn_det"}']


@pytest.mark.parametrize("text", HEADERS, ids=range(len(HEADERS)))
def test_foreign_headers_of_safetensors(text: str, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(TENSORS, path, {"dcn_det": text})
    assert attempt(lambda: load(path, device="cpu")) is None
    found = attempt(lambda: read_backbone(path))
    assert found is None or equal(found[0])


def test_a_header_without_checksum_is_read(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(TENSORS, path, {"dcn_det": json.dumps({"settings": {"a": 1}})})
    assert equal(read_state_dict(path))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_are_refused_by_name(state: dict[str, Any], value: float, tmp_path: Path) -> None:
    names = [name for name in state["model"] if name.endswith("weight")]
    bad = {name: tensor.clone() for name, tensor in state["model"].items()}
    bad[names[3]].flatten()[-1] = value
    bad[names[5]].fill_(value)
    checkpoint.save(tmp_path / "w.pth", {**state, "model": bad})
    with refused("w.pth", names[3]):
        load(tmp_path / "w.pth", device="cpu")


def test_integers_are_not_taken_for_weights(state: dict[str, Any], tmp_path: Path) -> None:
    model = {name: tensor.to(torch.int8) for name, tensor in state["model"].items()}
    checkpoint.save(tmp_path / "w.pth", {**state, "model": model})
    with refused("int8", "float32"):
        load(tmp_path / "w.pth", device="cpu")


# Small files that would cost much


def archive(pickled: bytes, compression: int = zipfile.ZIP_STORED, twice: bool = False) -> bytes:
    """An archive of torch.save with the given pickle."""
    torch.save(TENSORS, buffer := io.BytesIO())
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(new := io.BytesIO(), "w", compression) as changed:
        for entry in old.infolist():
            content = pickled if pickled and entry.filename.endswith("data.pkl") else old.read(entry)
            for _ in range(1 + (twice and "/data/" in entry.filename)):
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


@pytest.mark.filterwarnings("ignore:Duplicate name")
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
