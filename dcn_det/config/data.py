"""Settings of data: location, loading and augmentation of images."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import PurePath
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from dcn_det.config.section import BelowOne, Fraction, NonNegative, Pixels, PositiveFloat, Section, Text, at_most

COCO_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
VOC_METRICS = ("mAP50", "mAP70")


Texts = Annotated[tuple[Text, ...], Field(min_length=1)]


class SplitConfig(Section):
    """Location of the images and annotations of a split; each format has its own keys."""

    part: tuple[Fraction, Fraction] = (0, 1)
    """Part of the images to use, in a random order fixed by ``data.part_seed``: with [0, 0.9] for training and [0.9, 1]
    for testing, two splits of the same images have none in common."""

    @property
    def title(self) -> str:
        """Name of the split in ``expected.split``; empty if the format has no names."""
        return ""

    @property
    def paths(self) -> tuple[str, ...]:
        """Files and folders of the split, relative to ``data.root``: all texts among its values."""
        values = [each for _, value in self for each in (value if isinstance(value, tuple) else (value,))]
        return tuple(each for each in values if isinstance(each, str))

    @model_validator(mode="after")
    def _check_part(self) -> SplitConfig:
        low, high = self.part
        if low >= high:
            raise ValueError(f"part [{low:g}, {high:g}] is empty; the first number must be the smaller one")
        return self


class CocoSplitConfig(SplitConfig):
    images: Text | Texts
    """Folder of the images, relative to ``data.root``; a list has one folder for each file of ``annotations``."""
    annotations: Text | Texts
    """COCO-format JSON file, relative to ``data.root``, or a list of files, whose images are combined."""

    @property
    def sources(self) -> tuple[tuple[str, str], ...]:
        """Image folder and annotation file of each source."""
        folders, files = _listed(self.images), _listed(self.annotations)
        return tuple(zip(folders if len(folders) > 1 else folders * len(files), files))

    @property
    def title(self) -> str:
        return "+".join(coco_title(file) for file in _listed(self.annotations))

    @model_validator(mode="after")
    def _check(self) -> CocoSplitConfig:
        folders, files = len(_listed(self.images)), len(_listed(self.annotations))
        if folders not in (1, files):
            raise ValueError(
                f"images lists {folders} folders for {files} annotation file{'s' if files > 1 else ''}; "
                "list one for all files, or one for each"
            )
        return self


def _listed(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value


_SAME = {"test-dev2015": "test-dev", "test-dev2017": "test-dev", "minival2014": "val2017"}
"""Splits of COCO that are known by several names; minival has the images of val2017."""


def coco_title(annotations: str) -> str:
    """Returns the name of a split by that of its annotation file: ``val2017`` for ``instances_val2017.json``."""
    stem = PurePath(annotations).stem
    name = stem.removeprefix("instances_").removeprefix("image_info_")
    return _SAME.get(name, name)


class VocSplitConfig(SplitConfig):
    alternatives = (("sets", "folder"),)

    sets: Texts | None = None
    """Image sets of Pascal VOC, relative to ``data.root``; for example ``VOC2007/ImageSets/Main/trainval.txt``. With
    ``folder``: text files that list some of its images, one per line."""
    folder: Text | None = None
    """Folder of XML files relative to ``data.root`` (``.`` for all of it), for other layouts than Pascal VOC's. The XML
    files in it and below are used. Their images have the same name and are next to them, below the folder, or anywhere
    below ``data.root``."""
    without: tuple[Text, ...] = ()
    """Image sets whose images are left out, such as those of the training split in a test split that repeats some."""

    @property
    def title(self) -> str:
        if self.folder is not None and self.sets is None:
            return PurePath(self.folder).name
        paths = [PurePath(each) for each in self.sets or ()]
        return "+".join(f"{path.parts[-4]} {path.stem}" if len(path.parts) > 3 else path.stem for path in paths)

    @model_validator(mode="after")
    def _check(self) -> VocSplitConfig:
        if self.sets is None and self.folder is None:
            raise ValueError("give sets (image sets of Pascal VOC), folder (of XML files and images), or both")
        return self


class YoloSplitConfig(SplitConfig):
    images: Text | Texts
    """Folder of images, used with its subfolders, or text file that lists images, or several of them; relative to
    ``data.root``. The labels are next to the images, or in a folder ``labels`` where the images have ``images``."""

    @property
    def title(self) -> str:
        return "+".join(folder_title(each) for each in _listed(self.images))


def folder_title(place: str) -> str:
    """Returns the name of a split: ``val`` for ``images/val``, ``val/images`` and ``val.txt``."""
    parts = [part for part in PurePath(place).with_suffix("").parts if part not in ("images", ".", "..")]
    return parts[-1] if parts else "images"


class ResizeConfig(Section):
    short_side: Pixels = 600
    """Length to which the shorter side is resized, in pixels, ..."""
    max_side: Pixels = 1000
    """... unless the longer side would exceed this length, to which it is then resized."""

    @model_validator(mode="after")
    def _check(self) -> ResizeConfig:
        if self.max_side < self.short_side:
            raise ValueError(f"max_side {self.max_side} is below short_side {self.short_side}; raise it")
        return self


class JitterConfig(Section):
    """Photometric distortion of training images, in random order, drawn anew for every image and epoch."""

    probability: Fraction = 0.0
    """Fraction of the images to distort; 0 disables distortion."""
    brightness: BelowOne = 0.125
    """Maximum shift of pixel values, as a fraction of 255."""
    contrast: BelowOne = 0.5
    """Multiplies pixel values by a factor in [1 - x, 1 + x]."""
    saturation: BelowOne = 0.5
    """Multiplies the distance from gray by a factor in [1 - x, 1 + x]."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    """Maximum rotation of the hue, as a fraction of the circle."""


class CropConfig(Section):
    """Random crops of training images, before resizing."""

    probability: Fraction = 0.0
    """Fraction of the images to crop; 0 disables cropping."""
    min_side: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Minimum sides of a crop, as a fraction of those of the image."""
    min_visible: Fraction = 0.3
    """Minimum visible fraction of a box; others are dropped. Crops that leave no box are not used."""


class LoadingConfig(Section):
    """Keys of the data of every task: how images are read."""

    check: ClassVar[str | None] = None
    """Class behind ``dcn-det check-dataset``, as ``package.module:Class``; None if there is none."""

    class_count: ClassVar[int | None] = None
    """Number of classes if the settings have no ``classes``; None if it depends on the data."""

    kind: str
    max_pixels: Annotated[int, Field(gt=0, le=2**30)] = 2**27
    """Maximum width times height of an image; larger ones are refused before decoding."""
    exif: Literal["apply", "ignore", "auto"] = "auto"
    """Orientation of photos that annotations refer to: ``apply`` the EXIF orientation, as most viewers do, ``ignore``
    it, or ``auto``, for each photo the one that has the annotated size (as stored, if both have; upright, if no size
    is annotated)."""
    workers: Annotated[NonNegative, at_most(512)] = 2
    """Loader processes; 0 loads in the main process."""
    timeout: PositiveFloat = 300.0
    """Maximum time to wait for a batch of the loader processes, in seconds; the run then ends with an error."""

    @property
    def test_title(self) -> str:
        """Name of the test split in ``expected.split``; empty if it has none."""
        return ""

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None if it depends on the data."""
        return len(getattr(self, "classes", None) or ()) or self.class_count

    @property
    @abstractmethod
    def input_size(self) -> tuple[int, int]:
        """Height and width of a typical input, in pixels."""

    @property
    def train_size(self) -> tuple[int, int]:
        """The same for training."""
        return self.input_size


class SplitsConfig(LoadingConfig):
    """Keys of the data of tasks whose splits are :class:`SplitConfig` sections and whose images keep their shape."""

    root: Text
    """Folder to which all paths of the data set are relative."""
    train: SplitConfig
    test: SplitConfig | None
    """Null: train without evaluation."""
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Fraction of the images of both splits to use, drawn at random from ``part_seed`` and the image names."""
    part_seed: NonNegative = 0
    """Seed of ``fraction`` and of ``part``; independent of ``seed``, so that runs with other seeds use the same images.
    """
    resize: ResizeConfig = ResizeConfig()
    flip: Literal["double", "random", "none"] = "double"
    """``double`` lists every image twice, once mirrored (as the authors); ``random`` mirrors half of the images."""
    aspect_grouping: bool = True
    """Do not mix landscape and portrait images in a batch."""

    @property
    def input_size(self) -> tuple[int, int]:
        """Short and long side of the resized image."""
        return self.resize.short_side, self.resize.max_side

    @property
    def test_title(self) -> str:
        """Name of the test split in ``expected.split``; empty if there is none."""
        if self.test is None:
            return ""
        low, high = self.test.part
        return "".join(
            [
                self.test.title,
                f" part {low:g}-{high:g}" if (low, high) != (0, 1) else "",
                f" fraction {self.fraction:g}" if self.fraction < 1 else "",
            ]
        ).strip()


class DataConfig(SplitsConfig):
    """Keys of all data formats; base class of the sections that ``register_format`` accepts."""

    check: ClassVar[str | None] = "dcn_det.cli.dataset_checks:DetectionCheck"
    metrics: ClassVar[tuple[str, ...]] = COCO_METRICS
    """Names of the metrics of this format."""
    truth: ClassVar[str] = "dcn_det.evaluation.truth:Truth"
    """Class that computes them, as ``package.module:Class``."""

    root: Text = "datasets/coco"
    """Folder to which all paths of the data set are relative."""
    classes: Annotated[tuple[Text, ...], Field(min_length=1)] | None = None
    """Names of the classes to detect, in the order of their labels: all or some categories of the annotations. Null:
    all categories, in ascending order of id."""
    short_sides: tuple[Pixels, ...] = ()
    """Multi-scale training: values of ``resize.short_side`` to draw from, per image."""
    jitter: JitterConfig = JitterConfig()
    crop: CropConfig = CropConfig()
    repeat_threshold: Fraction = 0.0
    """Repeat-factor sampling (LVIS, Gupta et al., CVPR 2019): repeats images with classes that occur in less than this
    fraction of all images; 0 disables it."""
    empty_images: Literal["keep", "skip"] = "skip"
    """Whether to train on images without a usable box."""
    bad_images: Literal["error", "skip"] = "error"
    """Missing or unreadable training images: stop, or leave them out and count them."""
    cache: Literal["none", "ram", "disk"] = "none"
    """Keeps decoded and resized training images for all processes of the machine: in memory (``/dev/shm``) or in
    ``cache_folder``. Images that do not fit are decoded every time."""
    cache_folder: Text | None = None
    """Folder of ``cache: disk``; default: ``.cache`` in ``root``."""

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        classes = self.classes or ()
        twice = sorted({name for name in classes if classes.count(name) > 1})
        if twice:
            raise ValueError(f"classes has '{twice[0]}' twice; name each category once")
        above = [side for side in self.short_sides if side > self.resize.max_side]
        if above:
            raise ValueError(f"short_sides has {above[0]}, above resize.max_side {self.resize.max_side}; raise that")
        return self


class CocoFilesConfig(DataConfig):
    """Splits with annotations in COCO's JSON format."""

    train: CocoSplitConfig = CocoSplitConfig(images="train2017", annotations="annotations/instances_train2017.json")
    test: CocoSplitConfig | None = CocoSplitConfig(images="val2017", annotations="annotations/instances_val2017.json")
    """Null: train without evaluation. Files without ``annotations``, such as that of test-dev, can be tested but not
    evaluated."""


class CocoDataConfig(CocoFilesConfig):
    class_count = 80

    kind: Literal["coco"] = "coco"


class SampleDataConfig(CocoFilesConfig):
    """The embedded set of digits over photographs; written to ``root`` at its first use."""

    class_count = 10

    kind: Literal["sample"] = "sample"

    @property
    def test_title(self) -> str:
        return f"sample {super().test_title}"


class YoloDataConfig(DataConfig):
    """Images with one text file each: lines of class id, and center, width and height as fractions of the image.

    Lines of polygons (class id and corners) are also read; a box encloses them.
    """

    kind: Literal["yolo"] = "yolo"
    root: Text = "datasets/yolo"
    """Folder to which all paths of the data set are relative."""
    exif: Literal["apply", "ignore", "auto"] = "apply"
    """Orientation of photos that labels refer to: ``apply`` the EXIF orientation, as the tools that write this format
    do, or read images as they are stored (``ignore``, ``auto``: labels state no size to compare with)."""
    train: YoloSplitConfig = YoloSplitConfig(images="images/train")
    test: YoloSplitConfig | None = YoloSplitConfig(images="images/val")
    """Null: train without evaluation."""
    names: Text | None = None
    """File of class names by id, relative to ``data.root``: YAML with ``names``, or text with one name per line. Null:
    ``data.yaml``, ``dataset.yaml``, ``classes.txt`` or ``obj.names``."""


class VocDataConfig(DataConfig):
    """Pascal VOC; default of ``classes``: its 20 classes."""

    metrics = VOC_METRICS
    truth = "dcn_det.evaluation.voc:VocTruth"
    class_count = 20

    kind: Literal["voc"] = "voc"
    train: VocSplitConfig
    test: VocSplitConfig | None
    """Null: train without evaluation."""
    corners: Literal["inclusive", "half_open"] = "inclusive"
    """Meaning of the corners of boxes: ``inclusive`` pixels counted from 1, as in Pascal VOC, where a box of the whole
    image is (1, 1, width, height); or ``half_open`` coordinates from 0, where it is (0, 0, width, height)."""
