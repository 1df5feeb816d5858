import dataclasses
import functools
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torchvision

from dcn_det.weights.torchvision import imagenet_weights
from tests.messages import refused

STATE = {"conv1.weight": torch.arange(4.0)}


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address it is served at."""
    folder = tmp_path / "site"
    folder.mkdir()
    handler = functools.partial(QuietHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def publish(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Makes torchvision look for ResNet-18's weights there."""
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    monkeypatch.setattr(weights, "_value_", dataclasses.replace(weights.value, url=url))


def put(folder: Path) -> str:
    """Stores weights under a name that ends in their hash, as torchvision's do."""
    torch.save(STATE, folder / "w.pth")
    digest = hashlib.sha256((folder / "w.pth").read_bytes()).hexdigest()[:8]
    return (folder / "w.pth").rename(folder / f"resnet18-{digest}.pth").name


def test_downloads_once(site: tuple[Path, str], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, address = site
    name = put(folder)
    publish(monkeypatch, f"{address}/{name}")
    assert torch.equal(imagenet_weights("resnet18")["conv1.weight"], STATE["conv1.weight"])
    assert [each.name for each in cache.iterdir()] == [name]
    (folder / name).unlink()
    assert torch.equal(imagenet_weights("resnet18")["conv1.weight"], STATE["conv1.weight"])


def test_damaged_download_is_refused(site: tuple[Path, str], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, address = site
    name = put(folder)
    (folder / name).write_bytes((folder / name).read_bytes()[:-10])
    publish(monkeypatch, f"{address}/{name}")
    with refused("resnet18", "sha256", f"{address}/{name}", "model.backbone.weights"):
        imagenet_weights("resnet18")
    assert list(cache.iterdir()) == []


def test_damaged_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir(parents=True)
    (cache / "resnet18-00000000.pth").write_bytes(b"PK\x03\x04 cut off")
    publish(monkeypatch, "http://127.0.0.1:9/resnet18-00000000.pth")
    with refused("resnet18", cache, "model.backbone.weights") as caught:
        imagenet_weights("resnet18")
    assert "cannot download" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_in_the_cache_is_noticed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir(parents=True)
    name = put(cache)
    publish(monkeypatch, f"http://127.0.0.1:9/{name}")
    assert torch.equal(imagenet_weights("resnet18")["conv1.weight"], STATE["conv1.weight"])
    data = bytearray((cache / name).read_bytes())
    data[data.index(STATE["conv1.weight"].numpy().tobytes()) + 5] ^= 1
    (cache / name).write_bytes(data)
    with refused("resnet18", "sha256", cache):
        imagenet_weights("resnet18")


@pytest.mark.parametrize("reachable", [True, False])
def test_nothing_to_download(
    site: tuple[Path, str], cache: Path, monkeypatch: pytest.MonkeyPatch, reachable: bool
) -> None:
    address = site[1] if reachable else "http://127.0.0.1:9"  # the discard port, where nobody listens
    publish(monkeypatch, f"{address}/resnet18-00000000.pth")
    with refused("resnet18", f"{address}/resnet18-00000000.pth", cache, "model.backbone.weights") as caught:
        imagenet_weights("resnet18")
    assert "cannot download" in str(caught.value) and list(cache.iterdir()) == []
