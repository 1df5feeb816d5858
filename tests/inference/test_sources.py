"""What images are detected in: every kind of input, and every kind of image file."""

import http.server
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

from dcn_det.download.content import content_of
from dcn_det.errors import UserError
from dcn_det.images import Image, read_image, write_image
from dcn_det.inference.predictor import Predictor, View
from dcn_det.inference.sources import Source, find_sources
from tests.download.server import Site, serve
from tests.inference.detectors import CATEGORIES, Brightest
from tests.messages import refused

HEIGHT, WIDTH = 40, 60


def scene(x: int = 10) -> Image:
    """A white square whose left edge is at ``x``."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[8:24, x : x + 16] = 255
    return image


def encoded(image: Image, kind: str, **options: Any) -> bytes:
    content = BytesIO()
    PillowImage.fromarray(image).save(content, kind, **options)
    return content.getvalue()


def write_video(path: Path, count: int) -> None:
    """Frames whose square moves by 3 pixels, 10 per second."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (WIDTH, HEIGHT))
    assert writer.isOpened()
    for number in range(count):
        writer.write(scene(3 * number))
    writer.release()


@pytest.fixture
def predictor() -> Predictor:
    return Predictor(Brightest(), CATEGORIES, [View(HEIGHT, WIDTH)], torch.device("cpu"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "my photos"
    for name in ("b.png", "a.JPG", "ä/c.webp", "ä/._c.png"):
        write_image(folder / name.replace("JPG", "jpg"), scene())
    (folder / "a.jpg").rename(folder / "a.JPG")
    (folder / "notes.md").write_text("no image")
    return folder


def names(sources: list[Source]) -> list[str]:
    return [Path(source.place).name for source in sources]


def left(detections: Any) -> float:
    return float(detections.boxes[0, 0])


def test_folders_patterns_lists_and_files(photos: Path, tmp_path: Path) -> None:
    assert names(find_sources([photos])) == ["a.JPG", "b.png"]
    assert names(find_sources([str(photos)], recursive=True)) == ["a.JPG", "b.png", "c.webp"]
    assert names(find_sources([f"{photos}/*.png", photos / "a.JPG"])) == ["b.png", "a.JPG"]
    assert names(find_sources([f"{photos}/**/*.webp"])) == ["c.webp"]
    listed = tmp_path / "list.txt"
    listed.write_text(
        f"# photos\nmy photos/b.png\n\n{photos}/a.JPG\nhttps://example.org/d.jpg\nclip.mp4\nmissing.png\n"
    )
    sources = find_sources([listed])
    assert names(sources) == ["b.png", "a.JPG", "d.jpg", "clip.mp4", "missing.png"]
    assert [source.kind for source in sources] == ["image"] * 3 + ["video", "image"]
    assert find_sources(["0"]) == [Source("0", "camera")]


@pytest.mark.parametrize(
    ("given", "said"),
    [("missing.jpg", "missing.jpg"), ("missing/*.jpg", "missing/*.jpg"), ("empty", "no images"), ("e.txt", "e.txt")],
)
def test_what_stands_for_no_image_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "e.txt").write_text("# nothing\n")
    with refused(said):
        find_sources([given])


def test_one_image_has_one_result_and_many_have_a_list(predictor: Predictor, photos: Path, tmp_path: Path) -> None:
    assert left(predictor(photos / "b.png")) == 10
    assert [left(each) for each in predictor(photos)] == [10, 10]
    assert len(predictor(photos, recursive=True)) == 3
    assert len(predictor([photos / "b.png", scene(), str(photos / "*.png"), photos])) == 5
    assert len(predictor(f"{photos}/*.png")) == 1
    write_video(tmp_path / "clip.avi", 7)
    frames = predictor(tmp_path / "clip.avi", every=3)
    assert isinstance(frames, Iterator)
    assert [left(each) for each in frames] == pytest.approx([0, 9, 18], abs=1)


def test_frames_of_a_video(tmp_path: Path) -> None:
    path = tmp_path / "clip.avi"
    write_video(path, 7)
    source = Source(str(path), "video")
    shots = list(source.shots(2))
    assert [shot.frame for shot in shots] == [0, 2, 4, 6] and source.count(2) == 4
    assert shots[0].rate == 5 and shots[0].image.shape == (HEIGHT, WIDTH, 3)
    path.write_bytes(b"no video")
    with refused("video", "clip.avi"):
        list(source.shots())


def test_an_image_is_downloaded(predictor: Predictor) -> None:
    site = Site({"/a.png": encoded(scene(20), "PNG"), "/bad.png": b"no image", "/cut.png": encoded(scene(), "PNG")})
    with serve(site):
        assert left(predictor(f"{site.address}/a.png")) == 20
        for name, said in (("bad.png", "decode"), ("missing.png", "404")):
            with refused(name, said):
                predictor(f"{site.address}/{name}")
        site.drop_after = 50
        with refused("cut.png", "50"):
            predictor(f"{site.address}/cut.png")
    with refused("127.0.0.1"):
        predictor(f"{site.address}/a.png")


@pytest.mark.parametrize("sized", [True, False])
def test_large_downloads_are_refused(sized: bool) -> None:
    with serve(Site({"/a": bytes(5000)}, sized=sized)) as site:
        assert content_of(f"{site.address}/a", limit=5000) == bytes(5000)
        with refused("/a", "4999"):
            content_of(f"{site.address}/a", limit=4999)


def test_a_server_that_hangs_or_trickles_is_given_up() -> None:
    class Slow(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            for _ in range(100):
                time.sleep(5 if self.path == "/hang" else 0.05)
                try:
                    self.wfile.write(b"x")
                    self.wfile.flush()
                except OSError:
                    return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        server.daemon_threads = True
        server.block_on_close = False
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for path in ("hang", "trickle"):
            start = time.monotonic()
            with pytest.raises(UserError, match=path):
                content_of(f"http://127.0.0.1:{server.server_port}/{path}", timeout=0.3)
            assert time.monotonic() - start < 3
        server.shutdown()


def sixteen_bit(suffix: str) -> bytes:
    return cv2.imencode(suffix, scene().astype(np.uint16) * 257)[1].tobytes()


FORMATS = {
    "gray.png": lambda: encoded(scene()[..., 0], "PNG"),
    "16-bit.png": lambda: sixteen_bit(".png"),
    "16-bit.tif": lambda: sixteen_bit(".tiff"),
    "alpha.png": lambda: encoded(np.dstack([scene(), np.full((HEIGHT, WIDTH), 255, np.uint8)]), "PNG"),
    "lossless.webp": lambda: encoded(scene(), "WEBP", lossless=True),
    "a.jpg": lambda: encoded(scene(), "JPEG", quality=100),
    "a.avif": lambda: encoded(scene(), "AVIF", quality=100),
    "animated.gif": lambda: encoded(scene(), "GIF", save_all=True, append_images=[PillowImage.new("RGB", (60, 40))]),
}


@pytest.mark.filterwarnings("ignore:of images with several frames")
@pytest.mark.parametrize("name", FORMATS)
def test_every_kind_of_file_is_the_same_image(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FORMATS[name]())
    (source,) = find_sources([tmp_path])
    (shot,) = source.shots()
    assert shot.image.dtype == np.uint8 and shot.frame is None
    assert np.abs(shot.image.astype(int) - scene()).max() <= 2


@pytest.mark.parametrize(("mode", "kind"), [("P", "PNG"), ("CMYK", "JPEG"), ("CMYK", "TIFF"), ("LA", "PNG")])
def test_other_colors_become_rgb(mode: str, kind: str, tmp_path: Path) -> None:
    colors = np.kron(np.array([[0, 255, 128]], np.uint8), np.ones((16, 16), np.uint8))
    image = PillowImage.fromarray(np.dstack([colors, colors[:, ::-1], colors])).convert(mode)
    image.save(tmp_path / "a", kind, **({"quality": 100} if kind == "JPEG" else {}))
    found = read_image(tmp_path / "a")
    assert np.abs(found.astype(int) - np.asarray(PillowImage.open(tmp_path / "a").convert("RGB"))).max() <= 2


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation_is_used_and_said(kind: str, tmp_path: Path) -> None:
    second = PillowImage.fromarray(scene(30))
    options = {"lossless": True} if kind == "WEBP" else {}
    (tmp_path / "a").write_bytes(encoded(scene(), kind, save_all=True, append_images=[second], **options))
    with pytest.warns(UserWarning, match="first"):
        (shot,) = Source(str(tmp_path / "a")).shots()
    assert np.array_equal(shot.image, scene())
