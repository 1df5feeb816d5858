"""Reading, downloading and scaling of digits."""

import hashlib
import re
from pathlib import Path

import pytest
import torch
from torchvision.datasets import mnist

from dcn_det.errors import UserError
from dcn_det.mnist.data import LARGEST_SCALE, SCALE_EDGES, range_of, read, scaled, shrunk
from tests.download.server import Site, serve
from tests.mnist.helpers import drawn, write_files


@pytest.mark.parametrize("where", ["", "MNIST/raw"])
@pytest.mark.parametrize("zipped", [True, False])
def test_local_files(tmp_path: Path, where: str, zipped: bool) -> None:
    write_files(tmp_path / where, zipped)
    before = sorted(tmp_path.rglob("*"))
    training, testing = read(tmp_path, mirrors=[])
    assert torch.equal(training.images, drawn(40).images) and torch.equal(training.labels, drawn(40).labels)
    assert torch.equal(testing.images, drawn(20, seed=1).images) and testing.labels.dtype == torch.int64
    assert sorted(tmp_path.rglob("*")) == before


def test_the_original_files(shared: Path) -> None:
    folder = shared / "data/mnist"
    if not folder.is_dir():
        pytest.skip(f"'{folder}' not found")
    training, testing = read(folder, mirrors=[])
    assert training.images.shape == (60000, 1, 28, 28) and testing.images.shape == (10000, 1, 28, 28)
    assert training.labels[:5].tolist() == [5, 0, 4, 1, 9] and testing.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert round(float(training.images.double().mean()) / 255, 4) == 0.1307


@pytest.mark.parametrize("content", [b"", b"\x1f\x8bdamaged", b"text"])
def test_damaged_files(tmp_path: Path, content: bytes) -> None:
    path = write_files(tmp_path) / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(str(path))):
        read(tmp_path, mirrors=[])


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    other = write_files(tmp_path / "other", number=30)
    write_files(tmp_path / "one")
    (other / "train-labels-idx1-ubyte.gz").replace(tmp_path / "one/train-labels-idx1-ubyte.gz")
    with pytest.raises(UserError, match="30 labels"):
        read(tmp_path / "one", mirrors=[])


def test_download_from_the_second_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"/{path.name}": path.read_bytes() for path in write_files(tmp_path / "server").iterdir()}
    resources = [(name, hashlib.md5(files[f"/{name}"]).hexdigest()) for name, _ in mnist.MNIST.resources]
    monkeypatch.setattr(mnist.MNIST, "resources", resources)
    with serve(Site(files)) as site:
        training, _ = read(tmp_path / "data", mirrors=["http://127.0.0.1:9/", f"{site.address}/"])
    assert len(training) == 40
    assert {path.name for path in (tmp_path / "data/MNIST/raw").iterdir()} == {name for name, _ in resources}


def test_no_connection_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, mirrors=["http://127.0.0.1:9/", "http://127.0.0.1:10/"])
    assert "\n" not in str(caught.value) and "127.0.0.1:10" in str(caught.value) and "--data" in str(caught.value)


def test_scaled_digits_are_smaller_and_inside() -> None:
    images = torch.zeros(400, 1, 28, 28)
    images[:, :, 8:20, 8:20] = 1
    smaller, scales = scaled(images, torch.Generator().manual_seed(0))
    assert scales.min() >= 1 and scales.max() <= LARGEST_SCALE and scales.std() > 0.2
    # Nothing is cut off: the area shrinks by the square of the factor, up to the error of sampling few pixels.
    ratios = smaller.sum((1, 2, 3)) / (144 / scales**2)
    assert ratios.min() > 0.6 and ratios.max() < 1.5 and abs(ratios.mean() - 1) < 0.03
    again = scaled(images, torch.Generator().manual_seed(0))
    assert torch.equal(smaller, again[0]) and torch.equal(scales, again[1])
    other = scaled(images, torch.Generator().manual_seed(1))
    assert not torch.equal(smaller, other[0])


def test_shrinking_takes_the_nearest_pixels() -> None:
    images = torch.rand(2, 1, 28, 28)
    still, shifts = torch.ones(2), torch.zeros(2, 2)
    assert torch.equal(shrunk(images, still, shifts), images)
    half = shrunk(images, 2 * still, shifts)
    assert torch.isin(half, images).logical_or(half == 0).all()
    assert half[0, 0, :7].sum() == half[0, 0, 21:].sum() == 0 and half[0, 0, 7:21, 7:21].all()
    # Moved by a quarter of the image, 7 pixels, along x, and by half of that after shrinking.
    shifts[:, 0] = 0.25
    assert torch.equal(shrunk(images, still, shifts)[..., :21], images[..., 7:])
    assert shrunk(images, 2 * still, shifts)[0, 0].any(0).nonzero()[[0, -1]].flatten().tolist() in ([3, 16], [4, 17])


def test_ranges_of_scale() -> None:
    edges = torch.tensor(SCALE_EDGES)
    assert range_of(edges[:-1] + 1e-4).tolist() == [0, 1, 2, 3, 4, 5] == range_of(edges[1:] - 1e-4).tolist()
    assert range_of(torch.tensor([1.0, LARGEST_SCALE])).tolist() == [0, 5]
