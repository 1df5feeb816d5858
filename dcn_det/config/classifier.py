"""Settings of image classification, which trains backbones for detectors."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dcn_det.config import kinds as kinds  # registers the backbones
from dcn_det.config.data import LoadingConfig
from dcn_det.config.model import ModelConfig, ResidualBackboneConfig
from dcn_det.config.run import RunConfig, metric_problems
from dcn_det.config.section import BatchSize, BelowOne, Pixels, PositiveFloat, Text
from dcn_det.config.testing import RunTestConfig
from dcn_det.config.train import TrainConfig

METRICS = ("top1", "top5")
Share = Annotated[float, Field(gt=0, le=1)]


class ClassifierConfig(ModelConfig):
    """Global average pooling and a fully connected layer on the last stage of a backbone."""

    kind: Literal["classifier"] = "classifier"
    label_smoothing: BelowOne = 0.0
    """Share of the target that is spread evenly over all classes (Szegedy et al., CVPR 2016)."""
    zero_init_residual: bool = False
    """Start with a scale of 0 in the last normalization of each residual block (Goyal et al., 2017), for deep networks
    that are trained from scratch."""

    @model_validator(mode="after")
    def _check(self) -> ClassifierConfig:
        if not self.zero_init_residual:
            return self
        backbone = self.backbone
        if not isinstance(backbone, ResidualBackboneConfig):
            raise ValueError(f"zero_init_residual: {backbone.kind} has no residual blocks; set it to false")
        if backbone.weights != "none" or backbone.norm == "frozen_bn":
            raise ValueError(
                f"zero_init_residual is for training from scratch, not for weights '{backbone.weights}' with norm "
                f"{backbone.norm}; set it to false"
            )
        return self


class ImagesConfig(LoadingConfig):
    """Folders of images, each with one folder per class. The names of the training folders are the classes."""

    root: Text
    """Folder to which ``train`` and ``val`` are relative."""
    train: Text = "train"
    """Folder of the training images."""
    val: Text | None = "val"
    """Folder of the validation images; null: train without evaluation."""
    size: Pixels = 224
    """Side of the network's input, in pixels."""
    scale: tuple[Share, Share] = (0.08, 1.0)
    """Smallest and largest area of a random crop in training, as a fraction of the image."""
    ratio: tuple[PositiveFloat, PositiveFloat] = (3 / 4, 4 / 3)
    """Smallest and largest width / height of a random crop."""
    flip: Literal["random", "none"] = "random"
    """``random`` mirrors half of the training images."""
    resize: Pixels = 256
    """Length to which the shorter side is resized in evaluation, before ``size`` pixels are cropped from the center."""

    @property
    def input_size(self) -> tuple[int, int]:
        return self.size, self.size

    @model_validator(mode="after")
    def _check(self) -> ImagesConfig:
        if self.resize < self.size:
            raise ValueError(f"resize {self.resize} is below size {self.size}, so there is no crop of that size")
        for key in ("scale", "ratio"):
            low, high = getattr(self, key)
            if low > high:
                raise ValueError(f"{key} [{low:g}, {high:g}] is empty; the first number must not be the larger one")
        return self


class FoldersConfig(ImagesConfig):
    """ImageNet, or any images in one folder per class."""

    kind: Literal["folders"] = "folders"
    root: Text = "datasets/imagenet"
    """Folder to which ``train`` and ``val`` are relative."""


class DigitsConfig(ImagesConfig):
    """Digits cut from images like those of the embedded data set; written to ``root`` at their first use."""

    kind: Literal["digits"]
    root: Text = "datasets/digits"
    """Folder to which ``train`` and ``val`` are relative."""
    flip: Literal["random", "none"] = "none"
    """``random`` mirrors half of the training images; a mirrored digit is a different symbol."""


class ClassifierTrainConfig(TrainConfig):
    best_metric: Literal["top1", "top5"] = "top1"
    """Metric that selects ``best.pth``."""


class ClassifierTestConfig(RunTestConfig):
    batch_size: BatchSize = 32
    """Images per process and forward pass."""


class ClassificationConfig(RunConfig):
    """All settings of the training of a classifier."""

    model: ClassifierConfig = ClassifierConfig()
    data: Annotated[FoldersConfig | DigitsConfig, Field(discriminator="kind")] = FoldersConfig()
    train: ClassifierTrainConfig = ClassifierTrainConfig()
    test: ClassifierTestConfig = ClassifierTestConfig()

    def problems(self) -> dict[tuple[str | int, ...], str]:
        """Returns what is wrong with values that depend on others, by their paths."""
        found = metric_problems(self.train.best_metric, METRICS, self.data.kind, self.expected, METRICS)
        return {**found, **super().problems()}
