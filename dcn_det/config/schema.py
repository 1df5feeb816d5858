"""The schema of all settings: types, units, defaults and meaning.

Values are frozen and unknown keys are refused. Defaults follow the paper's recipe for ResNet-101 on COCO (Dai et al.,
ICCV 2017) and, where it gives none, the authors' released code.

Rules between keys are checked in the innermost block that contains them; rules that depend on more than the settings
(names of residual blocks, categories of a data set), where these are known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import Field, PrivateAttr, model_validator

from dcn_det.config import kinds as kinds  # registers what the defaults below name
from dcn_det.config.data import CocoDataConfig, DataConfig
from dcn_det.config.model import DetectorConfig, FasterRCNNConfig
from dcn_det.config.registry import DETECTORS, FORMATS, OneOf
from dcn_det.config.section import Section, wrong
from dcn_det.config.testing import EvaluationConfig, ExpectedConfig, TestConfig
from dcn_det.config.train import TrainConfig
from dcn_det.errors import did_you_mean

VERSION = 2

MODULE_NAME = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$"


class Config(Section):
    """All settings of a run: model, data, training, testing and evaluation."""

    version: Literal[2] = 2
    """Version of the schema."""
    imports: tuple[Annotated[str, Field(pattern=MODULE_NAME)], ...] = ()
    """Modules that register backbones, detectors or data formats, on Python's path, in the folder of the config or in
    the working directory. Imported before other settings are read; added to the imports of bases."""
    name: str = ""
    """Name of the experiment; runs are written to ``runs/<name>``. Default: name of the file."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    device: Literal["auto", "cpu", "cuda"] | Annotated[str, Field(pattern="^cuda:[0-9]+$")] = "auto"
    """``auto``: CUDA if available, otherwise the CPU; ``cuda:N``: the N-th GPU, from 0."""
    model: Annotated[DetectorConfig, OneOf(DETECTORS)] = FasterRCNNConfig()
    data: Annotated[DataConfig, OneOf(FORMATS)] = CocoDataConfig()
    train: TrainConfig = TrainConfig()
    test: TestConfig = TestConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    expected: tuple[ExpectedConfig, ...] = ()

    _origins: Mapping[str, str] = PrivateAttr(default_factory=dict)

    @property
    def origins(self) -> Mapping[str, str]:
        """Origin of each value by dotted key: ``FILE:LINE``, ``override`` or ``default``.

        A list of plain values is one value. Empty for configs created in Python.
        """
        return self._origins

    def with_origins(self, origins: Mapping[str, str]) -> Config:
        """Returns the same settings with other origins."""
        config = self.model_copy()
        config._origins = dict(origins)
        return config

    def __eq__(self, other: object) -> bool:
        """Returns whether all settings are equal, regardless of their origins."""
        return isinstance(other, Config) and self.__dict__ == other.__dict__

    @model_validator(mode="after")
    def _check(self) -> Config:
        known = _known_metrics()
        measured = self.data.metrics if self.data.test is not None else known
        problems: dict[tuple[str | int, ...], str] = {}
        if self.train.best_metric not in measured:
            where = f"on {self.data.kind} data" if measured is not known else "on any data"
            problems["train", "best_metric"] = _not_among(self.train.best_metric, measured, where)
        for index, item in enumerate(self.expected):
            # Results may be expected on other data than those that overrides select.
            if item.metric not in known:
                problems["expected", index, "metric"] = _not_among(item.metric, known, "on any data")
        if self.name and (
            not (parts := PurePath(self.name).parts) or ".." in parts or PurePath(self.name).is_absolute()
        ):
            problems["name",] = f"'{self.name}' leaves the folder runs; give a name or a relative path without '..'"
        if problems:
            raise wrong(problems)
        return self


def _known_metrics() -> Sequence[str]:
    """Returns the metrics of all data formats."""
    return list(dict.fromkeys(name for section in FORMATS.sections.values() for name in section.metrics))


def _not_among(metric: str, names: Sequence[str], where: str) -> str:
    return f"{metric} is not measured {where}; allowed: {', '.join(names)}{did_you_mean(metric, names)}"
