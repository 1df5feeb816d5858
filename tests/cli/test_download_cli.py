"""``dcn-det download`` against a local server: small files in the place of COCO's, VOC's and torchvision's."""

import dataclasses
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dcn_det.cli import download as command
from dcn_det.download import catalog, fetch
from dcn_det.download.catalog import COCO, VOC, Collection, Part
from dcn_det.entry import exit_code
from dcn_det.weights.released import FILES
from tests.conftest import ROOT
from tests.download.server import Site, serve
from tests.download.test_extract import make_tar, make_zip
from tests.messages import refused, says

SMALL = {
    "annotations2017": {f"annotations/instances_{name}2017.json": b"{}" for name in ("train", "val")},
    "image_info2017": {"annotations/image_info_test-dev2017.json": b"{}"},
    **{name: {f"{name}/{i}.jpg": b"image" * 100 for i in range(3)} for name in ("val2017", "train2017", "test2017")},
}


def voc(year: int, image_set: str, names: str) -> dict[str, bytes]:
    base = f"VOCdevkit/VOC{year}"
    files = {f"{base}/ImageSets/Main/{image_set}.txt": names.replace(" ", "\n").encode()}
    for name in names.split():
        files |= {f"{base}/JPEGImages/{name}.jpg": b"image", f"{base}/Annotations/{name}.xml": b"<xml/>"}
    return files


SMALL_VOC = {"trainval2007": voc(2007, "trainval", "1 2"), "test2007": voc(2007, "test", "3"),
             "trainval2012": voc(2012, "trainval", "4")}  # fmt: skip


def small(collection: Collection, name: str, path: Path) -> Part:
    part = collection.parts[name]
    images = part.images and (part.images[0], 3)
    digest, size = hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size
    return dataclasses.replace(part, size=size, unpacked=size, digest=f"sha256:{digest}", images=images)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    files, archives = {}, tmp_path / "site"
    archives.mkdir()
    monkeypatch.setattr(fetch, "PAUSES", (0.0,) * 3)
    for collection, contents, make in ((COCO, SMALL, make_zip), (VOC, SMALL_VOC, make_tar)):
        for name, content in contents.items():
            archive = make(archives / collection.parts[name].name, content)
            files[f"/data/{collection.parts[name].path}"] = archive.read_bytes()
            monkeypatch.setitem(collection.parts, name, small(collection, name, archive))
    with serve(Site(files)) as site:
        yield site


def run(site: Site, folder: Path, *arguments: str, collection: str = "coco") -> int:
    return command.main([collection, "--to", str(folder), "--mirror", f"{site.address}/data/", *arguments])


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("collection", "contents"), [("coco", SMALL), ("voc", SMALL_VOC)])
def test_everything_arrives_once(
    site: Site, tmp_path: Path, collection: str, contents: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    site.drop_after = 700
    assert run(site, tmp_path / "out", collection=collection) == 0
    assert files(tmp_path / "out") == {name for part in contents.values() for name in part}
    printed = capsys.readouterr().out
    assert all(says(printed, name, "missing") and says(printed, name, "complete") for name in contents)
    site.requests.clear()
    assert run(site, tmp_path / "out", collection=collection) == 0
    assert site.requests == [] and "missing" not in capsys.readouterr().out


def test_only_what_is_missing_is_downloaded(site: Site, tmp_path: Path) -> None:
    assert run(site, tmp_path, "--parts", "val2017", "annotations2017") == 0
    assert site.requests == ["/data/zips/val2017.zip", "/data/annotations/annotations_trainval2017.zip"]
    (tmp_path / "val2017" / "1.jpg").unlink()
    assert run(site, tmp_path, "--parts", "annotations2017", "val2017") == 0
    assert site.requests[2:] == ["/data/zips/val2017.zip"]
    assert (tmp_path / "val2017" / "1.jpg").is_file()
    assert run(site, tmp_path, collection="voc") == 0
    (tmp_path / "VOCdevkit" / "VOC2007" / "JPEGImages" / "3.jpg").unlink()
    site.requests.clear()
    assert run(site, tmp_path, collection="voc") == 0
    assert site.requests == ["/data/voc2007/VOCtest_06-Nov-2007.tar"]


def test_a_dry_run_writes_nothing(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["coco", "--to", str(tmp_path / "out"), "--dry-run"]) == 0
    assert not (tmp_path / "out").exists() and site.requests == []
    assert command.main(["weights", "--to", str(tmp_path / "out"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert says(printed, "resnet101", "missing")
    for file, config in FILES.items():
        assert says(printed, file, f"configs/{config}.yaml") and (ROOT / "configs" / f"{config}.yaml").is_file()


def test_an_archive_that_was_put_there_is_used(site: Site, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "val2017.zip").write_bytes(site.files["/data/zips/val2017.zip"])
    assert run(site, out, "--parts", "val2017") == 0
    assert site.requests == [] and files(out) == set(SMALL["val2017"])
    (out / "train2017.zip").write_bytes(b"another file")
    with refused(out / "train2017.zip", "not the published file"):
        run(site, out, "--parts", "train2017")
    assert (out / "train2017.zip").read_bytes() == b"another file", "it is the user's"


def test_a_wrong_file_is_refused(site: Site, tmp_path: Path) -> None:
    site.files["/data/zips/val2017.zip"] = site.files["/data/zips/val2017.zip"][:-20]
    with refused("val2017.zip", "not the published file"):
        run(site, tmp_path / "out", "--parts", "val2017")
    assert files(tmp_path / "out") == set()


def test_a_full_disk_is_noticed_before(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COCO.parts, "val2017", dataclasses.replace(COCO.parts["val2017"], size=10**18))
    with refused(tmp_path / "out", "free"):
        run(site, tmp_path / "out")
    assert site.requests == [] and not (tmp_path / "out").exists()


def test_without_a_network_one_line_says_what_to_do(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["voc", "--to", str(tmp_path / "out"), "--mirror", "http://127.0.0.1:9"]
    assert exit_code(lambda: command.main(arguments)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and says(lines[0], "cannot download", "VOCtrainval_06-Nov-2007.tar", tmp_path / "out")
    with refused("--parts", "'val2107'", "val2017"):
        run(site, tmp_path, "--parts", "val2107")


def test_the_space_needed_is_that_of_the_worst_moment(tmp_path: Path) -> None:
    from dcn_det.download.run import space

    parts = {"a": Part("a", 10, "", 100), "b": Part("b", 1000, "", 1), "c": Part("c", 5, "")}
    assert space(parts, tmp_path) == 100 + 1000 + 1
    (tmp_path / "b.part").write_bytes(b"x" * 400)
    assert space(parts, tmp_path) == 100 + 600 + 1


def test_the_catalog_fits_the_configs_and_the_packages() -> None:
    from torchvision.datasets.voc import DATASET_YEAR_DICT as known

    for name, key in (("trainval2007", "2007"), ("test2007", "2007-test"), ("trainval2012", "2012")):
        assert f"{VOC.base}/{VOC.parts[name].path}" == known[key]["url"]
        assert VOC.parts[name].digest == f"md5:{known[key]['md5']}"
    counts = {name: part.images[1] for name, part in COCO.parts.items() if part.images is not None}
    assert counts["train2017"] + counts["val2017"] == counts["train2014"] + counts["val2014"] == 123_287
    assert {part.digest.partition(":")[0] for each in (COCO, VOC) for part in each.parts.values()} == {"sha256", "md5"}
    assert set(COCO.default) <= set(COCO.parts) and set(VOC.default) <= set(VOC.parts)


def test_a_kill_costs_only_what_is_under_way(site: Site, tmp_path: Path) -> None:
    site.drop_after, site.ranges = 100, False  # never finishes
    path = "zips/val2017.zip"
    call = f"fetch('{site.address}/data/{path}', Path('v.zip'), 'md5:0')"
    code = f"from pathlib import Path; from dcn_det.download.fetch import fetch; {call}"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
    while not (tmp_path / "v.zip.part").is_file() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    site.drop_after, site.ranges = None, True
    digest = hashlib.sha256(site.files[f"/data/{path}"]).hexdigest()
    fetch.fetch(f"{site.address}/data/{path}", tmp_path / "v.zip", f"sha256:{digest}")
    assert catalog.Part("v.zip", 1, "").present(tmp_path)
