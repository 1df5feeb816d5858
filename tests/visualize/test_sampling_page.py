"""The page of sampling locations in a browser, next to the points that Python computes."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dcn_det.ops import DeformConv2d
from dcn_det.visualize.sampling import Samples, Stack
from dcn_det.visualize.sampling_page import page
from tests.browser import Page, needs_browser
from tests.visualize.test_offsets import moved
from tests.visualize.test_sampling import read

WIDTH, HEIGHT = 200, 120
"""Of the image; the network sees it at twice this size, padded."""


def a_stack(groups: int = 2, border: str = "zeros") -> Stack:
    """Three layers, of which the second strides, with offsets that half precision represents exactly."""
    torch.manual_seed(0)
    options = {"bias": False, "border": border}
    network = nn.Sequential(
        moved(DeformConv2d(groups, groups, 3, padding=2, dilation=2, offset_groups=groups, **options)),  # type: ignore[arg-type]
        moved(DeformConv2d(groups, groups, 3, stride=2, padding=1, **options)),  # type: ignore[arg-type]
        moved(DeformConv2d(groups, groups, (1, 3), padding=(0, 1), offset_groups=groups, **options)),  # type: ignore[arg-type]
    )
    stack = read(network, torch.randn(1, groups, 32, 52), stride=8, size=(128, 208))
    for layer in stack.layers:
        layer.offset.copy_(layer.offset.half().float())
    return Stack(stack.layers, (2.0, 2.0), (HEIGHT, WIDTH))


def written(tmp_path: Path, stack: Stack | None) -> Path:
    image = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    path = tmp_path / "page.html"
    points = {"</script><b>object": (30.0, 40.0), "background": (150.0, 100.0)}
    path.write_text(page("<i>photo & co", image, stack, points, {"<u>lengths": image}))
    return path


def shown(browser: Page) -> np.ndarray:
    text = browser.evaluate("document.getElementById('points').textContent")
    return np.array([[float(number) for number in line.split()] for line in text.splitlines()])


def expected(samples: Samples) -> np.ndarray:
    groups = np.arange(len(samples.points)).repeat(samples.points.shape[1])[:, None]
    return np.concatenate(
        (groups, samples.points.reshape(-1, 2).numpy(), samples.reads.reshape(-1, 1).double().numpy()), axis=1
    )


def test_the_page_loads_nothing_and_escapes_text(tmp_path: Path) -> None:
    text = written(tmp_path, a_stack()).read_text()
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", text) and "http" not in text
    assert "<b>" not in text and "<i>photo" not in text and "<u>" not in text
    assert "<canvas" in text
    assert "<canvas" not in written(tmp_path, None).read_text()


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize(("width", "border"), [(390, "zeros"), (1280, "dcn_v1")])
def test_a_click_shows_the_samples_of_its_point(tmp_path: Path, width: int, border: str) -> None:
    stack = a_stack(border=border)
    with Page(tmp_path / "profile", width=width) as browser:
        browser.open(written(tmp_path, stack))
        browser.settle()
        assert shown(browser) == pytest.approx(expected(stack.samples(30, 40)), abs=2e-3), "the first point"
        left, top, wide, high = browser.evaluate(
            "(({left, top, width, height}) => [left, top, width, height])(canvas.getBoundingClientRect())"
        )
        assert wide / high == pytest.approx(WIDTH / HEIGHT, abs=0.02) and left + wide <= width
        for x, y in ((101, 65), (3, 4), (196, 117)):
            before = browser.evaluate("canvas.toDataURL()")
            browser.click(left + x / WIDTH * wide, top + y / HEIGHT * high)
            samples = stack.samples(x, y)
            assert not samples.reads.all() or x == 101
            assert shown(browser) == pytest.approx(expected(samples), abs=2e-3)
            assert browser.evaluate("canvas.toDataURL()") != before
        browser.evaluate("document.getElementById('group').value = '1'")
        browser.evaluate("document.getElementById('group').dispatchEvent(new Event('change'))")
        everything = expected(samples)
        assert shown(browser) == pytest.approx(everything[everything[:, 0] == 1], abs=2e-3)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width, "nothing overflows"
        assert browser.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
        assert browser.complaints() == [] and browser.requests() == []


@pytest.mark.slow
@needs_browser
def test_the_address_names_a_point(tmp_path: Path) -> None:
    stack = a_stack(groups=1)
    with Page(tmp_path / "profile") as browser:
        path = written(tmp_path, stack)
        for address, point in (("#150.5,90", (150.5, 90)), ("#nonsense", (30, 40)), ("#-50,1e9", (0, HEIGHT))):
            browser.call("Page.navigate", url=path.as_uri() + address)
            browser.settle()
            browser.evaluate("new Promise(done => setTimeout(done, 300))")
            assert shown(browser) == pytest.approx(expected(stack.samples(*point)), abs=2e-3), address
        assert browser.complaints() == []
