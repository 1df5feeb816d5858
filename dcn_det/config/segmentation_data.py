"""Settings of data for semantic segmentation: images with masks, which give the class of each pixel."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from dcn_det.config.data import ResizeConfig, SplitConfig, SplitsConfig, Texts, VocSplitConfig, folder_title
from dcn_det.config.section import Pixels, Text

MASK_METRICS = ("mIoU", "mIoU_full", "pixel_accuracy")
IGNORED = 255
"""Label of pixels without a class."""
MOST_CLASSES = 255
"""Labels are bytes, and one of their values is ``IGNORED``."""

ByteValue = Annotated[int, Field(ge=0, le=255)]


class MaskDataConfig(SplitsConfig):
    """Keys of all kinds of images with masks; base class of the sections that ``register_masks`` accepts."""

    check: ClassVar[str | None] = "dcn_det.cli.dataset_checks:MaskCheck"
    metrics: ClassVar[tuple[str, ...]] = MASK_METRICS
    """Names of the metrics."""
    colors: ClassVar[tuple[tuple[int, int, int], ...]] = ()
    """Colors of the classes in pictures and palettes; empty for those of Pascal VOC."""
    submission: ClassVar[str | None] = None
    """Function that packs predictions for the server of the data set, as ``package.module:function``; its arguments are
    those of :func:`dcn_det.evaluation.segmentation_files.write_cityscapes_submission`."""
    submission_suffix: ClassVar[str] = ".zip"
    """Suffix of its file."""

    crop: tuple[Pixels, Pixels] | None = None
    """Height and width of the random part of each resized image to train on, in pixels; smaller images are not cropped.
    Null: train on whole images."""
    compare_at: Literal["input", "image"] = "image"
    """How ``mIoU`` compares labels. ``input``: at the size of the network's input, to which the ground truth is resized
    (as the authors on Pascal VOC). ``image``: at the size of the image, to which the predicted labels are resized (as
    the authors on Cityscapes). Both take the nearest pixel."""

    @property
    def train_size(self) -> tuple[int, int]:
        """Size of a crop, or of the whole input."""
        return self.crop or self.input_size


class VocMaskSplitConfig(VocSplitConfig):
    sets: Texts
    """Image sets of Pascal VOC, relative to ``data.root``."""
    sbd: tuple[Text, ...] = ()
    """Lists of image names of the Semantic Boundaries Dataset (Hariharan et al., ICCV 2011), relative to ``data.root``;
    the folders ``img`` and ``cls`` are next to them. Images that are also in ``sets`` have the masks of Pascal VOC."""


_VOC = "VOCdevkit/VOC2012/ImageSets/Segmentation/"
_SBD = "benchmark_RELEASE/dataset/"


class VocMasksConfig(MaskDataConfig):
    """Pascal VOC 2012; by default, the 10,582 training images that have masks in it or in the Semantic Boundaries
    Dataset and are not validation images."""

    class_count = 21
    submission = "dcn_det.evaluation.segmentation_files:write_voc_submission"
    submission_suffix = ".tgz"

    kind: Literal["voc_masks"] = "voc_masks"
    root: Text = "datasets/voc"
    """Folder to which all paths of the data set are relative."""
    train: VocMaskSplitConfig = VocMaskSplitConfig(
        sets=(f"{_VOC}train.txt",), sbd=(f"{_SBD}train.txt", f"{_SBD}val.txt"), without=(f"{_VOC}val.txt",)
    )
    test: VocMaskSplitConfig | None = VocMaskSplitConfig(sets=(f"{_VOC}val.txt",))
    """Null: train without evaluation."""
    resize: ResizeConfig = ResizeConfig(short_side=360, max_side=600)
    compare_at: Literal["input", "image"] = "input"
    """How ``mIoU`` compares labels: at the size of the network's ``input``, or at that of the ``image``."""


UNLABELLED = "test"
"""Set of Cityscapes without masks: the files in their place have no labels."""


class CityscapesSplitConfig(SplitConfig):
    sets: Texts
    """Folders below ``leftImg8bit`` and ``gtFine``: ``train``, ``val`` or ``test``. The last has no masks."""

    @property
    def title(self) -> str:
        return "Cityscapes " + "+".join(self.sets)

    @property
    def paths(self) -> tuple[str, ...]:
        masked = [each for each in self.sets if each != UNLABELLED]
        return (*(f"leftImg8bit/{each}" for each in self.sets), *(f"gtFine/{each}" for each in masked))


class CityscapesDataConfig(MaskDataConfig):
    """Cityscapes with fine annotations (Cordts et al., CVPR 2016), 19 classes."""

    class_count = 19
    submission = "dcn_det.evaluation.segmentation_files:write_cityscapes_submission"
    colors = (
        (128, 64, 128),
        (244, 35, 232),
        (70, 70, 70),
        (102, 102, 156),
        (190, 153, 153),
        (153, 153, 153),
        (250, 170, 30),
        (220, 220, 0),
        (107, 142, 35),
        (152, 251, 152),
        (70, 130, 180),
        (220, 20, 60),
        (255, 0, 0),
        (0, 0, 142),
        (0, 0, 70),
        (0, 60, 100),
        (0, 80, 100),
        (0, 0, 230),
        (119, 11, 32),
    )

    kind: Literal["cityscapes"] = "cityscapes"
    root: Text = "datasets/cityscapes"
    """Folder to which all paths of the data set are relative."""
    train: CityscapesSplitConfig = CityscapesSplitConfig(sets=("train",))
    test: CityscapesSplitConfig | None = CityscapesSplitConfig(sets=("val",))
    """Null: train without evaluation."""
    resize: ResizeConfig = ResizeConfig(short_side=1024, max_side=2048)
    crop: tuple[Pixels, Pixels] | None = (768, 1024)
    """Height and width of the random part of each resized image to train on, in pixels; smaller images are not cropped.
    Null: train on whole images."""
    aspect_grouping: bool = False
    """Do not mix landscape and portrait images in a batch. All images of Cityscapes have the same size."""


class MaskSplitConfig(SplitConfig):
    images: Text
    """Folder of the images, relative to ``data.root``."""
    masks: Text | None
    """Folder of the masks, relative to ``data.root``: PNG files at the same paths as the images. Null: test without
    ground truth."""

    @property
    def title(self) -> str:
        return folder_title(self.images)


class MaskFoldersConfig(MaskDataConfig):
    """Images with masks in PNG files: 8-bit gray or with a palette, whose values are the classes."""

    train: MaskSplitConfig = MaskSplitConfig(images="train/images", masks="train/masks")
    test: MaskSplitConfig | None = MaskSplitConfig(images="val/images", masks="val/masks")
    """Null: train without evaluation."""
    classes: Annotated[tuple[Text, ...], Field(min_length=1, max_length=MOST_CLASSES)]
    """Names of the classes, in the order of the values in the masks, from 0."""
    ignored: tuple[ByteValue, ...] = (IGNORED,)
    """Values in the masks of pixels to leave out, in training and in evaluation."""

    @model_validator(mode="after")
    def _check(self) -> MaskFoldersConfig:
        twice = sorted({name for name in self.classes if self.classes.count(name) > 1})
        if twice:
            raise ValueError(f"classes has '{twice[0]}' twice; name each class once")
        wrong = [value for value in self.ignored if value < len(self.classes)]
        if wrong:
            raise ValueError(
                f"ignored has {wrong[0]}, the value of class '{self.classes[wrong[0]]}'; remove one of them"
            )
        return self


class MaskFilesConfig(MaskFoldersConfig):
    kind: Literal["masks"] = "masks"


class SampleMasksConfig(MaskFoldersConfig):
    """Digits of the embedded data set and what is behind them; written to ``root`` at their first use."""

    class_count = 11

    kind: Literal["sample_masks"] = "sample_masks"
    root: Text = "datasets/sample_masks"
    """Folder to which all paths of the data set are relative."""
    classes: Annotated[tuple[Text, ...], Field(min_length=1, max_length=MOST_CLASSES)] = ("background", *"0123456789")
    """Names of the classes, in the order of the values in the masks, from 0."""
    resize: ResizeConfig = ResizeConfig(short_side=256, max_side=256)
    flip: Literal["double", "random", "none"] = "none"
    """``double`` lists every image twice, once mirrored (as the authors); ``random`` mirrors half of the images. A
    mirrored digit is a different symbol."""

    @property
    def test_title(self) -> str:
        return f"sample masks {super().test_title}"
