"""``dcn-det analyze`` from files to a page, also in a browser if one is installed."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from dcn_det.cli.analyze import main
from dcn_det.errors import UserError
from tests.browser import Page, needs_browser

pytest.importorskip("hotcoco")
pytest.importorskip("matplotlib")

NAMES = ("a cat", "<b>dog</b> & co", "a name that is quite long, longer than any cell")
PLOTS = {"precision_recall", "size", "scores", "ious", "confusion", "errors"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """truth.json, results.json and images/ with seven random pictures."""
    folder = tmp_path_factory.mktemp("analyze")
    (folder / "images").mkdir()
    random = np.random.default_rng(0)
    images, annotations, results = [], [], []
    for image_id in range(1, 8):
        picture = random.integers(0, 256, (240, 320, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / "images" / f"{image_id}.jpg"), picture)
        images.append({"id": image_id, "file_name": f"{image_id}.jpg", "height": 240, "width": 320})
        for _ in range(4):
            box = [*random.uniform(0, 150, 2).tolist(), *random.uniform(20, 90, 2).tolist()]
            category = int(random.integers(1, 4))
            annotations.append({"image_id": image_id, "category_id": category, "bbox": box})
            moved = [value + float(random.normal(0, 5)) for value in box]
            found = int(random.choice([category, 1]))
            score = float(random.random())
            results.append({"image_id": image_id, "category_id": found, "bbox": moved, "score": score})
    categories = [{"id": i, "name": name} for i, name in enumerate(NAMES, start=1)]
    truth = {"images": images, "categories": categories, "annotations": annotations}
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "results.json").write_text(json.dumps(results))
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Path:
    arguments = ["--ground-truth", str(folder / "truth.json"), "--images", str(folder / "images"), "--worst", "3"]
    assert main([str(folder / "results.json"), *arguments]) == 0
    return folder / "report" / "report.html"


class Elements(HTMLParser):
    """Collects tags with their attributes; checks that all are closed in order."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_holds_all_it_shows_and_is_well_formed(page: Path) -> None:
    elements = Elements()
    elements.feed(page.read_text())
    assert elements.open == []
    tags = [tag for tag, _ in elements.found]
    assert "script" not in tags
    sources = [value for _, attributes in elements.found for key, value in attributes.items() if key in ("src", "href")]
    assert all(source is not None and source.startswith("data:") for source in sources)
    assert len([source for source in sources if source and source.startswith("data:image/png")]) == len(PLOTS)
    assert len([source for source in sources if source and source.startswith("data:image/jpeg")]) == 2 * 3
    assert not re.search(r"url\(|@import|https?:", page.read_text())
    for name in NAMES:
        assert name in elements.text
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in elements.found


def test_the_plots_are_pictures_and_the_same_each_time(folder: Path, page: Path) -> None:
    for name in PLOTS:
        picture = cv2.imread(str(page.parent / f"{name}.png"))
        assert picture is not None and picture.shape[0] > 300 and picture.std() > 5, name
    before = page.read_bytes()
    arguments = ["--ground-truth", str(folder / "truth.json"), "--images", str(folder / "images"), "--worst", "3"]
    assert main([str(folder / "results.json"), *arguments]) == 0
    assert page.read_bytes() == before


def test_a_report_goes_without_images_and_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--ground-truth", str(folder / "truth.json"), "--output", str(folder / "bare")]
    assert main([str(folder / "results.json"), *arguments]) == 0
    assert re.search(r"warning: 7 .*--images", capsys.readouterr().err)
    assert "data:image/jpeg" not in (folder / "bare" / "report.html").read_text()


def test_what_is_missing_is_named(folder: Path) -> None:
    with pytest.raises(UserError, match=r"--ground-truth: .*config\.yaml"):
        main([str(folder / "results.json")])
    with pytest.raises(UserError, match=r"--images: .*'nowhere'"):
        main([str(folder / "results.json"), "--ground-truth", str(folder / "truth.json"), "--images", "nowhere"])


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_the_page_without_complaint(page: Path, tmp_path: Path, width: int) -> None:
    with Page(tmp_path / "profile", width=width) as browser:
        browser.open(page)
        assert browser.complaints() == [] and browser.requests() == []
        assert browser.evaluate("document.documentElement.scrollWidth") <= width, "nothing overflows"
        assert browser.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
