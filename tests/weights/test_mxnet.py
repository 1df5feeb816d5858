import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dcn_det.errors import UserError
from dcn_det.weights.mxnet import MAX_DIMENSIONS, SPARSE, is_params, read_params
from tests.messages import refused, says
from tests.weights.mxnet_writer import CODES, LAYOUTS, array_bytes, array_header, file_bytes, write_params

VALUES = {"arg:a_weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4), "aux:b_moving_mean": np.ones(5, np.float32)}


def put(path: Path, data: bytes) -> Path:
    (path / "w.params").write_bytes(data)
    return path / "w.params"


def one(array: bytes) -> bytes:
    """A file of one array named ``a``."""
    return file_bytes([array], ["a"])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", CODES)
def test_round_trip(tmp_path: Path, layout: str, dtype: str) -> None:
    generator = np.random.default_rng(0)
    shapes = {"arg:conv": (4, 3, 2, 2), "arg:fc": (5, 7), "aux:mean": (6,), "arg:empty": (0, 3), "arg:größe": (1,)}
    limits = (-100, 100) if dtype not in ("uint8",) else (0, 255)
    values = {name: generator.uniform(*limits, shape).astype(dtype) for name, shape in shapes.items()}
    write_params(tmp_path / "w.params", values, layout)
    assert is_params(tmp_path / "w.params")
    read = read_params(tmp_path / "w.params")
    assert list(read) == list(values)
    for name, value in values.items():
        assert read[name].dtype == value.dtype
        np.testing.assert_array_equal(read[name], value)


def test_layouts_and_devices_mix_in_a_file(tmp_path: Path) -> None:
    value = np.array([[1, -2], [3, 4]], np.float32)
    arrays = [array_bytes(value, layout, (2, index)) for index, layout in enumerate(LAYOUTS)]
    arrays.append(array_bytes(np.array(7, np.int64), "v3"))
    read = read_params(put(tmp_path, file_bytes(arrays, [*LAYOUTS, "scalar"])))
    for layout in LAYOUTS:
        np.testing.assert_array_equal(read[layout], value)
    assert read["scalar"].shape == () and read["scalar"] == 7


def test_bytes_of_a_known_file(tmp_path: Path) -> None:
    """Written out by hand, so that reader and writer cannot err together."""
    data = bytes.fromhex(
        "1201000000000000 0000000000000000"  # magic, reserved
        "0100000000000000"  # one array
        "c8fa93f9 02000000 0100000000000000 0200000000000000"  # V1, 1 x 2
        "01000000 00000000 00000000"  # CPU 0, float32
        "0000803f 000000c0"  # 1, -2
        "0100000000000000"  # one name
        "0500000000000000 6172673a77"  # arg:w
    )
    read = read_params(put(tmp_path, data))
    assert list(read) == ["arg:w"]
    np.testing.assert_array_equal(read["arg:w"], np.array([[1, -2]], np.float32))


def test_every_truncation_is_reported(tmp_path: Path) -> None:
    whole = file_bytes([array_bytes(value, "v1") for value in VALUES.values()], list(VALUES))
    for size in range(len(whole)):
        with refused("w.params") as caught:
            read_params(put(tmp_path, whole[:size]))
        assert "\n" not in str(caught.value)


HUGE = 2**40
CPU_FLOAT = struct.pack("<iii", 1, 0, 0)


@pytest.mark.parametrize(
    "data, named",
    [
        (b"PK\x03\x04" + bytes(100), ["0x4034b50", "0x112"]),
        (struct.pack("<QQ", 0x112, 1) + bytes(100), ["0x112", "0x1"]),
        (struct.pack("<QQQ", 0x112, 0, 2**64 - 1), [1, 2**64 - 1]),
        (one(array_header((3,), "v1") + struct.pack("<iii", 1, 0, 7) + bytes(12)), [7, "float32"]),
        (one(array_header((3,), "v1") + struct.pack("<iii", 1, 0, -1) + bytes(12)), [-1, "float32"]),
        (one(array_header((HUGE,), "v1") + CPU_FLOAT), [4 * HUGE]),
        (one(array_header((HUGE, HUGE, HUGE), "v2") + CPU_FLOAT), [(HUGE, HUGE, HUGE)]),
        (one(array_header((0, 2**62), "v3") + CPU_FLOAT), [(0, 2**62)]),
        (one(array_header((-4, -5), "v1") + CPU_FLOAT + bytes(80)), [(-4, -5)]),
        (one(array_header((2**32 - 1,) * 32, "legacy") + CPU_FLOAT), [(2**32 - 1,) * 32]),
        (one(struct.pack("<I", 33) + bytes(400)), ["0x21"]),
        (one(struct.pack("<I", 0xF993FACB) + bytes(400)), ["0xf993facb"]),
        (one(struct.pack("<II", 0xF993FAC8, 2**32 - 1) + bytes(400)), [2**32 - 1, MAX_DIMENSIONS]),
        (one(struct.pack("<Iii", 0xF993FAC9, 0, -1) + bytes(400)), [-1, MAX_DIMENSIONS]),
        (one(struct.pack("<Iii", 0xF993FAC9, 1, 1) + bytes(400)), [SPARSE[1]]),
        (one(struct.pack("<Iii", 0xF993FAC9, 2, 1) + bytes(400)), [SPARSE[2]]),
        (one(struct.pack("<Iii", 0xF993FACA, 5, 1) + bytes(400)), [5, 0, "dense"]),
        (one(struct.pack("<I", 0)), [1, "shape"]),
        (one(struct.pack("<Iii", 0xF993FACA, 0, -1)), [1, "shape"]),
        (file_bytes([array_bytes(VALUES["arg:a_weight"])], []), [0, 1]),
        (file_bytes([array_bytes(np.ones(1, np.int8))] * 2, ["a", "a"]), ["'a'"]),
        (one(array_bytes(np.ones(1, np.int8))) + b"x", [1]),
        (file_bytes([array_bytes(np.ones(1, np.int8))], [""])[:-8] + struct.pack("<Q", 2**63), [1, 2**63]),
        (
            file_bytes([array_bytes(np.ones(1, np.int8))], [""])[:-8] + struct.pack("<Q", 1) + b"\xff",
            [1, "invalid start byte"],
        ),
    ],
)
def test_bad_files(tmp_path: Path, data: bytes, named: list[object]) -> None:
    path = put(tmp_path, data)
    tracemalloc.start()
    try:
        with refused(path) as caught:
            read_params(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    said = str(caught.value).replace(str(path), "")
    assert says(said, *named) and "\n" not in said, said


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "rfcn_coco-0000.params").touch()
    with refused("rfcn_coco-000.params", "rfcn_coco-0000.params"):
        read_params(tmp_path / "rfcn_coco-000.params")


WHOLE = file_bytes(
    [
        array_bytes(np.arange(6, dtype=dtype).reshape(2, 3), layout)
        for dtype in ("float32", "int8")
        for layout in LAYOUTS
    ],
    [f"arg:{index}" for index in range(2 * len(LAYOUTS))],
)
edits = st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4)
fuzz = settings(max_examples=400, derandomize=True, deadline=2000, suppress_health_check=list(HealthCheck))


def read_or_refuse(path: Path) -> None:
    try:
        read_params(path)
    except UserError as error:
        assert "\n" not in str(error)


@fuzz
@given(edits)
def test_overwritten_bytes_never_crash(tmp_path: Path, edits: list[tuple[int, bytes]]) -> None:
    data = bytearray(WHOLE)
    for position, new in edits:
        data[position : position + len(new)] = new
    read_or_refuse(put(tmp_path, bytes(data)))


@fuzz
@given(st.binary(max_size=200))
def test_random_bodies_never_crash(tmp_path: Path, body: bytes) -> None:
    read_or_refuse(put(tmp_path, struct.pack("<QQ", 0x112, 0) + body))


numbers = st.sampled_from([0, 1, 2, 3, 32, 33, 0xF993FAC8, 0xF993FAC9, 0xF993FACA, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000])


@fuzz
@given(st.lists(numbers, max_size=30))
def test_headers_of_extreme_numbers_never_crash(tmp_path: Path, words: list[int]) -> None:
    read_or_refuse(put(tmp_path, struct.pack(f"<QQQ{len(words)}I", 0x112, 0, 1, *words)))
