"""What ``dcn-det download`` can get: addresses, sizes and hashes of the files of COCO, Pascal VOC and torchvision.

COCO and VOC publish no hashes. Those of COCO's files are TensorFlow Datasets', those of VOC's files torchvision's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dcn_det.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Part:
    """A file to download.

    Attributes:
        path: its address below that of the collection.
        size: bytes.
        digest: see :func:`dcn_det.download.fetch.fetch`.
        unpacked: bytes of its content; 0 for a file that is no archive.
        files: files that exist when the part is complete, relative to the folder of the collection.
        images: folder and number of images, likewise.
        image_set: file of VOC's image names, likewise; the images and their annotations exist.
    """

    path: str
    size: int
    digest: str
    unpacked: int = 0
    files: tuple[str, ...] = ()
    images: tuple[str, int] | None = None
    image_set: str = ""

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.path.rpartition("/")[2]

    def present(self, folder: Path) -> bool:
        """Returns whether the part is complete in a folder."""
        if not self.unpacked:
            return (folder / self.name).is_file()
        if not all((folder / file).is_file() for file in self.files):
            return False
        if self.images is not None and len(_stems(folder / self.images[0])) < self.images[1]:
            return False
        return not self.image_set or not without_files(folder / self.image_set)


def _stems(folder: Path) -> set[str]:
    """Returns the names of the files in a folder without suffix; files being written begin with a dot."""
    return {path.stem for path in folder.iterdir() if path.name[0] != "."} if folder.is_dir() else set()


def without_files(image_set: Path) -> list[str]:
    """Returns what an image set of VOC lacks: its own file, or images and annotations of its names."""
    base = image_set.parents[2]
    if not image_set.is_file():
        return [image_set.relative_to(base).as_posix()]
    names = set(image_set.read_text().split())
    return [
        f"{inner}/{name}" for inner in ("JPEGImages", "Annotations") for name in sorted(names - _stems(base / inner))
    ]


@dataclass(frozen=True)
class Collection:
    """Files from one publisher.

    Attributes:
        base: address.
        parts: by name.
        default: names of the parts to get unless others are given.
        folder: default folder.
    """

    base: str
    parts: dict[str, Part]
    default: tuple[str, ...]
    folder: Path

    def select(self, names: list[str] | None) -> dict[str, Part]:
        """Returns the parts with these names, or the default ones.

        Raises:
            UserError: there is no part of a name.
        """
        for name in names or ():
            if name not in self.parts:
                hint = did_you_mean(name, self.parts)
                raise UserError(f"--parts: '{name}' is none of {', '.join(self.parts)}{hint}")
        return {name: self.parts[name] for name in dict.fromkeys(names or self.default)}


def _images(name: str, size: int, count: int, digest: str) -> Part:
    return Part(f"zips/{name}.zip", size, f"sha256:{digest}", unpacked=size, images=(name, count))


def _annotations(name: str, size: int, unpacked: int, digest: str, *files: str) -> Part:
    files = tuple(f"annotations/{file}.json" for file in files)
    return Part(f"annotations/{name}.zip", size, f"sha256:{digest}", unpacked, files)


COCO = Collection(
    "http://images.cocodataset.org",
    {
        "annotations2017": _annotations(
            "annotations_trainval2017",
            252_907_541,
            850_000_000,
            "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
            "instances_train2017",
            "instances_val2017",
        ),
        "image_info2017": _annotations(
            "image_info_test2017",
            1_144_034,
            20_000_000,
            "e52f412dd7195ac8f98d782b44c6dd30ea10241e9f42521f67610fbe055a74f8",
            "image_info_test-dev2017",
        ),
        "val2017": _images(
            "val2017", 815_585_330, 5_000, "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05"
        ),
        "train2017": _images(
            "train2017", 19_336_861_798, 118_287, "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929"
        ),
        "test2017": _images(
            "test2017", 6_646_970_404, 40_670, "c7908c3c9f94ba2f3340ebbeec58c25db6be8774f18d68c2f15d0e369d95baba"
        ),
        "annotations2014": _annotations(
            "annotations_trainval2014",
            252_872_794,
            850_000_000,
            "031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009",
            "instances_train2014",
            "instances_val2014",
        ),
        "image_info2015": _annotations(
            "image_info_test2015",
            1_887_164,
            30_000_000,
            "cf400242f8497257fb8a3e369bc766491f4a7e42625fb3d72555504e9a8c3b18",
            "image_info_test-dev2015",
        ),
        "train2014": _images(
            "train2014", 13_510_573_713, 82_783, "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775"
        ),
        "val2014": _images(
            "val2014", 6_645_013_297, 40_504, "fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0"
        ),
        "test2015": _images(
            "test2015", 13_270_587_935, 81_434, "1a2aa896b81140a850a78fa8bff07d455698d2abf364ff05721763458a8101ca"
        ),
    },
    ("annotations2017", "image_info2017", "val2017", "train2017", "test2017"),
    Path("datasets/coco"),
)


def _voc(archive: str, size: int, digest: str, year: int, image_set: str) -> Part:
    path = f"VOCdevkit/VOC{year}/ImageSets/Main/{image_set}.txt"
    return Part(f"voc{year}/{archive}.tar", size, f"md5:{digest}", size, image_set=path)


VOC = Collection(
    "https://thor.robots.ox.ac.uk/pascal/VOC",
    {
        "trainval2007": _voc(
            "VOCtrainval_06-Nov-2007", 460_032_000, "c52e279531787c972589f7e41ab4ae64", 2007, "trainval"
        ),
        "test2007": _voc("VOCtest_06-Nov-2007", 451_020_800, "b6e924de25625d8de591ea690078ad9f", 2007, "test"),
        "trainval2012": _voc(
            "VOCtrainval_11-May-2012", 1_999_639_040, "6cd6e144f989b92b3379bac3b3de84fd", 2012, "trainval"
        ),
    },
    ("trainval2007", "test2007", "trainval2012"),
    Path("datasets/voc"),
)
