"""Settings of data: where images are, and how they are loaded and augmented."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from dcn_det.config.section import BelowOne, Fraction, NonNegative, Pixels, PositiveFloat, Section, Text, at_most

COCO_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
VOC_METRICS = ("mAP50", "mAP70")


class SplitConfig(Section):
    """Where the images and annotations of a split are; each format has its own keys."""


class CocoSplitConfig(SplitConfig):
    images: Text
    """Folder of the images, relative to ``data.root``."""
    annotations: Text
    """COCO-format JSON file, relative to ``data.root``."""


class VocSplitConfig(SplitConfig):
    sets: Annotated[tuple[Text, ...], Field(min_length=1)]
    """Image sets of Pascal VOC, relative to ``data.root``, such as ``VOC2007/ImageSets/Main/trainval.txt``."""


class ResizeConfig(Section):
    short_side: Pixels = 600
    """Pixels; the shorter side is brought to this ..."""
    max_side: Pixels = 1000
    """... unless the longer one would exceed this, which then decides."""

    @model_validator(mode="after")
    def _check(self) -> ResizeConfig:
        if self.max_side < self.short_side:
            raise ValueError(f"max_side {self.max_side} is below short_side {self.short_side}; raise it")
        return self


class JitterConfig(Section):
    """Photometric distortion of training images, in random order; a draw of its own for each image and epoch."""

    probability: Fraction = 0.0
    """Share of the images that are distorted; 0 switches it off."""
    brightness: BelowOne = 0.125
    """Pixel values move by up to this share of 255."""
    contrast: BelowOne = 0.5
    """Pixel values are multiplied by a factor in [1 - x, 1 + x]."""
    saturation: BelowOne = 0.5
    """Distance from grey is multiplied by a factor in [1 - x, 1 + x]."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    """The hue turns by up to this share of the circle."""


class CropConfig(Section):
    """Random crops of training images, before resizing."""

    probability: Fraction = 0.0
    """Share of the images that are cropped; 0 switches it off."""
    min_side: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Shortest sides of a crop, as a share of the image's."""
    min_visible: Fraction = 0.3
    """Boxes of which less is left are dropped. A crop that would leave no box is not made."""


class DataConfig(Section):
    """What every data format has; base of the sections that ``register_format`` takes."""

    metrics: ClassVar[tuple[str, ...]] = COCO_METRICS
    """Names of the metrics that are measured on data of this format."""
    truth: ClassVar[str] = "dcn_det.evaluation.truth:Truth"
    """What measures them, as ``package.module:Class``."""
    class_count: ClassVar[int | None] = None
    """Number of classes where ``classes`` is not given; None if only the annotations tell."""

    kind: str
    root: Text = "datasets/coco"
    """Folder that all paths of the data set are relative to."""
    train: SplitConfig
    test: SplitConfig | None
    """Null trains without evaluation."""
    classes: Annotated[tuple[Text, ...], Field(min_length=1)] | None = None
    """Category names; when given they must be those of the annotation file."""
    resize: ResizeConfig = ResizeConfig()
    flip: Literal["double", "random", "none"] = "double"
    """``double`` lists every image twice, once mirrored (the authors' way); ``random`` tosses a coin."""
    short_sides: tuple[Pixels, ...] = ()
    """Multi-scale training: each image gets one of these at random instead of ``resize.short_side``."""
    jitter: JitterConfig = JitterConfig()
    crop: CropConfig = CropConfig()
    repeat_threshold: Fraction = 0.0
    """Repeat-factor sampling (LVIS, Gupta et al., CVPR 2019): images with a class found in less than this share of
    all images are shown more often; 0 shows all equally."""
    empty_images: Literal["keep", "skip"] = "skip"
    """Training images without a usable box."""
    bad_images: Literal["error", "skip"] = "error"
    """Missing or unreadable files, when training: stop, or leave out and count."""
    aspect_grouping: bool = True
    """Batches hold landscape or portrait images, not both."""
    workers: Annotated[NonNegative, at_most(512)] = 2
    """Loader processes; 0 loads in the main process."""
    timeout: PositiveFloat = 300.0
    """Maximum time to wait for a batch of the loader processes, in seconds; the run then ends with an error."""
    cache: Literal["none", "ram", "disk"] = "none"
    """Keeps decoded and resized training images, shared by all processes of the machine: in memory (``/dev/shm``) or
    in ``cache_folder``. What does not fit is decoded each time."""
    cache_folder: Text | None = None
    """Where ``cache: disk`` keeps them; ``.cache`` in ``root`` when not given."""

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
    """Null trains without evaluation; a file without ``annotations``, such as that of test-dev, can be tested but
    not evaluated."""


class CocoDataConfig(CocoFilesConfig):
    class_count = 80

    kind: Literal["coco"] = "coco"


class SampleDataConfig(CocoFilesConfig):
    """The embedded set of digits over photographs, written to ``root`` when first used."""

    class_count = 10

    kind: Literal["sample"] = "sample"


class VocDataConfig(DataConfig):
    """Pascal VOC; ``classes`` are its 20 unless given."""

    metrics = VOC_METRICS
    truth = "dcn_det.evaluation.voc:VocTruth"
    class_count = 20

    kind: Literal["voc"] = "voc"
    train: VocSplitConfig
    test: VocSplitConfig | None
    """Null trains without evaluation."""
